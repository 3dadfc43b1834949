"""How far estimates of a gradient are from the exact one: bias and variance in its units."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require_finite


class Comparison(NamedTuple):
    """Estimates of a gradient beside the exact one, g.

    Attributes:
        slope: the mean component along g, in units of g: 1 without bias.
        slope_stderr: its standard error.
        variance: of one estimate, summed over the coordinates, in units
            of the squared norm of g.
        squared_bias: likewise, free of the noise in the mean, so that it
            can be below zero.
        z_max: the largest deviation of the mean from g in any coordinate,
            in standard errors.
    """

    slope: float
    slope_stderr: float
    variance: float
    squared_bias: float
    z_max: float


def compare(rows: Tensor, exact: Tensor) -> Comparison:
    """Measure bias and variance of estimates from the exact gradient.

    Args:
        rows: n independent estimates [n, d], n at least 2.
        exact: g, [d], not zero.

    Returns:
        The comparison.

    Raises:
        ValueError: if there are fewer than two estimates, the shapes disagree,
            a number is not finite, or g is zero.
    """
    if rows.ndim != 2 or rows.shape[1:] != exact.shape:
        shapes = f"{tuple(rows.shape)} and {tuple(exact.shape)}"
        raise ValueError(f"rows: must be [n, d] for exact [d], have shapes {shapes}")
    n, square = len(rows), exact.square().sum()
    if n < 2:
        raise ValueError("rows: needs at least two estimates")
    require_finite(rows=rows, exact=exact)
    if square == 0:
        raise ValueError("exact: must not be zero")
    variance, mean = torch.var_mean(rows, 0)
    slopes, off = rows @ exact / square, (mean - exact).square()
    # A coordinate without variance is infinitely far off, or not at all.
    z = torch.where(off == 0, 0.0, off / (variance / n)).max().sqrt()
    return Comparison(
        slope=slopes.mean().item(),
        slope_stderr=(slopes.std() / math.sqrt(n)).item(),
        variance=(variance.sum() / square).item(),
        squared_bias=((off - variance / n).sum() / square).item(),
        z_max=z.item(),
    )
