"""Pack the chapters for a machine with torch and no network: ``make gpu-bundle``.

``python -m press.bundle`` does it. The bundle is cut into parts of a size that a small transfer takes.
The first parts hold what the chapters need that need least, so that these can run before the rest has
come.
"""

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gradbook import data
from gradbook.language import reviews
from press import needs
from press.gpu import COMMIT, RecordError, commit
from press.paths import ROOT, executed_chapters
from press.wheels import PipError, build, download, pins

FOLDER = ROOT / "_build" / "gpu"
# What runs a chapter, besides what the chapter itself imports.
RUNNER = frozenset({"nbclient", "nbformat", "jupytext", "ipykernel", "tqdm", "matplotlib-inline"})
# A kernel runs without its debugger, which would push the first chapters out of part 1.
LEFT_OUT = frozenset({"debugpy"})
BOOK = ("chapters", "code", "press", "records")
RESERVE = 2**19  # of part 1, for run.py and plan.json
MIB = 2**20


class Piece(NamedTuple):
    """A stretch of a file that travels in one part, all of it or some."""

    name: str
    start: int
    size: int


def order(
    chapters: dict[str, list[str]], sizes: dict[str, int], last: set[str]
) -> Iterator[tuple[str, list[str]]]:
    """Sort chapters so that the first ones run as soon as possible.

    Args:
        chapters: the files that each needs.
        sizes: bytes of each file.
        last: chapters that come after all others: those with pretrained weights.

    Yields:
        Chapters with their files, each time the one that adds the fewest bytes.
    """
    packed: set[str] = set()
    left = dict(chapters)
    while left:
        name = min(
            left,
            key=lambda name: (name in last, sum(sizes[f] for f in {*left[name]} - packed), name),
        )
        packed |= set(left[name])
        yield name, left.pop(name)


def cut(sizes: dict[str, int], limit: int) -> list[list[Piece]]:
    """Cut files into parts, in their order; one that crosses a border is cut in two.

    Args:
        sizes: bytes of each file.
        limit: bytes of a part; the first leaves room for the program and the plan.

    Returns:
        The pieces of each part.
    """
    parts: list[list[Piece]] = [[]]
    room = limit - RESERVE
    for name, size in sizes.items():
        start = 0
        while start < size:
            if room == 0:
                parts.append([])
                room = limit
            length = min(room, size - start)
            parts[-1].append(Piece(name, start, length))
            start, room = start + length, room - length
    return parts


def write(
    files: dict[str, Path], plan: dict, chapters: dict[str, list[str]], last: set[str], limit: int
) -> dict[str, int]:
    """Write the parts.

    Args:
        files: where each file of the bundle is now, by its name in the bundle.
        plan: ``base``, the files that every chapter needs, and what else the plan is to say.
        chapters: what else each chapter needs.
        last: the chapters that come last.
        limit: bytes of a part.

    Returns:
        The part after which each chapter can run.
    """
    sizes = {name: path.stat().st_size for name, path in files.items()}
    ordered = dict(order(chapters, sizes, last))
    names = dict.fromkeys([*plan["base"], *(f for needed in ordered.values() for f in needed)])
    table = {name: {"sha256": _sha256(files[name]), "pieces": []} for name in names}
    complete = dict.fromkeys(names, 1)
    for number, part in enumerate(cut({name: sizes[name] for name in names}, limit), start=1):
        for name, start, size in part:
            piece = f"part-{number}/{name}" + ("" if size == sizes[name] else f".at-{start}")
            table[name]["pieces"].append(piece)
            complete[name] = number
            path = FOLDER / piece
            path.parent.mkdir(parents=True, exist_ok=True)
            with files[name].open("rb") as source:
                source.seek(start)
                path.write_bytes(source.read(size))
    shutil.copyfile(Path(__file__).with_name("carried.py"), FOLDER / "part-1" / "run.py")
    text = json.dumps({**plan, "files": table, "chapters": ordered}, indent=1)
    (FOLDER / "part-1" / "plan.json").write_text(text)
    return {name: max(complete[f] for f in [*plan["base"], *ordered[name]]) for name in ordered}


