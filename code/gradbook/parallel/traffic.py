"""How many bytes a schedule moves, and how long that takes in the alpha-beta-gamma model.

The model: a step begins when the one before has ended everywhere. It takes alpha seconds, and beta
for every byte through the busiest *port*, and gamma for every byte that the busiest rank combines.
Every rank has one port for what it sends and one for what it receives, which work at the same time.
All that a rank sends in one step shares its port, to however many ranks it goes; and so does all
that it receives. Links between ports are never the bottleneck. Source: R. Thakur, R. Rabenseifner
and W. Gropp, 2005, "Optimization of collective communication operations in MPICH"; the rule for
several messages in a step is ours.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from gradbook.checks import require_finite
from gradbook.parallel.transfers import REDUCE, Schedule, bounds, require_transfers, steps
from gradbook.transformer_sizes import require_sizes


class Load(NamedTuple):
    """What the busiest rank of a step does.

    Attributes:
        port: bytes that it sends or receives, the larger number.
        reduced: bytes that it receives and combines.
    """

    port: int
    reduced: int


class Traffic(NamedTuple):
    """What every rank sends and receives in all steps.

    Attributes:
        sent: bytes by rank.
        received: bytes by rank.
        messages: how many; what goes from one rank to another in a step
            is one message, also when it is empty.
    """

    sent: list[int]
    received: list[int]
    messages: int


def chunk_sizes(schedule: Schedule, n: int, item: int = 1) -> list[int]:
    """Compute how large every chunk is.

    Args:
        schedule: of any collective.
        n: numbers of the tensor.
        item: bytes of a number; 1 counts the numbers themselves.

    Returns:
        Bytes by chunk.

    Raises:
        ValueError: if a number is no integer or too small.
    """
    require_sizes(item=item)
    cuts = bounds(n, schedule.chunks)
    return [(stop - start) * item for start, stop in cuts]


def traffic(schedule: Schedule, sizes: Sequence[int]) -> Traffic:
    """Count what every rank sends and receives.

    Args:
        schedule: of any collective.
        sizes: bytes by chunk, or numbers by chunk to count these.

    Returns:
        The counts.

    Raises:
        ValueError: if the schedule cannot be carried out, or there is not
            one size of at least 0 for each chunk.
    """
    _require(schedule, sizes)
    sent, received = [0] * schedule.world_size, [0] * schedule.world_size
    for t in schedule.transfers:
        sent[t.source] += sizes[t.chunk]
        received[t.destination] += sizes[t.chunk]
    pairs = {(t.step, t.source, t.destination) for t in schedule.transfers}
    return Traffic(sent, received, len(pairs))


def loads(schedule: Schedule, sizes: Sequence[int]) -> list[Load]:
    """Find the busiest port of every step.

    Args:
        schedule: of any collective.
        sizes: bytes by chunk.

    Returns:
        Load by step.

    Raises:
        ValueError: as `traffic` does.
    """
    _require(schedule, sizes)
    found = []
    for together in steps(schedule):
        out, into, reduced = Counter(), Counter(), Counter()
        for t in together:
            out[t.source] += sizes[t.chunk]
            into[t.destination] += sizes[t.chunk]
            reduced[t.destination] += sizes[t.chunk] * (t.op == REDUCE)
        port = max(*out.values(), *into.values())
        found.append(Load(port, max(reduced.values())))
    return found


def clock(
    schedule: Schedule,
    sizes: Sequence[int],
    alpha: float = 0.0,
    beta: float = 0.0,
    gamma: float = 0.0,
) -> list[float]:
    """Compute when every step ends.

    Args:
        schedule: of any collective.
        sizes: bytes by chunk.
        alpha: seconds of a step without bytes.
        beta: seconds per byte through a port.
        gamma: seconds per byte combined.

    Returns:
        Seconds since the start, by step.

    Raises:
        ValueError: as `traffic` does, or if a rate is negative or not
            finite.
    """
    require_not_negative(alpha=alpha, beta=beta, gamma=gamma)
    return list(
        accumulate(
            alpha + beta * load.port + gamma * load.reduced
            for load in loads(schedule, sizes)
        )
    )  # fmt: skip


def require_not_negative(**numbers: float) -> None:
    """Raise unless every number is finite and at least zero.

    Args:
        **numbers: rates, sizes or seconds, under the names of the caller's arguments.

    Raises:
        ValueError: if one is not.
    """
    require_finite(**numbers)
    for name, number in numbers.items():
        if number < 0:
            raise ValueError(f"{name}: must be at least 0, got {number}")


def _require(schedule: Schedule, sizes: Sequence[int]) -> None:
    require_transfers(schedule)
    if len(sizes) != schedule.chunks:
        raise ValueError(f"sizes: must be {schedule.chunks}, one per chunk, got {len(sizes)}")
    for size in sizes:
        require_not_negative(sizes=size)
