"""The record of a run on a GPU: what it holds, what may join it, and what it must not hide."""

import datetime
import json
import subprocess

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from press import gpu
from press.accelerator import DeviceError, Machine
from press.digest import digest

CARD = Machine("cuda", "Card X", "580.1", "2.13.0")
HEAD = {**CARD._asdict(), "commit": "c" * 40}
PAGE = """\
# T

```{code-cell} python
from gradbook import claim, device
assert device().type == "cpu"
claim("thm-a", "two and two", 4.0, equals=4.0)
```

```{code-cell} python
claim("thm-b", "about nothing", 0.5, equals=0.0, stderr=1.0)
```
"""


def repository(folder):
    folder.mkdir(exist_ok=True)
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "--allow-empty", "-m", "one"]):
        name = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", "-C", str(folder), *name, *command], check=True)
    return folder


def test_a_clean_repository_names_its_commit(tmp_path):
    root = repository(tmp_path)
    head = subprocess.check_output(["git", "-C", str(root), "rev-parse", "HEAD"], text=True)
    assert gpu.commit(root) == head.strip()
    (root / "records").mkdir()
    (root / "records" / "gpu.json").write_text("{}")
    assert gpu.commit(root) == head.strip()


@pytest.mark.parametrize("name", ["new.txt", "records/other.json"])
def test_a_repository_with_changes_is_refused_by_name(tmp_path, name):
    root = repository(tmp_path)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).touch()
    with pytest.raises(gpu.RecordError, match=f"commit them first.*\n.*{name[:7]}"):
        gpu.commit(root)


def test_a_copy_without_git_names_the_commit_it_was_made_from(tmp_path):
    root = repository(tmp_path)
    copy = root / "copy"
    copy.mkdir()
    (copy / ".commit").write_text("a" * 40 + "\n")
    assert gpu.commit(copy) == "a" * 40


def test_a_folder_that_is_neither_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "plain").mkdir()
    with pytest.raises(
        gpu.RecordError, match="plain holds no .commit, and .* not a git repository"
    ):
        gpu.commit(tmp_path / "plain")


def old():
    return {
        **HEAD,
        "date": "2026-01-01",
        "chapters": {"one": {"seconds": 1}, "two": {"seconds": 2}},
        "claims": {"one": ["x"], "two": ["y"]},
        "missing": {"three": "why", "four": "why"},
    }


@pytest.mark.parametrize(("record", "names"), [(None, ["one"]), (old(), []), (None, [])])
def test_a_run_of_all_chapters_begins_anew(record, names):
    empty = {"chapters": {}, "claims": {}, "missing": {}}
    assert gpu.start(record, CARD, "c" * 40, names) == {**HEAD, **empty}


def test_chapters_join_a_record_and_leave_what_they_replace():
    before = old()
    # The driver may be another; the record then names the last one.
    found = gpu.start(before, CARD._replace(driver="590"), "c" * 40, ["two", "three"])
    assert found == {
        **HEAD,
        "driver": "590",
        "chapters": {"one": {"seconds": 1}},
        "claims": {"one": ["x"]},
        "missing": {"four": "why"},
    }
    assert before == old()


