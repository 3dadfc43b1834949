"""Gradient estimators: functions of an objective, a family, its parameters and the noise.

The objective is E[f(z, theta)] with z drawn from a family with parameters theta. Every estimator
takes n draws of noise and returns n gradients, one per draw, so that their mean estimates the
gradient, their spread is at hand, and the same noise replays the same gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap
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


def score_function(
    f: Objective,
    family: Family,
    theta: Theta,
    noise: Tensor,
) -> Theta:
    """Estimate the gradient by weighting the score with the value of f.

    With z held fixed, one sample is
    f(z, theta) grad log p(z; theta) + grad_theta f(z, theta).

    Args:
        f: maps one draw and theta to a scalar; it may jump in z.
        family: the distribution of z.
        theta: its parameters, a tensor or a container of tensors.
        noise: [n, ...], one row per draw.

    Returns:
        Per-sample gradients, shaped as theta with a leading n.

    Raises:
        ValueError: if theta or noise is not finite, or f or the log
            density is not a scalar.

    Source: Glynn 1990; Williams 1992; Kleijnen and Rubinstein 1996.
    """
    theta = _checked(theta, noise)
    if len(noise) == 0:
        return _no_gradients(theta)
    z, value = _draw(f, family, theta, noise)
    return _weighted_scores(value, f, family, theta, z)


def leave_one_out(
    f: Objective,
    family: Family,
    theta: Theta,
    noise: Tensor,
) -> Theta:
    """Estimate by the score, each f measured from the mean of the others.

    The baseline of a draw does not depend on that draw, so the estimate
    stays unbiased. The n gradients share their values of f: they are not
    independent of each other.

    Args:
        f: maps one draw and theta to a scalar; it may jump in z.
        family: the distribution of z.
        theta: its parameters, a tensor or a container of tensors.
        noise: [n, ...], one row per draw, n at least 2.

    Returns:
        Per-sample gradients, shaped as theta with a leading n.

    Raises:
        ValueError: if n < 2, theta or noise is not finite, or f or the
            log density is not a scalar.

    Source: Kool, van Hoof and Welling 2019.
    """
    theta, n = _checked(theta, noise), len(noise)
    if n < 2:
        raise ValueError("noise: leaving one out needs at least two draws")
    z, value = _draw(f, family, theta, noise)
    baseline = (value.sum() - value) / (n - 1)
    return _weighted_scores(value - baseline, f, family, theta, z)


def pathwise(
    f: Objective,
    family: Family,
    theta: Theta,
    noise: Tensor,
) -> Theta:
    """Estimate the gradient by differentiating f along the path of z.

    One sample is the gradient in theta of f(sample(theta, noise), theta).
    It is unbiased only where f is continuous in z and the path is
    differentiable in theta; nothing here can check that.

    Args:
        f: maps one draw and theta to a scalar.
        family: the distribution of z; only its ``sample`` is used.
        theta: its parameters, a tensor or a container of tensors.
        noise: [n, ...], one row per draw.

    Returns:
        Per-sample gradients, shaped as theta with a leading n.

    Raises:
        ValueError: if theta or noise is not finite, or f is not a scalar.

    Source: Kingma and Welling 2014; Rezende, Mohamed and Wierstra 2014.
    """
    theta = _checked(theta, noise)
    if len(noise) == 0:
        return _no_gradients(theta)

    def objective(theta, noise):
        return _scalar("f", f(family.sample(theta, noise), theta))

    return vmap(grad(objective), in_dims=(None, 0))(theta, noise)


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


def _draw(
    f: Objective,
    family: Family,
    theta: Theta,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    z = vmap(family.sample, in_dims=(None, 0))(theta, noise)
    return z, vmap(lambda z: _scalar("f", f(z, theta)))(z)


def _weighted_scores(
    weight: Tensor,
    f: Objective,
    family: Family,
    theta: Theta,
    z: Tensor,
) -> Theta:
    def surrogate(theta, weight, z):
        log_prob = _scalar("log_prob", family.log_prob(z, theta))
        return weight * log_prob + f(z, theta)

    return vmap(grad(surrogate), in_dims=(None, 0, 0))(theta, weight, z)


def _checked(theta: Theta, noise: Tensor) -> Theta:
    """Detach theta: the gradients are results, not a graph to differentiate again."""
    if noise.ndim == 0:
        raise ValueError("noise: needs a leading axis of draws")
    require_finite(noise=noise)
    for leaf in _pytree.tree_leaves(theta):
        require_finite(theta=leaf)
    return _pytree.tree_map(Tensor.detach, theta)


def _no_gradients(theta: Theta) -> Theta:
    return _pytree.tree_map(lambda leaf: leaf.new_empty((0, *leaf.shape)), theta)


def _scalar(name: str, value: Tensor) -> Tensor:
    if value.ndim != 0:
        raise ValueError(f"{name}: must return a scalar for one draw, not {tuple(value.shape)}")
    return value
