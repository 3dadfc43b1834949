"""Time two implementations of the same thing against each other."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

REPEATS = 15
Side = Callable[[], Any]


def as_they_are(values: Tensor) -> Tensor:
    """Compare results value by value."""
    return values


class Timing(NamedTuple):
    """The fastest run of each side, in milliseconds."""

    ours: float
    peer: float

    @property
    def ratio(self) -> float:
        """Our time over the peer's: below 1 we are faster."""
        return self.ours / self.peer


@dataclass(frozen=True)
class Case:
    """One operation, done by us and by a peer.

    Attributes:
        operation: what is computed, and on how much.
        peer: who else computes it.
        rtol: the relative difference that the two results may have.
        make: prepares the inputs and returns our side and the peer's, each a function that
            returns its result as a tensor.
        compared: what of a result is compared; statistics, where each side draws its own noise.
    """

    operation: str
    peer: str
    rtol: float
    make: Callable[[], tuple[Callable[[], Tensor], Callable[[], Tensor]]]
    compared: Callable[[Tensor], Tensor] = as_they_are


def compare(ours: Side, peer: Side, repeats: int = REPEATS) -> Timing:
    """Time two functions in turns and keep the fastest run of each.

    In turns, because a machine that slows down then slows both; the fastest, because everything
    that disturbs a run makes it longer.

    Args:
        ours: our side.
        peer: the other side.
        repeats: runs of each side after one warm-up.

    Returns:
        The two times.

    Raises:
        ValueError: if repeats < 1.
    """
    if repeats < 1:
        raise ValueError("repeats: must be at least 1")
    ours()
    peer()
    best = [math.inf, math.inf]
    for _ in range(repeats):
        for index, side in enumerate((ours, peer)):
            started = time.perf_counter()
            side()
            best[index] = min(best[index], time.perf_counter() - started)
    return Timing(best[0] * 1000, best[1] * 1000)
