"""What fine-tuning changed, kept as a few singular vectors of each matrix.

The delta of a matrix, [m, n], is the tuned one less the first one. Its truncated singular value
decomposition is the nearest matrix of a given rank; r columns on each side, with the singular
values multiplied into one side, take r (m + n) numbers in the place of m n. Only what is stored
shrinks: the tuning itself has trained all of the matrix.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require_finite


class Truncation(NamedTuple):
    """The largest singular values [r] of a matrix, and their vectors: U [m, r] and V [n, r]."""

    left: Tensor
    values: Tensor
    right: Tensor

    def matrix(self) -> Tensor:
        """Multiply the three: [m, n]."""
        return (self.left * self.values) @ self.right.T


def truncated(delta: Tensor, rank: int) -> Truncation:
    """Keep the largest singular values of a matrix and their vectors.

    Args:
        delta: [m, n].
        rank: r, from 0 to the smaller side.

    Returns:
        U [m, r], the values [r] from the largest on, V [n, r].

    Raises:
        ValueError: if ``delta`` is not a finite matrix, or the rank is out of range.

    Source: Eckart and Young 1936.
    """
    _require_matrix(delta)
    _require_rank(rank, delta)
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    return Truncation(left[:, :rank], values[:rank], right[:rank].T)


def error(delta: Tensor, rank: int) -> float:
    """Compute what a truncation misses, relative to the matrix, in Frobenius norm.

    No matrix of that rank misses less. It is the root of the share of
    the squared singular values that are cut off.

    Args:
        delta: [m, n].
        rank: from 0 to the smaller side.

    Returns:
        From 0 to 1; 0 if the matrix is zero.

    Raises:
        ValueError: as :func:`truncated`.

    Source: Eckart and Young 1936.
    """
    _require_matrix(delta)
    _require_rank(rank, delta)
    left_over = _left_over(delta)
    return math.sqrt(left_over[rank].item())


def rank_for(delta: Tensor, energy: float) -> int:
    """Find the least rank that keeps a share of the squared singular values.

    Args:
        delta: [m, n].
        energy: the share, from 0 to 1. Rounding gives a matrix of low
            rank small singular values in the place of zeros, so that a
            share of 1 asks for all of them.

    Returns:
        From 0 to the smaller side; 0 if the matrix is zero.

    Raises:
        ValueError: if ``delta`` is not a finite matrix, or ``energy`` is not from 0 to 1.
    """
    _require_matrix(delta)
    if not 0 <= energy <= 1:
        raise ValueError(f"energy: must be from 0 to 1, got {energy}")
    return int((_left_over(delta) > 1 - energy).sum())


def stored(m: int, n: int, rank: int) -> int:
    """Count the numbers that a truncation takes: r (m + n).

    Args:
        m: rows.
        n: columns.
        rank: r.

    Returns:
        The count, with the singular values multiplied into one side.

    Raises:
        ValueError: if a side is less than 1 or the rank less than 0.
    """
    _require_sides(m, n)
    if rank < 0:
        raise ValueError(f"rank: must be at least 0, got {rank}")
    return rank * (m + n)


def break_even(m: int, n: int) -> float:
    """Compute the rank at which a truncation takes as much as the matrix: m n / (m + n).

    Args:
        m: rows.
        n: columns.

    Returns:
        The rank, from a half to all of the smaller side.

    Raises:
        ValueError: if a side is less than 1.
    """
    _require_sides(m, n)
    return m * n / (m + n)


def compressed(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], rank: int
) -> dict[str, Tensor]:
    """Put truncated deltas on the first weights.

    Args:
        before: the first weights, by name, as of ``state_dict()``.
        after: the tuned ones, of the same names and shapes.
        rank: of each matrix's delta; a matrix with a side no larger than it
            is kept exactly.

    Returns:
        The weights, of the types of the tuned ones. What is not a matrix
        of floating numbers is as tuned. Nothing shares memory with the
        arguments.

    Raises:
        ValueError: if names or shapes differ, a delta is not finite, or the rank is less than 0.
    """
    if before.keys() != after.keys():
        raise ValueError("after: must have the names of before")
    if rank < 0:
        raise ValueError(f"rank: must be at least 0, got {rank}")
    return {name: _compressed(name, before[name], tuned, rank) for name, tuned in after.items()}


def _compressed(name: str, first: Tensor, tuned: Tensor, rank: int) -> Tensor:
    first, tuned = first.detach(), tuned.detach()
    if first.shape != tuned.shape:
        shapes = f"{list(first.shape)} and {list(tuned.shape)}"
        raise ValueError(f"after: {name} must have its shape before: {shapes}")
    if tuned.ndim != 2 or not tuned.is_floating_point() or rank >= min(tuned.shape):
        return tuned.clone()
    return (first + truncated(tuned - first, rank).matrix()).to(tuned.dtype)


def _left_over(delta: Tensor) -> Tensor:
    """Compute the shares of the squared singular values after the first 0, 1, ... of them."""
    squares = torch.linalg.svdvals(delta).double().square()
    # From the small end: the large values would swallow the small ones.
    tails = squares.flip(0).cumsum(0).flip(0)
    tails = torch.cat([tails, tails.new_zeros(1)])
    return tails / tails[0].clamp(min=torch.finfo(tails.dtype).tiny)


def _require_matrix(delta: Tensor) -> None:
    if delta.ndim != 2 or not all(delta.shape) or not delta.is_floating_point():
        raise ValueError(f"delta: must be a floating [m, n], got {list(delta.shape)} {delta.dtype}")
    require_finite(delta=delta)


def _require_rank(rank: int, delta: Tensor) -> None:
    if not 0 <= rank <= min(delta.shape):
        raise ValueError(f"rank: must be from 0 to {min(delta.shape)}, got {rank}")


def _require_sides(m: int, n: int) -> None:
    for name, side in (("m", m), ("n", n)):
        if side < 1:
            raise ValueError(f"{name}: must be at least 1, got {side}")
