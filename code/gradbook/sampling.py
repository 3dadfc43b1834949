"""Sampling that leaves the improbable out: temperature, top-k and nucleus, code by code.

A filter maps logits [..., K] to logits [..., K]; it may put minus infinity where a class is not to be
drawn. What is drawn then has another law than the prior's, which :func:`filtered_log_prob` computes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradbook.logits import centred, checked_temperature
from gradbook.priors import grids

Filter = Callable[[Tensor], Tensor]


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Raise the probabilities of classes to a power, 1 / temperature.

    Args:
        logits: [..., K].
        temperature: positive. Below 1 the probable gets more probable;
            1 changes nothing.

    Returns:
        Logits [..., K], the largest of a row 0.

    Raises:
        ValueError: if the temperature is not positive and finite, or a
            row has a NaN, a plus infinity or no possible class.
    """
    logits = centred(logits)
    return logits / checked_temperature(temperature, logits)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k most probable classes.

    Args:
        logits: [..., K].
        k: from 1 to K. Of equal classes the first are kept, so that
            there are never more than k.

    Returns:
        The logits of these classes, minus infinity elsewhere.

    Raises:
        ValueError: if k is not from 1 to K, or as :func:`tempered`.

    Source: Fan, Lewis and Dauphin 2018, "Hierarchical neural story
    generation", section 5.4.
    """
    order = _best_first(logits)
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k: must be from 1 to {logits.shape[-1]}, got {k}")
    first = torch.arange(order.shape[-1], device=order.device) < k
    return _only(logits, order, first.expand(order.shape))


def nucleus(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most probable classes that have the share p together.

    Args:
        logits: [..., K].
        p: above 0, at most 1, which keeps every possible class. Of equal
            classes the first are kept.

    Returns:
        The logits of these classes, minus infinity elsewhere.

    Raises:
        ValueError: if p is out of range, or as :func:`tempered`.

    Source: Holtzman et al. 2020, "The curious case of neural text
    degeneration", section 3.1.
    """
    order = _best_first(logits)
    if not 0 < p <= 1:
        raise ValueError(f"p: must be above 0 and at most 1, got {p}")
    shares = centred(logits, torch.float64).softmax(-1).gather(-1, order)
    # A class is kept if those before it lack some of p: if it and those
    # after it have more than 1 - p. This sum keeps its digits near p = 1.
    rest = shares.flip(-1).cumsum(-1).flip(-1)
    kept = rest > 1 - p
    kept[..., 0] = True
    return _only(logits, order, kept)


def filtered_log_prob(logits: Tensor, codes: Tensor, filter: Filter) -> Tensor:
    """Compute the log-probability of grids under the law that a filter leaves.

    Args:
        logits: of each code given those before it, [B, h, w, K].
        codes: int64 [B, h, w].
        filter: of the logits of every code.

    Returns:
        [B], in nats; minus infinity for a grid that cannot be drawn.

    Raises:
        ValueError: if the shapes disagree, a code is out of range, or the
            filtered logits are as those that :func:`tempered` refuses.
    """
    if logits.ndim != 4:
        raise ValueError(f"logits: must be [B, h, w, K], is {tuple(logits.shape)}")
    grids.require_codes(codes, *logits.shape[1:])
    if len(codes) != len(logits):
        raise ValueError(f"codes: must be {len(logits)} grids, are {len(codes)}")
    own = centred(filter(logits)).log_softmax(-1).gather(-1, codes[..., None])
    return own.sum((1, 2, 3))


def sample_grids(
    prior: nn.Module,
    count: int,
    noise: Tensor,
    filter: Filter,
    given: Tensor | None = None,
) -> Tensor:
    """Draw grids code by code, each from filtered logits.

    The prior's own sampler does the work, with the keys and values that
    it keeps; the filter hangs on the layer that gives its logits, for as
    long as the call lasts.

    Args:
        prior: as :class:`gradbook.priors.CausalTransformer`, with a linear
            ``head``; or
            :class:`gradbook.conditional_prior.ConditionalPrior`.
        count: of the grids.
        noise: standard Gumbel draws [count, h, w, K].
        filter: of the logits [count, K] of a code.
        given: what the prior's ``sample`` takes after the noise:
            conditioning vectors, or conditions.

    Returns:
        Codes [count, h, w]; the same noise gives the same ones.

    Raises:
        ValueError: if the prior has no linear head, or as its ``sample``.
    """
    head = getattr(prior, "head", None)
    if not isinstance(head, nn.Linear):
        raise ValueError("prior: must have a linear layer as its head, whose last axis is classes")
    with head.register_forward_hook(lambda layer, inputs, logits: filter(logits)):
        return prior.sample(count, noise, given)


def _best_first(logits: Tensor) -> Tensor:
    """The classes of every row from the most to the least probable, equal ones in their order."""
    # For its checks.
    centred(logits)
    return logits.sort(dim=-1, descending=True, stable=True).indices


def _only(logits: Tensor, order: Tensor, kept: Tensor) -> Tensor:
    """Put minus infinity where a class, named by its rank, is not kept."""
    of_class = torch.empty_like(kept, memory_format=torch.contiguous_format).scatter(
        -1, order, kept
    )
    return torch.where(of_class, logits, -math.inf)
