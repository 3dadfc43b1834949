"""Where the codes of moving averages start, and start again.

A codebook alone does not say what its averages start with, and public code differs. The choice
decides what the first steps do to a code that has no vectors: it stays, shrinks to 0, or grows by
orders of magnitude.
"""

import torch
from torch import Tensor

from gradbook.checks import require_finite
from gradbook.codebooks import (
    CodebookState,
    code_sums,
    ema_update,
    require_amounts,
    require_rows,
    smoothed_means,
)
from gradbook.k_means import k_means, k_means_plus_plus


def ones_start(codebook: Tensor) -> CodebookState:
    """Start every code as if it had had one vector, itself.

    A code without vectors stays where it is, but for the smoothing: count
    and sum decay alike. This is the book's choice.

    Args:
        codebook: [K, D].

    Returns:
        Counts 1, sums equal to the codes.

    Raises:
        ValueError: if the codebook is not [K, D] with finite numbers and
            K at least 1.

    Source: the code of vector-quantize-pytorch.
    """
    check_codebook(codebook)
    return CodebookState(codebook.new_ones(len(codebook)), codebook, codebook)


def empty_counts_start(codebook: Tensor) -> CodebookState:
    """Start with the codes as sums of no vectors.

    A code without vectors is divided by a count that is only smoothing:
    after one step it is about decay / eps times as long.

    Args:
        codebook: [K, D].

    Returns:
        Counts 0, sums equal to the codes.

    Raises:
        ValueError: as :func:`gradbook.codebook_starts.ones_start`.

    Source: the code of Esser, Rombach and Ommer 2021 (taming-transformers),
    EmbeddingEMA.
    """
    check_codebook(codebook)
    return CodebookState(codebook.new_zeros(len(codebook)), codebook, codebook)


def empty_start(codebook: Tensor) -> CodebookState:
    """Start with empty averages, for :func:`zero_debiased_update`.

    Args:
        codebook: [K, D].

    Returns:
        Counts 0, sums 0.

    Raises:
        ValueError: as :func:`gradbook.codebook_starts.ones_start`.

    Source: Sonnet's code, VectorQuantizerEMA.
    """
    check_codebook(codebook)
    nothing = torch.zeros_like(codebook)
    return CodebookState(nothing[:, 0], nothing, codebook)


@torch.no_grad()
def zero_debiased_update(
    state: CodebookState,
    steps: int,
    z: Tensor,
    indices: Tensor,
    decay: float,
    eps: float,
) -> CodebookState:
    """Update averages that started at 0, and divide that start out.

    After t steps the weights of the batches sum to 1 - decay^t. With
    smoothing a code without vectors is at 0 after the first step.

    Args:
        state: from :func:`gradbook.codebook_starts.empty_start`, or the
            last update.
        steps: how many updates there were before, at least 0.
        z: the batch's vectors, [N, D].
        indices: int64 [N], their codes.
        decay: of the averages, from 0 to 1, without 1.
        eps: of the smoothing, at least 0.

    Returns:
        A new state, its averages not yet divided.

    Raises:
        ValueError: as :func:`gradbook.codebooks.ema_update`, or if decay
            is 1 or the steps are negative.

    Source: Sonnet's code, ExponentialMovingAverage.
    """
    if decay == 1:
        raise ValueError("decay: must be less than 1, or no average starts")
    require_amounts(steps=steps)
    counts, sums, _ = ema_update(state, z, indices, decay, eps)
    weight = 1 - decay ** (steps + 1)
    codes = smoothed_means(counts / weight, sums / weight, state.codebook, eps)
    return CodebookState(counts, sums, codes)


@torch.no_grad()
def clamped_update(
    state: CodebookState,
    z: Tensor,
    indices: Tensor,
    decay: float,
    eps: float,
) -> CodebookState:
    """Update averages as if every code had at least one vector in the batch.

    The vector that a code without vectors is said to have is not in the
    sums. From :func:`gradbook.codebook_starts.empty_counts_start` such a
    code is decay / (1 - decay) times as long after one step.

    Args:
        state: the averages and codes before.
        z: the batch's vectors, [N, D].
        indices: int64 [N], their codes.
        decay: of the averages, from 0 to 1.
        eps: of the smoothing, at least 0.

    Returns:
        A new state.

    Raises:
        ValueError: as :func:`gradbook.codebooks.ema_update`.

    Source: the code of nadavbh12's VQ-VAE, NearestEmbedEMA.
    """
    n, _ = code_sums(z, indices, len(state.codebook))
    counts, sums, _ = ema_update(state, z, indices, decay, eps)
    counts = counts + (1 - decay) * (n.clamp(min=1) - n)
    codes = smoothed_means(counts, sums, state.codebook, eps)
    return CodebookState(counts, sums, codes)


@torch.no_grad()
def restart_unused(
    state: CodebookState,
    z: Tensor,
    generator: torch.Generator,
    threshold: float,
) -> CodebookState:
    """Move codes that are out of use to random vectors of the batch.

    A moved code starts as if it had had threshold vectors (at least one),
    all equal to its own: then the next update divides equals by equals, up
    to the smoothing, and a code that gets no vector stays where it is.
    Its count is not below the threshold, so it has one update's time.

    Args:
        state: the averages and codes.
        z: the batch's vectors, [N, D]; if there are none, no code moves.
        generator: of the CPU; takes the same draws whether codes move or
            not.
        threshold: codes with counts below it move; at least 0.

    Returns:
        A new state. No vector is used twice before all are used once.

    Raises:
        ValueError: if z or the threshold is wrong.

    Source: Dhariwal et al. 2020 (Jukebox), section 3.1.
    """
    require_rows(codebook=state.codebook, z=z)
    require_finite(z=z)
    require_amounts(threshold=threshold)
    if not len(z):
        return state
    unused = state.counts < threshold
    order = torch.randperm(len(z), generator=generator, device="cpu")
    # The first unused code takes the first row of the order, and so on.
    turn = (unused.cumsum(0) - 1) % len(z)
    rows = z[order.to(z.device)[turn]]
    count = max(threshold, 1.0)
    counts = torch.where(unused, count, state.counts)
    sums = torch.where(unused[:, None], count * rows, state.sums)
    codes = torch.where(unused[:, None], rows, state.codebook)
    return CodebookState(counts, sums, codes)


def k_means_start(
    z: Tensor,
    k: int,
    generator: torch.Generator,
    steps: int,
) -> Tensor:
    """Find a codebook by k-means on vectors, from k-means++.

    Args:
        z: [N, D], N at least 1.
        k: how many codes.
        generator: of the CPU.
        steps: of k-means.

    Returns:
        The codes [k, D]: where a codebook of any kind can start.

    Raises:
        ValueError: as the two functions of :mod:`gradbook.k_means`.
    """
    return k_means(z, k_means_plus_plus(z, k, generator), steps)


def check_codebook(codebook: Tensor) -> None:
    """Raise unless a tensor can be a codebook.

    Args:
        codebook: should be [K, D] with finite numbers, K at least 1.

    Raises:
        ValueError: if it is not.
    """
    require_rows(codebook=codebook)
    require_finite(codebook=codebook)
    if not len(codebook):
        raise ValueError("codebook: must have a code")
