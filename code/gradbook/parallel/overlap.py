"""When a backward pass with its all-reduces ends: a small model of their overlap.

Layers come in the order of the backward pass. A layer takes some seconds and leaves a gradient of some
bytes. A bucket is *ready* when the last of its layers is done. There is one network: it reduces one
bucket after the other, each when it is ready and the one before has ended. The processor that computes
gradients is not slowed down by that.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from gradbook.parallel.buckets import buckets
from gradbook.parallel.traffic import require_not_negative

SecondsOf = Callable[[int], float]  # of the all-reduce of so many bytes


class Layer(NamedTuple):
    """What the backward pass does in one layer: seconds, and bytes of its gradient."""

    seconds: float
    bytes: int


class Reduced(NamedTuple):
    """The times of a bucket: ready, and begin and end of its all-reduce, in seconds."""

    ready: float
    begins: float
    ends: float


def overlapped(
    layers: Sequence[Layer],
    groups: Sequence[Sequence[int]],
    seconds_of: SecondsOf,
) -> list[Reduced]:
    """Launch every bucket as soon as it is ready.

    Args:
        layers: in the order of the backward pass.
        groups: positions of layers by bucket, which cut the order into runs.
        seconds_of: an all-reduce, from its bytes.

    Returns:
        Times by bucket; the last end is that of the whole.

    Raises:
        ValueError: if there are no layers, the groups are not such runs, or
            a layer's number is negative.
    """
    _require(layers, groups)
    computed = list(accumulate(layer.seconds for layer in layers))
    found, free = [], 0.0
    for group in groups:
        ready = computed[group[-1]]
        begins = max(ready, free)
        free = begins + seconds_of(sum(layers[i].bytes for i in group))
        found.append(Reduced(ready, begins, free))
    return found


def one_after_the_other(
    layers: Sequence[Layer],
    groups: Sequence[Sequence[int]],
    seconds_of: SecondsOf,
) -> float:
    """Add up a backward pass and the all-reduces that follow it.

    Args:
        layers: as for `overlapped`.
        groups: as for `overlapped`.
        seconds_of: an all-reduce, from its bytes.

    Returns:
        Seconds.

    Raises:
        ValueError: as `overlapped` does.
    """
    _require(layers, groups)
    held = [sum(layers[i].bytes for i in group) for group in groups]
    return sum(layer.seconds for layer in layers) + sum(map(seconds_of, held))


def best_groups(layers: Sequence[Layer], seconds_of: SecondsOf) -> list[list[int]]:
    """Find the buckets, of whatever sizes, with which everything ends first.

    The network is free the sooner, the sooner the buckets before end: so the best way up to a layer
    goes on from a best way up to an earlier one.

    Args:
        layers: in the order of the backward pass, at least one.
        seconds_of: an all-reduce, from its bytes.

    Returns:
        Positions by bucket.

    Raises:
        ValueError: if there are no layers, or a layer's number is negative.
    """
    everything = list(range(len(layers)))
    _require(layers, [everything])
    computed = list(accumulate((layer.seconds for layer in layers), initial=0.0))
    held = list(accumulate((layer.bytes for layer in layers), initial=0))
    ends, cuts = [0.0], [0]
    for stop in range(1, len(layers) + 1):
        ways = [
            (max(computed[stop], ends[start]) + seconds_of(held[stop] - held[start]), start)
            for start in range(stop)
        ]
        end, start = min(ways)
        ends.append(end)
        cuts.append(start)
    groups, stop = [], len(layers)
    while stop:
        groups.insert(0, everything[cuts[stop] : stop])
        stop = cuts[stop]
    return groups


def best_limit(layers: Sequence[Layer], seconds_of: SecondsOf) -> int:
    """Find the size of buckets with which everything ends first.

    Args:
        layers: in the order of the backward pass, at least one.
        seconds_of: an all-reduce, from its bytes.

    Returns:
        Bytes, for `gradbook.parallel.buckets.buckets`: those of a run of layers, the fewest if several
        are as good; or one more than all have.

    Raises:
        ValueError: as `best_groups` does.
    """
    _require(layers, [list(range(len(layers)))])
    held = [layer.bytes for layer in layers]
    # A bucket closes at the sum of a run of layers, or never: no other limits make other buckets.
    sums = {sum(held[i:j]) for i in range(len(held)) for j in range(i + 1, len(held) + 1)}
    limits = sorted(sums - {0} | {sum(held) + 1})
    ends = {
        limit: overlapped(layers, buckets(held, limit), seconds_of)[-1].ends for limit in limits
    }
    return min(ends, key=ends.get)


def _require(layers: Sequence[Layer], groups: Sequence[Sequence[int]]) -> None:
    if not layers:
        raise ValueError("layers: must be at least one, got none")
    flat = [i for group in groups for i in group]
    if flat != list(range(len(layers))) or not all(groups):
        raise ValueError(f"groups: must cut layers 0 to {len(layers) - 1} into runs, got {groups}")
    for layer in layers:
        require_not_negative(seconds=layer.seconds, bytes=layer.bytes)
