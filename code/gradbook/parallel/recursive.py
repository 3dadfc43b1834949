"""All-reduce by exchanges between pairs whose distance doubles or halves.

Both need a power of two, q. Of p ranks the first q take part, where q is the largest power up to p;
each rank beyond sends its tensor to one of them before, and gets the result from it afterwards.
Source: R. Thakur, R. Rabenseifner and W. Gropp, 2005, "Optimization of collective communication
operations in MPICH".
"""

from gradbook.parallel.transfers import COPY, REDUCE, Move, Schedule, numbered
from gradbook.transformer_sizes import require_sizes


def recursive_doubling(world_size: int) -> Schedule:
    """All-reduce in which pairs exchange all they have.

    After the exchange at distance d, 2 d ranks hold the same.

    Args:
        world_size: p.

    Returns:
        log2 q steps on one chunk; two more if p is not q.

    Raises:
        ValueError: if p is not a positive integer.
    """
    require_sizes(world_size=world_size)
    q = power(world_size)
    rounds = [
        [(i, i ^ distance, 0, REDUCE) for i in range(q)]
        for distance in powers(q)
    ]  # fmt: skip
    rounds = _fold(world_size, 1) + rounds + _unfold(world_size, 1)
    return numbered("recursive_doubling", world_size, 1, rounds)


def halving_doubling(world_size: int) -> Schedule:
    """All-reduce by recursive halving, then recursive doubling.

    At distance d a rank of the first part gives away d chunks and keeps
    d; rank i ends with chunk i. The second part is the first, undone.

    Args:
        world_size: p.

    Returns:
        2 log2 q steps on q chunks; two more if p is not q.

    Raises:
        ValueError: if p is not a positive integer.

    Source: R. Rabenseifner, 2004, "Optimization of collective reduction
    operations". MPICH begins with the nearest pair; here the farthest
    comes first, so that the chunks end in order.
    """
    require_sizes(world_size=world_size)
    q = power(world_size)
    halve = [
        [(i, i ^ d, c, REDUCE) for i in range(q) for c in _block(i ^ d, d)]
        for d in reversed(powers(q))
    ]
    double = [
        [(i, i ^ d, c, COPY) for i in range(q) for c in _block(i, d)]
        for d in powers(q)
    ]  # fmt: skip
    rounds = _fold(world_size, q) + halve + double + _unfold(world_size, q)
    return numbered("halving_doubling", world_size, q, rounds)


def power(world_size: int) -> int:
    """Find q, the largest power of two that is at most p.

    Args:
        world_size: p.

    Returns:
        q.

    Raises:
        ValueError: if p is not a positive integer.
    """
    require_sizes(world_size=world_size)
    return 1 << (world_size.bit_length() - 1)


def powers(q: int) -> list[int]:
    """List 1, 2, 4, ... below q."""
    return [1 << k for k in range(q.bit_length() - 1)]


def _block(rank: int, size: int) -> range:
    # The aligned block of `size` chunks in which the rank's own lies.
    start = rank // size * size
    return range(start, start + size)


def _fold(p: int, chunks: int) -> list[list[Move]]:
    q, cut = power(p), range(chunks)
    return [[(i, i - q, c, REDUCE) for i in range(q, p) for c in cut]]


def _unfold(p: int, chunks: int) -> list[list[Move]]:
    q, cut = power(p), range(chunks)
    return [[(i - q, i, c, COPY) for i in range(q, p) for c in cut]]
