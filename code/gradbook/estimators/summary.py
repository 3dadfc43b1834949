"""What n per-sample gradients say together."""

from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require_finite


class Summary(NamedTuple):
    """What n per-sample gradients say, coordinate by coordinate.

    Attributes:
        mean: the estimate.
        stderr: the standard error of the mean.
        variance: the unbiased variance of one per-sample gradient.
    """

    mean: Tensor
    stderr: Tensor
    variance: Tensor


def summarize(gradients: Tensor) -> Summary:
    """Summarize per-sample gradients: mean, standard error, variance.

    The standard error takes the samples as independent, which those of
    ``leave_one_out`` are not.

    Args:
        gradients: [n, ...] with n at least 2.

    Returns:
        Mean, standard error and variance, each of shape [...].

    Raises:
        ValueError: if n < 2 or a gradient is not finite.
    """
    if gradients.ndim == 0 or len(gradients) < 2:
        raise ValueError("gradients: needs at least two samples")
    require_finite(gradients=gradients)
    variance, mean = torch.var_mean(gradients, dim=0)
    return Summary(mean, (variance / len(gradients)).sqrt(), variance)
