"""Implicit reparameterization: a path for a draw whose CDF is known but whose inverse is not.

A draw z of a continuous one-dimensional family stays at its quantile while theta moves:
F(z(theta); theta) is constant. Differentiating that gives dz/dtheta without inverting F.
All CDFs here can be differentiated in their parameters by autograd, and are meant for float64.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.special import i0e

from gradbook.checks import plain, require, require_finite, require_positive
from gradbook.reparameterization import normal_cdf


def attach(
    z: Tensor,
    cdf: Callable[..., Tensor],
    log_prob: Callable[..., Tensor],
    *theta: Tensor,
) -> Tensor:
    """Give draws the gradient dz/dtheta = -(dF/dtheta) / p(z).

    The value of z is unchanged to the bit, however z was drawn. Only the
    first derivative is right: F and p are taken at a z that is held fixed.

    Args:
        z: [n], draws from the family at theta.
        cdf: ``cdf(z, *theta)``, [n], differentiable in theta.
        log_prob: ``log_prob(z, *theta)``, [n].
        *theta: the parameters, tensors that fit z.

    Returns:
        [n], equal to z and differentiable in theta.

    Raises:
        ValueError: if z is not finite, or its density is zero in floating
            point.

    Source: Figurnov, Mohamed and Mnih 2018, section 3.
    """
    require_finite(z=z)
    z = z.detach()
    density = log_prob(z, *theta).exp().detach()
    tiny = torch.finfo(density.dtype).tiny
    require(density > tiny, "z: has no density here")
    path = -cdf(z, *theta) / density
    return z + (path - path.detach())


def gamma_log_prob(z: Tensor, concentration: Tensor) -> Tensor:
    """Compute the log density of Gamma(concentration, rate 1).

    Args:
        z: positive, any shape.
        concentration: positive, broadcastable with z.

    Returns:
        The log density, of the broadcast shape.

    Raises:
        ValueError: if an argument is not positive.
    """
    require_positive(z=z, concentration=concentration)
    return (concentration - 1) * z.log() - z - concentration.lgamma()


def gamma_cdf(z: Tensor, concentration: Tensor) -> Tensor:
    """Sum the series of the regularized lower incomplete gamma function.

    With a = concentration, F(z) = p(z) * sum_n prod_{j <= n} z / (a + j)
    over n >= 0. All terms are positive. From n = 2 z - a on each is at
    most half the one before, so 60 terms more leave less than 2^-59 of
    the largest. Time and memory grow as the size of z times 2 max z.

    The relative error of F is about 1e-15 times max(1, z). In the upper
    tail dF/da cancels to an absolute error of about 1e-15. The path is
    then off by 1e-15 / p(z), which averages over draws do not see.

    Args:
        z: positive, any shape.
        concentration: positive, broadcastable with z.

    Returns:
        The probability of a draw below z, of the broadcast shape.

    Raises:
        ValueError: if an argument is not positive.

    Source: Abramowitz and Stegun 1964, 6.5.29.
    """
    log_prob = gamma_log_prob(z, concentration)
    halving = plain(2 * z - concentration).clamp(min=0)
    terms = 60 + (math.ceil(halving.max()) if halving.numel() else 0)
    j = torch.arange(terms, dtype=log_prob.dtype, device=log_prob.device)
    ratio = z[..., None] / (concentration[..., None] + j)
    log_terms = ratio.log().cumsum(-1)
    return (log_prob + log_terms.logsumexp(-1)).exp()


def beta_log_prob(z: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Compute the log density of Beta(alpha, beta).

    Args:
        z: in (0, 1), any shape.
        alpha: positive, broadcastable with z.
        beta: positive, broadcastable with z.

    Returns:
        The log density, of the broadcast shape.

    Raises:
        ValueError: if z is not in (0, 1), or alpha or beta is not positive.
    """
    require((z > 0) & (z < 1), "z: must be in (0, 1)")
    require_positive(alpha=alpha, beta=beta)
    log_norm = alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()
    return (alpha - 1) * z.log() + (beta - 1) * torch.log1p(-z) - log_norm


