"""Mixtures of isotropic normals: data whose noised laws, scores and denoisers are all known.

A draw x of a mixture is noised to ``y = alpha x + sigma e`` with e standard normal. The law of y is
a mixture again, which gives the exact score (the gradient of its log density) and the exact denoiser
E[x | y] that a diffusion model has to learn. Noise and uniforms are passed in.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require, require_finite, require_positive

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""``denoise(y, sigma)``: y [..., d], sigma a scalar tensor, result [..., d]."""


class Mixture(NamedTuple):
    """A mixture of k normals in d dimensions, each with one variance for all coordinates.

    Attributes:
        weights: positive, with sum 1, [k].
        means: [k, d].
        variances: positive, [k].
    """

    weights: Tensor
    means: Tensor
    variances: Tensor


def log_prob(mixture: Mixture, x: Tensor) -> Tensor:
    """Compute the log density of a mixture.

    Args:
        mixture: in d dimensions.
        x: [..., d].

    Returns:
        [...], in nats.

    Raises:
        ValueError: if the mixture is none (weights that are not positive
            or do not sum to 1 within 1e-6, variances that are not
            positive, shapes that do not fit), or x has another dimension
            or is not finite.
    """
    return _joint(mixture, x).logsumexp(-1)


def responsibilities(mixture: Mixture, x: Tensor) -> Tensor:
    """Compute the posterior probability of every component.

    Args:
        mixture: of k components in d dimensions.
        x: [..., d].

    Returns:
        [..., k], with sum 1.

    Raises:
        ValueError: as :func:`log_prob`.
    """
    return _joint(mixture, x).softmax(-1)


def sample(mixture: Mixture, uniforms: Tensor, noise: Tensor) -> Tensor:
    """Draw from a mixture; a uniform picks the component of each draw.

    Args:
        mixture: in d dimensions.
        uniforms: from 0 to 1, [n].
        noise: standard normal [n, d]; it does the rest.

    Returns:
        [n, d], differentiable in the means and variances, not in the
        weights.

    Raises:
        ValueError: as :func:`log_prob`, or if the uniforms are not from 0
            to 1 or do not fit the noise.
    """
    _check(mixture)
    _check_points("noise", noise, mixture)
    within = (uniforms >= 0) & (uniforms <= 1)
    require(within, "uniforms: must be from 0 to 1")
    if noise.ndim != 2 or uniforms.shape != noise.shape[:1]:
        shapes = f"{tuple(uniforms.shape)} for noise {tuple(noise.shape)}"
        raise ValueError(f"uniforms: must be [n] for noise [n, d], is {shapes}")
    ends = mixture.weights.detach().cumsum(0)
    component = torch.searchsorted(ends, uniforms, right=True)
    # The last end may round to less than 1.
    component = component.clamp(max=len(ends) - 1)
    scale = mixture.variances.sqrt()[component]
    return mixture.means[component] + scale[:, None] * noise


def noised(
    mixture: Mixture,
    alpha: float | Tensor,
    sigma: float | Tensor,
) -> Mixture:
    """Build the law of alpha x + sigma e, with e standard normal.

    Args:
        mixture: the law of x.
        alpha: a finite scalar.
        sigma: a scalar that is not negative.

    Returns:
        A mixture with the same weights.

    Raises:
        ValueError: as :func:`log_prob`, if alpha or sigma is out of
            range, or if both are 0.
    """
    _check(mixture)
    alpha, sigma = _levels(alpha, sigma, mixture)
    weights, means, variances = mixture
    return Mixture(weights, alpha * means, alpha**2 * variances + sigma**2)


def score(mixture: Mixture, x: Tensor) -> Tensor:
    """Compute the gradient of the log density in x.

    It is the mean, over the components that may have made x, of their own
    scores ``(mean - x) / variance``.

    Args:
        mixture: in d dimensions.
        x: [..., d].

    Returns:
        [..., d].

    Raises:
        ValueError: as :func:`log_prob`.
    """
    share = responsibilities(mixture, x) / mixture.variances
    return (share[..., None] * (mixture.means - x[..., None, :])).sum(-2)


def denoiser(
    mixture: Mixture,
    y: Tensor,
    alpha: float | Tensor,
    sigma: float | Tensor,
) -> Tensor:
    """Compute E[x | y], the best guess of x from y = alpha x + sigma e.

    Within a component x and y are jointly normal, so the guess is linear
    there; the components share it by their probabilities given y.

    Args:
        mixture: the law of x, in d dimensions.
        y: [..., d].
        alpha: a finite scalar.
        sigma: a scalar that is not negative.

    Returns:
        [..., d].

    Raises:
        ValueError: as :func:`noised` and :func:`log_prob`.
    """
    law = noised(mixture, alpha, sigma)
    share = responsibilities(law, y)[..., None]
    gain = (alpha * mixture.variances / law.variances)[:, None]
    guesses = mixture.means + gain * (y[..., None, :] - law.means)
    return (share * guesses).sum(-2)


