"""Grey levels under a discretized logistic law, and the scale that suits them best.

Level i of ``count`` stands at i / (count - 1), in the units of the mean, where black is 0 and white
is 1. Its probability is that of the logistic law between the points half a level away on both
sides; the first and the last level take the tails, so that the probabilities sum to 1 whatever the
mean and the scale. Everything is in nats.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gradbook.checks import require, require_finite, require_positive
from gradbook.logits import require_fits

# The scales among which the best one is sought: a millionth of the range, and a thousand ranges.
LEAST, MOST = 1e-6, 1e3
GOLDEN = (math.sqrt(5) - 1) / 2
# Values that differ by rounding alone cannot bracket a maximum any closer.
PRECISION = 1e-8


def log_prob(
    levels: Tensor,
    mean: Tensor,
    scale: float | Tensor,
    count: int = 256,
) -> Tensor:
    """Compute the log-probability of every grey level.

    With a and b the standardized ends of a level, sigma(b) - sigma(a) is
    sigma(b) sigma(-a) (1 - exp(a - b)): no difference of two numbers that
    round to the same, however small the scale.

    Args:
        levels: integers [...] from 0 to ``count`` - 1.
        mean: of the logistic law, [...], floating; any finite number.
        scale: of the law, positive; a number or a tensor that broadcasts.
        count: how many levels there are, at least 2.

    Returns:
        [...], in nats, differentiable in the mean and the scale.

    Raises:
        ValueError: if a level is not an integer in range, the mean is not
            finite, the scale not positive, ``count`` below 2, or shapes do
            not broadcast.

    Source: Kingma et al. 2016, "Improved variational inference with
    inverse autoregressive flow", appendix C; Salimans et al. 2017,
    "PixelCNN++", equation 2.
    """
    _check(levels, mean, count)
    scale = torch.as_tensor(scale, dtype=mean.dtype, device=mean.device)
    require_positive(scale=scale)
    require_fits("scale", scale, "mean", mean)
    # In units of a level; a byte would overflow.
    centre, width = levels.long() - mean * (count - 1), scale * (count - 1)
    below = logsigmoid((centre + 0.5) / width)
    above = logsigmoid((0.5 - centre) / width)
    inside = (-torch.expm1(-1 / width)).log()
    first, last = levels == 0, levels == count - 1
    return (
        below.masked_fill(last, 0)
        + above.masked_fill(first, 0)
        + torch.where(first | last, 0, inside)
    )


def fitted_scale(levels: Tensor, mean: Tensor, count: int = 256) -> float:
    """Find the scale under which levels are most probable together.

    The logistic density is log-concave, so the sum of log-probabilities is
    concave in 1 / scale, and its only maximum is found by golden sections
    of the logarithm of the scale, in float64.

    Args:
        levels: integers [...] from 0 to ``count`` - 1, not empty.
        mean: of the logistic law, of a shape that broadcasts, floating.
        count: how many levels there are, at least 2.

    Returns:
        The scale, between 1e-6 and 1e3: where no scale is best because an
        ever smaller or larger one is better, the end of that range.

    Raises:
        ValueError: as :func:`log_prob`, or if there are no levels.
    """
    _check(levels, mean, count)
    if levels.numel() == 0:
        raise ValueError("levels: must not be empty")
    mean = mean.detach().double()

    def height(log_scale: float) -> float:
        return log_prob(levels, mean, math.exp(log_scale), count).sum().item()

    best = _golden_section(height, math.log(LEAST), math.log(MOST))
    return math.exp(best)


def _golden_section(height: Callable[[float], float], low: float, high: float) -> float:
    ends = low, high
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = height(left), height(right)
    while high - low > PRECISION:
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = height(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = height(right)
    # A section never evaluates the ends, where the maximum may be.
    return max((*ends, (low + high) / 2), key=height)


def _check(levels: Tensor, mean: Tensor, count: int) -> None:
    if count < 2:
        raise ValueError(f"count: must be at least 2, got {count}")
    if levels.is_floating_point() or levels.is_complex() or levels.dtype == torch.bool:
        raise ValueError(f"levels: must be integers, got {levels.dtype}")
    if not mean.is_floating_point():
        raise ValueError(f"mean: must be floating, got {mean.dtype}")
    require((levels >= 0) & (levels.long() < count), f"levels: must be from 0 to {count - 1}")
    require_finite(mean=mean)
    require_fits("levels", levels, "mean", mean)
