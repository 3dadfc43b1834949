"""Show that the checks can fail: ``python -m press.mutants [NAME ...]``.

Each mutant of ``tests/mutants.toml`` is one fault, applied alone to a copy of the repository. The
unit tests of its module run first; if they stay green, the chapters that import the module run. A
mutant that turns nothing red has survived, and names a line of the book that nothing checks.
"""

import argparse
import re
import sys
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from press.paths import ROOT
from press.sandbox import run_tests, sandbox
from press.targets import chapters_of, unit_tests_of

LIST = "tests/mutants.toml"
WORKERS = 2


class MutantError(Exception):
    """The list of mutants is wrong, or the checks are red before any mutant is applied."""


@dataclass(frozen=True)
class Mutant:
    """One fault: in ``file``, ``find`` becomes ``replace``; ``why`` tells what that breaks."""

    name: str
    file: str
    find: str
    replace: str
    why: str


@dataclass(frozen=True)
class Verdict:
    """What killed a mutant, or ``""`` where it survived, and how long it took to tell."""

    mutant: Mutant
    killer: str
    seconds: float


def parse(text: str) -> list[Mutant]:
    """Read the list of mutants.

    Args:
        text: TOML with one ``[[mutant]]`` table for each.

    Returns:
        The mutants in order.

    Raises:
        MutantError: if there is none, a field is missing or unknown, or two share a name.
    """
    names = {field.name for field in fields(Mutant)}
    found: list[Mutant] = []
    for table in tomllib.loads(text).get("mutant", []):
        title = table.get("name", f"number {len(found) + 1}")
        if set(table) != names:
            raise MutantError(f"mutant {title}: its fields must be {', '.join(sorted(names))}")
        if any(title == other.name for other in found):
            raise MutantError(f"mutant {title}: two mutants have this name")
        found.append(Mutant(**table))
    if not found:
        raise MutantError("the list holds no mutant")
    return found


def mutate(mutant: Mutant, source: str) -> str:
    """Apply a mutant to the text of its file.

    Args:
        mutant: the fault.
        source: the text of ``mutant.file``.

    Returns:
        The mutated text.

    Raises:
        MutantError: if ``find`` does not stand exactly once in the text, or nothing would change.
    """
    count = source.count(mutant.find)
    if count != 1:
        raise MutantError(
            f"mutant {mutant.name}: find stands {count} times in {mutant.file}, not once"
        )
    if mutant.find == mutant.replace:
        raise MutantError(f"mutant {mutant.name}: replace is the same as find")
    return source.replace(mutant.find, mutant.replace)


def select(mutants: Sequence[Mutant], names: Sequence[str]) -> list[Mutant]:
    """Pick mutants by name.

    Args:
        mutants: the list to pick from.
        names: the names wanted; none means all.

    Returns:
        The mutants wanted, in the order of the list.

    Raises:
        MutantError: if a name is not on the list.
    """
    unknown = set(names) - {mutant.name for mutant in mutants}
    if unknown:
        raise MutantError(f"no mutant has the name {', '.join(sorted(unknown))}")
    return [mutant for mutant in mutants if not names or mutant.name in names]


def report(verdicts: Sequence[Verdict]) -> str:
    """Write the verdicts as a Markdown table with a closing line.

    Args:
        verdicts: one for each mutant.

    Returns:
        The table, and a line that counts the mutants and the killed.
    """
    rows = [
        (
            f"`{verdict.mutant.name}`",
            f"`{verdict.mutant.file}`",
            verdict.mutant.why,
            verdict.killer or "**survived**",
            f"{verdict.seconds:.1f}",
        )
        for verdict in verdicts
    ]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    headers = ("mutant", "file", "why", "killed by", "seconds")
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    killed = sum(bool(verdict.killer) for verdict in verdicts)
    return f"{table}\n\n{len(verdicts)} mutants, {killed} killed"


