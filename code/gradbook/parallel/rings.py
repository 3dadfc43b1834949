"""All-reduce around a ring, and its two halves.

Every rank sends to its neighbour only, and all of them at once. Source: P. Patarasuk and X. Yuan,
2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
"""

from gradbook.parallel.transfers import COPY, REDUCE, Move, Schedule, numbered
from gradbook.transformer_sizes import require_sizes


def reduce_scatter(world_size: int) -> Schedule:
    """Reduce every chunk at one rank: rank i ends with chunk i + 1.

    Args:
        world_size: p.

    Returns:
        p - 1 steps on p chunks.

    Raises:
        ValueError: if p is not a positive integer.
    """
    require_sizes(world_size=world_size)
    p = world_size
    return numbered("reduce_scatter", p, p, _scatter(p))


def all_gather(world_size: int) -> Schedule:
    """Hand every chunk on, from the rank where `reduce_scatter` ends it.

    Args:
        world_size: p.

    Returns:
        p - 1 steps on p chunks.

    Raises:
        ValueError: if p is not a positive integer.
    """
    require_sizes(world_size=world_size)
    p = world_size
    return numbered("all_gather", p, p, _gather(p))


def ring(world_size: int) -> Schedule:
    """All-reduce on a ring: `reduce_scatter`, then `all_gather`.

    Args:
        world_size: p.

    Returns:
        2 (p - 1) steps on p chunks; rank i sends to rank i + 1.

    Raises:
        ValueError: if p is not a positive integer.
    """
    require_sizes(world_size=world_size)
    p = world_size
    return numbered("ring", p, p, _scatter(p) + _gather(p))


def ring_reversed(world_size: int) -> Schedule:
    """All-reduce on a ring, the other way round: rank i sends to i - 1.

    It is `ring` with rank i called -i and chunk c called -c, modulo p.

    Args:
        world_size: p.

    Returns:
        2 (p - 1) steps on p chunks.

    Raises:
        ValueError: if p is not a positive integer.
    """
    require_sizes(world_size=world_size)
    p = world_size
    return numbered("ring_reversed", p, p, _backwards(p, 0))


def ring_both(world_size: int) -> Schedule:
    """All-reduce on two rings at once, half of the tensor each way.

    The first p of 2 p chunks go up the ring, the others down.

    Args:
        world_size: p.

    Returns:
        2 (p - 1) steps on 2 p chunks.

    Raises:
        ValueError: if p is not a positive integer.
    """
    require_sizes(world_size=world_size)
    p = world_size
    up, down = _scatter(p) + _gather(p), _backwards(p, p)
    rounds = [one + other for one, other in zip(up, down, strict=True)]
    return numbered("ring_both", p, 2 * p, rounds)


def _scatter(p: int) -> list[list[Move]]:
    # In step s rank i passes on the chunk that it added to in step s - 1.
    return [
        [(i, (i + 1) % p, (i - s) % p, REDUCE) for i in range(p)]
        for s in range(p - 1)
    ]  # fmt: skip


def _gather(p: int) -> list[list[Move]]:
    # Rank i starts with its finished chunk i + 1, then passes on the last.
    return [
        [(i, (i + 1) % p, (i + 1 - s) % p, COPY) for i in range(p)]
        for s in range(p - 1)
    ]  # fmt: skip


def _backwards(p: int, first: int) -> list[list[Move]]:
    return [
        [(-i % p, -j % p, first + -c % p, op) for i, j, c, op in moves]
        for moves in _scatter(p) + _gather(p)
    ]  # fmt: skip
