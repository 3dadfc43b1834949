"""A copy of the repository to run tests in, which leaves the repository itself alone."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNIT_SECONDS = 120
CHAPTER_SECONDS = 300
# A claim that fails inside a notebook is named by its label, whatever cell it stands in.
_CLAIM = re.compile(r"ClaimError.*?claim ([\w-]+) does not hold")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?(?:\[.*?\])?)(?: - .*)?$", re.MULTILINE)
_ORIGIN = "import importlib.util; print(importlib.util.find_spec('gradbook').origin)"


@contextmanager
def sandbox(root: Path) -> Iterator[Path]:
    """Copy what git tracks or would track to a temporary folder.

    Args:
        root: the repository.

    Yields:
        The folder of the copy; it is removed afterwards.

    Raises:
        RuntimeError: if Python would import the package from elsewhere than the copy.
    """
    with tempfile.TemporaryDirectory(prefix="gradbook-") as folder:
        copy = Path(folder).resolve()
        listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.check_output(listing, cwd=root, text=True).split("\0")
        for name in names:
            # git still lists a file that was deleted and not yet committed.
            if name and (root / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / name, copy / name)
        # What npm brought is ignored by git, and tests of the site need it.
        if (root / "node_modules").is_dir():
            (copy / "node_modules").symlink_to((root / "node_modules").resolve())
        _check_origin(copy)
        yield copy


def run_tests(copy: Path, target: str) -> str:
    """Run one file of tests or one notebook until something is red.

    Args:
        copy: the folder to run in.
        target: a file of tests, or a notebook for nbval, from that folder.

    Returns:
        What was red, or ``""``; running out of time is red.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider"]
    seconds = UNIT_SECONDS
    if target.endswith(".ipynb"):
        command += ["--nbval", "-p", "no:randomly"]
        seconds = CHAPTER_SECONDS
    process = subprocess.Popen(
        [*command, target],
        cwd=copy,
        env=_environment(copy),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Its own group: a test may have started processes that must end with it.
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"timeout ({target}, {seconds} s)"
    return first_failure(output, target) if process.returncode else ""


def first_failure(output: str, target: str) -> str:
    """Name what went red.

    Args:
        output: what pytest printed.
        target: the file that it ran.

    Returns:
        The chapter and the label of its claim where a claim failed in a notebook; else the id of
        the first failing test; else the target.
    """
    failed = _FAILED.search(output)
    claim = _CLAIM.search(output) if target.endswith(".ipynb") else None
    if claim:
        return f"{target}: claim {claim[1]}"
    return failed[1] if failed else target


def _environment(copy: Path) -> dict[str, str]:
    """The copy comes before the installed package; each process has one thread."""
    # A kernel draws its figures inline unless this variable names another backend.
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    path = os.pathsep.join([str(copy / "code"), str(copy)])
    return inherited | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _check_origin(copy: Path) -> None:
    """A fault in a copy that is never imported would kill nothing."""
    command = [sys.executable, "-c", _ORIGIN]
    origin = subprocess.check_output(command, cwd=copy, env=_environment(copy), text=True).strip()
    if not Path(origin).is_relative_to(copy):
        raise RuntimeError(f"tests would import {origin}, not the copy")
