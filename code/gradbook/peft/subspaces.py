"""What a learnt addition shares with another one, and with the weights it is added to.

Directions are left singular vectors: they lie in the space of the outputs of a matrix [out, in].
Those of the inputs are the directions of its transpose. Where two singular values are equal the
choice between their directions is the library's.

Source: E. Hu, Y. Shen, P. Wallis, Z. Allen-Zhu, Y. Li, S. Wang, L. Wang and W. Chen, 2021, "LoRA:
low-rank adaptation of large language models", sections 7.2 and 7.3, appendices G and H.
"""

import math

import torch
from torch import Tensor

from gradbook.checks import require_finite
from gradbook.delta_svd import Truncation, truncated
from gradbook.transformer_sizes import require_sizes


def directions(matrix: Tensor, count: int) -> Tensor:
    """Find the left singular vectors of the largest singular values.

    Args:
        matrix: [n, m], in float32 or float64.
        count: how many, from 1 to the rank.

    Returns:
        [n, count], orthonormal columns, the largest singular value's
        first.

    Raises:
        ValueError: if the matrix is none, is not finite, or has a smaller
            rank: directions behind it would be arbitrary.
    """
    return _largest("matrix", matrix, "count", count).left


def similarity(one: Tensor, other: Tensor, i: int, j: int) -> float:
    """Compute how much of the smaller of two spaces lies in the larger.

    Args:
        one: [n, a]; its space is that of the first i :func:`directions`.
        other: [n, b]; its space is that of the first j.
        i: from 1 to the rank of ``one``.
        j: from 1 to the rank of ``other``.

    Returns:
        From 0, where the spaces are orthogonal, to 1, where one holds the
        other: the mean of the squared cosines of their angles.

    Raises:
        ValueError: as :func:`directions`, or if n or the types differ.

    Source: Hu et al. 2021, equation 4, of the transposes of their A's.
    """
    a = _largest("one", one, "i", i).left
    b = _largest("other", other, "j", j).left
    if len(a) != len(b) or a.dtype != b.dtype:
        want, got = (f"{len(x)} rows of {x.dtype}" for x in (a, b))
        raise ValueError(f"other: must have {want}, has {got}")
    shared = (a.T @ b).square().sum() / min(i, j)
    # Rounding may carry the mean of squared cosines past 1.
    return min(shared.item(), 1.0)


def chance(i: int, j: int, n: int) -> float:
    """Compute the mean similarity of two random spaces.

    If one of them is drawn uniformly, each of the ``i j`` squared cosines
    between two bases has mean ``1 / n``.

    Args:
        i: the dimension of one, from 1 to n.
        j: that of the other, from 1 to n.
        n: that of the space around them.

    Returns:
        ``max(i, j) / n``.

    Raises:
        ValueError: if a number is out of range.
    """
    require_sizes(i=i, j=j, n=n)
    if max(i, j) > n:
        raise ValueError(f"n: must be at least {max(i, j)}, got {n}")
    return max(i, j) / n


def seen(matrix: Tensor, weight: Tensor, rank: int) -> float:
    """Compute the Frobenius norm of what a matrix's directions see of weights.

    Args:
        matrix: [out, in], with directions U [out, r] and V [in, r].
        weight: W, [out, in].
        rank: r, from 1 to the rank of ``matrix``.

    Returns:
        The norm of ``U^T W V``: at most that of W, and of W itself, as
        ``matrix``, the root of the sum of its first r squared singular
        values.

    Raises:
        ValueError: as :func:`directions`, or if shapes or types differ.

    Source: Hu et al. 2021, section 7.3, table 7. They write V for what is
    the transpose of V here.
    """
    found = _largest("matrix", matrix, "rank", rank)
    _require_matrix("weight", weight)
    if weight.shape != matrix.shape or weight.dtype != matrix.dtype:
        raise ValueError(
            f"weight: must be {list(matrix.shape)} {matrix.dtype}, "
            f"is {list(weight.shape)} {weight.dtype}"
        )
    return (found.left.T @ weight @ found.right).norm().item()


def seen_by_chance(weight: Tensor, rank: int) -> float:
    """Compute the same of random directions: the root of the mean square.

    Args:
        weight: W, [out, in].
        rank: r, from 1 to the smaller side.

    Returns:
        ``|W| r / sqrt(out in)``, with W's Frobenius norm.

    Raises:
        ValueError: if the weight is no matrix, is not finite, or the rank
            is out of range.
    """
    _require_matrix("weight", weight)
    require_sizes(rank=rank)
    if rank > min(weight.shape):
        raise ValueError(f"rank: must be at most {min(weight.shape)}, got {rank}")
    return weight.norm().item() * rank / math.sqrt(weight.numel())


def amplification(delta: Tensor, weight: Tensor, rank: int) -> float:
    """Compute how much an addition exceeds the weights in its own directions.

    Args:
        delta: the addition, [out, in].
        weight: what it is added to, [out, in].
        rank: how many of its directions count, from 1 to its rank.

    Returns:
        The Frobenius norm of delta, all of it, over what its directions
        see of the weight. Infinite where that is zero to the bit; where it
        is zero but for rounding, a huge number without meaning.

    Raises:
        ValueError: as :func:`seen`.

    Source: Hu et al. 2021, section 7.3 and appendix H.4.
    """
    part = seen(delta, weight, rank)
    return delta.norm().item() / part if part else math.inf


def _largest(name: str, matrix: Tensor, size: str, count: int) -> Truncation:
    _require_matrix(name, matrix)
    require_sizes(**{size: count})
    found = truncated(matrix, min(count, *matrix.shape))
    # As torch bounds what rounding makes of a singular value that is 0.
    noise = max(matrix.shape) * torch.finfo(matrix.dtype).eps * found.values[0]
    rank = int((found.values > noise).sum())
    if count > rank:
        raise ValueError(f"{size}: must be at most the rank, {rank}, got {count}")
    return found


def _require_matrix(name: str, matrix: Tensor) -> None:
    if matrix.ndim != 2 or not matrix.numel():
        raise ValueError(f"{name}: must be a matrix, is {list(matrix.shape)}")
    if matrix.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: must be float32 or float64, is {matrix.dtype}")
    require_finite(**{name: matrix})
