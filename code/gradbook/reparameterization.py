"""Paths: draws written as differentiable functions of the parameters and of noise passed in.

Two kinds of noise occur: standard normal, and uniform on the open interval (0, 1). Every path
follows the dtype and device of its inputs and broadcasts its arguments against each other.
"""

import math

import torch
from torch import Tensor
from torch.special import erfc, ndtri

from gradbook.checks import require, require_finite, require_positive


def normal_cdf(x: Tensor) -> Tensor:
    """Compute the standard normal CDF to full precision in both tails.

    ``torch.special.ndtr`` adds 1 to an error function, which leaves nothing
    of the lower tail: at -10 it returns 0 in place of 7.6e-24.

    Args:
        x: any shape.

    Returns:
        Phi(x) = erfc(-x / sqrt(2)) / 2, same shape.

    Source: Abramowitz and Stegun 1964, 26.2.29.
    """
    return erfc(-x / math.sqrt(2)) / 2


def location_scale(loc: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """Shift and stretch standard noise: z = loc + scale * noise.

    Args:
        loc: the location, any shape.
        scale: the positive scale, broadcastable with loc.
        noise: draws of the standard member of the family.

    Returns:
        Draws of the broadcast shape; normal where the noise is.

    Raises:
        ValueError: if scale <= 0, or an argument is not finite.

    Source: Kingma and Welling 2014, section 2.4.
    """
    require_finite(loc=loc, noise=noise)
    require_positive(scale=scale)
    return loc + scale * noise


def full_covariance(
    loc: Tensor,
    scale_tril: Tensor,
    noise: Tensor,
) -> Tensor:
    """Correlate normal noise: z = loc + L noise has covariance L L^T.

    Args:
        loc: [d], the mean.
        scale_tril: [d, d], the Cholesky factor L of the covariance.
        noise: [..., d], standard normal.

    Returns:
        Draws [..., d].

    Raises:
        ValueError: if the shapes do not fit, an argument is not finite,
            L has entries above its diagonal, or its diagonal is not
            positive.

    Source: Kingma and Welling 2014, section 2.4; Rezende, Mohamed and
    Wierstra 2014.
    """
    require_finite(loc=loc, scale_tril=scale_tril, noise=noise)
    d = noise.shape[-1] if noise.ndim else 0
    if loc.shape != (d,):
        raise ValueError("loc: must have the last dimension of noise")
    if scale_tril.shape != (d, d):
        raise ValueError("scale_tril: must be [d, d]")
    require(scale_tril.triu(1) == 0, "scale_tril: must be lower triangular")
    diagonal = scale_tril.diagonal()
    require(diagonal > 0, "scale_tril: needs a positive diagonal")
    return loc + noise @ scale_tril.mT


def exponential(rate: Tensor, uniform: Tensor) -> Tensor:
    """Invert the exponential CDF: z = -log(1 - u) / rate.

    Args:
        rate: the positive rate, any shape.
        uniform: in (0, 1), broadcastable with rate.

    Returns:
        Draws of the broadcast shape.

    Raises:
        ValueError: if rate <= 0 or uniform is not in (0, 1).

    Source: Devroye 1986, section II.2.
    """
    require_positive(rate=rate)
    _require_uniform(uniform)
    return -torch.log1p(-uniform) / rate


def logistic(loc: Tensor, scale: Tensor, uniform: Tensor) -> Tensor:
    """Invert the logistic CDF: z = loc + scale * log(u / (1 - u)).

    Args:
        loc: the location, any shape.
        scale: the positive scale, broadcastable with loc.
        uniform: in (0, 1), broadcastable with both.

    Returns:
        Draws of the broadcast shape.

    Raises:
        ValueError: if loc is not finite, scale <= 0, or uniform is not in
            (0, 1).

    Source: Devroye 1986, section II.2.
    """
    require_finite(loc=loc)
    require_positive(scale=scale)
    _require_uniform(uniform)
    return loc + scale * (torch.log(uniform) - torch.log1p(-uniform))


def cauchy(loc: Tensor, scale: Tensor, uniform: Tensor) -> Tensor:
    """Invert the Cauchy CDF: z = loc + scale * tan(pi * (u - 1/2)).

    Args:
        loc: the location, any shape.
        scale: the positive scale, broadcastable with loc.
        uniform: in (0, 1), broadcastable with both.

    Returns:
        Draws of the broadcast shape.

    Raises:
        ValueError: if loc is not finite, scale <= 0, or uniform is not in
            (0, 1).

    Source: Devroye 1986, section II.2.
    """
    require_finite(loc=loc)
    require_positive(scale=scale)
    _require_uniform(uniform)
    # tan(pi (u - 1/2)) = -1 / tan(pi u), and tan has period pi: this form
    # keeps the digits of a u near 0, which u - 1/2 would drop.
    return loc - scale / torch.tan(math.pi * (uniform - uniform.round()))


def truncated_normal(
    loc: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
    uniform: Tensor,
) -> Tensor:
    """Invert the CDF of a normal that is confined to an interval.

    With a = (low - loc) / scale and b = (high - loc) / scale it is
    z = loc + scale * Phi^-1(Phi(a) + u (Phi(b) - Phi(a))), computed from
    the smaller tail of Phi. A draw may miss its bound by a rounding error.
    An interval beyond about 37 scales from loc (13 in float32) carries no
    mass in floating point and is refused.

    Args:
        loc: the mean before the truncation, any shape.
        scale: the positive standard deviation before the truncation.
        low, high: the bounds; an infinite one leaves its side open.
        uniform: in (0, 1); all five broadcast against each other.

    Returns:
        Draws of the broadcast shape.

    Raises:
        ValueError: if an argument is out of range, or no mass is left.
    """
    require_finite(loc=loc)
    require_positive(scale=scale)
    _require_uniform(uniform)
    require(low < high, "low: must be below high")
    a, b = _standardized(low, loc, scale), _standardized(high, loc, scale)
    below_a, below_b = normal_cdf(a), normal_cdf(b)
    above_a, above_b = normal_cdf(-a), normal_cdf(-b)
    below = torch.lerp(below_a, below_b, uniform)
    above = torch.lerp(above_a, above_b, uniform)
    mass = torch.maximum(below_b - below_a, above_a - above_b)
    require(mass > torch.finfo(mass.dtype).tiny, "low, high: carry no mass")
    distance = ndtri(torch.where(below < above, below, above))
    return loc + scale * torch.where(below < above, distance, -distance)


def log_normal(loc: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """Exponentiate a normal: z = exp(loc + scale * noise).

    Args:
        loc: the mean of log z, any shape.
        scale: the positive standard deviation of log z.
        noise: standard normal, broadcastable with both.

    Returns:
        Draws of the broadcast shape.

    Raises:
        ValueError: if scale <= 0, or an argument is not finite.

    Source: Kingma and Welling 2014, section 2.4 (composition).
    """
    return location_scale(loc, scale, noise).exp()


def sinh_arcsinh(
    loc: Tensor,
    scale: Tensor,
    skewness: Tensor,
    tailweight: Tensor,
    noise: Tensor,
) -> Tensor:
    """Bend a normal: z = loc + scale * sinh(t * (arcsinh(noise) + s)).

    Skewness s = 0 and tailweight t = 1 leave the normal as it is;
    s > 0 skews it to the right, t > 1 makes its tails heavier.

    Args:
        loc: the location, any shape.
        scale: the positive scale.
        skewness: s, any real number.
        tailweight: t, positive.
        noise: standard normal; all five broadcast against each other.

    Returns:
        Draws of the broadcast shape.

    Raises:
        ValueError: if scale <= 0, tailweight <= 0, or an argument is not
            finite.

    Source: Jones and Pewsey 2009, whose delta is 1 / t.
    """
    require_finite(skewness=skewness, noise=noise)
    require_positive(tailweight=tailweight)
    bent = torch.sinh(tailweight * (torch.asinh(noise) + skewness))
    return location_scale(loc, scale, bent)


def _standardized(bound: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Standardize a bound; one beyond 38 scales, or infinite, moves there.

    An infinite bound would give the gradient inf * 0. At 38 scales the density is as good as zero.
    """
    center, far = loc.detach(), 38 * scale.detach()
    near = torch.clamp(bound, min=center - far, max=center + far)
    return (near - loc) / scale


def _require_uniform(uniform: Tensor) -> None:
    require((uniform > 0) & (uniform < 1), "uniform: must be in (0, 1)")
