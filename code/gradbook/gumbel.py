"""Categories from Gumbel noise: the exact draw, its smooth version, and the noise behind a draw.

Logits are log-probabilities up to a constant of each row. A logit of minus infinity is an
impossible class: legal, as long as its row has a possible one. Noise is passed in: standard Gumbel
draws, which have density exp(-g - exp(-g)).
"""

import math

import torch
from torch import Tensor

from gradbook.checks import require, require_finite
from gradbook.concrete import concrete_log_prob, exp_concrete_log_prob
from gradbook.logits import (
    centred,
    exp_underflow,
    one_hot,
    over_temperature,
    perturbed,
    picks,
    require_fits,
)
from gradbook.noise import gumbel_noise, noise_from_bits
from gradbook.plackett_luce import gumbel_top_k, plackett_luce_log_prob

__all__ = [
    "concrete_log_prob",
    "conditional_gumbels",
    "exp_concrete_log_prob",
    "gumbel_log_softmax",
    "gumbel_max",
    "gumbel_noise",
    "gumbel_one_hot",
    "gumbel_softmax",
    "gumbel_top_k",
    "noise_from_bits",
    "one_hot",
    "plackett_luce_log_prob",
    "straight_through",
]


def gumbel_max(logits: Tensor, noise: Tensor) -> Tensor:
    """Draw categories: the argmax of logits plus Gumbel noise.

    Args:
        logits: [..., k].
        noise: standard Gumbel draws that broadcast with the logits.

    Returns:
        Indices [...], each distributed as softmax(logits).

    Raises:
        ValueError: if the logits have a NaN, a plus infinity or a row
            without a possible class, or the noise a NaN or plus infinity,
            or their shapes disagree.

    Source: Gumbel 1954; Maddison, Tarlow and Minka 2014, section 2.
    """
    scores, _ = perturbed(logits, noise)
    return scores.argmax(-1)


def gumbel_one_hot(logits: Tensor, noise: Tensor) -> Tensor:
    """Draw categories as one-hot rows.

    Args:
        logits: [..., k].
        noise: standard Gumbel draws that broadcast with the logits.

    Returns:
        Rows [..., k] of the logits' type, 1 at the class that
        :func:`gumbel_max` picks from the same noise and 0 elsewhere.

    Raises:
        ValueError: as :func:`gumbel_max`.
    """
    return one_hot(gumbel_max(logits, noise), logits.shape[-1], logits.dtype)


def gumbel_softmax(
    logits: Tensor,
    temperature: float | Tensor,
    noise: Tensor,
) -> Tensor:
    """Draw from the Concrete distribution: softmax the perturbed logits.

    Args:
        logits: [..., k].
        temperature: positive; the softmax tends to a one-hot row as it
            tends to zero. A number, a scalar tensor, or a tensor with a
            last axis of 1 that broadcasts with the logits.
        noise: standard Gumbel draws that broadcast with the logits.

    Returns:
        Points of the simplex [..., k], whose largest coordinate is the
        one that ``gumbel_max`` picks from the same noise, until a high
        temperature rounds coordinates to equal ones.

    Raises:
        ValueError: as :func:`gumbel_max`, or if the temperature is not
            positive and finite in the type of the result, or has a wrong
            shape.

    Source: Jang, Gu and Poole 2017, equation 2; Maddison, Mnih and Teh
    2017, equation 10.
    """
    scores, largest = perturbed(logits, noise)
    floor = exp_underflow(scores.dtype)
    return over_temperature(scores, largest, temperature, floor).softmax(-1)


def gumbel_log_softmax(
    logits: Tensor,
    temperature: float | Tensor,
    noise: Tensor,
) -> Tensor:
    """Draw the logarithms of a Concrete variable, which do not underflow.

    Args:
        logits: [..., k].
        temperature: positive, as for :func:`gumbel_softmax`.
        noise: standard Gumbel draws that broadcast with the logits.

    Returns:
        Logarithms of points of the simplex [..., k].

    Raises:
        ValueError: as :func:`gumbel_softmax`.

    Source: Maddison, Mnih and Teh 2017, appendix C.3.
    """
    scores, largest = perturbed(logits, noise)
    return over_temperature(scores, largest, temperature, -math.inf).log_softmax(-1)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the value of one tensor with the gradient of another.

    The difference soft - soft.detach() is exactly zero, so the value is
    exactly that of ``hard``.

    Args:
        hard: what the forward pass sees; its own gradient is cut.
        soft: what the backward pass sees, of the same shape.

    Returns:
        Values of ``hard``, gradients of ``soft``.

    Raises:
        ValueError: if the shapes differ or an argument is not finite.

    Source: Bengio, Léonard and Courville 2013; Jang, Gu and Poole 2017,
    section 2.2.
    """
    if hard.shape != soft.shape:
        shapes = f"{tuple(soft.shape)} and {tuple(hard.shape)}"
        raise ValueError(f"soft: must have the shape of hard: {shapes}")
    require_finite(hard=hard, soft=soft)
    return hard.detach() + (soft - soft.detach())


def conditional_gumbels(
    logits: Tensor,
    index: Tensor,
    noise: Tensor,
) -> Tensor:
    """Draw perturbed logits given which one is the largest.

    The largest is Gumbel at log-sum-exp of the logits whichever index it
    has; the others are Gumbel at their logits, cut off at the largest.

    Args:
        logits: [..., k].
        index: [...], the largest; a possible class.
        noise: standard Gumbel draws that broadcast with the logits,
            independent of the index.

    Returns:
        Perturbed logits [..., k] with their only largest at ``index``.
        They are centred: the largest logit of a row counts as 0, and
        that shift is a constant for autograd.

    Raises:
        ValueError: if the index is impossible, out of range or not an
            integer, the noise is not finite, or as :func:`gumbel_max`.

    Source: Maddison, Tarlow and Minka 2014, section 3; Tucker et al. 2017,
    appendix C.
    """
    require_finite(noise=noise)
    free, _ = perturbed(logits, noise)
    top = picks("index", index, free.shape[-1])
    require_fits("index", top, "logits", free)
    possible = (free > -math.inf).logical_or(~top)
    require(possible, "index: an impossible class cannot win")
    total = centred(logits, free.dtype).logsumexp(-1, keepdim=True)
    own = torch.where(top, noise, 0.0).sum(-1, keepdim=True)
    largest = total + own
    rest = -torch.logaddexp(-largest, -free)
    return torch.where(top, largest, _kept_below(rest, largest))


def _kept_below(rest: Tensor, largest: Tensor) -> Tensor:
    """Undo a tie that rounding made: one step below the largest is as near as the largest."""
    finfo = torch.finfo(rest.dtype)
    step = (finfo.eps * largest.detach().abs()).clamp(min=finfo.tiny)
    return torch.where(rest < largest, rest, largest - step)
