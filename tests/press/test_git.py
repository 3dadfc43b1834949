"""What git says, in small repositories, and what is said where it cannot."""

import shutil
import subprocess

import pytest

from press.git import GitError, commit, git
from press.paths import ROOT


@pytest.fixture
def repository(tmp_path):
    """A repository of one commit with two files, whose own ignored files are the book's."""
    root = tmp_path / "root"
    (root / "records").mkdir(parents=True)
    (root / "page.md").write_text("one")
    (root / "records" / "gpu.json").write_text("{}")
    shutil.copy(ROOT / ".gitignore", root)
    name = ["-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run(["git", *name, *words], cwd=root, check=True)
    return root


def head(root):
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=root, text=True).strip()


def test_git_answers_without_the_end_of_the_line(repository):
    assert git(repository, "ls-files") == ".gitignore\npage.md\nrecords/gpu.json"


def test_what_git_complains_of_is_said(repository):
    with pytest.raises(GitError, match="rev-parse --verify nope` fails: fatal: Needed a single"):
        git(repository, "rev-parse", "--verify", "nope")


def test_without_git_that_is_said(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(GitError, match="^git is not installed$"):
        git(repository, "ls-files")


def test_a_checkout_without_changes_is_its_commit(repository):
    assert commit(repository) == head(repository)


def test_what_the_book_ignores_is_no_change_whether_folder_or_link(repository, tmp_path):
    for name in (".venv", "node_modules", ".cache"):
        (repository / name).symlink_to(tmp_path)
    (repository / "_build").mkdir()
    (repository / "_build" / "x").touch()
    assert commit(repository) == head(repository)


@pytest.mark.parametrize("name", ["page.md", "new.md"])
def test_a_change_or_a_new_file_is_named(repository, name):
    git(repository, "config", "status.showUntrackedFiles", "no")
    (repository / name).write_text("two")
    with pytest.raises(GitError, match=f"no commit holds these changes.*\n.*{name}"):
        commit(repository)


def test_a_file_that_does_not_count_may_change_and_no_other(repository):
    (repository / "records" / "gpu.json").write_text("[]")
    assert commit(repository, "records/gpu.json") == head(repository)
    with pytest.raises(GitError, match="gpu.json"):
        commit(repository)


def test_a_copy_inside_another_repository_is_none_of_its_commits(repository):
    with pytest.raises(GitError, match="records is a folder inside another repository"):
        commit(repository / "records")
