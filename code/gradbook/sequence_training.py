"""Training a policy of strings: Adam along any of the gradients of the expected score."""

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook import variational
from gradbook.sequences import Theta, draw, log_policy, trigram_rewards

Surrogate = Callable[[Theta, Tensor, Tensor, float], Tensor]


class Method(NamedTuple):
    """A way to train.

    Attributes:
        surrogate: ``surrogate(theta, reward, noise, baseline)`` is a scalar
            whose gradient in theta is climbed.
        decay: of the baseline, the exponential moving average of the mean
            scores of the earlier steps, which begins at 0. With decay 1
            it stays there, and no scores are kept.
    """

    surrogate: Surrogate
    decay: float = 1.0


def climb(
    method: Method,
    theta: Theta,
    reward: Tensor,
    noises: Iterable[Tensor],
    rates: Collection[float],
    keep: Collection[int],
) -> dict[int, Theta]:
    """Climb by Adam, one step for each batch of noise.

    Args:
        method: whose gradient.
        theta: where to start.
        reward: [V, V, V].
        noises: one [B, L, V] for each step.
        rates: the step size of each step.
        keep: after which steps to keep the parameters; 0 is the start.

    Returns:
        The kept parameters, by step.

    Raises:
        ValueError: if there are not as many batches of noise as rates, or
            the decay is not in [0, 1].
    """
    if not 0 <= method.decay <= 1:
        raise ValueError(f"decay: must be from 0 to 1, got {method.decay}")
    gradient = _gradient(method, tuple(theta), reward)
    kept = variational.fit(gradient, tuple(theta.values()), noises, rates, keep)
    return {step: dict(zip(theta, parts, strict=True)) for step, parts in kept.items()}


def _gradient(
    method: Method, names: tuple[str, ...], reward: Tensor
) -> Callable[[tuple[Tensor, ...], Tensor], tuple[Tensor, ...]]:
    """Make a gradient for :func:`gradbook.variational.fit` that remembers its baseline."""
    slopes, baseline = torch.func.grad(method.surrogate), 0.0

    def gradient(parts: tuple[Tensor, ...], noise: Tensor) -> tuple[Tensor, ...]:
        nonlocal baseline
        theta = dict(zip(names, parts, strict=True))
        found = slopes(theta, reward, noise, baseline)
        if method.decay < 1:
            tokens = draw(log_policy(theta), noise)
            score = trigram_rewards(reward, tokens).mean().item()
            baseline = method.decay * baseline + (1 - method.decay) * score
        return tuple(found.values())

    return gradient