def reverse_ode(
    denoise: Denoiser,
    y: Tensor,
    sigmas: Sequence[float] | Tensor,
) -> Tensor:
    """Turn noise into samples along the probability-flow equation.

    With y = x + sigma e it is ``dy/dsigma = (y - E[x | y]) / sigma``,
    which is minus sigma times the score. Heun's method takes one step
    from each level to the next, and an Euler step to 0, where the slope
    has no value.

    Args:
        denoise: ``denoise(y, sigma)`` gives E[x | y] for y [..., d] and a
            scalar tensor sigma; that of a mixture is
            ``lambda y, sigma: denoiser(mixture, y, 1.0, sigma)``.
        y: draws at the first level [..., d], from the noised law or, if
            that level is large, from N(0, sigmas[0]**2).
        sigmas: decreasing levels, at least one; the last may be 0.

    Returns:
        Draws at the last level [..., d]; gradients flow through.

    Raises:
        ValueError: if y is not finite or the levels are not such a list.

    Source: Y. Song et al., 2021, equation 13; T. Karras et al., 2022,
    algorithm 1.
    """
    require_finite(y=y)
    sigmas = _checked_levels(sigmas, y)
    for sigma, following in pairwise(sigmas):
        step = following - sigma
        slope = (y - denoise(y, sigma)) / sigma
        ahead = y + step * slope
        if following > 0:
            slope_ahead = (ahead - denoise(ahead, following)) / following
            ahead = y + step * (slope + slope_ahead) / 2
        y = ahead
    return y


def _joint(mixture: Mixture, x: Tensor) -> Tensor:
    """Log density of every component at x together with its weight, [..., k]."""
    _check(mixture)
    _check_points("x", x, mixture)
    weights, means, variances = mixture
    distance = (x[..., None, :] - means).square().sum(-1)
    volume = 0.5 * x.shape[-1] * (2 * math.pi * variances).log()
    return weights.log() - volume - 0.5 * distance / variances


def _check(mixture: Mixture) -> None:
    weights, means, variances = mixture
    if means.ndim != 2 or weights.shape != means.shape[:1] or variances.shape != weights.shape:
        shapes = ", ".join(str(tuple(part.shape)) for part in mixture)
        raise ValueError(f"mixture: must be [k], [k, d] and [k], is {shapes}")
    require_positive(weights=weights, variances=variances)
    require((weights.sum(dtype=torch.float64) - 1).abs() <= 1e-6, "weights: must sum to 1")
    require_finite(means=means)


def _check_points(name: str, points: Tensor, mixture: Mixture) -> None:
    d = mixture.means.shape[1]
    if points.ndim == 0 or points.shape[-1] != d:
        raise ValueError(f"{name}: must be [..., {d}], is {tuple(points.shape)}")
    require_finite(**{name: points})


def _levels(
    alpha: float | Tensor, sigma: float | Tensor, mixture: Mixture
) -> tuple[Tensor, Tensor]:
    like = {"dtype": mixture.means.dtype, "device": mixture.means.device}
    alpha, sigma = (torch.as_tensor(level, **like) for level in (alpha, sigma))
    for name, level in (("alpha", alpha), ("sigma", sigma)):
        if level.ndim:
            raise ValueError(f"{name}: must be a scalar, is {tuple(level.shape)}")
        require_finite(**{name: level})
    require(sigma >= 0, "sigma: must not be negative")
    require((sigma > 0) | (alpha != 0), "sigma: must be positive where alpha is 0")
    return alpha, sigma


def _checked_levels(sigmas: Sequence[float] | Tensor, y: Tensor) -> Tensor:
    sigmas = torch.as_tensor(sigmas, dtype=y.dtype, device=y.device)
    if sigmas.ndim != 1 or len(sigmas) == 0:
        raise ValueError(f"sigmas: must be a list of levels, is {tuple(sigmas.shape)}")
    require_finite(sigmas=sigmas)
    require(sigmas[:-1] > 0, "sigmas: must be positive before the last")
    require(sigmas[-1] >= 0, "sigmas: must not be negative")
    require(sigmas.diff() < 0, "sigmas: must decrease")
    return sigmas
