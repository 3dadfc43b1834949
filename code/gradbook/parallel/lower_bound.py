"""The fewest messages of a collective, found by trying all.

One element stands for the tensor. A state says which ranks' contributions every rank has; a message
goes one way between two ranks. The search goes breadth first from the state before the collective,
so it meets a finished state after the fewest messages.

Two kinds of message are tried. In `gossip` a rank keeps all it ever heard apart, and a message
tells it all: nothing that a message can carry is worth more. In `numbers` a rank has one number,
and a message does what a transfer of a schedule does. A bound for gossip holds for both.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from gradbook.transformer_sizes import require_sizes

# States of p ranks as integers: the p bits of rank i stand i p places from the right.
States = NDArray[np.int64]
Tell = Callable[[States, int, int, int], States]
LARGEST = 5  # ranks: 2 ** 25 states


def gossip(states: States, p: int, source: int, to: int) -> States:
    """Add all that the source knows to what the destination knows.

    Args:
        states: [N].
        p: ranks.
        source: rank that tells.
        to: rank that is told.

    Returns:
        [N].
    """
    return states | _at(states, p, source) << to * p


def numbers(states: States, p: int, source: int, to: int) -> States:
    """Copy the source's number, or add it where nothing counts twice.

    Args:
        states: [N].
        p: ranks.
        source: rank that sends.
        to: rank that receives.

    Returns:
        [M], from N to 2 N of them.
    """
    sent, own = _at(states, p, source), _at(states, p, to)
    copied = states ^ (own ^ sent) << to * p
    reduced = states | sent << to * p
    return np.concatenate([copied, reduced[sent & own == 0]])


def all_reduce_messages(world_size: int, tell: Tell = gossip) -> int:
    """Count the messages until every rank has every contribution.

    Args:
        world_size: p, at most 5.
        tell: `gossip` or `numbers`.

    Returns:
        The fewest.

    Raises:
        ValueError: if p is not an integer from 1 to 5.
    """
    start = _apart(world_size)
    return _search(world_size, start, _everyone, tell)


def reduce_scatter_messages(
    world_size: int, tell: Tell = gossip
) -> int:  # fmt: skip
    """Count the messages until one rank has every contribution.

    Args:
        world_size: p, at most 5.
        tell: `gossip` or `numbers`.

    Returns:
        The fewest.

    Raises:
        ValueError: if p is not an integer from 1 to 5.
    """
    start = _apart(world_size)
    return _search(world_size, start, _someone, tell)


def all_gather_messages(
    world_size: int, tell: Tell = gossip
) -> int:  # fmt: skip
    """Count the messages until every rank has what one has.

    Args:
        world_size: p, at most 5.
        tell: `gossip` or `numbers`.

    Returns:
        The fewest.

    Raises:
        ValueError: if p is not an integer from 1 to 5.
    """
    start = _apart(world_size) | (1 << world_size) - 1
    return _search(world_size, start, _everyone, tell)


def _at(states: States, p: int, rank: int) -> States:
    return states >> rank * p & (1 << p) - 1


def _apart(p: int) -> int:
    require_sizes(world_size=p)
    if p > LARGEST:
        raise ValueError(f"world_size: must be at most {LARGEST}, got {p}")
    return sum(1 << i * p + i for i in range(p))


def _everyone(states: States, p: int) -> bool:
    return bool((states == (1 << p * p) - 1).any())


def _someone(states: States, p: int) -> bool:
    full = (1 << p) - 1
    return any((_at(states, p, i) == full).any() for i in range(p))


def _search(p: int, start: int, done: Callable, tell: Tell) -> int:
    states = np.array([start], dtype=np.int64)
    seen = np.zeros(1 << p * p, dtype=bool)
    seen[start] = True
    pairs = [(i, j) for i in range(p) for j in range(p) if i != j]
    messages = 0
    while not done(states, p):
        if not len(states):
            raise RuntimeError("tell: no message leads any further")
        reached = np.zeros_like(seen)
        for source, to in pairs:
            reached[tell(states, p, source, to)] = True
        states = np.flatnonzero(reached & ~seen)
        seen |= reached
        messages += 1
    return messages


def least_traffic(world_size: int) -> Fraction:
    """Bound what the rank that sends most must send, for tensors of size 1.

    Every element needs 2 (p - 1) messages, and p ranks share them.

    Args:
        world_size: p.

    Returns:
        2 (p - 1) / p.

    Raises:
        ValueError: if p is not a positive integer.
    """
    require_sizes(world_size=world_size)
    return Fraction(2 * (world_size - 1), world_size)


def least_elements(world_size: int, n: int) -> int:
    """Bound how many whole elements the rank that sends most must send.

    Args:
        world_size: p.
        n: elements of the tensor, at least 0.

    Returns:
        2 (p - 1) n / p, rounded up.

    Raises:
        ValueError: if a number is no integer or too small.
    """
    if type(n) is not int or n < 0:
        raise ValueError(f"n: must be an integer of at least 0, got {n}")
    return math.ceil(n * least_traffic(world_size))
