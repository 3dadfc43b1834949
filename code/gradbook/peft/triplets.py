"""How important a triplet of AdaLoRA is, and which triplets stay.

Source: Q. Zhang, M. Chen, A. Bukharin, N. Karampatziakis, P. He, Y. Cheng, W. Chen and T. Zhao,
2023, "Adaptive budget allocation for parameter-efficient fine-tuning" (AdaLoRA), section 3.2.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require_finite


class Average(NamedTuple):
    """Of every weight, its smoothed sensitivity and how far the sensitivity strays from it."""

    sensitivity: Tensor
    uncertainty: Tensor


def sensitivity(weight: Tensor, gradient: Tensor) -> Tensor:
    """Compute ``|w g|``, to first order what the loss changes by if w is set to zero.

    Args:
        weight: any shape.
        gradient: of the loss, the same shape.

    Returns:
        The same shape, at least float32: products of small numbers vanish in float16.

    Raises:
        ValueError: if the shapes differ.

    Source: Zhang et al. 2023, equation 8.
    """
    if weight.shape != gradient.shape:
        raise ValueError(f"gradient: must be {list(weight.shape)}, is {list(gradient.shape)}")
    kind = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(kind) * gradient.to(kind)).abs()


def smoothed(
    average: Average,
    now: Tensor,
    beta1: float,
    beta2: float,
) -> Average:
    """Move the averages on by one step.

    The distance is from the new average, so it is beta1 times that from the old one.

    Args:
        average: two tensors of one shape, zero before the first step.
        now: the sensitivity, of that shape.
        beta1: of the sensitivity, between 0 and 1.
        beta2: of the uncertainty, between 0 and 1.

    Returns:
        New tensors.

    Raises:
        ValueError: if a rate is out of range, or the shapes differ.

    Source: Zhang et al. 2023, equations 9 and 10.
    """
    require_rates(beta1=beta1, beta2=beta2)
    for name, other in zip(("now", "uncertainty"), (now, average.uncertainty), strict=True):
        if other.shape != average.sensitivity.shape:
            want, got = list(average.sensitivity.shape), list(other.shape)
            raise ValueError(f"{name}: must be {want}, is {got}")
    mean = beta1 * average.sensitivity + (1 - beta1) * now
    miss = (now - mean).abs()
    spread = beta2 * average.uncertainty + (1 - beta2) * miss
    return Average(mean, spread)


def importance(average: Average) -> Tensor:
    """Multiply a weight's sensitivity by its uncertainty.

    Args:
        average: of one weight tensor, two tensors of its shape.

    Returns:
        The importance of every number, of that shape.

    Source: Zhang et al. 2023, equation 11.
    """
    return average.sensitivity * average.uncertainty


def triplet_scores(p: Tensor, e: Tensor, q: Tensor) -> Tensor:
    """Score triplets: E_i, the mean of P's column i, and of Q's row i.

    Args:
        p: importance of P, [out, r].
        e: of E, [r].
        q: of Q, [r, in].

    Returns:
        [r].

    Raises:
        ValueError: if the shapes do not fit.

    Source: Zhang et al. 2023, equation 7.
    """
    _require_triplets(p, e, q)
    return e + p.mean(0) + q.mean(1)


def kept(scores: Tensor, count: int) -> Tensor:
    """Choose the triplets of the highest scores, exactly so many; of equal ones the first.

    peft switches off all that score no more than the best to be dropped: more than asked where
    scores are equal, and it fails where none is to be dropped.

    Args:
        scores: [n], finite.
        count: from 0 to n.

    Returns:
        [n] Boolean, true where a triplet stays.

    Raises:
        ValueError: if the scores are not a finite vector, or the count is out of range.
    """
    if scores.ndim != 1:
        raise ValueError(f"scores: must be a vector, got {list(scores.shape)}")
    require_finite(scores=scores)
    if type(count) is not int or not 0 <= count <= len(scores):
        raise ValueError(f"count: must be from 0 to {len(scores)}, got {count!r}")
    order = scores.sort(descending=True, stable=True).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen


def require_rates(**rates: float) -> None:
    """Raise unless every rate of an average is between 0 and 1.

    Args:
        **rates: under the names that the message gives them. At 0 or 1 a score would stay 0.

    Raises:
        ValueError: if one is not.
    """
    for name, rate in rates.items():
        if not 0 < rate < 1:
            raise ValueError(f"{name}: must be between 0 and 1, got {rate}")


def _require_triplets(p: Tensor, e: Tensor, q: Tensor) -> None:
    if e.ndim != 1 or (p.ndim, q.ndim) != (2, 2) or not p.shape[1] == len(e) == len(q):
        got = " ".join(str(list(x.shape)) for x in (p, e, q))
        raise ValueError(f"e: p, e and q must be [out, r], [r] and [r, in], got {got}")
