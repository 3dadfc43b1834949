"""An Adam that is shared out: every rank keeps the moments of its own part of the weights only.

All ranks hold all weights. Gradients are reduced in halves of an all-reduce: after a reduce-scatter each
rank has the whole batch's gradient for one chunk. There it moves the weights, for which it needs the
moments of no other chunk. An all-gather hands the new weights to everybody. This is stage 1 of ZeRO.
Source: S. Rajbhandari, J. Rasley, O. Ruwase and Y. He, 2020, "ZeRO: memory optimizations toward
training trillion parameter models".
"""

import torch
from torch import Tensor, nn

from gradbook.parallel.schedules import Schedule, bounds, contributions


def owned(schedule: Schedule) -> list[int]:
    """Find the chunk that each rank has in full after a reduce-scatter.

    Args:
        schedule: with as many chunks as ranks.

    Returns:
        Chunks by rank, all different.

    Raises:
        ValueError: if a rank has not one such chunk, or two have the same.
    """
    everyone = frozenset(range(schedule.world_size))
    full = [
        [chunk for chunk, ranks in enumerate(row) if ranks == everyone]
        for row in contributions(schedule)
    ]  # fmt: skip
    if sorted(full) != [[chunk] for chunk in range(schedule.chunks)]:
        raise ValueError(f"schedule: must reduce one chunk at each rank, got {full}")
    return [chunks[0] for chunks in full]


class ShardedAdam:
    """The share of one rank in an Adam.

    Args:
        weights: all of them, [N].
        schedule: the reduce-scatter.
        rank: whose share.
        rate: Adam's step size.

    Attributes:
        start: of the share in the weights.
        stop: end of the share.

    Raises:
        ValueError: as `owned`, or if the weights have more axes or there is no such rank.
    """

    def __init__(self, weights: Tensor, schedule: Schedule, rank: int, rate: float):
        if weights.ndim != 1:
            raise ValueError(f"weights: must be [N], is {list(weights.shape)}")
        if rank not in range(schedule.world_size):
            raise ValueError(f"rank: must be below {schedule.world_size}, got {rank}")
        chunk = owned(schedule)[rank]
        self._n = len(weights)
        self.start, self.stop = bounds(self._n, schedule.chunks)[chunk]
        self._own = nn.Parameter(weights[self.start : self.stop].detach())
        self._adam = torch.optim.Adam([self._own], lr=rate)

    @torch.no_grad()
    def step_(self, weights: Tensor, gradient: Tensor) -> None:
        """Move this rank's part of the weights; others move the rest.

        Args:
            weights: [N], changed between start and stop only.
            gradient: [N], of which only that part counts.

        Raises:
            ValueError: if one has not the N of the start.
        """
        _require_length(self._n, weights=weights, gradient=gradient)
        mine = slice(self.start, self.stop)
        # Views, not copies: Adam writes into the weights themselves.
        self._own.data = weights[mine]
        self._own.grad = gradient[mine]
        self._adam.step()
        self._own.grad = None

    @property
    def moment_bytes(self) -> int:
        """The bytes of the moments that this rank keeps."""
        return moment_bytes(self._adam)


def _require_length(n: int, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != (n,):
            raise ValueError(f"{name}: must be [{n}], is {list(tensor.shape)}")


def moment_bytes(adam: torch.optim.Adam) -> int:
    """Count the bytes of Adam's moments.

    Args:
        adam: an optimizer; before its first step it has none.

    Returns:
        Bytes of both moments of all parameters.
    """
    states = adam.state.values()
    return sum(state[name].nbytes for state in states for name in ("exp_avg", "exp_avg_sq"))
