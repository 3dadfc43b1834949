"""The comparison of two builds, on small folders; ``make reproducible`` builds the book itself."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from press import reproducible


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_every_file_has_its_digest(tmp_path):
    found = reproducible.digests(write(tmp_path, {"b": "x", "a/.hidden": "", "a/c": "y"}))
    assert list(found) == ["a/.hidden", "a/c", "b"]
    assert found["b"] == hashlib.sha256(b"x").hexdigest()


def test_a_folder_without_files_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no file in"):
        reproducible.digests(tmp_path)


def test_each_difference_is_named():
    one = {"a": "1", "b": "1", "c": "1"}
    assert reproducible.differing(one, dict(one)) == []
    assert reproducible.differing(one, {"a": "1", "b": "2", "d": "1"}) == [
        "b: differs",
        "c: in the first alone",
        "d: in the second alone",
    ]


def test_the_summary_is_that_of_sha256sum(tmp_path):
    write(tmp_path, {"a": "1", "b": "2"})
    listing = subprocess.run(
        "sha256sum a b | sha256sum", shell=True, cwd=tmp_path, capture_output=True, text=True
    ).stdout
    assert reproducible.summary(reproducible.digests(tmp_path)) == listing.split()[0]


@pytest.fixture
def builds(monkeypatch):
    """Puts two folders of files in the place of the two builds, and returns what was asked for."""
    asked = []

    def put(*sites):
        def build(source, folder, differences):
            asked.append((folder, differences))
            return write(folder, sites[len(asked) - 1])

        monkeypatch.setattr(reproducible, "build", build)
        return asked

    return put


def test_equal_builds_are_counted_and_summarized(builds, capsys):
    asked = builds({"a": "1", "b": "2"}, {"a": "1", "b": "2"})
    assert reproducible.main() == 0
    count, digest = capsys.readouterr().out.splitlines()
    assert count == "2 files are equal"
    assert len(digest.removeprefix("sha256 ")) == 64
    (one, first), (other, second) = asked
    assert len(str(one)) != len(str(other))
    assert first.keys() == second.keys() == {"PYTHONHASHSEED", "TZ"}
    assert all(first[key] != second[key] for key in first)
    assert not one.exists()


def test_a_byte_that_differs_fails(builds, capsys):
    builds({"a": "1", "b": "2"}, {"a": "1", "b": "3"})
    assert reproducible.main() == 1
    assert capsys.readouterr().out.splitlines()[:2] == ["b: differs", "1 of 2 files differ"]


def test_no_two_clocks_show_the_same_day():
    command = [sys.executable, "-c", "import time; print(time.timezone)"]
    offsets = [
        int(subprocess.run(command, env=own, capture_output=True, text=True, check=True).stdout)
        for own in reproducible.DIFFERENCES
    ]
    assert abs(offsets[0] - offsets[1]) > 86_400


BOOK = """\
import os, pathlib
site = pathlib.Path("_build/html")
site.mkdir(parents=True)
(site / "files").write_text("\\n".join(os.listdir()))
(site / "page").write_text(os.environ["OWN"])
(site / "paths").write_text(os.environ["PYTHONPATH"])
"""


@pytest.fixture
def repository(tmp_path):
    """Makes a repository whose book is built by a stand-in, beside a file that is not committed."""

    def made(script):
        root = write(
            tmp_path / "root",
            {"press/__init__.py": "", "press/book.py": script, "committed": "yes"},
        )
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a"]):
            identity = ["-c", "user.name=a", "-c", "user.email=a"]
            subprocess.run(["git", *identity, *command], cwd=root, check=True)
        (root / "uncommitted").write_text("")
        return root

    return made


def test_a_build_is_of_the_commit_with_its_own_environment(repository, tmp_path):
    clone = tmp_path / "clone"
    site = reproducible.build(repository(BOOK), clone, {"OWN": "one"})
    assert site == clone / "_build" / "html"
    assert (site / "page").read_text() == "one"
    files = (site / "files").read_text().split()
    assert {"committed", "node_modules"} <= set(files)
    assert "uncommitted" not in files
    assert (site / "paths").read_text().split(":")[:2] == [str(clone), str(clone / "code")]


def test_a_build_that_fails_is_no_site(repository, tmp_path):
    with pytest.raises(subprocess.CalledProcessError, match="status 3"):
        reproducible.build(repository("raise SystemExit(3)"), tmp_path / "clone", {"OWN": "one"})
    assert Path(tmp_path / "clone" / "committed").exists()
