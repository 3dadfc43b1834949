"""Losses of a VAE from its two terms: the log-likelihood of each image and the KL of each latent.

The terms come from :mod:`gradbook.normal_vae`: log p(x | z), [n], and KL(q || prior) per coordinate,
[n, d]. The losses are means over the images, in nats.
"""

import math

import torch
from torch import Tensor

from gradbook.checks import require_finite, require_positive
from gradbook.logits import require_fits


def elbo_loss(log_likelihood: Tensor, kl: Tensor) -> Tensor:
    """Compute minus the ELBO.

    Args:
        log_likelihood: [n], n at least 1.
        kl: [n, d].

    Returns:
        A scalar, the mean over the images.

    Raises:
        ValueError: if there is no image, the shapes do not fit, or a term
            is not finite.

    Source: Kingma and Welling 2014, equation 3.
    """
    return beta_loss(log_likelihood, kl, 1.0)


def beta_loss(log_likelihood: Tensor, kl: Tensor, beta: float) -> Tensor:
    """Compute minus the ELBO with its divergence multiplied.

    Args:
        log_likelihood: [n], n at least 1.
        kl: [n, d].
        beta: the weight of the divergence, not negative.

    Returns:
        A scalar, the mean over the images.

    Raises:
        ValueError: if ``beta`` is negative, or as :func:`elbo_loss`.

    Source: Higgins et al. 2017, equation 4.
    """
    _require_terms(log_likelihood, kl)
    _require_not_negative("beta", beta)
    return (beta * kl.sum(-1) - log_likelihood).mean()


def free_bits_loss(
    log_likelihood: Tensor,
    kl: Tensor,
    free: float,
) -> Tensor:
    """Compute minus the ELBO with a divergence that is free up to a budget.

    Each coordinate counts the mean of its divergence over the images, but
    no less than ``free``: below the budget it has no gradient.

    Args:
        log_likelihood: [n], n at least 1.
        kl: [n, d].
        free: the budget of each coordinate, in nats, not negative.

    Returns:
        A scalar.

    Raises:
        ValueError: if ``free`` is negative, or as :func:`elbo_loss`.

    Source: Kingma et al. 2016, the appendix on free bits.
    """
    _require_terms(log_likelihood, kl)
    _require_not_negative("free", free)
    return kl.mean(0).clamp(min=free).sum() - log_likelihood.mean()


def warm_up(step: int, steps: int) -> float:
    """Raise the weight of the divergence linearly from 0 to 1.

    Args:
        step: how many steps are done, not negative.
        steps: after how many the weight is 1, positive.

    Returns:
        The weight, for :func:`beta_loss`.

    Raises:
        ValueError: if ``step`` is negative or ``steps`` not positive.

    Source: Bowman et al. 2016; Sønderby et al. 2016.
    """
    _require_not_negative("step", step)
    if steps < 1:
        raise ValueError(f"steps: must be positive, got {steps}")
    return min(step / steps, 1.0)


def gaussian_log_likelihood(
    mean: Tensor,
    x: Tensor,
    variance: float | Tensor,
) -> Tensor:
    """Compute the log density of images under independent normal pixels.

    Args:
        mean: the decoder's output, [..., n, pixels].
        x: [n, pixels].
        variance: of every pixel, or one for all; broadcasts with the
            pixels.

    Returns:
        [..., n], in nats, summed over pixels.

    Raises:
        ValueError: if the variance is not positive, the shapes do not fit,
            or the means or the images are not finite.
    """
    _require_pixels(mean, x)
    squares = (x - mean).square()
    variance = torch.as_tensor(variance).to(squares)
    require_positive(variance=variance)
    _require_inside("variance", variance, squares)
    log_scale = (2 * math.pi * variance).log()
    return -0.5 * (squares / variance + log_scale).sum(-1)


def best_variance(mean: Tensor, x: Tensor) -> Tensor:
    """Compute the one variance of all pixels that makes the images likeliest.

    It is the mean squared error. With it the squared error of an image no
    longer needs a weight against the divergence.

    Args:
        mean: the decoder's output, [n, pixels].
        x: [n, pixels], n at least 1.

    Returns:
        A scalar, for :func:`gaussian_log_likelihood`; 0 for a perfect
        reconstruction, which has no likelihood.

    Raises:
        ValueError: if there is no image, the shapes do not fit, or a value
            is not finite.

    Source: Rybkin, Daniilidis and Levine 2021.
    """
    _require_pixels(mean, x)
    if x.numel() == 0:
        raise ValueError("x: must have at least one image")
    return (x - mean).square().mean()


def active_units(means: Tensor, threshold: float = 0.01) -> Tensor:
    """Say which coordinates of the latent follow the images.

    Args:
        means: of q(z | x), over the images of a data set, [n, d], n at
            least 1.
        threshold: the variance over the images that the mean of an active
            unit exceeds.

    Returns:
        Boolean [d]; its sum is the number of active units.

    Raises:
        ValueError: if there is no image, or a mean is not finite.

    Source: Burda, Grosse and Salakhutdinov 2016, section 5.2.
    """
    if means.ndim != 2 or len(means) == 0:
        raise ValueError(f"means: must be [n, d], n at least 1, is {tuple(means.shape)}")
    require_finite(means=means)
    return means.var(0, correction=0) > threshold


def _require_terms(log_likelihood: Tensor, kl: Tensor) -> None:
    if log_likelihood.ndim != 1 or len(log_likelihood) == 0:
        shape = tuple(log_likelihood.shape)
        raise ValueError(f"log_likelihood: must be [n], n at least 1, is {shape}")
    if kl.ndim != 2 or len(kl) != len(log_likelihood):
        raise ValueError(f"kl: must be [{len(log_likelihood)}, d], is {tuple(kl.shape)}")
    require_finite(log_likelihood=log_likelihood, kl=kl)


def _require_not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: must be finite and not negative, got {value}")


def _require_inside(name: str, tensor: Tensor, values: Tensor) -> None:
    # One that is larger than the values would add up their terms more than once.
    require_fits(name, tensor, "mean", values)
    if torch.broadcast_shapes(tensor.shape, values.shape) != values.shape:
        shapes = f"{tuple(tensor.shape)} for means {tuple(values.shape)}"
        raise ValueError(f"{name}: must broadcast with the means, is {shapes}")


def _require_pixels(mean: Tensor, x: Tensor) -> None:
    # An image that broadcasts against another batch would be compared with the wrong one.
    if x.ndim != 2 or mean.shape[-2:] != x.shape:
        shapes = f"{tuple(x.shape)} for means {tuple(mean.shape)}"
        raise ValueError(f"x: must be [n, pixels] as the means, is {shapes}")
    require_finite(mean=mean, x=x)
