"""Run the chapters on a GPU and record what they claim: ``python -m press.gpu``, or ``make gpu-record``.

The record says what it ran on, of which commit, and each chapter's digest: the ledger says where a
chapter has changed since. With names, those chapters join a record of the same card, torch and commit.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from press import git, outputs
from press.accelerator import DeviceError, Machine, machine
from press.notebooks import STAMP, run
from press.paths import CHAPTERS, RECORDS, ROOT, executed_chapters

RECORD = RECORDS / "gpu.json"
# A trial of the path on a CPU is no measurement on a GPU.
TRIAL = ROOT / "_build" / "gpu-trial.json"
COMMIT = ".commit"  # in a copy without git: the commit that it was made from
SHOWN = ("label", "statement", "measured", "stderr")
_STOPPED = (CellExecutionError, CellTimeoutError, DeadKernelError)


class RecordError(RuntimeError):
    """There is no honest record to write; the message says why."""


def commit(root: Path) -> str:
    """Name the commit that a copy of the book is.

    Args:
        root: a repository without changes, or a copy that holds the file ``.commit``.

    Returns:
        Forty hexadecimal digits.

    Raises:
        RecordError: if the repository has changes: no commit would name what ran. The record of the
            GPU itself does not count, since runs of some chapters add to it. Or if git cannot say.
    """
    if (root / COMMIT).is_file():
        return (root / COMMIT).read_text().strip()
    try:
        return git.commit(root, "records/gpu.json")
    except git.GitError as error:
        raise RecordError(f"{root} holds no {COMMIT}, and {error}") from error


def start(old: dict | None, on: Machine, of: str, names: list[str]) -> dict:
    """Begin a record, or go on with one.

    Args:
        old: the record so far, or None.
        on: what the chapters run on.
        of: the commit.
        names: the chapters that were asked for; none for all of them.

    Returns:
        A record without the chapters that are to run.

    Raises:
        RecordError: if some chapters would join others of another card, torch or commit.
    """
    head = {**on._asdict(), "commit": of}
    if old is None or not names:
        return {**head, "chapters": {}, "claims": {}, "missing": {}}
    _must_agree(old, head)
    kept = {part: dict(old[part]) for part in ("chapters", "claims", "missing")}
    for part in kept.values():
        for name in names:
            part.pop(name, None)
    return {**head, **kept}


def join(records: list[dict]) -> dict:
    """Make one record of several, as they come back from a machine that ran chapters in turns.

    Args:
        records: of one device, card, torch and commit; where two hold a chapter that
            ran to its end, the last counts, and one that ended counts before one that stopped.

    Returns:
        A record with the head of the last.

    Raises:
        RecordError: if they are of different ones.
    """
    parts = ("chapters", "claims", "missing")
    joined = dict.fromkeys(parts, {})
    for record in records:
        _must_agree(record, records[-1])
        joined = {part: joined[part] | record[part] for part in parts}
    ran = joined["chapters"]
    joined["missing"] = {name: why for name, why in joined["missing"].items() if name not in ran}
    return {**records[-1], **joined}


def add(record: dict, page: Path, where: str) -> bool:
    """Run a chapter and put what it claims into a record.

    Args:
        record: from :func:`start`; it is filled.
        page: the ``.md`` file.
        where: the device.

    Returns:
        Whether the chapter ran to its end. If not, ``missing`` says at which cell it stopped and why.
    """
    try:
        notebook = run(page, where)
    except _STOPPED as error:
        record["missing"][page.stem] = _why(error)
        print(f"{page.stem} stopped: {_why(error)}", file=sys.stderr)
        return False
    stamp = notebook.metadata[STAMP]
    record["chapters"][page.stem] = {key: stamp[key] for key in ("digest", "seconds")}
    claims = outputs.claims(notebook)
    record["claims"][page.stem] = [{key: claim[key] for key in SHOWN} for claim in claims]
    print(f"{page.stem}: {len(claims)} claims in {stamp['seconds']} s")
    return True


def main(arguments: list[str]) -> int:
    """Run chapters one after the other and write the record.

    Args:
        arguments: the command line without the program's name.

    Returns:
        The exit status: 1 if a chapter stopped, 2 if none could run.
    """
    parser = argparse.ArgumentParser(prog="python -m press.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the path")
    parser.add_argument(
        "--to", type=Path, action="append", help="a file of the record; the first is read"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="chapters; all of them by default")
    parser.add_argument(
        "--join", type=Path, nargs="+", help="make one record of these, run nothing"
    )
    chosen = parser.parse_args(arguments)
    if chosen.join:
        return _join_files(chosen.join, RECORD)
    pages = {page.stem: page for page in executed_chapters(CHAPTERS)}
    if unknown := sorted(set(chosen.names) - set(pages)):
        parser.error(f"no such chapter: {', '.join(unknown)}")
    try:
        on = machine(chosen.device)
        paths = chosen.to or [RECORD if on.device == "cuda" else TRIAL]
        if on.device != "cuda" and RECORD.resolve() in [path.resolve() for path in paths]:
            raise RecordError(f"a run on {on.device} is no record of a GPU")
        old = json.loads(paths[0].read_text()) if paths[0].is_file() else None
        record = start(old, on, commit(ROOT), chosen.names)
    except (DeviceError, RecordError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"on {on.card}, driver {on.driver}, torch {on.torch}")
    ran = [_added(record, pages[name], chosen.device, paths) for name in chosen.names or pages]
    print(f"wrote {paths[-1]}: {len(record['chapters'])} of {len(pages)} chapters")
    return int(not all(ran))


def _added(record: dict, page: Path, where: str, paths: list[Path]) -> bool:
    """Write after every chapter: hours of work must not hang on the last one."""
    ran = add(record, page, where)
    record["date"] = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    _write(record, paths)
    return ran


def _must_agree(old: dict, head: dict) -> None:
    keys = ("device", "card", "torch", "commit")
    if differing := [key for key in keys if old[key] != head[key]]:
        words = ", ".join(f"{key} {old[key]}" for key in differing)
        raise RecordError(f"the record is of {words}: run all chapters, or move it away")


def _join_files(paths: list[Path], to: Path) -> int:
    try:
        record = join([json.loads(path.read_text()) for path in paths])
        if record["device"] != "cuda":
            raise RecordError(f"a run on {record['device']} is no record of a GPU")
    except (OSError, RecordError) as error:
        print(error, file=sys.stderr)
        return 2
    _write(record, [to])
    return 0


def _write(record: dict, paths: list[Path]) -> None:
    text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _why(error: Exception) -> str:
    """Say in one line at which cell a chapter stopped, and why."""
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
    cell = " ".join(getattr(error, "__notes__", []))
    return " ".join(f"{cell}: {name}: {value}".split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
