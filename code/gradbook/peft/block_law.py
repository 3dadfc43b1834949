"""The law of a normal weight over the largest of its block, and what a code costs under it.

A block is n weights x, independent and standard normal; M is the largest absolute value, and
u = x / M lies in [-1, 1]. With probability 1/n the weight is itself the largest, and u is -1 or 1;
else, given M, it is a normal cut off at -M and M. The density of M is ``2 n phi(m) h(m)^(n-1)``,
where h(m) is the mass of a normal between -m and m, so that every expectation is an integral over
m alone; what stands inside is known in closed form. Errors are in units of the weights' standard
deviation. All is computed in float64 on the CPU; up to blocks of 65536 it is right to 1e-9, what
concerns affine codes a little less.

Source: D. Yoshida, 2023, "NF4 isn't information theoretically optimal (and that's good)", section
3, for the law of u; the errors are worked out here.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.special import roots_legendre
from torch import Tensor

from gradbook.checks import require
from gradbook.peft.blockwise import require_code
from gradbook.transformer_sizes import require_sizes

# A normal weight beyond it has a probability of 1e-23, so the integral ends here.
FARTHEST = 10.0
NODES = 200


class Maxima(NamedTuple):
    """A rule of integration over M: E f(M, u) is a sum over nodes.

    Attributes:
        m: nodes [N].
        largest: what to multiply f(m) by, where f depends on M alone.
        others: what to multiply the integral of f(m, x) phi(x) from -m to m by, for the weights
            that are not the largest; 1 / n of the weights are.
    """

    m: Tensor
    largest: Tensor
    others: Tensor


class Moments(NamedTuple):
    """E[M^s; u <= x], E[M^s u; u <= x], and the slope of the first, each in the shape of x."""

    mass: Tensor
    first: Tensor
    density: Tensor


def maxima(block: int) -> Maxima:
    """Make the rule of integration over the largest of a block.

    Args:
        block: n, at least 2.

    Returns:
        The rule.

    Raises:
        ValueError: if n is not an integer of at least 2.
    """
    require_at_least_two(block=block)
    x, w = _legendre()
    m, w = FARTHEST * (1 + x) / 2, FARTHEST * w / 2
    log_h = torch.log1p(-torch.special.erfc(m / math.sqrt(2)))
    w = 2 * w * _phi(m)
    largest = block * w * torch.exp((block - 1) * log_h)
    others = (block - 1) * w * torch.exp((block - 2) * log_h)
    return Maxima(m, largest, others)


def partial_moments(x: Tensor, rule: Maxima, block: int, s: float) -> Moments:
    """Compute the moments of u up to x, weighted by a power of the largest.

    At s = 0 they are those of the law itself. s = 2 counts squared errors of
    u as errors of the weights, s = 1 absolute ones.

    Args:
        x: from -1 to 1, any shape, float64 on the CPU.
        rule: of the block.
        block: n.
        s: the power.

    Returns:
        The moments; the density leaves out the jumps at -1 and 1.
    """
    m, mx = rule.m, rule.m * x[..., None]
    others = rule.others * m**s
    atom = (rule.largest * m**s).sum() / (2 * block)
    last = atom * (x >= 1)
    mass = ((_cdf(mx) - _cdf(-m)) * others).sum(-1) + atom + last
    first = ((_phi(m) - _phi(mx)) / m * others).sum(-1) - atom + last
    return Moments(mass, first, (m * _phi(mx) * others).sum(-1))


def scaled_normal_cdf(x: Tensor, block: int) -> Tensor:
    """Compute the probability that a weight over the largest is at most x.

    Args:
        x: any shape, any floating type; no NaN.
        block: n, at least 2.

    Returns:
        P(u <= x), in x's shape, float64 on the CPU. It jumps by 1 / (2 n) at
        -1 and at 1.

    Raises:
        ValueError: if x holds a NaN or n is not an integer of at least 2.
    """
    require(~x.isnan(), "x: must not hold a NaN")
    x = x.detach().to("cpu", torch.float64)
    inside = x.clamp(-1, 1)
    mass = partial_moments(inside, maxima(block), block, 0).mass
    return torch.where(x < -1, torch.zeros_like(mass), mass)


def level_masses(code: Tensor, block: int) -> Tensor:
    """Compute how often each level of a code is the nearest one.

    Args:
        code: K sorted levels in [-1, 1].
        block: n, at least 2.

    Returns:
        Probabilities [K], float64 on the CPU.

    Raises:
        ValueError: if the code is not that, or n not an integer of at least 2.
    """
    code = _checked(code)
    below = scaled_normal_cdf((code[1:] + code[:-1]) / 2, block)
    return _masses(below)


def fixed_scale_masses(code: Tensor, scale: float) -> Tensor:
    """Compute the same where every weight is divided by one scale, whatever its block.

    Args:
        code: K sorted levels in [-1, 1].
        scale: positive and finite; NF4's levels are quantiles of the normal
            over the largest of them, 1.848.

    Returns:
        Probabilities [K], float64 on the CPU.

    Raises:
        ValueError: if the code or the scale is not that.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: must be positive and finite, got {scale}")
    code = _checked(code)
    return _masses(_cdf(scale * (code[1:] + code[:-1]) / 2))


