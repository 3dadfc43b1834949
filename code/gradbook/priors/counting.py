"""Priors that are tables of frequencies: the yardsticks of a network.

A table holds probabilities in float64: [K] for all positions alike, or [h, w, K].
"""

import math

import torch
from torch import Tensor

from gradbook.checks import require
from gradbook.priors.grids import mean_bits, require_codes, require_sizes


def uniform_log_prob(codes: Tensor, count: int) -> Tensor:
    """Compute the log-probability of grids when all are equally likely.

    Args:
        codes: int64 [B, h, w].
        count: of different codes, K.

    Returns:
        float64 [B], in nats: -h w log K.

    Raises:
        ValueError: if the codes have another type, shape or range.
    """
    _require_grids(codes, count)
    value = -math.prod(codes.shape[1:]) * math.log(count)
    return torch.full((len(codes),), value, dtype=torch.float64, device=codes.device)


def frequencies(codes: Tensor, count: int, alpha: float) -> Tensor:
    """Count how often each code stands anywhere, with additive smoothing.

    Args:
        codes: int64 [B, h, w].
        count: of different codes, K.
        alpha: what is added to every count; not negative.

    Returns:
        Probabilities float64 [K].

    Raises:
        ValueError: if the codes have another type, shape or range, if
            ``alpha`` is negative or not finite, or if there is nothing to
            count and ``alpha`` is 0.
    """
    _require_grids(codes, count)
    counts = codes.flatten().bincount(minlength=count)
    return _smoothed(counts.double(), alpha)


def position_frequencies(codes: Tensor, count: int, alpha: float) -> Tensor:
    """Count how often each code stands at each position.

    Args:
        codes: int64 [B, h, w].
        count: of different codes, K.
        alpha: what is added to every count; not negative.

    Returns:
        Probabilities float64 [h, w, K].

    Raises:
        ValueError: as :func:`frequencies`.
    """
    _require_grids(codes, count)
    size = math.prod(codes.shape[1:])
    where = torch.arange(size, device=codes.device) * count
    keys = (codes.flatten(1) + where).flatten()
    counts = keys.bincount(minlength=size * count)
    table = counts.double().view(*codes.shape[1:], count)
    return _smoothed(table, alpha)


def table_log_prob(codes: Tensor, table: Tensor) -> Tensor:
    """Compute the log-probability of grids whose codes are independent.

    Args:
        codes: int64 [B, h, w].
        table: probabilities [K], or [h, w, K]. A zero is legal.

    Returns:
        [B] in the table's type, in nats; minus infinity for a grid with
        an impossible code.

    Raises:
        ValueError: if the codes have another type, shape or range, or the
            table another shape, or rows that are no probabilities.
    """
    if table.ndim not in (1, 3) or (table.ndim == 3 and table.shape[:2] != codes.shape[1:]):
        raise ValueError(f"table: must be [K] or [h, w, K], is {tuple(table.shape)}")
    _require_grids(codes, table.shape[-1])
    sums = table.sum(-1)
    near = (sums - 1).abs() <= 1e-6
    require((table >= 0).all() & near, "table: every row must be probabilities")
    rows = table.log().expand(*codes.shape[1:], -1)[None].expand(len(codes), -1, -1, -1)
    return rows.gather(-1, codes[..., None]).sum((1, 2, 3))


def table_bits(train: Tensor, test: Tensor, count: int, alpha: float) -> dict[str, float]:
    """Measure all priors of this module.

    Args:
        train: grids to count, int64 [n, h, w].
        test: grids to measure on, int64 [m, h, w], m at least 1.
        count: of different codes, K.
        alpha: what is added to every count; not negative.

    Returns:
        Bits of a code: ``uniform``, ``frequencies``, and frequencies at
        each of the ``positions``.

    Raises:
        ValueError: as :func:`frequencies`, or if the sizes of the grids
            differ.
    """
    log_probs = {
        "uniform": uniform_log_prob(test, count),
        "frequencies": table_log_prob(test, frequencies(train, count, alpha)),
        "positions": table_log_prob(test, position_frequencies(train, count, alpha)),
    }
    size = math.prod(test.shape[1:])
    return {name: mean_bits(value, size) for name, value in log_probs.items()}


def _smoothed(counts: Tensor, alpha: float) -> Tensor:
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha: must be finite and not negative, got {alpha}")
    smoothed = counts + alpha
    total = smoothed.sum(-1, keepdim=True)
    require(total > 0, "alpha: must be positive where there is nothing to count")
    return smoothed / total


def _require_grids(codes: Tensor, count: int) -> None:
    require_sizes(count=count)
    height, width = codes.shape[1:] if codes.ndim == 3 else ("h", "w")
    require_codes(codes, height, width, count)
