"""How a prior with conditions is trained and measured."""

import torch
from torch import Tensor

from gradbook import priors, vae_training
from gradbook.conditional_prior import ConditionalPrior, corrupted_log_prob
from gradbook.devices import device
from gradbook.priors.training import rate_factor
from gradbook.sampling import Filter, filtered_log_prob

CHUNK = 500


def fit(
    prior: ConditionalPrior,
    codes: Tensor,
    condition: Tensor,
    seed: int,
    steps: int,
    rate: float,
    batch: int,
    keep: float = 1.0,
) -> None:
    """Train a prior in place by Adam.

    Args:
        prior: on the book's device.
        codes: int64 [n, h, w], on the same.
        condition: of each grid, as the prior takes it.
        seed: of the order of the grids and, apart from it, of the
            corruption.
        steps: how many.
        rate: the highest step size; see
            :func:`gradbook.priors.training.rate_factor`.
        batch: grids of a step.
        keep: the probability that a code is seen as it is; see
            :func:`gradbook.conditional_prior.corrupted_log_prob`.

    Raises:
        ValueError: if ``batch`` is not from 1 to n, conditions are not as
            many as grids, or the prior refuses either.
    """
    _require_as_many(codes, condition)
    optimizer = torch.optim.Adam(prior.parameters(), lr=rate, betas=(0.9, 0.95))
    batches = vae_training.minibatches(len(codes), batch, torch.Generator().manual_seed(seed))
    draws = torch.Generator().manual_seed(seed + 20_000)
    shape = (batch, *codes.shape[1:])
    for step in range(steps):
        rows = next(batches)
        noise = torch.rand(shape, generator=draws, dtype=torch.float32, device="cpu").to(device())
        optimizer.param_groups[0]["lr"] = rate * rate_factor(step, steps)
        optimizer.zero_grad()
        log_probs = corrupted_log_prob(prior, codes[rows], condition[rows], keep, noise)
        (-log_probs.mean() / codes[0].numel()).backward()
        optimizer.step()


@torch.no_grad()
def bits_per_code(prior: ConditionalPrior, codes: Tensor, condition: Tensor) -> float:
    """Measure a prior on grids, in chunks.

    Args:
        prior: of grids given conditions.
        codes: int64 [n, h, w], n at least 1.
        condition: of each grid, as the prior takes it.

    Returns:
        Mean bits of a code.

    Raises:
        ValueError: if there is no grid, or conditions are not as many.
    """
    chunks = _chunks(codes, condition)
    log_probs = torch.cat([prior.log_prob(*chunk) for chunk in chunks])
    return priors.mean_bits(log_probs, codes[0].numel())


@torch.no_grad()
def possible_share(
    prior: ConditionalPrior, codes: Tensor, condition: Tensor, filter: Filter
) -> float:
    """Measure which share of grids could still be drawn through a filter.

    Args:
        prior: of grids given conditions.
        codes: int64 [n, h, w], n at least 1.
        condition: of each grid, as the prior takes it.
        filter: of the prior's logits, as :mod:`gradbook.sampling` says.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: as :func:`bits_per_code`.
    """
    log_probs = [
        filtered_log_prob(prior.logits(*chunk), chunk[0], filter)
        for chunk in _chunks(codes, condition)
    ]
    return torch.cat(log_probs).isfinite().double().mean().item()


def _chunks(codes: Tensor, condition: Tensor) -> list[tuple[Tensor, Tensor]]:
    _require_as_many(codes, condition)
    if not len(codes):
        raise ValueError("codes: must be at least one grid")
    return list(zip(codes.split(CHUNK), condition.split(CHUNK), strict=True))


def _require_as_many(codes: Tensor, condition: Tensor) -> None:
    if len(codes) != len(condition):
        raise ValueError(f"condition: must be {len(codes)}, one a grid, are {len(condition)}")
