"""The dates of files from commits, in small repositories."""

import os
import subprocess

import pytest

from press import history

DAY = 86_400


def git(folder, *command, seconds=0):
    identity = {
        f"GIT_{who}_{key}": "a" for who in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")
    }
    dates = {f"GIT_{who}_DATE": f"@{seconds} +0000" for who in ("AUTHOR", "COMMITTER")}
    environment = os.environ | identity | dates
    subprocess.run(["git", *command], cwd=folder, env=environment, check=True, capture_output=True)


def commit(folder, seconds, **files):
    for name, text in files.items():
        path = folder / name.replace("_", "/", 1)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "a message", seconds=seconds)


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    commit(folder, 1 * DAY, a="1", chapters_é="1")
    commit(folder, 3 * DAY, a="2")
    commit(folder, 2 * DAY, a="3", chapters_b="1")
    return folder


def test_a_file_has_the_date_of_its_last_commit(repository):
    assert history.last_changes(repository) == {
        "a": 3 * DAY,
        "chapters/b": 2 * DAY,
        "chapters/é": 1 * DAY,
    }


def test_a_change_without_a_commit_changes_nothing(repository):
    before = history.last_changes(repository)
    (repository / "a").write_text("4")
    assert history.last_changes(repository) == before


def test_a_shallow_clone_knows_no_dates(repository, tmp_path):
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository}", "shallow")
    assert history.last_changes(tmp_path / "shallow") == {}


def test_where_there_is_no_repository_there_are_no_dates(repository, tmp_path):
    (tmp_path / "none").mkdir()
    assert history.last_changes(tmp_path / "none") == {}
    # A folder inside another's repository: its paths would be read from the wrong root.
    assert history.last_changes(repository / "chapters") == {}


def test_without_git_there_are_no_dates(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert history.last_changes(repository) == {}


def test_before_the_first_commit_there_are_no_dates(tmp_path):
    git(tmp_path, "init", "-q")
    assert history.last_changes(tmp_path) == {}


def test_the_latest_of_some_files():
    changes = {"a": 1, "b": 3, "c": 2}
    assert history.latest(changes, ["a", "c", "unknown"]) == 2
    assert history.latest(changes, ["unknown"]) is None
    assert history.latest(changes, []) is None
