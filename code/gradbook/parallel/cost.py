"""What each all-reduce costs, in closed form, under the model of `gradbook.parallel.traffic`.

In the formulas p is the world's size, q the largest power of two up to p, and L is log2 p, rounded
up. The tensor's size is 1: a rank that sends 2 sends twice as much as a tensor holds. The forms are
exact where the chunks are of one size. Source of those that are no pipeline: R. Thakur, R.
Rabenseifner and W. Gropp, 2005, "Optimization of collective communication operations in MPICH".
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from gradbook.parallel.double_trees import parents, starts, turns
from gradbook.parallel.recursive import power
from gradbook.parallel.traffic import require_not_negative
from gradbook.transformer_sizes import require_sizes


class Cost(NamedTuple):
    """What an algorithm costs for tensors of size 1.

    Attributes:
        steps: how many.
        sent: by the rank that sends most, over all steps.
        port: through the busiest port of each step, summed over steps.
        reduced: by the busiest rank of each step, summed over steps.
    """

    steps: int
    sent: Fraction
    port: Fraction
    reduced: Fraction

    def slope(self, beta: float, gamma: float = 0.0) -> float:
        """Compute the seconds of one byte more in the tensor."""
        return float(self.port) * beta + float(self.reduced) * gamma

    def seconds(
        self, size: float, alpha: float, beta: float, gamma: float = 0.0
    ) -> float:  # fmt: skip
        """Compute the time of an all-reduce.

        Args:
            size: bytes of the tensor.
            alpha: seconds of a step without bytes.
            beta: seconds per byte through a port.
            gamma: seconds per byte combined.

        Returns:
            Seconds.

        Raises:
            ValueError: if a number is negative or not finite.
        """
        require_not_negative(size=size, alpha=alpha, beta=beta, gamma=gamma)
        return self.steps * alpha + size * self.slope(beta, gamma)


def ring(world_size: int) -> Cost:
    """Cost a ring, in either direction or in both at once.

    Args:
        world_size: p.

    Returns:
        Steps 2 (p - 1), sent and port 2 (p - 1) / p, reduced (p - 1) / p.

    Raises:
        ValueError: if p is not a positive integer.
    """
    require_sizes(world_size=world_size)
    share = Fraction(world_size - 1, world_size)
    return Cost(2 * (world_size - 1), 2 * share, 2 * share, share)


def root(world_size: int) -> Cost:
    """Cost a root that talks to the others one by one.

    Args:
        world_size: p.

    Returns:
        Steps and port 2 (p - 1), sent and reduced p - 1.

    Raises:
        ValueError: if p is not a positive integer.
    """
    require_sizes(world_size=world_size)
    others = Fraction(world_size - 1)
    return Cost(2 * (world_size - 1), others, 2 * others, others)


def binomial(world_size: int) -> Cost:
    """Cost a binomial tree, up and down.

    Args:
        world_size: p.

    Returns:
        Steps and port 2 L, sent (by the root) and reduced L.

    Raises:
        ValueError: if p is not a positive integer.
    """
    require_sizes(world_size=world_size)
    levels = (world_size - 1).bit_length()
    once = Fraction(levels)
    return Cost(2 * levels, once, 2 * once, once)


def recursive_doubling(world_size: int) -> Cost:
    """Cost the exchange of whole tensors.

    Args:
        world_size: p.

    Returns:
        All four log2 q; if p is not q, two more steps and twice more
        through the port, and once more sent and reduced.

    Raises:
        ValueError: if p is not a positive integer.
    """
    q = power(world_size)
    doublings, extra = q.bit_length() - 1, int(q != world_size)
    once = Fraction(doublings + extra)
    return Cost(doublings + 2 * extra, once, once + extra, once)


def halving_doubling(world_size: int) -> Cost:
    """Cost recursive halving and doubling.

    Args:
        world_size: p.

    Returns:
        Steps 2 log2 q, sent and port 2 (q - 1) / q, reduced (q - 1) / q;
        if p is not q, more as in `recursive_doubling`.

    Raises:
        ValueError: if p is not a positive integer.
    """
    q = power(world_size)
    doublings, extra = q.bit_length() - 1, int(q != world_size)
    share = Fraction(q - 1, q)
    steps = 2 * doublings + 2 * extra
    sent = 2 * share + extra
    return Cost(steps, sent, sent + extra, share + extra)


def double_tree(world_size: int, segments: int = 4) -> Cost:
    """Cost two pipelined trees.

    A turn takes t = 2 steps (1 for p = 2), and the first chunk needs H
    steps from the roots to the last rank.

    Args:
        world_size: p.
        segments: m, chunks of each tree.

    Returns:
        Steps S = 2 (t (m - 1) + H), port S / 2 m, reduced half of that;
        sent: half a tensor for every parent and for every child.

    Raises:
        ValueError: if a number is not a positive integer.
    """
    require_sizes(world_size=world_size, segments=segments)
    if world_size == 1:
        return Cost(0, Fraction(0), Fraction(0), Fraction(0))
    turn, height = _turn(world_size), 1 + max(starts(world_size).values())
    steps = 2 * (turn * (segments - 1) + height)
    port = Fraction(steps, 2 * segments)
    return Cost(steps, _sent_in_trees(world_size), port, port / 2)


def _turn(world_size: int) -> int:
    return 1 + max(turns(world_size).values())


def _sent_in_trees(world_size: int) -> Fraction:
    sends = [0] * world_size
    for tree in parents(world_size):
        for child, parent in tree.items():
            sends[child] += 1
            sends[parent] += 1
    return Fraction(max(sends), 2)


# By the names of `gradbook.parallel.schedules.ALGORITHMS`.
COSTS: dict[str, Callable[..., Cost]] = {
    "ring": ring,
    "ring_reversed": ring,
    "ring_both": ring,
    "root": root,
    "binomial": binomial,
    "recursive_doubling": recursive_doubling,
    "halving_doubling": halving_doubling,
    "double_tree": double_tree,
}


def crossover(
    first: Cost, second: Cost, alpha: float, beta: float, gamma: float = 0.0
) -> float:  # fmt: skip
    """Find the size of a tensor above which the first costs less time.

    Args:
        first: an algorithm.
        second: another.
        alpha: seconds of a step without bytes.
        beta: seconds per byte through a port.
        gamma: seconds per byte combined.

    Returns:
        Bytes; 0 if the first is faster for every size above 0, infinity
        if no size is large enough, as between equal costs.

    Raises:
        ValueError: if a rate is negative or not finite.
    """
    require_not_negative(alpha=alpha, beta=beta, gamma=gamma)
    saved = second.slope(beta, gamma) - first.slope(beta, gamma)
    longer = alpha * (first.steps - second.steps)
    if saved > 0:
        return max(0.0, longer / saved)
    return math.inf if saved < 0 or longer >= 0 else 0.0


def best_segments(
    world_size: int, size: float, alpha: float, beta: float, gamma: float = 0.0
) -> int:  # fmt: skip
    """Find into how many chunks each of two trees is best cut.

    With S = a + b m steps the time is (a + b m) (alpha + size r / 2 m),
    where r is beta + gamma / 2. It is least at m = sqrt(a size r / (2 b
    alpha)); one of the two integers beside it is best.

    Args:
        world_size: p, at least 2.
        size: bytes of the tensor.
        alpha: seconds of a step without bytes, above 0.
        beta: seconds per byte through a port.
        gamma: seconds per byte combined.

    Returns:
        m, at least 1.

    Raises:
        ValueError: if a number is out of its range.
    """
    require_sizes(world_size=world_size)
    require_not_negative(size=size, alpha=alpha, beta=beta, gamma=gamma)
    if world_size < 2:
        raise ValueError(f"world_size: must be at least 2, got {world_size}")
    if alpha == 0:
        raise ValueError("alpha: must be above 0, got 0")
    b = 2 * _turn(world_size)
    a = double_tree(world_size, 1).steps - b
    least = math.sqrt(a * size * (beta + gamma / 2) / (2 * b * alpha))
    near = sorted({max(1, math.floor(least)), max(1, math.ceil(least))})
    rates = size, alpha, beta, gamma
    return min(near, key=lambda m: double_tree(world_size, m).seconds(*rates))
