"""Bring the data that comes in no Python package: ``python -m press.fetch``, or ``make data``.

Fashion-MNIST is a Debian package. apt downloads it without root when it keeps its lists and caches
in a folder of ours; dpkg unpacks it there without installing. The files are checked before use.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from gradbook import data
from press.paths import ROOT

PACKAGE = "dataset-fashion-mnist"
PACKAGE_BYTES = 30_900_652
BY_HAND = (
    f"Install the package {PACKAGE} (Debian, Ubuntu), or put the four .gz files of Fashion-MNIST "
    "into a folder named fashion-mnist and set GRADBOOK_DATA to the folder that holds it."
)


class FetchError(RuntimeError):
    """The data could not be brought; the message says what to do by hand."""


def fashion_mnist(cache: Path) -> Path:
    """Download, unpack and check Fashion-MNIST.

    Args:
        cache: a folder of the repository that git ignores.

    Returns:
        The folder of the four IDX files, ``cache/data/fashion-mnist``.

    Raises:
        FetchError: if apt is not there, or does not know or cannot reach the package.
        ValueError: if what came is not the published set.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise FetchError(f"There is no apt on this machine. {BY_HAND}")
    target = cache / "data" / "fashion-mnist"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        work = Path(name)
        package = _download(work, _private_apt(cache / "apt"))
        _must(["dpkg", "-x", package.name, "."], work)
        unpacked = work / "usr" / "share" / "datasets" / "fashion-mnist"
        for split in ("train", "test"):
            data.fashion_mnist(split, unpacked)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(unpacked, target)
    return target


def _private_apt(folder: Path) -> list[str]:
    """Options with which apt writes nowhere but into our folder."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State": folder / "state",
        "Dir::Cache": folder / "cache",
        # A folder of root's is closed to apt's own user, and apt warns when it then stays root.
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
    }
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def _download(work: Path, options: list[str]) -> Path:
    # A list that cannot be reached must not stop this: whether the package came is what counts.
    _run(["apt-get", *options, "update"], work)
    _must(["apt-get", *options, "download", PACKAGE], work)
    found = list(work.glob("*.deb"))
    if len(found) != 1:
        raise FetchError(f"apt brought no package {PACKAGE}. {BY_HAND}")
    return found[0]


def _must(command: list[str], folder: Path) -> None:
    code, log = _run(command, folder)
    if code:
        raise FetchError(f"`{' '.join(command)}` failed:\n{log.strip()}\n{BY_HAND}")


def _run(command: list[str], folder: Path) -> tuple[int, str]:
    """Run a command; in a terminal, a bar follows the package's bytes as they come."""
    bar = tqdm(
        desc=command[-1], total=PACKAGE_BYTES, unit="B", unit_scale=True, leave=False, disable=None
    )
    with tempfile.TemporaryFile("w+") as log, bar:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        while process.poll() is None:
            bar.update(sum(path.stat().st_size for path in folder.glob("*.deb")) - bar.n)
            time.sleep(0.1)
        log.seek(0)
        return process.returncode, log.read()


def main() -> int:
    """Bring what is missing.

    Returns:
        0 when all data is there, 1 when some could not be brought.
    """
    try:
        try:
            _check()
        except (FileNotFoundError, ValueError):
            fashion_mnist(ROOT / ".cache")
            _check()
    except (FetchError, FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Fashion-MNIST: {data.fashion_mnist_folder()}")
    return 0


def _check() -> None:
    for split in ("train", "test"):
        data.fashion_mnist(split)


if __name__ == "__main__":
    sys.exit(main())
