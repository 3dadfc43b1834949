"""Variational inference with a normal family: the ELBO, three gradients of it, and Adam.

The *target* is the log joint density, a function [S, d] -> [S]; the family q comes from
:mod:`gradbook.normals`. The ELBO is E_q[target(z)] + H(q), and the entropy H is used in closed
form, so only the first term needs an estimator. The scalars below work on all draws at once: the
mean of the gradients that :mod:`gradbook.estimators` gives draw by draw is the same, and takes
longer.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from gradbook.estimators.draws import mean_of_the_others
from gradbook.normals import Family, Parameters, entropy, log_prob, sample

Target = Callable[[Tensor], Tensor]
Surrogate = Callable[[Target, Family, Parameters, Tensor], Tensor]
Gradient = Callable[[Parameters, Tensor], Parameters]
NOT_PAIRED = "noises: must be one batch for each rate"


class AdamState(NamedTuple):
    """Parameters, with Adam's running moments and its step count."""

    theta: Parameters
    first: Parameters
    second: Parameters
    steps: int


def elbo(
    target: Target,
    family: Family,
    theta: Parameters,
    noise: Tensor,
) -> Tensor:
    """Estimate the ELBO; its gradient in theta is the pathwise one.

    Args:
        target: log joint density, [S, d] -> [S].
        family: builds the normal from theta.
        theta: unconstrained parameters.
        noise: standard normal, [S, d].

    Returns:
        The mean of the target over the draws, plus the entropy.

    Source: D. P. Kingma and M. Welling, 2014, "Auto-encoding variational
    Bayes", section 2.3.
    """
    q = family(theta)
    return target(sample(q, noise)).mean() + entropy(q)


def score(
    target: Target,
    family: Family,
    theta: Parameters,
    noise: Tensor,
) -> Tensor:
    """Compute a scalar whose gradient in theta is the score-function one.

    The arguments are those of :func:`elbo`. Only the gradient of the
    scalar that it returns estimates anything.

    Source: R. J. Williams, 1992, "Simple statistical gradient-following
    algorithms for connectionist reinforcement learning", theorem 1.
    """
    q = family(theta)
    z = sample(q, noise).detach()
    return (target(z).detach() * log_prob(q, z)).mean() + entropy(q)


def score_leave_one_out(
    target: Target,
    family: Family,
    theta: Parameters,
    noise: Tensor,
) -> Tensor:
    """Compute :func:`score`'s scalar, each value less the mean of the others.

    The arguments are those of :func:`elbo`; S must be at least 2.

    Raises:
        ValueError: if there is one draw only.

    Source: W. Kool, H. van Hoof and M. Welling, 2019, "Buy 4 REINFORCE
    samples, get a baseline for free!".
    """
    q = family(theta)
    z = sample(q, noise).detach()
    value = target(z).detach()
    others = mean_of_the_others(value)
    return ((value - others) * log_prob(q, z)).mean() + entropy(q)


def gradient_of(
    surrogate: Surrogate,
    target: Target,
    family: Family,
) -> Gradient:
    """Turn one of the three scalars into a gradient.

    Args:
        surrogate: one of those three functions.
        target: log joint density, [S, d] -> [S].
        family: builds the normal from theta.

    Returns:
        A function of theta and noise; its result is shaped like theta.
    """
    return torch.func.grad(partial(surrogate, target, family))


def adam_step(
    state: AdamState,
    gradient: Parameters,
    rate: float,
) -> AdamState:
    """Climb one step along a gradient.

    Args:
        state: parameters and moments.
        gradient: shaped like the parameters.
        rate: the step size.

    Returns:
        The next state.

    Raises:
        ValueError: if ``rate`` is not positive and finite.

    Source: D. P. Kingma and J. Ba, 2015, "Adam: a method for stochastic
    optimization", algorithm 1, with its default constants.
    """
    if not 0 < rate < math.inf:
        raise ValueError("rate: must be positive and finite")
    steps = state.steps + 1
    parts = zip(*state[:3], gradient, strict=True)
    new = [_adam(*part, rate, steps) for part in parts]
    return AdamState(*zip(*new, strict=True), steps)


def _adam(
    theta: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    rate: float,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient.square()
    size = (second / (1 - 0.999**steps)).sqrt() + 1e-8
    return theta + rate * first / (1 - 0.9**steps) / size, first, second


def fit(
    gradient: Gradient,
    theta: Parameters,
    noises: Iterable[Tensor],
    rates: Collection[float],
    keep: Collection[int],
) -> dict[int, Parameters]:
    """Climb the ELBO, one step for each batch of noise.

    Args:
        gradient: from :func:`gradient_of`.
        theta: where to start.
        noises: one [S, d] for each step.
        rates: the step size of each step.
        keep: after which steps to keep the parameters; 0 is the start.

    Returns:
        The kept parameters, by step.

    Raises:
        ValueError: if there are not as many batches of noise as rates.
    """
    zero = tuple(torch.zeros_like(t) for t in theta)
    state = AdamState(theta, zero, zero, 0)
    kept = {0: theta} if 0 in keep else {}
    if isinstance(noises, Sized) and len(noises) != len(rates):
        raise ValueError(NOT_PAIRED)
    bar = tqdm(_pairs(noises, rates), total=len(rates), leave=False, disable=None)
    for noise, rate in bar:
        state = adam_step(state, gradient(state.theta, noise), rate)
        if state.steps in keep:
            kept[state.steps] = state.theta
    return kept


def _pairs(noises: Iterable[Tensor], rates: Iterable[float]) -> Iterator[tuple[Tensor, float]]:
    """Give each batch its rate; of a generator only the end tells that there are too few."""
    for noise, rate in zip_longest(noises, rates):
        if noise is None or rate is None:
            raise ValueError(NOT_PAIRED)
        yield noise, rate
