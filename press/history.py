"""When each file of the repository was last changed, as its commits tell."""

from collections.abc import Iterable
from pathlib import Path

from press.git import GitError, git


def last_changes(root: Path) -> dict[str, int]:
    """Read from the history when each file was last changed.

    A clock would give another answer at every build. A shallow clone would give one answer for
    all files, a wrong one: it gives none.

    Args:
        root: the folder of the repository.

    Returns:
        For each path from the root the time of its last commit, in seconds since 1970; empty
        where there is no history to read, or no git.
    """
    found: dict[str, int] = {}
    for commit in _log(root).split("\0")[1:]:
        seconds, *names = commit.split("\n")
        for name in filter(None, names):
            found[name] = max(int(seconds), found.get(name, 0))
    return found


def _log(root: Path) -> str:
    """List the commits with the files of each, names unquoted; nothing where none can be trusted."""
    try:
        if git(root, "rev-parse", "--is-shallow-repository", "--show-prefix").split() != ["false"]:
            return ""
        command = ("log", "--format=%x00%ct", "--name-only")
        return git(root, "-c", "core.quotePath=false", *command)
    except GitError:
        return ""


def latest(changes: dict[str, int], files: Iterable[str]) -> int | None:
    """Find when the last of some files was changed.

    Args:
        changes: the answer of :func:`last_changes`.
        files: paths from the root.

    Returns:
        The time in seconds since 1970, or None where no commit holds any of them.
    """
    return max((changes[file] for file in files if file in changes), default=None)
