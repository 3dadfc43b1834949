"""Build the site twice from one commit and compare every byte: ``python -m press.reproducible``.

What the environment says of the book's address holds for both builds; all else is made to differ.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from press.paths import ROOT

# Folders of unlike lengths, unlike seeds of Python's hashes, and zones of time in which no two
# clocks show the same day.
PLACES = ("a", "another/place")
DIFFERENCES = (
    {"PYTHONHASHSEED": "1", "TZ": "WEST12"},
    {"PYTHONHASHSEED": "2", "TZ": "EAST-14"},
)


def build(source: Path, folder: Path, differences: dict[str, str]) -> Path:
    """Build the site of the commit that is checked out, from a clone.

    Args:
        source: the repository; what is not committed there is left out.
        folder: where the clone goes; it is made.
        differences: variables of the environment that are this build's own.

    Returns:
        The folder of the site.

    Raises:
        subprocess.CalledProcessError: if the build fails, after it has said why.
    """
    subprocess.run(["git", "clone", "--quiet", source, folder], check=True)
    (folder / "node_modules").symlink_to(source / "node_modules")
    # Before anything that is installed, so that the pages document the clone's own modules.
    paths = os.pathsep.join(str(path) for path in (folder, folder / "code"))
    environment = os.environ | differences | {"PYTHONPATH": paths}
    command = [sys.executable, "-m", "press.book"]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=sys.stderr)
    return folder / "_build" / "html"


def digests(folder: Path) -> dict[str, str]:
    """Summarize every file below a folder.

    Args:
        folder: any folder.

    Returns:
        For each file's path from the folder, sorted, the SHA-256 of its bytes.

    Raises:
        ValueError: if there is no file: two empty sites would be equal.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise ValueError(f"no file in {folder}")
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """List the files in which two folders differ.

    Args:
        one: the digests of the first folder.
        other: the digests of the second.

    Returns:
        Their paths, sorted, with what is wrong.
    """
    found = []
    for name in sorted(one.keys() | other.keys()):
        if name not in other:
            found.append(f"{name}: in the first alone")
        elif name not in one:
            found.append(f"{name}: in the second alone")
        elif one[name] != other[name]:
            found.append(f"{name}: differs")
    return found


def summary(files: dict[str, str]) -> str:
    """Summarize all files in one SHA-256, of what ``sha256sum`` would print of them in order."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in files.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def main() -> int:
    """Build twice and compare.

    Returns:
        The exit status: 1 where any file differs.
    """
    with tempfile.TemporaryDirectory(prefix="gradbook-") as folder:
        base = Path(folder).resolve()
        sites = [
            build(ROOT, base / place / "book", own)
            for place, own in zip(PLACES, DIFFERENCES, strict=True)
        ]
        one, other = (digests(site) for site in sites)
    found = differing(one, other)
    for line in found:
        print(line)
    print(f"{len(found)} of {len(one)} files differ" if found else f"{len(one)} files are equal")
    print(f"sha256 {summary(one)}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
