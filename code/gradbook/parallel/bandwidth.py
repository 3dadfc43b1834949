"""The speed of a collective, as users of several machines compare it."""

from fractions import Fraction

from gradbook.checks import require_finite
from gradbook.parallel.lower_bound import least_traffic
from gradbook.parallel.traffic import require_not_negative


def bus_factor(world_size: int) -> Fraction:
    """Compute what an all-reduce's bandwidth is multiplied with.

    The bandwidth of an algorithm is the tensor's size over the time; the
    *bus bandwidth* is that times 2 (p - 1) / p. An algorithm at the lower
    bound then shows the speed of its ports, whatever p is.

    Args:
        world_size: p.

    Returns:
        2 (p - 1) / p.

    Raises:
        ValueError: if p is not a positive integer.

    Source: nccl-tests, doc/PERFORMANCE.md.
    """
    return least_traffic(world_size)


def bus_bandwidth(world_size: int, size: float, seconds: float) -> float:
    """Compute the bus bandwidth of an all-reduce.

    Args:
        world_size: p.
        size: bytes of the tensor.
        seconds: that it took.

    Returns:
        Bytes per second.

    Raises:
        ValueError: if p is not a positive integer, the size is negative
            or the time is not positive.
    """
    require_not_negative(size=size)
    require_finite(seconds=seconds)
    if seconds <= 0:
        raise ValueError(f"seconds: must be positive, got {seconds}")
    return float(bus_factor(world_size)) * size / seconds
