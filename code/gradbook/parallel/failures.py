"""When a rank fails: what the others notice, who is to blame, and ways to make it happen.

The others only see that a rank is gone, or that it does not come. Each reports whom it waits for;
from the reports of all, :func:`cause` finds the rank that stands at the beginning.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

# Seconds that the other ranks have to report after the first one did, and a process to end. All of
# them pass only where a rank stands still.
GRACE = 10.0
RAISED, LOST, LATE = "raised", "lost", "late"
NOT_COME = "did not come in time"


class CollectiveError(RuntimeError):
    """A collective failed.

    Attributes:
        rank: the one that failed.
        step: of the schedule, in which it was; 0 also before the first.
    """

    def __init__(self, rank: int, step: int, why: str):
        super().__init__(f"rank {rank}, step {step}: {why}")
        self.rank, self.step, self.why = rank, step, why

    def __reduce__(self):
        return CollectiveError, (self.rank, self.step, self.why)


class PeerLost(Exception):
    """Another rank has closed its end.

    Attributes:
        peer: its rank.
    """

    def __init__(self, peer: int):
        super().__init__(f"rank {peer} has gone")
        self.peer = peer


class PeerLate(Exception):
    """Another rank did not come in time.

    Attributes:
        peer: its rank.
    """

    def __init__(self, peer: int):
        super().__init__(f"rank {peer} did not come")
        self.peer = peer


@dataclass(frozen=True)
class Report:
    """What a rank says when it cannot go on.

    Attributes:
        rank: to blame, in the reporter's eyes.
        step: in which that was.
        kind: RAISED an error, LOST the other rank, or the other rank was LATE.
        why: in words.
        trace: the traceback, if there is one.
    """

    rank: int
    step: int
    kind: str
    why: str
    trace: str = ""


def report(error: BaseException, rank: int, step: int, trace: str = "") -> Report:
    """Put an error into words.

    Args:
        error: that ended a rank's work.
        rank: whose work.
        step: in which it was, at least 0.
        trace: the traceback.

    Returns:
        The report; it names another rank where the error does.
    """
    if isinstance(error, PeerLost):
        return Report(error.peer, step, LOST, f"has gone; rank {rank} waited for it")
    if isinstance(error, PeerLate):
        return Report(error.peer, step, LATE, f"{NOT_COME}; rank {rank} waited for it")
    if isinstance(error, CollectiveError):
        return Report(error.rank, error.step, RAISED, error.why)
    return Report(rank, step, RAISED, f"{type(error).__name__}: {error}", trace)


def cause(
    reports: Mapping[int, Report],
    ended: Mapping[int, str],
    silent: Collection[int],
    steps: Sequence[int],
) -> CollectiveError:
    """Find the rank that began it.

    A rank that ended without a word comes first, then one that raised an error. Otherwise the
    ranks only waited: go from one to the one that it waited for, until there is one that did not
    report. Whoever gave up first has gone for those who still waited, so that this can lead in a
    circle; then it is one that says nothing.

    Args:
        reports: by reporter; at least one, if none ended.
        ended: how, by rank, of those that ended without a report.
        silent: ranks that have neither answered nor reported, whether they were asked or not.
        steps: in which step every rank was last, below 0 for one that never began.

    Returns:
        The error to raise.
    """
    if ended:
        rank = min(ended, key=lambda one: (steps[one], one))
        return CollectiveError(rank, max(steps[rank], 0), ended[rank])
    raised = [one for one in reports.values() if one.kind == RAISED]
    if raised:
        first = min(raised, key=lambda one: (one.step, one.rank))
        error = CollectiveError(first.rank, first.step, first.why)
        if first.trace:
            error.add_note(first.trace)
        return error
    last = _followed(reports)
    rank = last.rank
    if rank in reports and silent:
        rank = min(silent, key=lambda one: (steps[one], one))
    step = max(steps[rank] if steps[rank] >= 0 else last.step, 0)
    return CollectiveError(rank, step, last.why if rank == last.rank else NOT_COME)


def _followed(reports: Mapping[int, Report]) -> Report:
    last, seen = reports[min(reports)], {min(reports)}
    while last.rank in reports and last.rank not in seen:
        seen.add(last.rank)
        last = reports[last.rank]
    return last


def settled(reports: Mapping[int, Report], silent: Collection[int]) -> bool:
    """Say whether those who still are silent can be told from the reports that there are.

    That is so when a single rank is left: all others have said that they wait, or have answered. If
    one of them has lost it, then it is just ending, and how it does is still to come.

    Args:
        reports: by reporter.
        silent: as in `cause`.

    Returns:
        True if there is nothing to wait for.
    """
    if not silent:
        return True
    lost = {one.rank for one in reports.values() if one.kind == LOST}
    waits = bool(reports) and all(one.kind != RAISED for one in reports.values())
    return waits and len(silent) == 1 and lost.isdisjoint(silent)


def exit_words(code: int | None) -> str:
    """Say how a process ended.

    Args:
        code: its exit code as `multiprocessing` gives it: minus the signal's number, if a signal
            ended it.

    Returns:
        A few words.
    """
    if code is None:
        return "has closed its end but still runs"
    if code < 0:
        # Real-time signals have numbers of their own, but no names.
        names = {one.value: one.name for one in signal.Signals}
        return f"its process was ended by {names.get(-code, f'signal {-code}')}"
    return f"its process ended with exit code {code}"


@dataclass(frozen=True)
class Killed:
    """Before a step, kill a rank's own process, at once and without any clean-up."""

    rank: int
    step: int

    def __call__(self, rank: int, step: int) -> None:
        """Kill this process if it is its turn."""
        if (rank, step) == (self.rank, self.step):
            if multiprocessing.parent_process() is None:
                raise RuntimeError("Killed: would end the whole program; ranks must be processes")
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


@dataclass(frozen=True)
class Raising:
    """Before a step, raise an error at a rank."""

    rank: int
    step: int

    def __call__(self, rank: int, step: int) -> None:
        """Raise if it is this rank's turn."""
        if (rank, step) == (self.rank, self.step):
            raise ArithmeticError("raised on purpose")


@dataclass(frozen=True)
class Stalled:
    """Before a step, let a rank sleep."""

    rank: int
    step: int
    seconds: float

    def __call__(self, rank: int, step: int) -> None:
        """Sleep if it is this rank's turn."""
        if (rank, step) == (self.rank, self.step):
            time.sleep(self.seconds)
