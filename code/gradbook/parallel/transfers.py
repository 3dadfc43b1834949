"""A collective as data: which rank sends which chunk to which rank, and when.

A *world* has p *ranks*, each with a tensor of its own. The tensor is cut into *chunks*, the same at
every rank. A *step* is a set of transfers that happen at once: each reads what its source held when
the step began. A *reduce* combines what arrives with what the destination holds; a *copy* replaces
it. How two numbers are combined (their sum, the larger one) is no part of the data.
"""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from gradbook.transformer_sizes import require_sizes

REDUCE, COPY = "reduce", "copy"


class Transfer(NamedTuple):
    """One chunk on its way.

    Attributes:
        step: when, from 0.
        source: rank that sends.
        destination: rank that receives.
        chunk: which, from 0.
        op: REDUCE or COPY, what the destination does with it.
    """

    step: int
    source: int
    destination: int
    chunk: int
    op: str


class Schedule(NamedTuple):
    """All transfers of a collective.

    Attributes:
        name: of the algorithm.
        world_size: p, how many ranks.
        chunks: into how many the tensor is cut.
        transfers: sorted by their steps, which leave no gap.
    """

    name: str
    world_size: int
    chunks: int
    transfers: tuple[Transfer, ...]


Move = tuple[int, int, int, str]  # a transfer without its step


def numbered(
    name: str, world_size: int, chunks: int, rounds: Sequence[Sequence[Move]]
) -> Schedule:  # fmt: skip
    """Number the steps of a schedule.

    Args:
        name: of the algorithm.
        world_size: p.
        chunks: of the tensor.
        rounds: what happens at once, in order: source, destination, chunk
            and op of each transfer. An empty round is left out.

    Returns:
        The schedule.
    """
    filled = enumerate(moves for moves in rounds if moves)
    placed = (Transfer(s, *move) for s, moves in filled for move in moves)
    return Schedule(name, world_size, chunks, tuple(placed))


def bounds(n: int, chunks: int) -> list[tuple[int, int]]:
    """Cut n numbers into chunks whose sizes differ by one at most.

    The first ``n % chunks`` get one more; there may be empty ones.

    Args:
        n: how many numbers, at least 0.
        chunks: how many, at least 1.

    Returns:
        Start and stop of every chunk.

    Raises:
        ValueError: if a number is too small or no integer.
    """
    require_sizes(chunks=chunks)
    if type(n) is not int or n < 0:
        raise ValueError(f"n: must be an integer of at least 0, got {n}")
    size, longer = divmod(n, chunks)
    starts = [i * size + min(i, longer) for i in range(chunks + 1)]
    return list(zip(starts[:-1], starts[1:], strict=True))


def steps(schedule: Schedule) -> list[tuple[Transfer, ...]]:
    """List the transfers step by step."""
    grouped = groupby(schedule.transfers, key=attrgetter("step"))
    return [tuple(together) for _, together in grouped]


def require_transfers(schedule: Schedule) -> None:
    """Raise unless every transfer can be carried out as it stands.

    Args:
        schedule: of any collective.

    Raises:
        ValueError: if a size is below 1, a number is no integer, the steps do not count from 0
            without a gap, a rank or a chunk does not exist, a rank sends to itself, the op is
            unknown, or two transfers of a step write the same chunk at the same rank.
    """
    require_sizes(world_size=schedule.world_size, chunks=schedule.chunks)
    for number, together in enumerate(steps(schedule)):
        written = set()
        for transfer in together:
            _require_transfer(transfer, schedule)
            if transfer.step != number:
                raise ValueError(f"transfers: expected step {number}, got {transfer}")
            place = transfer.destination, transfer.chunk
            if place in written:
                raise ValueError(
                    f"transfers: a second one of its step writes there, got {transfer}"
                )
            written.add(place)


def _require_transfer(transfer: Transfer, schedule: Schedule) -> None:
    ranks, chunks = range(schedule.world_size), range(schedule.chunks)
    # True and 1.0 are in a range, too.
    if any(type(number) is not int for number in transfer[:4]):
        raise ValueError(f"transfers: step, ranks and chunk must be integers, got {transfer}")
    if transfer.source not in ranks or transfer.destination not in ranks:
        raise ValueError(f"transfers: ranks must be in {ranks}, got {transfer}")
    if transfer.source == transfer.destination:
        raise ValueError(f"transfers: must join two ranks, got {transfer}")
    if transfer.chunk not in chunks:
        raise ValueError(f"transfers: chunks must be in {chunks}, got {transfer}")
    if transfer.op not in (REDUCE, COPY):
        raise ValueError(f"transfers: op must be {REDUCE!r} or {COPY!r}, got {transfer}")
