"""The score-function gradient, and the baselines that may be taken from f in it.

Whatever a baseline is, the estimate stays unbiased as long as the baseline of a draw does not
depend on that draw: the score has mean zero.
"""

import torch
from torch import Tensor
from torch.func import grad, vmap

from gradbook.estimators.draws import (
    Family,
    Objective,
    Theta,
    detached,
    dot,
    fixed_baseline,
    mean_of_the_others,
    no_gradients,
    scalar,
    values,
)


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
    theta = detached(theta, noise)
    if len(noise) == 0:
        return no_gradients(theta)
    z, value = _draw(f, family, theta, noise)
    return _weighted_scores(value, f, family, theta, z)


def with_baseline(
    f: Objective,
    family: Family,
    theta: Theta,
    noise: Tensor,
    baseline: float | Tensor,
) -> Theta:
    """Estimate by the score, f measured from a baseline.

    Args:
        f: maps one draw and theta to a scalar; it may jump in z.
        family: the distribution of z.
        theta: its parameters, a tensor or a container of tensors.
        noise: [n, ...], one row per draw.
        baseline: a scalar, or [n] with one for each draw, independent of
            that draw; nothing here can check that.

    Returns:
        Per-sample gradients, shaped as theta with a leading n.

    Raises:
        ValueError: if the baseline is neither a scalar nor [n] or is not
            finite, or as :func:`score_function`.

    Source: Williams 1992.
    """
    theta = detached(theta, noise)
    baseline = fixed_baseline(baseline, len(noise))
    if len(noise) == 0:
        return no_gradients(theta)
    z, value = _draw(f, family, theta, noise)
    above = value - baseline
    return _weighted_scores(above, f, family, theta, z)


def optimal_baseline(
    f: Objective,
    family: Family,
    theta: Theta,
    noise: Tensor,
) -> Tensor:
    """Estimate the scalar baseline of least total variance.

    With s the score it is E[f s.s] / E[s.s]; where f depends on theta,
    f s is joined by its gradient: E[(f s + grad_theta f).s] / E[s.s].
    Use it on other draws than those it was computed from: on the same
    ones it depends on them, and biases the estimate.

    Args:
        f: maps one draw and theta to a scalar; it may jump in z.
        family: the distribution of z.
        theta: its parameters, a tensor or a container of tensors.
        noise: [n, ...], one row per draw.

    Returns:
        A scalar.

    Raises:
        ValueError: if no draw has a score other than zero, or as
            :func:`score_function`.

    Source: Weaver and Tao 2001; Greensmith, Bartlett and Baxter 2004.
    """
    theta = detached(theta, noise)
    if len(noise) == 0:
        raise ValueError("noise: an optimal baseline needs draws")
    z, value = _draw(f, family, theta, noise)
    gradients = _weighted_scores(value, f, family, theta, z)
    one = torch.ones_like(value)
    scores = _weighted_scores(one, lambda z, theta: 0.0, family, theta, z)
    size = dot(scores, scores)
    if size == 0:
        raise ValueError("family: every score is zero")
    return dot(gradients, scores) / size


def moving_average(
    f: Objective,
    family: Family,
    theta: Theta,
    noise: Tensor,
    decay: float = 0.9,
) -> Theta:
    """Estimate by the score, f measured from an average of earlier draws.

    Weights fall by the factor ``decay`` with each step back, and are
    divided by their sum; the first draw has a baseline of 0. The estimate
    stays unbiased, and the gradients are uncorrelated.

    Args:
        f: maps one draw and theta to a scalar; it may jump in z.
        family: the distribution of z.
        theta: its parameters, a tensor or a container of tensors.
        noise: [n, ...], one row per draw, first drawn first.
        decay: from 0, the draw before alone, to 1, a plain average.

    Returns:
        Per-sample gradients, shaped as theta with a leading n.

    Raises:
        ValueError: if the decay is out of range, or as
            :func:`score_function`.

    Source: Mnih and Gregor 2014.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay: must be from 0 to 1, got {decay}")
    theta = detached(theta, noise)
    if len(noise) == 0:
        return no_gradients(theta)
    z, value = _draw(f, family, theta, noise)
    before, one = torch.zeros_like(value), torch.zeros_like(value)
    before[1:], one[1:] = value[:-1], 1.0
    weights = _discounted(one, decay).clamp(min=1)
    average = _discounted(before, decay) / weights
    return _weighted_scores(value - average, f, family, theta, z)


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
    theta = detached(theta, noise)
    z, value = _draw(f, family, theta, noise)
    baseline = mean_of_the_others(value)
    return _weighted_scores(value - baseline, f, family, theta, z)


def _draw(
    f: Objective,
    family: Family,
    theta: Theta,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    z = vmap(family.sample, in_dims=(None, 0))(theta, noise)
    return z, values(f, z, theta)


def _weighted_scores(
    weight: Tensor,
    f: Objective,
    family: Family,
    theta: Theta,
    z: Tensor,
) -> Theta:
    def surrogate(theta, weight, z):
        log_prob = scalar("log_prob", family.log_prob(z, theta))
        return weight * log_prob + f(z, theta)

    return vmap(grad(surrogate), in_dims=(None, 0, 0))(theta, weight, z)


def _discounted(x: Tensor, decay: float) -> Tensor:
    """Sum what came so far, discounted: a scan by doubling, in log2(n) passes."""
    step = 1
    while step < len(x):
        x = torch.cat((x[:step], x[step:] + decay**step * x[:-step]))
        step *= 2
    return x
