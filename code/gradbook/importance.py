"""Bounds on log p(x) and estimates of it from importance weights.

A weight is w = p(x, z) / q(z | x) at a code z drawn from q, and its mean is p(x). Logarithms of K
weights of each of n images are [K, n]; all values are in nats.
"""

import math
from typing import NamedTuple

from torch import Tensor

from gradbook.checks import require_finite


class LogEstimate(NamedTuple):
    """An estimate of log p(x) for every image, [n], and its standard error, [n]."""

    value: Tensor
    stderr: Tensor


def iwae_bound(log_weights: Tensor) -> Tensor:
    """Compute the importance-weighted bound, the logarithm of the mean weight.

    Args:
        log_weights: [K, n], K at least 1.

    Returns:
        [n], in nats: with one weight an estimate of the ELBO; its mean
        grows with K towards log p(x).

    Raises:
        ValueError: if there is no weight, or one is not finite.

    Source: Burda, Grosse and Salakhutdinov 2016, equation 8.
    """
    _require_weights(log_weights, 1)
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def log_prob_estimate(log_weights: Tensor) -> LogEstimate:
    """Estimate log p(x) and the standard error of the estimate.

    By the delta method the error of the logarithm is the relative error
    of the mean weight. It is too small where few weights decide.

    Args:
        log_weights: [K, n], K at least 2.

    Returns:
        The bound of :func:`iwae_bound` and its standard error, [n] each.

    Raises:
        ValueError: if there are fewer than two weights, or one is not
            finite.
    """
    _require_weights(log_weights, 2)
    draws = len(log_weights)
    # Relative to the mean weight, so that nothing over- or underflows.
    value = iwae_bound(log_weights)
    excess = (log_weights - value).expm1()
    variance = excess.square().sum(0) / (draws - 1)
    return LogEstimate(value, (variance / draws).sqrt())


def _require_weights(log_weights: Tensor, least: int) -> None:
    if log_weights.ndim != 2 or len(log_weights) < least:
        shape = tuple(log_weights.shape)
        raise ValueError(f"log_weights: must be [K, n], K at least {least}, is {shape}")
    require_finite(log_weights=log_weights)
