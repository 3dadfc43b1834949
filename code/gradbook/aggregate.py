"""The aggregate posterior, and the split of the mean divergence that it makes.

Over N images, q(z) is the mean of the normals q(z | x_n). The mean of KL(q(z | x) || p(z)) is the
information I(x; z) that the code carries about its image, at most log N, plus KL(q(z) || p(z)): only
the aggregate has to look like the prior. The prior is standard normal. All values are in nats.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require_finite
from gradbook.normal_vae import Posterior, code, kl

CHUNK = 2**22


class Split(NamedTuple):
    """The mean divergence, exact, and the two parts that add up to it, estimated.

    Attributes:
        mean_kl: mean over the images of KL(q(z | x) || p(z)), a scalar.
        information: estimate of I(x; z), a scalar.
        marginal_kl: estimate of KL(q(z) || p(z)), a scalar.
        information_stderr: standard error of ``information``.
        marginal_kl_stderr: standard error of ``marginal_kl``.
    """

    mean_kl: Tensor
    information: Tensor
    marginal_kl: Tensor
    information_stderr: Tensor
    marginal_kl_stderr: Tensor


def log_aggregate(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Compute the log density of the aggregate posterior.

    The differences of all pairs of point and image are never held at
    once, but a few million numbers at a time, or those of one point.

    Args:
        z: points, [S, d].
        mean: of q(z | x) for every image, [N, d], N at least 1.
        log_variance: of q(z | x) for every image, [N, d].

    Returns:
        log q(z), [S].

    Raises:
        ValueError: if the shapes do not fit, there is no image, or a value
            is not finite.
    """
    _require_posteriors(mean, log_variance)
    if z.ndim != 2 or z.shape[1] != mean.shape[1]:
        raise ValueError(f"z: must be [S, {mean.shape[1]}], is {tuple(z.shape)}")
    require_finite(z=z)
    rows = max(1, CHUNK // max(1, mean.numel()))
    parts = []
    for part in z.split(rows):
        log_q = _log_normal(part[:, None], mean, log_variance)
        parts.append(log_q.logsumexp(1))
    return torch.cat(parts) - math.log(len(mean))


def split(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Split:
    """Split the mean divergence into information and marginal divergence.

    The divergence is in closed form, the parts are sampled: each code is
    drawn from q(z | x) of its own image, and the first half of the draws
    serves the information, the second the other part, so the errors are
    independent. That the parts add up is then a fact to check.

    Args:
        mean: of q(z | x) for every image, [N, d], N at least 1.
        log_variance: of q(z | x) for every image, [N, d].
        noise: standard normal, [K, N, d], K even and at least 4.

    Returns:
        The divergence, its two parts, and their standard errors. The
        images are given, so the errors are those of the noise alone.

    Raises:
        ValueError: if the shapes do not fit, there is no image, K is odd
            or less than 4, or a value is not finite.

    Source: Hoffman and Johnson 2016.
    """
    _require_posteriors(mean, log_variance)
    if noise.ndim != 3 or len(noise) < 4 or len(noise) % 2:
        shape = tuple(noise.shape)
        raise ValueError(f"noise: must be [K, N, d], K even, at least 4, is {shape}")
    posterior = Posterior(mean, log_variance)
    z = code(posterior, noise)
    zero = torch.zeros_like(mean)
    log_q = log_aggregate(z.flatten(0, 1), mean, log_variance)
    log_q = log_q.unflatten(0, z.shape[:2]).chunk(2)
    first, second = z.chunk(2)
    information = _log_normal(first, mean, log_variance) - log_q[0]
    marginal = log_q[1] - _log_normal(second, zero, zero)
    return Split(
        kl(posterior).sum(1).mean(),
        information.mean(),
        marginal.mean(),
        _stderr(information),
        _stderr(marginal),
    )


def _stderr(values: Tensor) -> Tensor:
    """The standard error of the mean of [K, N], N images with K draws each."""
    # Every image has the same share of the draws, so the spread between images is no error.
    return (values.var(0).mean() / values.numel()).sqrt()


def _log_normal(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    squares = (z - mean).square() * (-log_variance).exp()
    return -0.5 * (squares + log_variance + math.log(2 * math.pi)).sum(-1)


def _require_posteriors(mean: Tensor, log_variance: Tensor) -> None:
    if mean.ndim != 2 or len(mean) == 0:
        raise ValueError(f"mean: must be [N, d], N at least 1, is {tuple(mean.shape)}")
    if log_variance.shape != mean.shape:
        shapes = f"{tuple(log_variance.shape)} for means {tuple(mean.shape)}"
        raise ValueError(f"log_variance: must be [N, d], is {shapes}")
    require_finite(mean=mean, log_variance=log_variance)
