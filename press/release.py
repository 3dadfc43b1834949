"""Pack the built site to be read offline: ``python -m press.release``, or ``make zip``.

The same site gives the same archive: its files stand in order, all with the date of the commit.
"""

import hashlib
import sys
import time
import tomllib
import zipfile
from pathlib import Path

from press.git import git
from press.paths import HTML, ROOT

NOT_PUBLISHED = (".buildinfo", ".doctrees")
FILE = 0o100644  # a plain file that everybody may read


def main(root: Path = ROOT, site: Path = HTML) -> int:
    """Write the archive and its SHA-256 beside the site.

    Args:
        root: the repository.
        site: the folder of the built site.

    Returns:
        The exit status: 1 if there is no site.
    """
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    if not (site / "index.html").is_file():
        print(f"{site} holds no site: run `make book`", file=sys.stderr)
        return 1
    archive = site.parent / f"gradients-through-everything-{version}.zip"
    pack(site, archive, committed(root))
    summed = sha256(archive)
    archive.with_name(f"{archive.name}.sha256").write_text(f"{summed}  {archive.name}\n")
    print(f"{archive}: {archive.stat().st_size / 1e6:.0f} MB, SHA-256 {summed}")
    return 0


def pack(folder: Path, archive: Path, date: int) -> None:
    """Write a folder into a zip archive that depends on its names and its bytes alone.

    Args:
        folder: the folder; the archive holds it under the archive's own name.
        archive: the file to write.
        date: the date of all files, in seconds since 1970.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for path in files:
            name = path.relative_to(folder)
            if name.parts[0] in NOT_PUBLISHED:
                continue
            entry = zipfile.ZipInfo(f"{archive.stem}/{name.as_posix()}", time.gmtime(date)[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = FILE << 16
            entry.create_system = 3
            packed.writestr(entry, path.read_bytes())


def committed(root: Path) -> int:
    """Tell when the commit that is checked out was made.

    Args:
        root: the repository.

    Returns:
        Seconds since 1970.

    Raises:
        GitError: if git cannot say.
    """
    return int(git(root, "log", "-1", "--format=%ct"))


def sha256(path: Path) -> str:
    """Sum a file.

    Args:
        path: the file.

    Returns:
        Its SHA-256 in hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
