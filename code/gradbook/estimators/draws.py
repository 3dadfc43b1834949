"""What every estimator asks for, and how it checks it: an objective, a family, theta and the noise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree

from gradbook.checks import require_finite

Theta = Any  # a tensor, or a dict, list or tuple of tensors
Objective = Callable[[Tensor, Theta], Tensor]


class Family(NamedTuple):
    """A distribution, by what an estimator asks of it.

    Attributes:
        sample: ``sample(theta, noise)`` makes one draw z from one draw of
            the noise, differentiable in theta where a path exists.
        log_prob: ``log_prob(z, theta)`` is the log density (or mass) of
            one draw, a scalar.
    """

    sample: Callable[[Theta, Tensor], Tensor]
    log_prob: Callable[[Tensor, Theta], Tensor]


def detached(theta: Theta, noise: Tensor) -> Theta:
    """Detach theta: the gradients are results, not a graph to differentiate again.

    Args:
        theta: a tensor or a container of tensors.
        noise: [n, ...], one row per draw.

    Returns:
        Theta without its graph.

    Raises:
        ValueError: if theta or noise is not finite, noise has no axis, or
            theta holds something other than tensors.
    """
    if noise.ndim == 0:
        raise ValueError("noise: needs a leading axis of draws")
    require_finite(noise=noise)
    for leaf in _pytree.tree_leaves(theta):
        if not isinstance(leaf, Tensor):
            kind = type(leaf).__name__
            raise ValueError(f"theta: must be a tensor or a container of tensors, not of {kind}")
        require_finite(theta=leaf)
    return _pytree.tree_map(Tensor.detach, theta)


def fixed_baseline(baseline: float | Tensor, n: int) -> float | Tensor:
    """Detach a baseline, which must be one number, or one for each draw.

    Args:
        baseline: a scalar, or [n].
        n: the number of draws.

    Returns:
        The baseline without its graph; a number as it is, which then
        yields to the type of f and is not rounded.

    Raises:
        ValueError: if it has another shape or is not finite.
    """
    require_finite(baseline=baseline)
    if not isinstance(baseline, Tensor):
        return baseline
    shape = tuple(baseline.shape)
    if shape not in {(), (n,)}:
        raise ValueError(f"baseline: must be a scalar or [{n}], not {shape}")
    return baseline.detach()


def mean_of_the_others(value: Tensor) -> Tensor:
    """Average over all draws but one, for each draw.

    Args:
        value: [n, ...], one row per draw, n at least 2.

    Returns:
        [n, ...]; a row does not depend on its own draw.

    Raises:
        ValueError: if n < 2.

    Source: Kool, van Hoof and Welling 2019.
    """
    if len(value) < 2:
        raise ValueError("noise: leaving one out needs at least two draws")
    return (value.sum(0) - value) / (len(value) - 1)


def require_draws(theta: Tensor, middle: tuple[int, ...] = (), **noises: Tensor) -> None:
    """Raise unless the noises are n finite draws each, shaped as theta.

    Args:
        theta: the parameters, a tensor.
        middle: the shape between the axis of draws and that of theta.
        **noises: [n, *middle, ...], under the names of the caller's
            arguments.

    Raises:
        ValueError: if one is shaped otherwise or is not finite.
    """
    n = {noise.shape[:1] for noise in noises.values()}
    for name, noise in noises.items():
        shape = (*middle, *theta.shape)
        if noise.ndim == 0 or noise.shape[1:] != shape or len(n) > 1:
            have = tuple(noise.shape)
            raise ValueError(f"{name}: must have shape (n, *{shape}), with one n, not {have}")
    require_finite(**noises)


def scalar(name: str, value: Tensor) -> Tensor:
    """Refuse what a function returned for one draw, unless it is a scalar.

    Args:
        name: of the function.
        value: what it returned.

    Returns:
        The value.

    Raises:
        ValueError: if the value has axes.
    """
    if value.ndim != 0:
        raise ValueError(f"{name}: must return a scalar for one draw, not {tuple(value.shape)}")
    return value


def values(f: Objective, z: Tensor, theta: Theta) -> Tensor:
    """Evaluate f at every draw.

    Args:
        f: maps one draw and theta to a scalar.
        z: [n, ...].
        theta: a tensor or a container of tensors.

    Returns:
        [n].

    Raises:
        ValueError: if f is not a scalar.
    """
    return vmap(lambda z: scalar("f", f(z, theta)))(z)


def no_gradients(theta: Theta) -> Theta:
    """Answer for an empty batch of draws.

    Args:
        theta: a tensor or a container of tensors.

    Returns:
        Tensors [0, ...], shaped as theta otherwise.
    """
    return _pytree.tree_map(lambda leaf: leaf.new_empty((0, *leaf.shape)), theta)


def per_draw(weight: Tensor, theta: Tensor) -> Tensor:
    """Give one number per draw the axes that multiply gradients of theta.

    Args:
        weight: [n].
        theta: the parameters, a tensor.

    Returns:
        [n, 1, ...].
    """
    return weight.reshape(-1, *[1] * theta.ndim)


def dot(left: Theta, right: Theta) -> Tensor:
    """Sum the products of two sets of gradients over draws and coordinates.

    Args:
        left: tensors in a container, or one tensor.
        right: the same shapes.

    Returns:
        A scalar.
    """
    leaves = zip(_pytree.tree_leaves(left), _pytree.tree_leaves(right), strict=True)
    return torch.stack([(a * b).sum() for a, b in leaves]).sum()
