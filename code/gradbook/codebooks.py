"""Codebooks: the losses that train them, the averages that move them, and how many codes are used.

Vectors z are rows [N, D], a codebook is [K, D], z_q holds the code of every row, and sg[.] cuts the
gradient. Averages follow every code's count N and sum m of vectors; the code is m / N, N smoothed.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require, require_finite


class CodebookState(NamedTuple):
    """A codebook of moving averages.

    Attributes:
        counts: N [K], how many vectors a code had of late.
        sums: m [K, D], the sum of these vectors.
        codebook: [K, D], the codes.
    """

    counts: Tensor
    sums: Tensor
    codebook: Tensor


def vq_loss(z: Tensor, z_q: Tensor, beta: float) -> Tensor:
    """Compute the loss of a codebook and its encoder.

    Args:
        z: vectors of the encoder, [N, D].
        z_q: the code of each, [N, D].
        beta: the weight of the commitment, at least 0.

    Returns:
        A scalar: mean ``|sg[z] - z_q|^2 + beta |z - sg[z_q]|^2`` over all
        entries; 0 for an empty batch.

    Raises:
        ValueError: if the shapes or types disagree, a number is not
            finite or beta is negative.

    Source: van den Oord et al. 2017, equation 3, with sums for means.
    """
    require_amounts(beta=beta)
    return codebook_term(z, z_q) + beta * commitment_term(z, z_q)


def reversed_vq_loss(z: Tensor, z_q: Tensor, beta: float) -> Tensor:
    """Compute the loss with beta on the other term.

    The value is that of :func:`gradbook.codebooks.vq_loss`, the gradients
    are not.

    Args:
        z: vectors of the encoder, [N, D].
        z_q: the code of each, [N, D].
        beta: the weight of the codebook's term, at least 0.

    Returns:
        A scalar.

    Raises:
        ValueError: as :func:`gradbook.codebooks.vq_loss`.

    Source: the code of taming-transformers, VectorQuantizer2's default.
    """
    require_amounts(beta=beta)
    return beta * codebook_term(z, z_q) + commitment_term(z, z_q)


def codebook_term(z: Tensor, z_q: Tensor) -> Tensor:
    """Compute the term that pulls codes to their vectors.

    Args:
        z: [N, D]; gets no gradient.
        z_q: [N, D]; its gradient is ``2 (z_q - z) / (N D)``.

    Returns:
        The mean square of all entries of z_q - z.

    Raises:
        ValueError: as :func:`gradbook.codebooks.vq_loss`.
    """
    _check_pair(z, z_q)
    return _mean_square(z_q - z.detach())


def commitment_term(z: Tensor, z_q: Tensor) -> Tensor:
    """Compute the term that pulls vectors to their codes.

    Args:
        z: [N, D]; its gradient is ``2 (z - z_q) / (N D)``.
        z_q: [N, D]; gets no gradient.

    Returns:
        The mean square of all entries of z - z_q.

    Raises:
        ValueError: as :func:`gradbook.codebooks.vq_loss`.
    """
    _check_pair(z, z_q)
    return _mean_square(z - z_q.detach())


def code_sums(z: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Count the vectors of every code, and sum them.

    Args:
        z: [N, D].
        indices: int64 [N], from 0 to k - 1.
        k: how many codes there are.

    Returns:
        Counts [K] of z's type, and sums [K, D]; rounding varies on CUDA.

    Raises:
        ValueError: if a shape or type is wrong, or a number.
    """
    require_rows(z=z)
    if indices.shape != z.shape[:1]:
        raise ValueError(f"indices: must be one for each of {len(z)} rows")
    require_indices(indices, k)
    counts = torch.bincount(indices, minlength=k).to(z.dtype)
    sums = z.new_zeros(k, z.shape[1]).index_add_(0, indices, z)
    # Every row of z is in a sum: K rows to check instead of N.
    require(sums.isfinite(), "z: must be finite, and have finite sums")
    return counts, sums


@torch.no_grad()
def ema_update(
    state: CodebookState, z: Tensor, indices: Tensor, decay: float, eps: float
) -> CodebookState:
    """Take a batch into the moving averages, and move the codes to them.

    Without decay and smoothing it is a step of k-means: a code becomes
    the mean of its vectors, and one without vectors stays. With smoothing
    a code out of use goes to 0 once its count is no larger than eps.

    Args:
        state: the averages and codes before.
        z: the batch's vectors, [N, D]; without any, averages only decay.
        indices: int64 [N], their codes.
        decay: of the averages, from 0 to 1.
        eps: of the smoothing, at least 0.

    Returns:
        A new state; a code with a smoothed count of 0 stays.

    Raises:
        ValueError: if a shape or type is wrong, or a number.

    Source: van den Oord et al. 2017, appendix A.1; smoothing of Sonnet.
    """
    _check_averages(state, z, decay, eps)
    n, s = code_sums(z, indices, len(state.codebook))
    counts = decay * state.counts + (1 - decay) * n
    sums = decay * state.sums + (1 - decay) * s
    codes = smoothed_means(counts, sums, state.codebook, eps)
    return CodebookState(counts, sums, codes)


