"""What runs on the other machine: it needs the standard library alone, and trusts no transfer."""

import ast
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from press import carried

HERE = "{}.{}".format(*sys.version_info)


@pytest.fixture
def bundle(tmp_path):
    """A bundle of two parts; ``b.whl`` is cut between them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as book:
        member = tarfile.TarInfo("chapters/one.md")
        member.size = 5
        book.addfile(member, io.BytesIO(b"# One"))
    contents = {"book.tar.gz": packed.getvalue(), "wheels/a.whl": b"a", "wheels/b.whl": b"bcd"}
    pieces = {
        "book.tar.gz": ["part-1/book.tar.gz"],
        "wheels/a.whl": ["part-1/wheels/a.whl"],
        "wheels/b.whl": ["part-1/wheels/b.whl.at-0", "part-2/wheels/b.whl.at-1"],
    }
    plan = {
        "commit": "c" * 40,
        "python": HERE,
        "base": ["book.tar.gz"],
        "chapters": {"one": ["wheels/a.whl"], "two": ["wheels/a.whl", "wheels/b.whl"]},
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "pieces": pieces[name]}
            for name, content in contents.items()
        },
    }
    parts = tmp_path / "parts"
    for folder in ("part-1/wheels", "part-2/wheels"):
        (parts / folder).mkdir(parents=True)
    (parts / "part-1" / "book.tar.gz").write_bytes(packed.getvalue())
    (parts / "part-1" / "wheels" / "a.whl").write_bytes(b"a")
    (parts / "part-1" / "wheels" / "b.whl.at-0").write_bytes(b"b")
    (parts / "part-2" / "wheels" / "b.whl.at-1").write_bytes(b"cd")
    (parts / "part-1" / "plan.json").write_text(json.dumps(plan))
    return plan, parts


def test_it_imports_the_standard_library_alone():
    tree = ast.parse(Path(carried.__file__).read_text())
    found = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    found |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {name.split(".")[0] for name in found} <= sys.stdlib_module_names


def test_a_chapter_is_possible_when_all_its_pieces_are_there(bundle):
    plan, parts = bundle
    assert carried.possible(plan, parts) == ["one", "two"]
    (parts / "part-2" / "wheels" / "b.whl.at-1").unlink()
    assert carried.possible(plan, parts) == ["one"]
    (parts / "part-1" / "book.tar.gz").unlink()
    assert carried.possible(plan, parts) == []


def test_pieces_are_joined_and_checked(bundle, tmp_path):
    plan, parts = bundle
    path = carried.whole(plan, "wheels/b.whl", parts, tmp_path / "work")
    assert (path, path.read_bytes()) == (tmp_path / "work" / "wheels" / "b.whl", b"bcd")


def test_a_file_that_was_damaged_is_refused_and_can_come_again(bundle, tmp_path):
    plan, parts = bundle
    piece = parts / "part-2" / "wheels" / "b.whl.at-1"
    piece.write_bytes(b"cx")
    with pytest.raises(carried.CarriedError, match="wheels/b.whl did not arrive as it was packed"):
        carried.whole(plan, "wheels/b.whl", parts, tmp_path / "work")
    piece.write_bytes(b"cd")
    assert carried.whole(plan, "wheels/b.whl", parts, tmp_path / "work").read_bytes() == b"bcd"


def test_a_new_bundle_is_taken_where_an_old_one_was_unpacked(bundle, tmp_path):
    plan, parts = bundle
    (tmp_path / "work" / "wheels").mkdir(parents=True)
    (tmp_path / "work" / "wheels" / "b.whl").write_bytes(b"of an older bundle")
    assert carried.whole(plan, "wheels/b.whl", parts, tmp_path / "work").read_bytes() == b"bcd"


def test_nothing_of_others_is_touched_in_the_folder_that_is_named(bundle, steps, tmp_path):
    plan, parts = bundle
    home = tmp_path / "home"
    theirs = ["book/novel.txt", "book.tar.gz", "wheels/a.whl", "venv/bin/python", "gpu.json"]
    for name in theirs:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("theirs")
    assert carried.main(["--work", str(home)], parts) == 0
    assert [(home / name).read_text() for name in theirs] == ["theirs"] * len(theirs)
    assert {path.name for path in home.iterdir()} == {
        carried.WORK,
        *(name.split("/")[0] for name in theirs),
    }
    assert steps["cwd"] == home / carried.WORK / "book"


@pytest.fixture
def steps(monkeypatch):
    """What main() would install and run, without doing it."""
    done = {}
    monkeypatch.setattr(carried, "environment", lambda folder: folder / "bin" / "python")
    monkeypatch.setattr(carried, "install", lambda _, wheels: done.update(wheels=wheels))

    def run(command, **options):
        done.update(command=command, **options)
        return subprocess.CompletedProcess(command, done.get("status", 0))

    monkeypatch.setattr(carried.subprocess, "run", run)
    return done


def test_main_runs_what_has_arrived_with_its_wheels_alone(bundle, steps, monkeypatch, tmp_path):
    _, parts = bundle
    (parts / "part-2" / "wheels" / "b.whl.at-1").unlink()
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    steps["status"] = 1
    assert carried.main([], parts) == 1
    work = parts / carried.WORK
    assert steps["wheels"] == [work / "wheels" / "a.whl"]
    assert steps["command"] == [
        work / "venv" / "bin" / "python",
        *("-m", "press.gpu", "--device", "cuda"),
        *("--to", str(work / "gpu.json"), "--to", str(tmp_path / "out" / "gpu.json")),
        "one",
    ]
    assert (work / "book" / "chapters" / "one.md").read_text() == "# One"
    assert steps["cwd"] == work / "book"
    env = steps["env"]
    assert (env["PYTHONPATH"], env["GRADBOOK_DATA"]) == (str(work / "book"), str(work / "data"))
    assert (env["PIP_NO_INDEX"], env["HF_HUB_OFFLINE"]) == ("1", "1")


@pytest.mark.parametrize(
    ("ran", "names", "runs"),
    [([], [], ["one", "two"]), (["one"], [], ["two"]), (["one"], ["one"], ["one"])],
)
def test_main_runs_what_has_not_run_or_is_named(bundle, steps, tmp_path, ran, names, runs):
    _, parts = bundle
    work = tmp_path / carried.WORK
    work.mkdir()
    (work / "gpu.json").write_text(json.dumps({"chapters": dict.fromkeys(ran, {})}))
    assert carried.main(["--device", "cpu", "--work", str(tmp_path), *names], parts) == 0
    assert steps["command"][-len(runs) :] == runs
    assert steps["command"][3:5] == ["--device", "cpu"]


def changed(plan, parts):
    plan["python"] = "3.7"
    (parts / "part-1" / "plan.json").write_text(json.dumps(plan))


def damaged(_, parts):
    (parts / "part-1" / "wheels" / "a.whl").write_bytes(b"?")


def gone(_, parts):
    (parts / "part-2" / "wheels" / "b.whl.at-1").unlink()


def finished(_, parts):
    (parts / carried.WORK).mkdir()
    (parts / carried.WORK / "gpu.json").write_text('{"chapters": {"one": {}, "two": {}}}')


@pytest.mark.parametrize(
    ("change", "names", "words"),
    [
        (changed, [], f"the bundle is for Python 3.7, and this is {HERE}"),
        (damaged, [], "wheels/a.whl did not arrive as it was packed"),
        (gone, ["two", "one"], "parts are missing for two; ready: one"),
        (finished, [], "nothing to run: the parts at hand allow one, two"),
    ],
)
def test_main_says_why_it_cannot_run(bundle, steps, capsys, change, names, words):
    change(*bundle)
    assert carried.main(names, bundle[1]) == 2
    assert words in capsys.readouterr().err
    assert "command" not in steps


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A Python that is an environment's, whose torch is nowhere else: the hard case of a machine."""
    folder = tmp_path / "machine"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "torch.py").write_text("__version__ = '1.2.3'\n")
    monkeypatch.setattr(sys, "executable", str(folder / "bin" / "python"))
    monkeypatch.setattr(carried._torch, "__defaults__", (sys.executable,))
    return packages