@pytest.mark.parametrize(
    ("on", "of", "words"),
    [
        (CARD._replace(card="Card Y"), "c" * 40, "card Card X:"),
        (CARD._replace(torch="2.6.0"), "c" * 40, "torch 2.13.0:"),
        (CARD, "d" * 40, f"commit {'c' * 40}:"),
        (CARD._replace(card="Y", torch="2.6.0"), "c" * 40, "card Card X, torch 2.13.0:"),
        (CARD._replace(device="cpu"), "c" * 40, "device cuda:"),
    ],
)
def test_chapters_of_another_run_do_not_join(on, of, words):
    with pytest.raises(gpu.RecordError, match=f"the record is of {words} run all"):
        gpu.start(old(), on, of, ["one"])


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A folder of chapters that main() works on, of a known commit; it returns the record."""
    monkeypatch.setattr(gpu, "CHAPTERS", tmp_path)
    monkeypatch.setattr(gpu, "RECORD", tmp_path / "records" / "gpu.json")
    monkeypatch.setattr(gpu, "TRIAL", tmp_path / "trial.json")
    monkeypatch.setattr(gpu, "commit", lambda _: "c" * 40)

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.md").write_text(text)
        return tmp_path

    return write


@pytest.fixture
def quick(monkeypatch):
    """Chapters that run without a kernel, on a card; ``ran`` lists them with their device."""
    ran = []

    def put(on=CARD, **errors):
        def run(page, where):
            ran.append((page.stem, where))
            if page.stem in errors:
                raise errors[page.stem]
            metadata = nbformat.from_dict({"gradbook": {"digest": "d", "seconds": 1.5}})
            return nbformat.v4.new_notebook(metadata=metadata)

        monkeypatch.setattr(gpu, "run", run)
        monkeypatch.setattr(gpu, "machine", lambda _: on)
        return ran

    return put


@pytest.mark.slow
def test_a_chapter_that_runs_is_recorded_claim_by_claim(book, capsys):
    folder = book(one=PAGE, two=PAGE.replace("equals=0.0", "equals=9.0"))
    assert gpu.main(["--device", "cpu"]) == 1
    record = json.loads((folder / "trial.json").read_text())
    seconds = record["chapters"]["one"].pop("seconds")
    assert 0 < seconds < 60
    assert record["chapters"] == {"one": {"digest": digest(folder / "one.md")}}
    assert record["claims"] == {
        "one": [
            {"label": "thm-a", "statement": "two and two", "measured": 4.0, "stderr": None},
            {"label": "thm-b", "statement": "about nothing", "measured": 0.5, "stderr": 1.0},
        ]
    }
    why = record["missing"]["two"]
    assert why.startswith("cell 1: ClaimError: claim thm-b does not hold: about nothing")
    today = datetime.datetime.now(tz=datetime.UTC).date()
    assert today - datetime.date.fromisoformat(record["date"]) <= datetime.timedelta(1)
    assert (record["device"], record["driver"], record["commit"]) == ("cpu", "none", "c" * 40)
    said = capsys.readouterr()
    assert f"one: 2 claims in {seconds} s\n" in said.out
    assert f"wrote {folder / 'trial.json'}: 1 of 2 chapters\n" in said.out
    assert f"two stopped: {why}\n" in said.err
    assert not (folder / "one.ipynb").exists()


def test_all_chapters_run_one_by_one_on_the_card(book, quick):
    folder, ran = book(one=PAGE, two=PAGE, prose="# Words\n"), quick()
    assert gpu.main(["--device", "cuda:1"]) == 0
    assert ran == [("one", "cuda:1"), ("two", "cuda:1")]
    record = json.loads((folder / "records" / "gpu.json").read_text())
    assert record["chapters"]["two"] == {"digest": "d", "seconds": 1.5}
    assert {key: record[key] for key in HEAD} == HEAD


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (CellExecutionError("Traceback", "ValueError", "no\nway"), "cell 3: ValueError: no way"),
        (CellTimeoutError("too long"), "cell 3: CellTimeoutError: too long"),
        (DeadKernelError("it died"), "cell 3: DeadKernelError: it died"),
    ],
)
def test_a_chapter_that_stops_is_missing_and_the_others_run(book, quick, error, why):
    error.add_note("cell 3")
    folder, ran = book(one=PAGE, two=PAGE), quick(one=error)
    assert gpu.main([]) == 1
    record = json.loads((folder / "records" / "gpu.json").read_text())
    assert (len(ran), list(record["chapters"]), record["missing"]) == (2, ["two"], {"one": why})
    assert gpu.main(["one"]) == 1
    again = json.loads((folder / "records" / "gpu.json").read_text())
    assert (list(again["chapters"]), again["missing"]) == (["two"], {"one": why})


def test_what_ran_is_kept_when_a_later_chapter_breaks_the_run(book, quick):
    folder, _ = book(one=PAGE, two=PAGE), quick(two=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        gpu.main([])
    assert list(json.loads((folder / "records" / "gpu.json").read_text())["chapters"]) == ["one"]


def test_a_trial_on_a_cpu_never_becomes_the_record(book, quick, capsys):
    folder, ran = book(one=PAGE), quick(on=CARD._replace(device="cpu"))
    assert gpu.main(["--device", "cpu", "--to", str(folder / "records" / "gpu.json")]) == 2
    assert "a run on cpu is no record of a GPU" in capsys.readouterr().err
    assert (ran, (folder / "records").exists()) == ([], False)
    assert gpu.main(["--device", "cpu", "--to", str(folder / "out" / "x.json")]) == 0
    assert (folder / "out" / "x.json").exists()


def test_without_the_device_nothing_runs(book, quick, monkeypatch, capsys):
    _, ran = book(one=PAGE), quick()

    def none(name):
        raise DeviceError(f"no {name}")

    monkeypatch.setattr(gpu, "machine", none)
    assert gpu.main([]) == 2
    assert (ran, capsys.readouterr().err) == ([], "no cuda\n")


def test_an_unknown_chapter_is_refused(book, quick, capsys):
    book(one=PAGE), quick()
    with pytest.raises(SystemExit):
        gpu.main(["nine"])
    assert "no such chapter: nine" in capsys.readouterr().err


def back(*chapters, missing=(), **head):
    return {
        **HEAD,
        "date": "2026-01-01",
        "chapters": {name: {"seconds": 1} for name in chapters},
        "claims": {name: [name] for name in chapters},
        "missing": {name: "why" for name in missing},
        **head,
    }


def test_records_of_one_run_in_turns_become_one():
    first, second = back("one", missing=["two", "three"]), back("two", date="2026-01-02")
    assert gpu.join([first, second]) == back("one", "two", missing=["three"], date="2026-01-02")
    assert gpu.join([second]) == second


@pytest.mark.parametrize("key", ["device", "card", "torch", "commit"])
def test_records_of_two_runs_are_not_joined(key):
    with pytest.raises(gpu.RecordError, match=f"the record is of {key} other: "):
        gpu.join([back("one", **{key: "other"}), back("two")])


def test_joining_writes_the_record_and_runs_nothing(book, quick, capsys):
    folder, ran = book(one=PAGE), quick()
    paths = [folder / "1.json", folder / "2.json"]
    paths[0].write_text(json.dumps(back("one")))
    assert gpu.main(["--join", *map(str, paths)]) == 2
    assert "2.json" in capsys.readouterr().err
    paths[1].write_text(json.dumps(back("two")))
    assert gpu.main(["--join", *map(str, paths)]) == 0
    assert json.loads((folder / "records" / "gpu.json").read_text()) == back("one", "two")
    paths[1].write_text(json.dumps(back("two", device="cpu")))
    assert gpu.main(["--join", str(paths[1])]) == 2
    assert "a run on cpu is no record of a GPU" in capsys.readouterr().err
    assert ran == []


def test_the_record_goes_to_every_place_and_is_read_from_the_first(book, quick):
    folder, _ = book(one=PAGE, two=PAGE), quick()
    places = ["--to", str(folder / "kept.json"), "--to", str(folder / "out" / "gpu.json")]
    assert gpu.main([*places, "one"]) == 0
    (folder / "out" / "gpu.json").unlink()
    assert gpu.main([*places, "two"]) == 0
    for name in ("kept.json", "out/gpu.json"):
        assert list(json.loads((folder / name).read_text())["chapters"]) == ["one", "two"]
