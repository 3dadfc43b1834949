"""Wheels of what the book pins, for this Python or another, and of the book's own package."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from press.needs import target

# As new a C library as torch's own wheels ask for.
GLIBC = 28
# All that the package is built from.
SOURCES = ("code", "records", "pyproject.toml", "LICENSE")
# What an older build left would go into the wheel.
LEFT = shutil.ignore_patterns("*.egg-info", "__pycache__")
# The earliest time that a wheel, which is a zip file, can hold: two wheels of one commit are equal.
EPOCH = "315532800"


class PipError(RuntimeError):
    """pip could not bring or build what was asked for."""


def pins(root: Path, python: str) -> dict[str, str]:
    """Read what pip is to install from the files of pins.

    Args:
        root: the folder of ``requirements.lock`` and ``requirements-weights.txt``.
        python: the version that it is for, such as ``"3.12"``.

    Returns:
        By normalized name a requirement such as ``numpy==2.4.6``, with its hashes where the files
        give them.
    """
    files = ("requirements.lock", "requirements-weights.txt")
    texts = [(root / name).read_text() for name in files]
    found = {}
    for line in "\n".join(texts).replace("\\\n", " ").splitlines():
        if re.match(r"[\w.-]+==", line := re.sub(r"(^|\s)#.*", "", line).strip()):
            requirement, *hashes = re.split(r"\s+(?=--hash)", line)
            parsed = Requirement(requirement)
            if parsed.marker is None or parsed.marker.evaluate(target(python)):
                found[canonicalize_name(parsed.name)] = " ".join([requirement, *hashes])
    return found


def download(wanted: Iterable[str], python: str, folder: Path) -> dict[str, Path]:
    """Bring wheels for another Python on Linux, without what they ask for.

    Args:
        wanted: pinned requirements; those with hashes are held to them.
        python: the version, such as ``"3.12"``.
        folder: where the wheels go.

    Returns:
        The wheel of each distribution, by normalized name.

    Raises:
        PipError: if pip finds no wheel for one.
    """
    tags = [f"manylinux_2_{minor}" for minor in range(GLIBC, 4, -1)]
    tags += ["manylinux2014", "manylinux2010", "manylinux1"]
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    command += [word for tag in tags for word in ("--platform", f"{tag}_x86_64")]
    folder.mkdir(parents=True, exist_ok=True)
    wanted = list(wanted)
    # With one hash pip asks for all: those without go by themselves.
    for group in ([w for w in wanted if "--hash" in w], [w for w in wanted if "--hash" not in w]):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as listing:
            listing.write("\n".join(group))
            listing.flush()
            if group:
                must([*command, "-r", listing.name])
    return {parse_wheel_filename(path.name)[0]: path for path in sorted(folder.glob("*.whl"))}


def build(root: Path, folder: Path) -> Path:
    """Build the wheel of the book's own package with the setuptools that is installed here.

    Args:
        root: a checkout or a copy of one; nothing is written there.
        folder: where the wheel goes.

    Returns:
        The wheel; two of the same sources are the same bytes.

    Raises:
        PipError: if it cannot be built.
    """
    # A builder of pip's own choice would be the newest, and no hash would guard it.
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-build-isolation", "--no-deps"]
    command += ["--no-index", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as work:
        source, made = Path(work, "source"), Path(work, "made")
        source.mkdir()
        for path in (root / name for name in SOURCES):
            if path.is_dir():
                shutil.copytree(path, source / path.name, ignore=LEFT)
            else:
                shutil.copy(path, source)
        must([*command, "--wheel-dir", str(made), str(source)], SOURCE_DATE_EPOCH=EPOCH)
        (wheel,) = made.glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, folder))


def must(command: list[str], **variables: str) -> None:
    """Run a command of pip.

    Args:
        command: the command and its arguments.
        **variables: variables of its environment.

    Raises:
        PipError: if it fails; the message holds what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
    if done.returncode:
        raise PipError(f"`{' '.join(command[:5])} …` failed:\n{done.stderr.strip()}")