@pytest.mark.slow
def test_the_environment_sees_the_machines_torch_and_its_own_packages_first(machine, tmp_path):
    (machine / "shared.py").write_text("FROM = 'machine'\n")
    python = carried.environment(tmp_path / "venv")
    assert carried._torch(python) == carried._torch() == ["1.2.3", str(machine / "torch.py")]
    (own,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    (own / "shared.py").write_text("FROM = 'bundle'\n")
    command = [python, "-c", "import shared; print(shared.FROM)"]
    assert subprocess.check_output(command, text=True) == "bundle\n"
    assert carried.environment(tmp_path / "venv") == python


@pytest.mark.slow
def test_a_machine_without_torch_is_refused(machine, tmp_path):
    (machine / "torch.py").unlink()
    with pytest.raises(carried.CarriedError, match="has no torch: ModuleNotFoundError"):
        carried.environment(tmp_path / "venv")


def test_a_torch_that_changed_is_refused(monkeypatch):
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(carried.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(carried, "_torch", lambda *python: ["2", "/b"] if python else ["1", "/a"])
    with pytest.raises(carried.CarriedError, match="torch was 1 /a and is now 2 /b"):
        carried.install(Path("python"), [])


def test_pip_asks_neither_the_network_nor_for_what_wheels_ask_for(monkeypatch):
    asked = []

    def run(command, env, **_):
        asked.append((command, env))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(carried.subprocess, "run", run)
    monkeypatch.setattr(carried, "_torch", lambda *_: ["1", "/a"])
    carried.install(Path("python"), [Path("a.whl")])
    ((command, env),) = asked
    assert {"--no-index", "--no-deps"} < set(command)
    assert (command[-1], env["PIP_NO_INDEX"]) == (Path("a.whl"), "1")


def test_pip_that_stops_is_heard(monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "no such wheel")
    monkeypatch.setattr(carried.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(carried.CarriedError, match="pip stopped:\nno such wheel"):
        carried.install(Path("python"), [])
