"""Draws without replacement: the k largest perturbed logits, and the law of their order."""

import math

import torch
from torch import Tensor

from gradbook.checks import require
from gradbook.logits import centred, perturbed, picks, require_fits


def gumbel_top_k(logits: Tensor, noise: Tensor, k: int) -> Tensor:
    """Draw k different categories: the k largest perturbed logits.

    Args:
        logits: [..., classes].
        noise: standard Gumbel draws that broadcast with the logits.
        k: how many; at most the number of possible classes.

    Returns:
        Indices [..., k] in the order of a draw without replacement.

    Raises:
        ValueError: if k is negative or exceeds the possible classes of a
            row, or as :func:`gradbook.gumbel.gumbel_max`.

    Source: Yellott 1977; Kool, van Hoof and Welling 2019, section 2.
    """
    scores, _ = perturbed(logits, noise)
    if not 0 <= k <= scores.shape[-1]:
        most = scores.shape[-1]
        raise ValueError(f"k: must be from 0 to {most}, got {k}")
    top = scores.topk(k, -1)
    enough = top.values > -math.inf
    require(enough, f"k: a row has fewer than {k} possible classes")
    return top.indices


def plackett_luce_log_prob(indices: Tensor, logits: Tensor) -> Tensor:
    """Compute the log probability of an ordered draw without replacement.

    Args:
        indices: k different classes [..., k], first drawn first.
        logits: [..., classes], which broadcast with the indices but for
            the last axis.

    Returns:
        [...]; the sum over draws of logit less log-sum-exp of what is
        left, and minus infinity if an impossible class is drawn.

    Raises:
        ValueError: if a class is drawn twice, is out of range or not an
            integer, the logits are as
            :func:`gradbook.gumbel.gumbel_max` refuses them, or the shapes
            do not broadcast.

    Source: Plackett 1975; Kool, van Hoof and Welling 2019, equation 4.
    """
    if indices.ndim == 0:
        raise ValueError("indices: needs a last axis, of draws")
    logits = centred(logits)[..., None, :]
    drawn = picks("indices", indices, logits.shape[-1])
    require_fits("indices", drawn, "logits", logits)
    require(drawn.sum(-2) <= 1, "indices: a class is drawn twice")
    drawn_before = drawn.cumsum(-2) > drawn
    picked = torch.where(drawn, logits, 0.0).sum(-1)
    impossible = picked == -math.inf
    # Nothing possible may be left, and that log-sum-exp has no gradient.
    left = torch.where(drawn_before, -math.inf, logits)
    left = torch.where(impossible[..., None], 0.0, left)
    steps = torch.where(impossible, -math.inf, picked - left.logsumexp(-1))
    return steps.sum(-1)
