"""Run the experiments too long for a page: ``python -m press.records``, or ``make records``.

An experiment is a module in ``gradbook.experiments`` with ``SEEDS``, ``data_digest()``,
``run(seed)`` and, where it has a yardstick, ``reference()``. Its record is stale when the module's
own code or its data have changed since it ran; comments and docstrings do not count. Nor do other
modules: a page guards them by running one short seed live. ``--workers 2`` runs two seeds at a time.
"""

import argparse
import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm

from gradbook import device
from press.paths import CODE, RECORDS

EXPERIMENTS = CODE / "gradbook" / "experiments"
PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "scikit-image",
    "Pillow",
    "pyro-ppl",
    "transformers",
)
DIGITS = 6
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def experiments(folder: Path = EXPERIMENTS) -> list[Path]:
    """List the experiments.

    Args:
        folder: where their modules are.

    Returns:
        The modules' files in alphabetical order.
    """
    return [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")]


def load_experiment(path: Path) -> ModuleType:
    """Import an experiment from its file.

    Args:
        path: the module's file.

    Returns:
        The module.

    Raises:
        ValueError: if it lacks a part of an experiment.
    """
    spec = importlib.util.spec_from_file_location(f"gradbook.experiments.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for part in ("SEEDS", "data_digest", "run"):
        if not hasattr(module, part):
            raise ValueError(f"{path.name}: an experiment needs {part}")
    return module


def digests(path: Path) -> dict[str, str]:
    """Summarize what a record depends on.

    Args:
        path: the experiment's file.

    Returns:
        As ``experiment`` the SHA-256 of the file's syntax tree without docstrings, which is the
        same in Python 3.11 to 3.13, but for nested formats; as ``data`` what its ``data_digest()`` says.
    """
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    experiment = hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()
    return {"experiment": experiment, "data": load_experiment(path).data_digest()}


def _plain(node: Any) -> Any:
    """As ast.dump, which differs between versions of Python in how it writes empty fields."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    fields = [(name, _plain(value)) for name, value in ast.iter_fields(node)]
    return type(node).__name__, [field for field in fields if field[1] not in (None, [])]


def fault(record: dict[str, Any] | None, now: dict[str, str]) -> str:
    """Say in words what is wrong with a record.

    Args:
        record: the record, or None where there is none.
        now: the digests of today, from :func:`digests`.

    Returns:
        The fault, or an empty string for a record that can be trusted.
    """
    if record is None:
        return "has no record"
    changed = [part for part, digest in now.items() if record["digests"].get(part) != digest]
    if changed:
        return f"is stale: its {' and its '.join(changed)} changed since it ran"
    return "" if record["runs"] else "holds no run"


def read(name: str, folder: Path = RECORDS) -> dict[str, Any] | None:
    """Read a record.

    Args:
        name: the experiment's name.
        folder: the folder of records.

    Returns:
        The record, or None where there is none.
    """
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def update(
    path: Path, record: dict[str, Any] | None, where: torch.device, workers: int = 1
) -> dict[str, Any]:
    """Run an experiment and put the run into its record, beside those of other devices.

    A stale record is dropped whole: its other runs measured another experiment.

    Args:
        path: the experiment's file.
        record: the record so far, or None.
        where: the device that the experiment runs on.
        workers: processes that share the seeds. Numbers do not depend on it, but times do: run
            what measures time with one.

    Returns:
        The new record, with numbers rounded to six significant digits.
    """
    now, module = digests(path), load_experiment(path)
    command = f"python -m press.records {path.stem}"
    kept = {} if fault(record, now) else record
    new = {"command": command, "digests": now, **kept, "runs": dict(kept.get("runs", {}))}
    seeds = tuple(module.SEEDS)
    bar = partial(tqdm, desc=path.stem, unit="seed", total=len(seeds), disable=None)
    run = stamped(lambda: {str(seed): x for seed, x in bar(_runs(path, seeds, workers))}, where)
    run["machine"] += f", processes: {workers}"
    new["runs"][where.type] = run
    if hasattr(module, "reference") and "reference" not in new:
        new["reference"] = stamped(module.reference, where)
    return rounded(new)


def _runs(path: Path, seeds: tuple[int, ...], workers: int) -> Iterator[tuple[int, Any]]:
    work = partial(_run, path)
    if workers == 1:
        yield from zip(seeds, map(work, seeds), strict=True)
        return
    # A fork would copy the threads' locks of a process that has computed already.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(seeds)), fresh) as pool:
        yield from zip(seeds, pool.map(work, seeds), strict=True)


def _run(path: Path, seed: int) -> Any:
    return load_experiment(path).run(seed)


def stamped(work: Callable[[], Any], where: torch.device) -> dict[str, Any]:
    """Run something and note when, how long, on what machine and with which versions.

    Args:
        work: a function that returns results.
        where: the device that it runs on.

    Returns:
        ``results``, ``seconds``, ``date`` (UTC), ``device``, ``machine`` and ``versions``.
    """
    start = time.perf_counter()
    results = work()
    threads = torch.get_num_threads()
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, torch threads: {threads}",
        "versions": versions(),
        "results": results,
    }


def versions() -> dict[str, str]:
    """Name the versions of Python and of the packages that the numbers come from.

    Returns:
        Version by name; a package that is not installed is left out.
    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """Round every float of a nested record; JSON has no infinities or NaN, they become null.

    Args:
        value: dicts, lists, numbers, strings.
        digits: significant digits to keep.

    Returns:
        The same structure.
    """
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value


def to_json(record: dict[str, Any]) -> str:
    """Write a record with each list of numbers on one line, so that changes can be read.

    Args:
        record: the record.

    Returns:
        The text of the file.
    """
    text = json.dumps(record, indent=1, allow_nan=False)
    numbers = re.compile(r"\[\s+([^][{}\"]*?)\s+\]")
    return numbers.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def main(
    arguments: list[str] | None = None,
    folder: Path = EXPERIMENTS,
    records: Path = RECORDS,
) -> int:
    """Run what is missing or stale, or with ``--check`` only name it.

    Args:
        arguments: the command line; names force these experiments to run.
        folder: where the experiments are.
        records: where the records are.

    Returns:
        The exit status: 1 if ``--check`` found a fault.
    """
    parser = argparse.ArgumentParser(prog="python -m press.records", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments to run in any case")
    parser.add_argument("--check", action="store_true", help="name stale records; run nothing")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the seeds")
    chosen = parser.parse_args(arguments)
    if chosen.workers < 1:
        parser.error("--workers: must be at least 1")
    paths = {path.stem: path for path in experiments(folder)}
    if unknown := sorted(set(chosen.names) - set(paths)):
        parser.error(f"no such experiment: {', '.join(unknown)}")
    if chosen.check:
        return _check(paths, records)
    for name, path in paths.items():
        record = read(name, records)
        missing = fault(record, digests(path)) or device().type not in record["runs"]
        if name in chosen.names or (missing and not chosen.names):
            records.mkdir(exist_ok=True)
            text = to_json(update(path, record, device(), chosen.workers))
            (records / f"{name}.json").write_text(text)
            print(f"wrote {name}.json, {len(text) / 1000:.0f} kB")
    return 0


def _check(paths: dict[str, Path], records: Path) -> int:
    sound = True
    for name, path in paths.items():
        try:
            words = fault(read(name, records), digests(path))
            said = f"{name} {words}: run `make records`"
        except FileNotFoundError as missing:
            words, said = "no data", f"{name} cannot be checked: {missing}"
        if words:
            sound = False
            print(said, file=sys.stderr)
    return int(not sound)


if __name__ == "__main__":
    sys.exit(main())
