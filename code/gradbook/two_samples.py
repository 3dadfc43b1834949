"""How far apart two samples are, with no density: maximum mean discrepancy and Wasserstein.

The kernel is Gaussian, ``exp(-|x - y|**2 / (2 bandwidth**2))``.
"""

import torch
from torch import Tensor

from gradbook.checks import require, require_finite, require_positive
from gradbook.logits import require_fits


def mmd_squared(
    x: Tensor,
    y: Tensor,
    bandwidth: float | Tensor,
) -> Tensor:
    """Estimate the squared maximum mean discrepancy without bias.

    Args:
        x: draws of the one [..., n, d], n at least 2.
        y: draws of the other [..., m, d], m at least 2.
        bandwidth: positive, in the unit of the draws; a scalar.

    Returns:
        [...]; it may be negative where the laws are close, because it is
        unbiased. Differentiable in the draws.

    Raises:
        ValueError: if a sample has fewer than two draws, is not finite,
            or does not fit the other, or the bandwidth is not a positive
            number.

    Source: A. Gretton et al., 2012, equation 3.
    """
    for name, sample in (("x", x), ("y", y)):
        if sample.ndim < 2 or sample.shape[-2] < 2:
            shape = tuple(sample.shape)
            raise ValueError(f"{name}: must be at least two draws, is {shape}")
    d = x.shape[-1]
    if y.shape[-1] != d:
        raise ValueError(f"y: must have {d} columns, has {y.shape[-1]}")
    require_fits("y", y[..., 0, :], "x", x[..., 0, :])
    require_finite(x=x, y=y)
    bandwidth = _scalar(bandwidth, x)
    across = _kernel(x, y, bandwidth).mean((-2, -1))
    return _pairs(x, bandwidth) + _pairs(y, bandwidth) - 2 * across


def normal_mmd_squared(
    mean1: Tensor,
    variance1: Tensor,
    mean2: Tensor,
    variance2: Tensor,
    bandwidth: float | Tensor,
) -> Tensor:
    """Compute the squared discrepancy of two isotropic normals.

    Args:
        mean1: [..., d].
        variance1: of every coordinate [...], or a scalar.
        mean2: [..., d].
        variance2: of every coordinate [...], or a scalar.
        bandwidth: of the kernel; positive, a scalar.

    Returns:
        [...], from 0 to 2.

    Raises:
        ValueError: if the means are not finite or do not fit, or a
            variance or the bandwidth is not positive.
    """
    if mean1.ndim == 0 or mean2.ndim == 0 or mean1.shape[-1] != mean2.shape[-1]:
        raise ValueError("mean2: must have as many coordinates [..., d] as mean1")
    require_fits("mean2", mean2, "mean1", mean1)
    require_finite(mean1=mean1, mean2=mean2)
    require_positive(variance1=variance1, variance2=variance2)
    square, d = _scalar(bandwidth, mean1) ** 2, mean1.shape[-1]

    def mean_kernel(distance, variance):
        total = square + variance
        return (square / total) ** (d / 2) * (-0.5 * distance / total).exp()

    distance = (mean1 - mean2).square().sum(-1)
    across = mean_kernel(distance, variance1 + variance2)
    within = (mean_kernel(0 * distance, 2 * v) for v in (variance1, variance2))
    return sum(within) - 2 * across


def wasserstein_line(x: Tensor, y: Tensor) -> Tensor:
    """Compute the Wasserstein-1 distance of equal numbers of draws.

    The best plan moves the i-th smallest draw to the i-th smallest.

    Args:
        x: draws [..., n], at least one.
        y: draws [..., n].

    Returns:
        [...], in the unit of the draws; differentiable in both.

    Raises:
        ValueError: if the samples are empty, not finite, or of different
            sizes.
    """
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x: must have at least one draw, is {tuple(x.shape)}")
    if y.ndim == 0 or y.shape[-1] != x.shape[-1]:
        raise ValueError(f"y: must have {x.shape[-1]} draws, is {tuple(y.shape)}")
    require_fits("y", y, "x", x)
    require_finite(x=x, y=y)
    return (x.sort(-1).values - y.sort(-1).values).abs().mean(-1)


def _scalar(bandwidth: float | Tensor, like: Tensor) -> Tensor:
    value = torch.as_tensor(bandwidth, dtype=like.dtype, device=like.device)
    require((value > 0) & value.isfinite(), "bandwidth: must be positive")
    if value.ndim:
        raise ValueError(f"bandwidth: must be a scalar, is {tuple(value.shape)}")
    return value


def _kernel(x: Tensor, y: Tensor, bandwidth: Tensor) -> Tensor:
    # Through products of matrices near draws would lose their distance.
    by_differences = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(x, y, compute_mode=by_differences)
    return (-0.5 * (distance / bandwidth).square()).exp()


def _pairs(x: Tensor, bandwidth: Tensor) -> Tensor:
    n = x.shape[-2]
    kernel = _kernel(x, x, bandwidth)
    # A draw paired with itself says nothing of the law.
    own = kernel.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (kernel.sum((-2, -1)) - own) / (n * (n - 1))
