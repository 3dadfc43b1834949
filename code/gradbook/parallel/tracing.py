"""Carrying a schedule out on symbols, which proves what it does to any tensor.

In the place of numbers stand the ranks that contributed to them, or the sum written out. What holds
for these holds for every tensor and for every reduction, up to two things that no trace sees: the
payload of a NaN, and the sign of a zero that "max" or "min" finds.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from gradbook.parallel.transfers import REDUCE, Schedule, Transfer, require_transfers, steps
from gradbook.transformer_sizes import require_sizes

Value = TypeVar("Value")
Expression = int | tuple["Expression", "Expression"]


def carry_out(
    transfers: Sequence[Transfer],
    held: list[list[Value]],
    combine: Callable[[Value, Value], Value],
) -> None:
    """Carry out the transfers of one step.

    Args:
        transfers: of the step.
        held: by rank and chunk; is changed. The values themselves are not.
        combine: own value and received one to the value of both.
    """
    arriving = [held[t.source][t.chunk] for t in transfers]
    for t, value in zip(transfers, arriving, strict=True):
        if t.op == REDUCE:
            value = combine(held[t.destination][t.chunk], value)
        held[t.destination][t.chunk] = value


def own(schedule: Schedule) -> list[list[frozenset[int]]]:
    """Give what ranks hold at the start: each its own contribution."""
    ranks = range(schedule.world_size)
    return [[frozenset([i])] * schedule.chunks for i in ranks]


def contributions(
    schedule: Schedule, start: list[list[frozenset[int]]] | None = None
) -> list[list[frozenset[int]]]:
    """Trace whose contributions every rank ends with.

    Args:
        schedule: of any collective.
        start: contributions before, by rank and chunk; None is `own`.

    Returns:
        The ranks, by rank and chunk.

    Raises:
        ValueError: if the schedule cannot be carried out, a reduce would
            count a contribution twice, or the start has not a set for
            every rank and chunk.
    """
    require_transfers(schedule)
    held = [list(row) for row in (own(schedule) if start is None else start)]
    if [len(row) for row in held] != [schedule.chunks] * schedule.world_size:
        shape = f"{schedule.world_size} rows of {schedule.chunks}"
        raise ValueError(f"start: must be {shape}, got {[len(row) for row in held]}")
    for together in steps(schedule):
        require_disjoint(together, held)
        carry_out(together, held, frozenset.union)
    return held


def require_disjoint(transfers: Sequence[Transfer], held: list[list[frozenset[int]]]) -> None:
    """Raise if a reduce of a step would count a contribution twice.

    Args:
        transfers: of the step.
        held: contributions when the step begins, by rank and chunk.

    Raises:
        ValueError: naming transfer and ranks.
    """
    for t in transfers:
        twice = held[t.source][t.chunk] & held[t.destination][t.chunk]
        if t.op == REDUCE and twice:
            raise ValueError(f"transfers: counts {sorted(twice)} twice, got {t}")


def order(schedule: Schedule) -> list[list[Expression]]:
    """Write out in which order every rank's result is combined.

    Args:
        schedule: of any collective.

    Returns:
        By rank and chunk: a rank, or a pair of what was held and what
        was received, each of them such an expression again.

    Raises:
        ValueError: if the schedule cannot be carried out.
    """
    require_transfers(schedule)
    held: list[list[Expression]] = [
        [i] * schedule.chunks for i in range(schedule.world_size)
    ]  # fmt: skip
    for together in steps(schedule):
        carry_out(together, held, lambda mine, received: (mine, received))
    return held


def roundings(schedule: Schedule) -> list[list[int]]:
    """Number the results so that equal numbers mean equal bits.

    Two results get one number if they combine the same contributions in the same order, up to the
    two sides of each operation: a floating-point sum rounds a + b as b + a. (Which of two NaNs is
    kept may hang on the sides, and of two zeros with "max" and "min": those bits may differ.)

    Args:
        schedule: of any collective.

    Returns:
        Number by rank and chunk.

    Raises:
        ValueError: if the schedule cannot be carried out.
    """
    require_transfers(schedule)
    seen: dict[tuple[int, int], int] = {}

    def combine(mine: int, received: int) -> int:
        pair = min(mine, received), max(mine, received)
        return seen.setdefault(pair, schedule.world_size + len(seen))

    held = [[i] * schedule.chunks for i in range(schedule.world_size)]
    for together in steps(schedule):
        carry_out(together, held, combine)
    return held


def require_valid(schedule: Schedule) -> None:
    """Prove by a trace that a schedule is an all-reduce, or raise.

    Every rank must end with every chunk, to which each rank contributed
    exactly once, and combined in the same order at all ranks.

    Args:
        schedule: to prove.

    Raises:
        ValueError: naming the transfer, or the rank and the chunk, that is
            wrong.
    """
    everyone = frozenset(range(schedule.world_size))
    for rank, row in enumerate(contributions(schedule)):
        for chunk, ranks in enumerate(row):
            if ranks != everyone:
                without = f"{sorted(everyone - ranks)} in chunk {chunk}"
                raise ValueError(f"transfers: rank {rank} ends without {without}")
    first, *others = roundings(schedule)
    for rank, row in enumerate(others, 1):
        for chunk, number in enumerate(row):
            if number != first[chunk]:
                where = f"rank {rank} combines chunk {chunk}"
                raise ValueError(f"transfers: {where} in another order than rank 0")


def journey(schedule: Schedule, chunk: int) -> tuple[Transfer, ...]:
    """List the transfers of one chunk.

    Args:
        schedule: of any collective.
        chunk: which, from 0.

    Returns:
        Its transfers, step by step.

    Raises:
        ValueError: if there is no such chunk.
    """
    require_sizes(chunks=schedule.chunks)
    if chunk not in range(schedule.chunks):
        raise ValueError(f"chunk: must be below {schedule.chunks}, got {chunk}")
    return tuple(t for t in schedule.transfers if t.chunk == chunk)
