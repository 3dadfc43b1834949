"""All-reduce through a root: reduce towards it, then broadcast from it.

A reduction is a broadcast run backwards: the steps in reverse order, each transfer the other way.
"""

from gradbook.parallel.transfers import COPY, REDUCE, Move, Schedule, numbered
from gradbook.transformer_sizes import require_sizes


def root(world_size: int) -> Schedule:
    """All-reduce in which rank 0 talks to the others one by one.

    Args:
        world_size: p.

    Returns:
        2 (p - 1) steps on one chunk.

    Raises:
        ValueError: if p is not a positive integer.
    """
    require_sizes(world_size=world_size)
    others = range(1, world_size)
    collect = [[(i, 0, 0, REDUCE)] for i in others]
    spread = [[(0, i, 0, COPY)] for i in others]
    return numbered("root", world_size, 1, collect + spread)


def binomial(world_size: int) -> Schedule:
    """All-reduce on a binomial tree with rank 0 at its root.

    In the broadcast every rank that has the result sends it on in every
    step, so that their number doubles.

    Args:
        world_size: p.

    Returns:
        2 L steps on one chunk, where L is log2 p, rounded up.

    Raises:
        ValueError: if p is not a positive integer.
    """
    require_sizes(world_size=world_size)
    levels = (world_size - 1).bit_length()
    spread = [
        [
            (i, i + distance, 0, COPY)
            for i in range(0, world_size - distance, 2 * distance)
        ]
        for distance in (1 << k for k in reversed(range(levels)))
    ]  # fmt: skip
    return numbered("binomial", world_size, 1, backwards(spread) + spread)


def backwards(spread: list[list[Move]]) -> list[list[Move]]:
    """Turn a broadcast into a reduction to the same root."""
    return [
        [(to, source, chunk, REDUCE) for source, to, chunk, _ in moves]
        for moves in reversed(spread)
    ]  # fmt: skip