def code_entropy(code: Tensor, block: int) -> float:
    """Compute how many bits the index of a weight carries.

    Args:
        code: K sorted levels in [-1, 1].
        block: n, at least 2.

    Returns:
        The entropy of the index, in bits: at most the logarithm of K.

    Raises:
        ValueError: as :func:`level_masses`.
    """
    return float(-torch.xlogy(p := level_masses(code, block), p).sum() / math.log(2))


def expected_error(code: Tensor, block: int, power: int) -> float:
    """Compute the mean error of standard normal weights in a code, exactly.

    Args:
        code: K sorted levels in [-1, 1].
        block: n, at least 2; every block is scaled by its largest.
        power: 1 for the mean absolute error, 2 for the mean squared one.

    Returns:
        E|x - M q(u)|^power, with q(u) the level nearest to u. Standard
        deviations of the weights are 1; the scales are not rounded.

    Raises:
        ValueError: if the code or n is not that, or the power another.
    """
    code, cell = _checked(code), _cell_error(power)
    m, largest, others = maxima(block)
    edges = midpoint_edges(code)
    a, b, c = (m[:, None] * x for x in (edges[:-1], edges[1:], code))
    inner = (others * cell(a, b, c).sum(1)).sum()
    ends = (1 + code[0]) ** power + (1 - code[-1]) ** power
    return float(inner + ends * (largest * m**power).sum() / (2 * block))


def affine_expected_error(levels: int, block: int, power: int) -> float:
    """Compute the same for levels equally spaced from the least of a block to its greatest.

    The least and the greatest are met exactly. The others are normals cut
    off at both, of which the joint density is ``n (n-1) phi(a) phi(b)
    (Phi(b) - Phi(a))^(n-2)``.

    Args:
        levels: K, at least 2; neighbours are (b - a) / (K - 1) apart.
        block: n, at least 2.
        power: 1 or 2.

    Returns:
        As :func:`expected_error`.

    Raises:
        ValueError: if an argument is not that.
    """
    require_at_least_two(levels=levels, block=block)
    cell = _cell_error(power)
    if block == 2:
        return 0.0
    x, w = _legendre()
    least, span = FARTHEST * x[:, None], FARTHEST * (1 + x)
    greatest = least + span
    inside = _cdf(greatest) - _cdf(least)
    density = _phi(least) * _phi(greatest) * inside ** (block - 3)
    step = span / (levels - 1)
    total = torch.zeros_like(inside)
    for k in range(levels):
        c = least + k * step
        total += cell((c - step / 2).maximum(least), (c + step / 2).minimum(greatest), c)
    weights = FARTHEST**2 * w[:, None] * w * density
    return (block - 1) * (block - 2) * float((weights * total).sum())


def midpoint_edges(code: Tensor) -> Tensor:
    """Give the edges of the cells in which each level is the nearest.

    Args:
        code: [K], sorted, in [-1, 1].

    Returns:
        [K + 1], from -1 to 1.
    """
    one = code.new_ones(1)
    return torch.cat((-one, (code[1:] + code[:-1]) / 2, one))


def require_at_least_two(**sizes: int) -> None:
    """Raise unless every size is an integer of at least 2.

    Args:
        **sizes: under the names that the message gives them.

    Raises:
        ValueError: if one is not.
    """
    require_sizes(**sizes)
    for name, size in sizes.items():
        if size < 2:
            raise ValueError(f"{name}: must be at least 2, got {size}")


def _cell_error(power: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Integrate |x - c|^power phi(x) from a to b, where a <= c <= b."""
    if type(power) is not int or power not in (1, 2):
        raise ValueError(f"power: must be 1 or 2, got {power!r}")
    return _absolute if power == 1 else _squared


def _absolute(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    sides = c * (2 * _cdf(c) - _cdf(a) - _cdf(b))
    return sides + 2 * _phi(c) - _phi(a) - _phi(b)


def _squared(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    p, q = _phi(a), _phi(b)
    return (1 + c * c) * (_cdf(b) - _cdf(a)) + a * p - b * q + 2 * c * (q - p)


def _masses(below: Tensor) -> Tensor:
    # Between two edges that nearly coincide rounding may leave less than nothing.
    return torch.cat((below[:1], below.diff(), 1 - below[-1:])).clamp_min(0)


def _phi(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _cdf(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


def _legendre() -> tuple[Tensor, Tensor]:
    x, w = roots_legendre(NODES)
    return torch.from_numpy(x), torch.from_numpy(w)


def _checked(code: Tensor) -> Tensor:
    require_code(code, code.dtype)
    require(code.abs() <= 1, "code: must be in [-1, 1]")
    return code.detach().to("cpu", torch.float64)
