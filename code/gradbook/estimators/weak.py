"""Measure-valued gradients of a normal: a difference of two laws in place of the density's slope.

The derivative of the normal density in a parameter is a constant times the difference of two
densities. f is evaluated at a draw of each, and need not be differentiable.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vmap

from gradbook.checks import require_finite, require_positive
from gradbook.estimators.draws import require_draws, scalar


def measure_valued_mean(
    f: Callable[[Tensor], Tensor],
    loc: Tensor,
    scale: Tensor,
    noise: Tensor,
) -> Tensor:
    """Estimate the gradient of E f(z), z ~ N(loc, scale^2), in the mean.

    With W of the Rayleigh density w exp(-w^2 / 2), one sample is
    (f(loc + scale W) - f(loc - scale W)) / (scale sqrt(2 pi)). With
    several coordinates each is moved in turn, and the others are normal.

    Args:
        f: maps one draw to a scalar; it may jump.
        loc: means, a scalar or [d].
        scale: standard deviations, positive, shaped as ``loc``.
        noise: standard normal, [n, 2] or [n, 2, d]: W is the length of
            the pair, and its first element the normal draw.

    Returns:
        Per-sample gradients, [n] or [n, d].

    Raises:
        ValueError: if ``loc`` or the noise is not finite, a scale is not
            positive, the shapes do not agree, or f is not a scalar.

    Source: Pflug 1989; Mohamed et al. 2020, section 6.
    """
    loc, scale = _detached(loc, scale, noise, 2)
    normal, rayleigh = noise[:, 0], noise.square().sum(1).sqrt()
    ends = (loc + scale * x for x in (rayleigh, -rayleigh))
    difference = _one_at_a_time(f, loc + scale * normal, *ends)
    return difference / (scale * math.sqrt(2 * math.pi))


def measure_valued_scale(
    f: Callable[[Tensor], Tensor],
    loc: Tensor,
    scale: Tensor,
    noise: Tensor,
) -> Tensor:
    """Estimate the gradient of E f(z), z ~ N(loc, scale^2), in the scale.

    With M of the double-sided Maxwell density m^2 exp(-m^2 / 2) /
    sqrt(2 pi), one sample is (f(loc + scale M) - f(loc + scale N)) /
    scale, where N = U M, with U uniform, is normal. With several
    coordinates each is moved in turn, and the others are normal.

    Args:
        f: maps one draw to a scalar; it may jump.
        loc: means, a scalar or [d].
        scale: standard deviations, positive, shaped as ``loc``.
        noise: standard normal, [n, 3] or [n, 3, d]: N is the first of the
            three, and M their length with the sign of N. Then N / M is
            uniform and independent of M (Archimedes' hat-box theorem).

    Returns:
        Per-sample gradients, [n] or [n, d].

    Raises:
        ValueError: as :func:`measure_valued_mean`.

    Source: Pflug 1989; Mohamed et al. 2020, section 6.
    """
    loc, scale = _detached(loc, scale, noise, 3)
    normal = noise[:, 0]
    maxwell = noise.square().sum(1).sqrt().copysign(normal)
    draw = loc + scale * normal
    return _one_at_a_time(f, draw, loc + scale * maxwell, draw) / scale


def _detached(loc: Tensor, scale: Tensor, noise: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    if loc.shape != scale.shape:
        raise ValueError(f"scale: has shape {tuple(scale.shape)}, loc {tuple(loc.shape)}")
    require_finite(loc=loc)
    require_positive(scale=scale)
    require_draws(loc, (rows,), noise=noise)
    return loc.detach(), scale.detach()


def _one_at_a_time(
    f: Callable[[Tensor], Tensor], draw: Tensor, plus: Tensor, minus: Tensor
) -> Tensor:
    """Take f at plus less f at minus, in one coordinate of the draw after the other."""
    if draw.numel() == 0:
        return torch.zeros_like(draw)

    def values(end, coordinate):
        moved = draw.reshape(len(draw), -1).clone()
        moved[:, coordinate] = end.reshape(len(draw), -1)[:, coordinate]
        return vmap(lambda z: scalar("f", f(z)))(moved.reshape(draw.shape))

    d = draw[0].numel()
    differences = [values(plus, i) - values(minus, i) for i in range(d)]
    return torch.stack(differences, 1).reshape(draw.shape)
