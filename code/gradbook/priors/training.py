"""How a prior is trained and measured."""

import math
import time
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from gradbook import vae_training
from gradbook.priors import grids
from gradbook.vae_training import Curve

CHUNK = 500
WARM_UP = 100


def rate_factor(step: int, steps: int) -> float:
    """Compute by how much the rate of a step is smaller than the highest.

    Args:
        step: counted from 0.
        steps: of the whole training.

    Returns:
        A line up over the first 100 steps, or a tenth of the training if
        that is shorter, then a line down that would reach 0 one step
        after the last.
    """
    warm = min(WARM_UP, max(1, steps // 10))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def fit(
    model: nn.Module,
    codes: Tensor,
    seed: int,
    steps: int,
    rate: float,
    batch: int,
    points: Collection[int],
    measure: Callable[[nn.Module], Any],
) -> Curve:
    """Train a prior in place by Adam, and measure it on the way.

    Args:
        model: has ``log_prob`` of grids.
        codes: int64 [n, h, w], on the model's device.
        seed: of the order of the grids.
        steps: how many.
        rate: the highest step size; see :func:`gradbook.priors.training.rate_factor`.
        batch: grids of a step.
        points: after how many steps to measure, from 0 to ``steps``.
        measure: of a model.

    Returns:
        The measures, and the mean seconds of a step without them.

    Raises:
        ValueError: if there are no steps, a point lies beyond them, or
            ``batch`` is not from 1 to n.
    """
    grids.require_sizes(steps=steps)
    if not 1 <= batch <= len(codes):
        raise ValueError(f"batch: must be from 1 to {len(codes)}, got {batch}")
    if any(not 0 <= point <= steps for point in points):
        raise ValueError(f"points: must be from 0 to {steps}, got {sorted(points)}")
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.95))
    batches = vae_training.minibatches(len(codes), batch, torch.Generator().manual_seed(seed))
    positions = math.prod(codes.shape[1:])
    values, seconds, done = [], 0.0, 0
    for point in (*sorted(points), steps):
        start = time.perf_counter()
        for step in range(done, point):
            optimizer.param_groups[0]["lr"] = rate * rate_factor(step, steps)
            optimizer.zero_grad()
            loss = -model.log_prob(codes[next(batches)]).mean() / positions
            loss.backward()
            optimizer.step()
        done = point
        seconds += time.perf_counter() - start
        if len(values) < len(points):
            values.append(measure(model))
    return Curve(values, seconds / steps)


@torch.no_grad()
def bits_per_code(model: nn.Module, codes: Tensor) -> float:
    """Measure a prior on grids, in chunks.

    Args:
        model: has ``log_prob`` of grids.
        codes: int64 [n, h, w], n at least 1, on the model's device.

    Returns:
        Mean bits of a code.

    Raises:
        ValueError: if there is no grid.
    """
    if not len(codes):
        raise ValueError("codes: must be at least one grid")
    log_probs = torch.cat([model.log_prob(chunk) for chunk in codes.split(CHUNK)])
    return grids.mean_bits(log_probs, math.prod(codes.shape[1:]))