def collect(python: str, work: Path) -> tuple[dict[str, Path], dict, dict, set[str]]:
    """Bring together all that the chapters need.

    Args:
        python: the version of the other machine's Python.
        work: a folder for what is downloaded and built.

    Returns:
        The files by their names in the bundle, the plan so far, the files of each chapter, and the
        chapters with pretrained weights.

    Raises:
        PipError: if a distribution has no pin or no wheel.
        RecordError: if the repository has changes.
    """
    of = commit(ROOT)
    pages = {page.stem: page for page in executed_chapters()}
    asked = {name: needs.distributions_of(page) for name, page in pages.items()}
    needed = {name: needs.closed(found, python) for name, found in asked.items()}
    weights = {name: needs.weights_of(page) for name, page in pages.items()}
    runner = needs.closed(RUNNER, python) - LEFT_OUT
    pinned, everything = pins(ROOT, python), runner.union(*needed.values(), *weights.values())
    if unpinned := sorted(everything - pinned.keys()):
        raise PipError(f"no pin for {', '.join(unpinned)}")
    wheels = download((pinned[name] for name in sorted(everything)), python, work / "wheels")
    files = {f"wheels/{path.name}": path for path in wheels.values()}
    book, package = _book(of, work)
    files |= {"book.tar.gz": book, f"wheels/{package.name}": package}
    chapters = {}
    for name, page in pages.items():
        found = [
            f"wheels/{wheels[n].name}" for n in sorted((needed[name] - runner) | weights[name])
        ]
        sets = {f"data/{s}/{path.name}": path for s in needs.data_of(page) for path in _data(s)}
        files |= sets
        chapters[name] = [*found, *sorted(sets)]
    base = ["book.tar.gz", f"wheels/{package.name}"]
    base += [f"wheels/{wheels[name].name}" for name in sorted(runner)]
    plan = {"commit": of, "python": python, "base": base}
    return files, plan, chapters, {name for name in pages if weights[name]}


def main(arguments: list[str]) -> int:
    """Pack the bundle into ``_build/gpu``.

    Args:
        arguments: the command line without the program's name.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m press.bundle", description=__doc__)
    here = "{}.{}".format(*sys.version_info)
    parser.add_argument("--python", default=here, help="the version of the other machine's Python")
    parser.add_argument("--mib", type=int, default=60, help="the size of a part, at least 1 MiB")
    chosen = parser.parse_args(arguments)
    if chosen.mib < 1:
        parser.error(f"--mib: must be at least 1, got {chosen.mib}")
    with tempfile.TemporaryDirectory() as work:
        try:
            collected = collect(chosen.python, Path(work))
        except (PipError, FileNotFoundError, LookupError, RecordError) as error:
            print(error, file=sys.stderr)
            return 1
        shutil.rmtree(FOLDER, ignore_errors=True)
        ready = write(*collected, limit=chosen.mib * MIB)
    for number in range(1, max(ready.values()) + 1):
        names = [name for name, last in ready.items() if last == number]
        print(f"part-{number} completes: {', '.join(names) or 'no chapter'}")
    print(f"wrote {FOLDER}; there: python part-1/run.py, after any number of parts from the first")
    return 0


def _data(name: str) -> list[Path]:
    if name == "fashion-mnist":
        return sorted(data.fashion_mnist_folder().glob("*.gz"))
    return [{"shakespeare": data.shakespeare_file, "reviews": reviews.reviews_file}[name]()]


def _book(of: str, work: Path) -> tuple[Path, Path]:
    """Pack the book as the commit has it, and build its wheel."""
    book = work / "book.tar.gz"
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", of], capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as everything:
        everything.extractall(work / "source", filter="data")
    (work / "source" / COMMIT).write_text(f"{of}\n")
    with tarfile.open(book, "w:gz") as packed:
        for name in (*BOOK, COMMIT):
            packed.add(work / "source" / name, name, filter=_runs)
    return book, build(work / "source", work / "own")


def _runs(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out the notebooks: they are made anew."""
    return None if member.name.endswith(".ipynb") else member


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
