"""Normal families for variational inference: independent coordinates, or any covariance.

A *family* is a function from unconstrained parameters theta = (mean, raw) to a :class:`Normal`.
Noise is standard normal, [S, d], and passed in.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require_finite

Parameters = tuple[Tensor, Tensor]


class Normal(NamedTuple):
    """A normal distribution: mean [d], lower Cholesky factor of the covariance [d, d]."""

    mean: Tensor
    factor: Tensor


Family = Callable[[Parameters], Normal]


def mean_field(theta: Parameters) -> Normal:
    """Build a normal with independent coordinates.

    Args:
        theta: mean [d] and logarithms of the standard deviations [d].

    Returns:
        The normal; its factor is diagonal.

    Raises:
        ValueError: if the two do not fit together, or are not finite.
    """
    mean, log_scale = _checked(theta, axes=1)
    return Normal(mean, torch.diag(log_scale.exp()))


def full_covariance(theta: Parameters) -> Normal:
    """Build a normal with any covariance.

    Args:
        theta: mean [d] and a matrix [d, d]; below the diagonal it is the
            Cholesky factor, on the diagonal the factor's logarithm, and
            what lies above is not used.

    Returns:
        The normal; a positive diagonal makes its factor unique.

    Raises:
        ValueError: if the two do not fit together, or are not finite.
    """
    mean, raw = _checked(theta, axes=2)
    return Normal(mean, raw.tril(-1) + torch.diag(raw.diagonal().exp()))


def sample(q: Normal, noise: Tensor) -> Tensor:
    """Push standard normal noise through z = mean + factor noise.

    Args:
        q: a normal over d coordinates.
        noise: [S, d].

    Returns:
        [S, d], differentiable in ``q``.

    Raises:
        ValueError: if ``noise`` does not have d columns.
    """
    _check_rows("noise", noise, q)
    return q.mean + noise @ q.factor.T


def log_prob(q: Normal, z: Tensor) -> Tensor:
    """Compute the log density of a normal.

    Args:
        q: a normal over d coordinates.
        z: [S, d].

    Returns:
        [S].

    Raises:
        ValueError: if ``z`` does not have d columns.
    """
    _check_rows("z", z, q)
    solve = torch.linalg.solve_triangular
    white = solve(q.factor, (z - q.mean).T, upper=False)
    return 0.5 * len(q.mean) - entropy(q) - 0.5 * white.square().sum(0)


def entropy(q: Normal) -> Tensor:
    """Compute the entropy of a normal, d/2 log(2 pi e) + log det factor.

    Args:
        q: a normal over d coordinates.

    Returns:
        A scalar, in nats.
    """
    constant = 0.5 * len(q.mean) * math.log(2 * math.pi * math.e)
    return constant + q.factor.diagonal().log().sum()


def _checked(theta: Parameters, axes: int) -> Parameters:
    mean, raw = theta
    if mean.ndim != 1 or raw.shape != mean.shape * axes:
        raise ValueError(f"theta: shapes {tuple(mean.shape)} and {tuple(raw.shape)} do not fit")
    require_finite(theta=mean)
    require_finite(theta=raw)
    return theta


def _check_rows(name: str, rows: Tensor, q: Normal) -> None:
    if rows.ndim != 2 or rows.shape[1] != len(q.mean):
        raise ValueError(f"{name}: must be [S, {len(q.mean)}], got {tuple(rows.shape)}")