def run(root: Path, mutants: Sequence[Mutant]) -> list[Verdict]:
    """Judge every mutant: first by the tests of its module, then by the chapters that import it.

    What is about to judge is run on an unmutated copy first: red checks would kill everything.

    Args:
        root: the repository; what git would track is copied.
        mutants: the faults.

    Returns:
        One verdict for each mutant, in order.

    Raises:
        MutantError: if a file or ``find`` is missing, or a check is red without a mutant.
    """
    for mutant in mutants:
        if not (root / mutant.file).exists():
            raise MutantError(f"mutant {mutant.name}: there is no {mutant.file}")
        mutate(mutant, (root / mutant.file).read_text())
    work = [(mutant, _existing(root, unit_tests_of(mutant.file))) for mutant in mutants]
    first = _round(root, work, "tests")
    alive = [verdict.mutant for verdict in first if not verdict.killer]
    work = [(mutant, chapters_of(mutant.file, root)) for mutant in alive]
    second = iter(_round(root, work, "chapters"))
    return [v if v.killer else _sum(v, next(second)) for v in first]


def _existing(root: Path, path: str) -> list[str]:
    return [path] if (root / path).exists() else []


def _sum(first: Verdict, second: Verdict) -> Verdict:
    return replace(second, seconds=first.seconds + second.seconds)


def _round(root: Path, work: Sequence[tuple[Mutant, list[str]]], title: str) -> list[Verdict]:
    """Run each target once as it is, then each mutant against its targets."""
    targets = sorted({target for _, wanted in work for target in wanted})
    controls = _together([(root, None, [target]) for target in targets], f"{title}, unmutated")
    red = [killer for killer, _ in controls if killer]
    if red:
        raise MutantError(f"red without any mutant: {', '.join(red)}")
    results = _together([(root, mutant, wanted) for mutant, wanted in work], f"{title}, mutated")
    return [
        Verdict(mutant, killer, seconds)
        for (mutant, _), (killer, seconds) in zip(work, results, strict=True)
    ]


def _together(
    trials: Sequence[tuple[Path, Mutant | None, list[str]]], title: str
) -> list[tuple[str, float]]:
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(_trial, *trial) for trial in trials]
        try:
            for _ in tqdm(as_completed(futures), total=len(futures), desc=title, disable=None):
                pass
        except KeyboardInterrupt:
            # What is running ends by itself; nothing new begins.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _trial(root: Path, mutant: Mutant | None, targets: list[str]) -> tuple[str, float]:
    """Run targets in a fresh copy until one is red; return what was red and the seconds."""
    started = time.perf_counter()
    with sandbox(root) as copy:
        if mutant:
            path = copy / mutant.file
            path.write_text(mutate(mutant, path.read_text()))
        for target in targets:
            killer = run_tests(copy, target)
            if killer:
                break
        else:
            killer = ""
    return killer, time.perf_counter() - started


def part(mutants: Sequence[Mutant], which: str) -> Sequence[Mutant]:
    """Take one part of a list, which is too long for one machine.

    Args:
        mutants: the list; those of a file, which stand together, mostly stay together.
        which: ``K/N``, the K-th of N parts, counted from one.

    Returns:
        The part; the N parts are the list.

    Raises:
        MutantError: if there is no such part, or it is empty.
    """
    asked = re.fullmatch(r"(\d+)/(\d+)", which)
    k, n = map(int, asked.groups()) if asked else (0, 0)
    if not 1 <= k <= n:
        raise MutantError(f"part {which}: must be K/N with K from 1 to N")
    found = mutants[(k - 1) * len(mutants) // n : k * len(mutants) // n]
    if not found:
        raise MutantError(f"part {which}: {len(mutants)} mutants have no such part")
    return found


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Run the mutants and print the report.

    Args:
        arguments: names of mutants, none means all; and which part of them.
        root: the repository.

    Returns:
        0 where every mutant was killed, 1 where one survived, 2 where the run could not begin.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants to run; all by default")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="one of N parts of the list")
    chosen = parser.parse_args(arguments)
    try:
        mutants = part(select(parse((root / LIST).read_text()), chosen.names), chosen.part)
        verdicts = run(root, mutants)
    except MutantError as error:
        print(error, file=sys.stderr)
        return 2
    print(report(verdicts))
    return int(not all(verdict.killer for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
