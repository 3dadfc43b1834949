"""When each file of the repository was last changed, as its commits tell."""

import subprocess
from collections.abc import Iterable
from pathlib import Path


def last_changes(root: Path) -> dict[str, int]:
    """Read from the history when each file was last changed.

    A clock would give another answer at every build. A shallow clone would give one answer for
    all files, a wrong one: it gives none.

    Args:
        root: the folder of the repository.

    Returns:
        For each path from the root the time of its last commit, in seconds since 1970; empty
        where there is no history to read.
    """
    if _git(root, "rev-parse", "--is-shallow-repository", "--show-prefix").split() != ["false"]:
        return {}
    found: dict[str, int] = {}
    for commit in _git(root, "log", "--format=%x00%ct", "--name-only").split("\0")[1:]:
        seconds, *names = commit.split("\n")
        for name in filter(None, names):
            found[name] = max(int(seconds), found.get(name, 0))
    return found


def _git(root: Path, *command: str) -> str:
    """Ask git without quotation of names; it says nothing where the folder is no repository."""
    full = ["git", "-c", "core.quotePath=false", *command]
    return subprocess.run(full, cwd=root, capture_output=True, text=True).stdout


def latest(changes: dict[str, int], files: Iterable[str]) -> int | None:
    """Find when the last of some files was changed.

    Args:
        changes: the answer of :func:`last_changes`.
        files: paths from the root.

    Returns:
        The time in seconds since 1970, or None where no commit holds any of them.
    """
    return max((changes[file] for file in files if file in changes), default=None)
