"""Two exact variance laws: the score function against the path, for d/dmu with z ~ N(mu, 1).

Write z = mu + e with e standard normal. One sample of the score-function estimator is f(z) e, one
of the pathwise estimator is f'(z), and both have the mean d/dmu E[f(z)]. For f(z) = z**2 the path
wins everywhere; for f(z) = cos(k z) it wins for slow waves and loses for fast ones.
"""

import math

import torch
from scipy.optimize import brentq
from torch import Tensor

from gradbook.checks import require_finite


def quadratic_score(mean: Tensor) -> Tensor:
    """Compute the variance of the score-function sample for z**2.

    It is ``mean**4 + 14 * mean**2 + 15``.

    Args:
        mean: the mean mu, any shape.

    Returns:
        The variance of ``z**2 * (z - mean)``, same shape.

    Raises:
        ValueError: if the mean is not finite.
    """
    require_finite(mean=mean)
    return mean**4 + 14 * mean**2 + 15


def quadratic_path(mean: Tensor) -> Tensor:
    """Compute the variance of the pathwise sample for z**2.

    It is 4, whatever the mean.

    Args:
        mean: the mean mu, any shape.

    Returns:
        The variance of ``2 * z``, same shape.

    Raises:
        ValueError: if the mean is not finite.
    """
    require_finite(mean=mean)
    return torch.full_like(mean, 4)


def cosine_gradient(k: Tensor, mean: Tensor) -> Tensor:
    """Compute the exact gradient of E[cos(k z)] in the mean.

    It is ``-k * sin(k * mean) * exp(-k**2 / 2)``.

    Args:
        k: the wave number, any shape.
        mean: the mean mu, broadcastable with k.

    Returns:
        The gradient, of the broadcast shape.

    Raises:
        ValueError: if k or the mean is not finite.
    """
    require_finite(k=k, mean=mean)
    return -k * torch.sin(k * mean) * torch.exp(-(k**2) / 2)


def cosine_score(k: Tensor, mean: Tensor) -> Tensor:
    """Compute the variance of the score-function sample for cos(k z).

    It tends to 1/2 as k grows.

    Args:
        k: the wave number, any shape.
        mean: the mean mu, broadcastable with k.

    Returns:
        The variance of ``cos(k * z) * (z - mean)``, of the broadcast shape.

    Raises:
        ValueError: if k or the mean is not finite.
    """
    wave = torch.cos(2 * k * mean) * torch.exp(-2 * k**2)
    second_moment = (1 + (1 - 4 * k**2) * wave) / 2
    return second_moment - cosine_gradient(k, mean) ** 2


def cosine_path(k: Tensor, mean: Tensor) -> Tensor:
    """Compute the variance of the pathwise sample for cos(k z).

    It grows as k**2 / 2.

    Args:
        k: the wave number, any shape.
        mean: the mean mu, broadcastable with k.

    Returns:
        The variance of ``-k * sin(k * z)``, of the broadcast shape.

    Raises:
        ValueError: if k or the mean is not finite.
    """
    wave = torch.cos(2 * k * mean) * torch.exp(-2 * k**2)
    second_moment = k**2 * (1 - wave) / 2
    return second_moment - cosine_gradient(k, mean) ** 2


def cosine_crossing(mean: float) -> float:
    """Find the k > 0 at which both estimators of d/dmu E[cos(k z)] tie.

    Twice the difference of the variances, score less path, is
    g(k) = 1 - s - c (3 s - 1) exp(-2 s), where s = k**2 and
    c = cos(2 k mean) lies in [-1, 1]. Whatever c is, g > 0 for
    0 < k <= 0.85 and g < 0 for k >= 1.11: there is a crossing, and every
    crossing lies between 0.8 and 1.2. In there g falls steadily while
    the mean is at most 2 in size, so the crossing is unique. It is
    k = 0.85115 at mean 0 and k = 0.88659 at mean 0.4.

    Args:
        mean: the mean mu, from -2 to 2.

    Returns:
        The wave number k.

    Raises:
        ValueError: if the mean is not in [-2, 2].
    """
    if not abs(mean) <= 2:
        raise ValueError("mean: must be in [-2, 2], for a unique tie")

    def excess(k: float) -> float:
        s, c = k * k, math.cos(2 * k * mean)
        return 1 - s - c * (3 * s - 1) * math.exp(-2 * s)

    return brentq(excess, 0.8, 1.2, xtol=1e-14)
