"""The expectation objective, and the exact ways to compute it that the book checks against."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A Monte Carlo estimate: the sample mean and its standard error."""

    mean: Tensor
    stderr: Tensor


class MovingSupport(NamedTuple):
    """The two parts of the derivative of an integral whose limits move."""

    interior: Tensor
    boundary: Tensor


def strings(vocabulary: int, length: int) -> Tensor:
    """List every string over a vocabulary.

    Args:
        vocabulary: the number V of symbols, at least 1.
        length: the number l of positions, at least 1.

    Returns:
        Integers [V^l, l] in lexicographic order, the first position slowest.

    Raises:
        ValueError: if an argument is below 1.
    """
    if vocabulary < 1 or length < 1:
        raise ValueError(f"vocabulary, length: must be at least 1, got {vocabulary}, {length}")
    places = vocabulary ** torch.arange(length - 1, -1, -1)
    return torch.arange(vocabulary**length)[:, None] // places % vocabulary


def enumerated(values: Tensor, log_probs: Tensor) -> Tensor:
    """Sum f over a finite support: the exact discrete objective.

    Args:
        values: f at every point of the support, [m].
        log_probs: log-probabilities of the points, [m]; -inf marks one
            that cannot occur.

    Returns:
        The scalar sum of p f, differentiable in both arguments.

    Raises:
        ValueError: if the shapes differ, or the probabilities do not sum
            to 1 within the square root of the precision.
    """
    if values.shape != log_probs.shape:
        shapes = f"{tuple(values.shape)} and {tuple(log_probs.shape)}"
        raise ValueError(f"values, log_probs: shapes differ, {shapes}")
    probs = log_probs.exp()
    total = float(probs.detach().sum())
    if not abs(total - 1) <= math.sqrt(torch.finfo(probs.dtype).eps):
        raise ValueError(f"log_probs: probabilities sum to {total}, not 1")
    return (probs * values).sum()


def gauss_hermite(
    f: Callable[[Tensor], Tensor],
    loc: Tensor,
    scale: Tensor,
    order: int = 64,
) -> Tensor:
    """Integrate f against a normal density by Gauss–Hermite quadrature.

    Exact for polynomials of degree below twice the order; for other f the
    error depends on how smooth f is and how fast it grows.

    Args:
        f: a function of one real variable, applied to [..., order].
        loc: means [...].
        scale: standard deviations [...], positive.
        order: the number of nodes, at least 1.

    Returns:
        E f(z) for z ~ N(loc, scale^2), [...].

    Raises:
        ValueError: if the order is below 1, loc holds integers, or a scale
            is not positive.

    Source: Golub and Welsch 1969; nodes and weights from
    ``numpy.polynomial.hermite_e``.
    """
    if order < 1:
        raise ValueError(f"order: must be at least 1, got {order}")
    if not loc.is_floating_point():
        raise ValueError(f"loc: must be floating-point, got {loc.dtype}")
    if not bool((scale > 0).all()):
        raise ValueError("scale: must be positive")
    rule = np.polynomial.hermite_e.hermegauss(order)
    nodes, weights = (torch.as_tensor(x).to(loc) for x in rule)
    z = loc[..., None] + scale[..., None] * nodes
    return (f(z) * weights).sum(-1) / math.sqrt(2 * math.pi)


def central_difference(
    function: Callable[[Tensor], Tensor],
    theta: Tensor,
    step: float | None = None,
) -> Tensor:
    """Differentiate a scalar function by central differences.

    With M a bound on the third derivative and u one on the rounding of
    a value, the error is at most ``step**2 * M / 6 + u / step``.

    Args:
        function: maps theta to a scalar.
        theta: the point [...], of any shape.
        step: the half width; the cube root of the precision by default.

    Returns:
        The gradient, shaped as theta.

    Raises:
        ValueError: if theta holds integers, or the step is not positive.
    """
    if not theta.is_floating_point():
        raise ValueError(f"theta: must be floating-point, got {theta.dtype}")
    if step is None:
        step = torch.finfo(theta.dtype).eps ** (1 / 3)
    if not step > 0:
        raise ValueError(f"step: must be positive, got {step}")
    theta = theta.detach().contiguous()  # view(-1) needs one stride
    gradient = torch.empty_like(theta)
    for index in range(theta.numel()):
        shift = torch.zeros_like(theta)
        shift.view(-1)[index] = step
        above, below = function(theta + shift), function(theta - shift)
        gradient.view(-1)[index] = (above - below).detach() / (2 * step)
    return gradient


def monte_carlo(values: Tensor) -> Estimate:
    """Average independent draws, and say how far the average may be off.

    Args:
        values: draws along the first axis, [n, ...] with n at least 2.

    Returns:
        Their mean and its standard error, the sample standard deviation
        over the square root of n, both [...].

    Raises:
        ValueError: if there are fewer than two draws.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"values: need at least two draws, got {count}")
    mean = values.mean(0)
    # Not values.std(0): it warns where the other axes are empty.
    variance = (values - mean).square().sum(0) / (count - 1)
    return Estimate(mean, (variance / count).sqrt())


def moving_support(
    integrand: Callable[[Tensor, Tensor], Tensor],
    low: Callable[[Tensor], Tensor],
    high: Callable[[Tensor], Tensor],
    theta: Tensor,
    order: int = 64,
) -> MovingSupport:
    """Differentiate an integral whose limits depend on theta.

    Args:
        integrand: h(z, theta), smooth between the limits, on [order].
        low: the lower limit a(theta).
        high: the upper limit b(theta), above the lower one.
        theta: a scalar.
        order: the number of Gauss–Legendre nodes.

    Returns:
        The integral of the derivative of h, and the boundary term
        h(b) b' - h(a) a'.

    Raises:
        ValueError: if theta is not a scalar, or the limits are not in
            order.

    Source: Leibniz's integral rule; Flanders 1973, equation (1).
    """
    if theta.dim():
        shape = tuple(theta.shape)
        raise ValueError(f"theta: must be a scalar, got shape {shape}")
    theta = theta.detach().requires_grad_()
    a, b = low(theta), high(theta)
    if not a < b:
        raise ValueError(f"low, high: not in order, {a:g} and {b:g}")
    rule = np.polynomial.legendre.leggauss(order)
    nodes, weights = (torch.as_tensor(x).to(theta) for x in rule)
    width = (b - a).detach() / 2
    z = a.detach() + width * (1 + nodes)
    inside = (integrand(z, theta) * weights).sum() * width
    edges = integrand(torch.stack((a, b)).detach(), theta).detach()
    limits = edges[1] * b - edges[0] * a
    return MovingSupport(_slope(inside, theta), _slope(limits, theta))


def _slope(value: Tensor, theta: Tensor) -> Tensor:
    """Differentiate; a value that does not depend on theta has slope 0."""
    if not value.requires_grad:
        return torch.zeros_like(theta)
    (slope,) = torch.autograd.grad(value, theta, retain_graph=True, materialize_grads=True)
    return slope
