"""Bayesian logistic regression: its log joint density, and its Laplace approximation.

A label y_i in {0, 1} is 1 with probability sigma(x_i . b); the coefficients b are independent
normals with mean 0 and standard deviation ``prior_scale``, 1 unless stated. With standardized
features that prior says: one standard deviation of one feature multiplies the odds by a factor
between 1/7 and 7 (two prior standard deviations), while the log odds of a typical row, a sum over
31 coefficients, spread by about sqrt(31) = 5.6 and so reach any probability. A prior is not
optional here: a plane separates the breast-cancer labels perfectly, so the likelihood alone has no
maximum and, under a flat prior, there is no posterior.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

MAX_STEPS = 100


class Laplace(NamedTuple):
    """The normal approximation at the mode: mode [d], Cholesky factor [d, d] of the covariance."""

    mode: Tensor
    factor: Tensor


def with_intercept(features: Tensor) -> Tensor:
    """Put a column of ones before the features.

    Args:
        features: [n, p].

    Returns:
        The design matrix [n, 1 + p].

    Raises:
        ValueError: if ``features`` is not a matrix.
    """
    if features.ndim != 2:
        raise ValueError(f"features: must be [n, p], got {tuple(features.shape)}")
    return torch.cat([features.new_ones(len(features), 1), features], 1)


def log_joint(
    coefficients: Tensor,
    design: Tensor,
    labels: Tensor,
    prior_scale: float = 1.0,
) -> Tensor:
    """Compute log p(labels, coefficients), all constants included.

    Args:
        coefficients: b, [..., d].
        design: one row x_i per observation, [n, d]; n = 0 leaves the prior.
        labels: 0 or 1, [n].
        prior_scale: standard deviation of each coefficient a priori.

    Returns:
        [...], differentiable in the coefficients.

    Raises:
        ValueError: if shapes disagree, a label is neither 0 nor 1, the
            design is not finite, or ``prior_scale`` is not positive.

    """
    _check(coefficients, design, labels, prior_scale)
    signed = (2 * labels[:, None].to(design.dtype) - 1) * design
    likelihood = logsigmoid(coefficients @ signed.T).sum(-1)
    square = (coefficients / prior_scale).square().sum(-1)
    normalizer = math.log(math.sqrt(2 * math.pi) * prior_scale)
    return likelihood - 0.5 * square - design.shape[1] * normalizer


def laplace(
    design: Tensor,
    labels: Tensor,
    prior_scale: float = 1.0,
) -> Laplace:
    """Approximate the posterior by the normal at its mode.

    The log joint is strictly concave, so Newton's method, halving a step
    that would go down, finds the only mode.

    Args:
        design: [n, d].
        labels: 0 or 1, [n].
        prior_scale: standard deviation of each coefficient a priori.

    Returns:
        The mode, and the Cholesky factor of the inverse of minus the
        Hessian there.

    Raises:
        ValueError: as :func:`log_joint`.
        RuntimeError: if Newton's method has not settled in 100 steps.
    """
    mode = design.new_zeros(design.shape[1])
    height = log_joint(mode, design, labels, prior_scale)
    for _ in range(MAX_STEPS):
        root = torch.linalg.cholesky(precision(mode, design, prior_scale))
        slope = _slope(mode, design, labels, prior_scale)
        step = torch.cholesky_solve(slope[:, None], root)[:, 0]
        new = log_joint(mode + step, design, labels, prior_scale)
        if slope @ step <= torch.finfo(design.dtype).eps:
            return _normal_at(mode + step, design, prior_scale)
        while new < height:
            step = step / 2
            new = log_joint(mode + step, design, labels, prior_scale)
        mode, height = mode + step, new
    raise RuntimeError(f"Newton's method has not settled in {MAX_STEPS} steps")


def precision(coefficients: Tensor, design: Tensor, prior_scale: float = 1.0) -> Tensor:
    """Compute minus the Hessian of the log joint.

    Args:
        coefficients: b, [d].
        design: [n, d].
        prior_scale: standard deviation of each coefficient a priori.

    Returns:
        X^T diag(p (1 - p)) X + I / prior_scale^2, [d, d], where p are the fitted probabilities.
    """
    p = torch.sigmoid(design @ coefficients)
    weighted = (p * (1 - p))[:, None] * design
    return design.T @ weighted + torch.eye(len(coefficients)).to(design) / prior_scale**2


def _normal_at(mode: Tensor, design: Tensor, prior_scale: float) -> Laplace:
    root = torch.linalg.cholesky(precision(mode, design, prior_scale))
    return Laplace(mode, torch.linalg.cholesky(torch.cholesky_inverse(root)))


def _slope(b: Tensor, design: Tensor, labels: Tensor, prior_scale: float) -> Tensor:
    return torch.func.grad(log_joint)(b, design, labels, prior_scale)


def _check(b: Tensor, design: Tensor, labels: Tensor, prior_scale: float) -> None:
    if design.ndim != 2 or not design.isfinite().all():
        raise ValueError(f"design: must be a finite matrix, got shape {tuple(design.shape)}")
    if labels.shape != design.shape[:1]:
        raise ValueError(f"labels: must be [{len(design)}], got {tuple(labels.shape)}")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("labels: must be 0 or 1")
    if b.ndim < 1 or b.shape[-1] != design.shape[1]:
        raise ValueError(f"coefficients: must end in {design.shape[1]}, got {tuple(b.shape)}")
    if not 0 < prior_scale < math.inf:
        raise ValueError(f"prior_scale: must be positive and finite, got {prior_scale}")
