"""Exact laws of the relaxed coin: what a temperature does to a draw and to its slope.

A Concrete variable of two classes is y = sigmoid((x + L) / tau), where p is the chance of the first
class, x = logit(p), tau the temperature and L standard logistic. Its slope is the derivative dy/dx,
which is y (1 - y) / tau. Integrals have no closed form in general, but their integrands are smooth
on the whole line, have no pole nearer to it than pi, and fall off exponentially: there the
trapezoidal rule with a step of pi/8 is exact to rounding.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import plain, require, require_positive

STEP = math.pi / 8
# Integrands are flat up to the logit at most; exp(-45) of that is left out.
TAIL = 45.0
SERIES_TERMS = 25


class Moments(NamedTuple):
    """The mean and the variance of one draw."""

    mean: Tensor
    variance: Tensor


def binary_mean(odds: Tensor) -> Tensor:
    """Compute the mean of y at temperature 1.

    With odds a it is ``a * (a - 1 - log(a)) / (a - 1)**2``, and 1/2 at
    a = 1. The chance itself is ``a / (a + 1)``.

    Args:
        odds: p / (1 - p), positive, any shape.

    Returns:
        The mean, same shape.

    Raises:
        ValueError: if the odds are not positive and finite.
    """
    require_positive(odds=odds)
    d = odds - 1
    near = d.abs() < 0.2
    # The difference of d and log(1 + d) loses the digits of a small d, so there sum its series.
    small = torch.where(near, d, 0.0)
    series = torch.zeros_like(d)
    for n in reversed(range(SERIES_TERMS)):
        series = 1 / (n + 2) - small * series
    far = torch.where(near, 1.0, d)
    quotient = (1 - torch.where(near, 1.0, odds).log() / far) / far
    return odds * torch.where(near, series, quotient)


def relaxed_mean(p: Tensor, temperature: float | Tensor) -> Tensor:
    """Compute the mean of y at any temperature.

    It tends to p as the temperature falls to 0, and to 1/2 as it grows.

    Args:
        p: the chance of the first class, in (0, 1), any shape.
        temperature: positive; broadcasts with p.

    Returns:
        The mean, of the broadcast shape.

    Raises:
        ValueError: if p is not in (0, 1) or the temperature not positive.
    """
    x, tau = _checked(p, temperature)
    v, weight = _logistic_rule(x)
    # The mean is P(tau M < x + L) of two logistics: average over the one of the smaller scale.
    inner, outer = tau.clamp(max=1), tau.clamp(min=1)
    mean = (torch.sigmoid((x + inner * v) / outer) * weight).sum(-1)
    return mean.to(p.dtype)


def binary_slope(p: Tensor, temperature: float | Tensor) -> Moments:
    """Compute the mean and the variance of the slope dy/dx.

    As the temperature falls to 0 the mean tends to p (1 - p), the slope
    of p itself, and the variance grows as p (1 - p) / (6 temperature).

    Args:
        p: the chance of the first class, in (0, 1), any shape.
        temperature: positive; broadcasts with p.

    Returns:
        Mean and variance, of the broadcast shape.

    Raises:
        ValueError: if p is not in (0, 1) or the temperature not positive.
    """
    x, tau = _checked(p, temperature)
    v, weight = _logistic_rule(x)
    inner, outer = tau.clamp(max=1), tau.clamp(min=1)
    slope = _bell((x + inner * v) / outer) / outer
    mean = (slope * weight).sum(-1)
    # Low temperatures: the square, over u = (x + L) / tau, where it is a fixed bell.
    square = (STEP * _bell(v).square() * _bell(inner * v - x)).sum(-1) / inner[..., 0]
    # High ones: around the mean, which the square of nearly equal slopes would round away.
    around = ((slope - mean[..., None]).square() * weight).sum(-1)
    variance = torch.where(tau[..., 0] <= 1, square - mean.square(), around)
    return Moments(mean.to(p.dtype), variance.to(p.dtype))


def slope_variance_limit(p: Tensor) -> Tensor:
    """Compute the limit of temperature times variance of the slope.

    Put u = (x + L) / tau. The mean of the squared slope is 1 / tau times
    the integral of ``sigmoid'(u)**2 * f(tau * u - x)``, where f is the
    density of L. As tau falls to 0 the second factor tends to
    f(x) = p (1 - p), and the integral of the first is 1/6; the squared
    mean stays bounded, so tau times it tends to 0. The limit is
    p (1 - p) / 6.

    Args:
        p: the chance of the first class, in (0, 1), any shape.

    Returns:
        The limit, same shape.

    Raises:
        ValueError: if p is not in (0, 1).
    """
    _require_chance(p)
    return p * (1 - p) / 6


def mean_bias_limit(p: Tensor) -> Tensor:
    """Compute the limit of the bias of y over the squared temperature.

    For logistic M the mean of y is that of sigmoid(x + tau M). Its term
    of second order in tau is half the second derivative of the sigmoid
    times the variance of M, ``pi**2 / 3``. The limit is
    ``pi**2 / 6 * p * (1 - p) * (1 - 2 * p)``.

    Args:
        p: the chance of the first class, in (0, 1), any shape.

    Returns:
        The limit, same shape.

    Raises:
        ValueError: if p is not in (0, 1).
    """
    _require_chance(p)
    return math.pi**2 / 6 * p * (1 - p) * (1 - 2 * p)


def small_slope_probability(
    p: Tensor,
    temperature: float | Tensor,
    bound: float | Tensor,
) -> Tensor:
    """Compute the probability that the slope is below a bound.

    The slope y (1 - y) / tau is below the bound where abs(x + L) exceeds
    tau c, with c the logit of the larger root y of the equality. The
    probability is ``sigmoid(x - tau c) + sigmoid(-x - tau c)``; it is 1
    beyond the largest slope, 1 / (4 tau).

    Args:
        p: the chance of the first class, in (0, 1), any shape.
        temperature: positive; broadcasts with p.
        bound: positive; broadcasts with p.

    Returns:
        The probability, of the broadcast shape.

    Raises:
        ValueError: if p is not in (0, 1) or another argument not positive.
    """
    x, tau = _checked(p, temperature)
    bound = torch.as_tensor(bound, dtype=torch.float64, device=p.device)
    require_positive(bound=bound)
    share = bound[..., None] * tau
    root = (1 - 4 * share).clamp(min=0).sqrt()
    # The larger root over the smaller, whose product is the share: no difference is taken.
    reach = tau * (((1 + root) / 2).square() / share).log()
    below = torch.sigmoid(x - reach) + torch.sigmoid(-x - reach)
    return torch.where(share > 0.25, 1.0, below)[..., 0].to(p.dtype)


def log_convex_temperature(k: int) -> float:
    """Compute the temperature up to which the density is log-convex.

    It is 1 / (k - 1), for any logits. Below it the density has no
    interior mode; above it, it is not log-convex.

    Args:
        k: the number of classes, at least 2.

    Returns:
        The temperature.

    Raises:
        ValueError: if k < 2.

    Source: Maddison, Mnih and Teh 2017, proposition 1(d), for the first
    half; the chapter proves both.
    """
    if not k >= 2:
        raise ValueError(f"k: must be at least 2, got {k}")
    return 1 / (k - 1)


def _bell(x: Tensor) -> Tensor:
    """The derivative of the sigmoid, which is the standard logistic density."""
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _logistic_rule(x: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes, and weights that integrate against the logistic density."""
    reach = TAIL + (plain(x).abs().max().item() if x.numel() else 0.0)
    count = math.ceil(reach / STEP)
    v = STEP * torch.arange(-count, count + 1, dtype=x.dtype, device=x.device)
    return v, STEP * _bell(v)


def _checked(p: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """The logit and the temperature in float64, with a last axis for the nodes."""
    _require_chance(p)
    tau = torch.as_tensor(temperature, dtype=torch.float64, device=p.device)
    require_positive(temperature=tau)
    p = p.to(torch.float64)
    x, tau = torch.broadcast_tensors(p.log() - torch.log1p(-p), tau)
    return x[..., None], tau[..., None]


def _require_chance(p: Tensor) -> None:
    require((p > 0) & (p < 1), "p: must be in (0, 1)")
