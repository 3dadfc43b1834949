"""Run experiments again and compare with their records: ``python -m press.rerun [NAME ...]``.

The first seed of each record is run whole, in the record's own way. On the machine that made a record
the numbers come out the same. Another processor sums in another order, and a long training carries
such a difference far; then a number may differ by three times the range over the seeds, or by 2 %, and
one in ten points of a curve may stray further.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gradbook import device
from press.paths import RECORDS
from press.records import EXPERIMENTS, experiments, load_experiment, read, rounded

RELATIVE = 0.02
SPREADS = 3.0  # of the range over the seeds
FEW = 0.1  # of the numbers of one name: the points of a curve are many, and some stray
TIMED = ("seconds",)
TIMED_OF = {"adapter_latency": ("plain", "ratios")}


def main(
    arguments: list[str] | None = None,
    folder: Path = EXPERIMENTS,
    records: Path = RECORDS,
) -> int:
    """Run one seed of every experiment, or of those named, and print what differs.

    Args:
        arguments: the command line, names of experiments.
        folder: where the experiments are.
        records: where the records are.

    Returns:
        The exit status: 1 if a number differs by more than that, or cannot be compared.
    """
    parser = argparse.ArgumentParser(prog="python -m press.rerun", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments to run; else all")
    chosen = parser.parse_args(arguments).names
    paths = {path.stem: path for path in experiments(folder)}
    if unknown := sorted(set(chosen) - set(paths)):
        parser.error(f"no such experiment: {', '.join(unknown)}")
    sound = True
    for name in chosen or paths:
        start = time.perf_counter()
        faults = compare(paths[name], read(name, records), device().type)
        seconds = time.perf_counter() - start
        print(f"{name}: {'differs' if faults else 'as recorded'}, {seconds:.0f} s", flush=True)
        print("".join(f"  {fault}\n" for fault in faults), end="", flush=True)
        sound = sound and not faults
    return int(not sound)


def compare(path: Path, record: dict[str, Any] | None, where: str) -> list[str]:
    """Run the first seed of an experiment again.

    Args:
        path: the experiment's file.
        record: its record, or None.
        where: the type of the device, whose run is compared.

    Returns:
        A line for each name whose numbers differ.
    """
    if record is None or where not in record["runs"]:
        return [f"there is no record of a run on {where}"]
    recorded = record["runs"][where]["results"]
    first = next(iter(recorded))
    # Through JSON, in which names are texts and tuples are lists, as in the record.
    again = json.loads(json.dumps(rounded(load_experiment(path).run(int(first)))))
    timed = TIMED + TIMED_OF.get(path.stem, ())
    return differences(first, recorded, again, timed)


def differences(
    first: str, recorded: dict[str, Any], again: Any, timed: Iterable[str] = TIMED
) -> list[str]:
    """Compare one seed's numbers with those of a record.

    Args:
        first: the seed.
        recorded: the results of all seeds.
        again: the results of this seed today, rounded as a record's.
        timed: words; a name with one of them measures time, and is left out.

    Returns:
        A line for each name that is missing or new, or of whose numbers more than a few differ
        from the recorded ones by more than the seeds differ among themselves.
    """
    seeds = {seed: dict(numbers(results, timed)) for seed, results in recorded.items()}
    old, new = seeds[first], dict(numbers(again, timed))
    if old.keys() != new.keys():
        lost = sorted(".".join(path) for path in old.keys() ^ new.keys())
        return [f"not in both: {', '.join(lost[:5])}{' …' if len(lost) > 5 else ''}"]
    strays: dict[str, list[str]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for path, number in new.items():
        name = ".".join(part for part in path if not part.startswith("["))
        counts[name] += 1
        if strayed(number, old[path], [seed[path] for seed in seeds.values() if path in seed]):
            strays[name].append(f"{number} was {old[path]}")
    return [
        f"{name}: {len(found)} of {counts[name]}, first {found[0]}"
        for name, found in strays.items()
        if len(found) > FEW * counts[name]
    ]


def strayed(number: float | None, was: float | None, seeds: list[float | None]) -> bool:
    """Say whether a number differs by more than seeds do.

    Args:
        number: today's.
        was: the recorded one of the same seed; None stands for what is not finite.
        seeds: the recorded ones of all seeds.

    Returns:
        Whether it is farther away than three times the range over the seeds and than two in a hundred.
    """
    if number is None or was is None:
        return number is not was
    finite = [seed for seed in seeds if seed is not None]
    return abs(number - was) > max(
        SPREADS * (max(finite) - min(finite)), RELATIVE * max(abs(number), abs(was))
    )


def numbers(
    value: Any, timed: Iterable[str] = TIMED, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], float | None]]:
    """Walk through results.

    Args:
        value: dicts, lists, numbers, None for what is not finite; texts and pictures are passed over.
        timed: words; a name with one of them is passed over.
        path: where the value stands.

    Yields:
        The path of each number, an index as ``[i]``, and the number.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            if not any(word in name for word in timed):
                yield from numbers(item, timed, (*path, name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from numbers(item, timed, (*path, f"[{index}]"))
    elif value is None or isinstance(value, int | float):
        yield path, value


if __name__ == "__main__":
    sys.exit(main())
