"""What git says of a repository, or in one sentence why it says nothing."""

import subprocess
from pathlib import Path


class GitError(RuntimeError):
    """Git cannot answer; the message says why, as the end of a sentence."""


def git(root: Path, *words: str) -> str:
    """Ask git.

    Args:
        root: the folder that is asked about.
        words: the command.

    Returns:
        What it prints, without the end of the last line.

    Raises:
        GitError: if there is no git, or it fails.
    """
    command = ["git", "-C", str(root), *words]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise GitError("git is not installed") from error
    except subprocess.CalledProcessError as error:
        raise GitError(f"`{' '.join(command)}` fails: {error.stderr.strip()}") from error
    return asked.stdout.rstrip("\n")


def commit(root: Path, *but: str) -> str:
    """Name the commit that a checkout is, to the letter.

    Args:
        root: the folder of the repository.
        but: files whose changes do not count, from the root.

    Returns:
        The commit's hexadecimal digits.

    Raises:
        GitError: if no commit is what lies there, since there are changes or files that none holds,
            or the folder is no repository's own.
    """
    # A copy of the book inside another repository is not what that one's commits hold.
    if git(root, "rev-parse", "--show-prefix"):
        raise GitError(f"{root} is a folder inside another repository")
    asked = ("status", "--porcelain", "--untracked-files=normal", "--", ".")
    if changes := git(root, *asked, *(f":!{name}" for name in but)):
        raise GitError(f"no commit holds these changes, commit them first:\n{changes}")
    return git(root, "rev-parse", "HEAD")