def smoothed_means(
    counts: Tensor,
    sums: Tensor,
    codebook: Tensor,
    eps: float,
) -> Tensor:
    """Divide sums by counts that are smoothed but keep their total.

    Args:
        counts: N [K], none negative.
        sums: m [K, D].
        codebook: where codes stay whose smoothed count is 0, [K, D].
        eps: what is added to every count, at least 0.

    Returns:
        m / N~ [K, D], where N~ is (N + eps) / (sum N + K eps) * sum N.
    """
    total = counts.sum()
    share = (counts + eps) / (total + len(counts) * eps)
    smoothed = (share * total)[:, None]
    # False also for 0 / 0: neither counts nor smoothing.
    return torch.where(smoothed > 0, sums / smoothed, codebook)


def perplexity(indices: Tensor, k: int) -> Tensor:
    """Compute the exponential of the entropy of the codes' frequencies.

    Args:
        indices: int64 of any shape, from 0 to k - 1; at least one.
        k: how many codes there are.

    Returns:
        A float64 scalar: k if all codes are equally frequent, 1 if only
        one occurs. A code that never occurs adds 0 to the entropy.

    Raises:
        ValueError: if there is no index, or one is no code.
    """
    frequencies = _occurrences(indices, k) / indices.numel()
    return torch.special.entr(frequencies).sum().exp()


def require_rows(**tensors: Tensor) -> None:
    """Raise unless tensors are rows of numbers that fit each other.

    Args:
        **tensors: should be [N, D] or [K, D] of floating type, with the D >= 1, the type and the
            device of the first.

    Raises:
        ValueError: if one is not.
    """
    first = next(iter(tensors.values()))
    for name, rows in tensors.items():
        found = f"{rows.dtype} {tuple(rows.shape)}"
        if rows.ndim != 2 or not rows.shape[1] or not rows.is_floating_point():
            raise ValueError(f"{name}: must be rows of floating numbers, got {found}")
        if (rows.shape[1], rows.dtype, rows.device) != (first.shape[1], first.dtype, first.device):
            raise ValueError(f"{name}: must fit {first.dtype} [..., {first.shape[1]}], got {found}")


def require_indices(indices: Tensor, k: int) -> None:
    """Raise unless integers are codes.

    Args:
        indices: should be int64, from 0 to k - 1.
        k: how many codes there are.

    Raises:
        ValueError: if one is not.
    """
    if indices.dtype != torch.int64:
        raise ValueError(f"indices: must be int64, got {indices.dtype}")
    require((indices >= 0) & (indices < k), f"indices: must be from 0 to {k - 1}")


def require_amounts(**amounts: float) -> None:
    """Raise a ValueError unless numbers are finite and not negative."""
    for name, amount in amounts.items():
        if not 0 <= amount < math.inf:
            raise ValueError(f"{name}: must be finite and at least 0, got {amount}")


def require_decay(decay: float) -> None:
    """Raise a ValueError unless a decay is from 0 to 1."""
    if not 0 <= decay <= 1:
        raise ValueError(f"decay: must be from 0 to 1, got {decay}")


def _occurrences(indices: Tensor, k: int) -> Tensor:
    require_indices(indices, k)
    if not indices.numel():
        raise ValueError("indices: must not be empty")
    return torch.bincount(indices.flatten(), minlength=k).double()


def _mean_square(difference: Tensor) -> Tensor:
    # A plain mean of nothing is NaN.
    return difference.square().sum() / max(difference.numel(), 1)


def _check_pair(z: Tensor, z_q: Tensor) -> None:
    require_rows(z=z, z_q=z_q)
    if len(z_q) != len(z):
        raise ValueError(f"z_q: must have {len(z)} rows, got {len(z_q)}")
    require_finite(z=z, z_q=z_q)


def _check_averages(state: CodebookState, z: Tensor, decay: float, eps: float) -> None:
    counts, sums, codebook = state
    require_rows(state=codebook, sums=sums, z=z)
    if not counts.shape + codebook.shape[1:] == sums.shape == codebook.shape or not len(counts):
        found = [tuple(part.shape) for part in state]
        raise ValueError(f"state: must be [K], [K, D] and [K, D], K at least 1, got {found}")
    require_finite(state=torch.cat([counts[:, None], sums, codebook], 1))
    require(counts >= 0, "state: counts must not be negative")
    require_amounts(eps=eps)
    require_decay(decay)