def beta_from_gammas(x: Tensor, y: Tensor) -> Tensor:
    """Divide two gamma draws into a beta draw: z = x / (x + y).

    Where x ~ Gamma(alpha) and y ~ Gamma(beta) are independent and carry
    their gradients, z ~ Beta(alpha, beta) carries its own.

    Args:
        x: positive, any shape.
        y: positive, broadcastable with x.

    Returns:
        Draws in (0, 1), of the broadcast shape.

    Raises:
        ValueError: if x or y is not positive.

    Source: Figurnov, Mohamed and Mnih 2018, section 4.
    """
    require_positive(x=x, y=y)
    return x / (x + y)


def mixture_log_prob(
    z: Tensor,
    logits: Tensor,
    locs: Tensor,
    scales: Tensor,
) -> Tensor:
    """Compute the log density of a mixture of K normals.

    Args:
        z: any shape.
        logits: [K], unnormalized log weights.
        locs: [K], the means.
        scales: [K], the positive standard deviations.

    Returns:
        The log density, shaped as z.

    Raises:
        ValueError: if scales is not positive or another argument is not
            finite.
    """
    require_finite(z=z, logits=logits, locs=locs)
    require_positive(scales=scales)
    standard = (z[..., None] - locs) / scales
    log_norm = scales.log() + math.log(2 * math.pi) / 2
    log_weight = logits.log_softmax(-1)
    return (log_weight - standard**2 / 2 - log_norm).logsumexp(-1)


def mixture_cdf(
    z: Tensor,
    logits: Tensor,
    locs: Tensor,
    scales: Tensor,
) -> Tensor:
    """Average the normal CDFs of a mixture of K normals.

    Args:
        z: any shape.
        logits: [K], unnormalized log weights.
        locs: [K], the means.
        scales: [K], the positive standard deviations.

    Returns:
        The probability of a draw below z, shaped as z.

    Raises:
        ValueError: if scales is not positive or another argument is not
            finite.
    """
    require_finite(z=z, logits=logits, locs=locs)
    require_positive(scales=scales)
    standard = (z[..., None] - locs) / scales
    return (logits.softmax(-1) * normal_cdf(standard)).sum(-1)


def von_mises_log_prob(
    z: Tensor,
    loc: Tensor,
    concentration: Tensor,
) -> Tensor:
    """Compute the log density of an angle z.

    Args:
        z: an angle in radians, any shape.
        loc: the mean direction in radians, broadcastable with z.
        concentration: positive, broadcastable with z.

    Returns:
        The log density per radian, of the broadcast shape.

    Raises:
        ValueError: if concentration is not positive or another argument
            is not finite.
    """
    require_finite(z=z, loc=loc)
    require_positive(concentration=concentration)
    # cos(x) - 1 = -2 sin(x/2)^2, and i0e carries the exp(-concentration)
    # that the 1 takes away: no overflow at any concentration.
    drop = 2 * torch.sin((z - loc) / 2) ** 2
    log_norm = torch.log(2 * math.pi * i0e(concentration))
    return -concentration * drop - log_norm


def von_mises_cdf(
    z: Tensor,
    loc: Tensor,
    concentration: Tensor,
    order: int = 64,
) -> Tensor:
    """Integrate the von Mises density by Gauss-Legendre quadrature.

    The circle is cut opposite to loc: F runs from 0 at loc - pi to 1 at
    loc + pi, and z may be given in any turn. Another cut would add
    constant / p(z) to the path, which changes no expectation of a
    function that is smooth on the circle.

    Args:
        z: an angle in radians, any shape.
        loc: the mean direction in radians, broadcastable with z.
        concentration: positive, broadcastable with z.
        order: the number of nodes.

    Returns:
        The probability between the cut and z, of the broadcast shape.

    Raises:
        ValueError: if concentration is not positive or another argument
            is not finite.
    """
    require_finite(z=z, loc=loc)
    turn = torch.remainder(z - loc + math.pi, 2 * math.pi) - math.pi
    rule = np.polynomial.legendre.leggauss(order)
    nodes, weights = (torch.as_tensor(x).to(turn) for x in rule)
    angles = turn[..., None] * (1 + nodes) / 2
    zero = torch.zeros_like(concentration)[..., None]
    log_prob = von_mises_log_prob(angles, zero, concentration[..., None])
    return 0.5 + turn / 2 * (log_prob.exp() * weights).sum(-1)
