"""What one rank does in every step of a schedule, and whom it must wait for before it writes.

A rank *offers* the chunks that it sends and *takes* those that it receives. Every transfer of a
step reads what its source held when the step began, so that a chunk is not written before all who
read it have done so. Who that is follows from the schedule alone and is found here, once.
"""

from functools import lru_cache
from typing import NamedTuple

from gradbook.parallel.schedules import Schedule, require_transfers, steps


class Offer(NamedTuple):
    """A chunk that a rank sends.

    Attributes:
        destination: who gets it.
        chunk: which.
        rewritten: whether this rank also writes the chunk in the same step.
    """

    destination: int
    chunk: int
    rewritten: bool


class Take(NamedTuple):
    """A chunk that a rank receives.

    Attributes:
        source: who sends it.
        chunk: which.
        op: what to do with it.
        offered: whether this rank also offers the chunk in the same step.
        after: pairs (reader, count): before it writes, this rank waits until the reader has taken
            so many of its offers.
    """

    source: int
    chunk: int
    op: str
    offered: bool
    after: tuple[tuple[int, int], ...]


class Step(NamedTuple):
    """What a rank does in one step: all offers, then all takes, in the schedule's order."""

    offers: tuple[Offer, ...]
    takes: tuple[Take, ...]


@lru_cache(maxsize=256)
def plan(schedule: Schedule, rank: int) -> tuple[Step, ...]:
    """Pick out what one rank does.

    Args:
        schedule: of the collective.
        rank: from 0.

    Returns:
        As many steps as the schedule has; one may be empty.

    Raises:
        ValueError: if the schedule cannot be carried out or has no such rank.
    """
    require_transfers(schedule)
    if rank not in range(schedule.world_size):
        raise ValueError(f"rank: must be below {schedule.world_size}, got {rank}")
    offered: dict[int, int] = {}  # to each destination, so far
    readers: dict[int, dict[int, int]] = {}  # of a chunk: who, and its count then
    planned = []
    for moves in steps(schedule):
        sent = [t for t in moves if t.source == rank]
        received = [t for t in moves if t.destination == rank]
        written = {t.chunk for t in received}
        for t in sent:
            offered[t.destination] = offered.get(t.destination, 0) + 1
            readers.setdefault(t.chunk, {})[t.destination] = offered[t.destination]
        read = {t.chunk for t in sent}
        offers = tuple(Offer(t.destination, t.chunk, t.chunk in written) for t in sent)
        takes = tuple(
            Take(t.source, t.chunk, t.op, t.chunk in read, _pairs(readers, t.chunk))
            for t in received
        )
        planned.append(Step(offers, takes))
    return tuple(planned)


def _pairs(readers: dict[int, dict[int, int]], chunk: int) -> tuple[tuple[int, int], ...]:
    # Once waited for, a reader need not be waited for again.
    return tuple(sorted(readers.pop(chunk, {}).items()))
