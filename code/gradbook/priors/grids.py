"""What priors over grids of codes share: checks, log-probabilities, and draws in reading order.

Codes are integers from 0 to K - 1, [B, h, w]; logits are [B, h, w, K]. Those of a position depend on
the codes before it, row by row and from left to right, and on nothing else.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradbook.checks import require, require_finite
from gradbook.devices import device
from gradbook.gumbel import gumbel_max
from gradbook.noise import gumbel_noise

LogitsOf = Callable[[Tensor], Tensor]


def log_prob(logits: Tensor, codes: Tensor) -> Tensor:
    """Add the log-probabilities of a grid's codes.

    Args:
        logits: of each code given those before it, [B, h, w, K].
        codes: int64 [B, h, w].

    Returns:
        [B], in nats.

    Raises:
        ValueError: if the shapes disagree, a code is out of range or a
            logit is not finite.
    """
    if logits.ndim != 4:
        raise ValueError(f"logits: must be [B, h, w, K], is {tuple(logits.shape)}")
    require_codes(codes, *logits.shape[1:])
    if len(codes) != len(logits):
        raise ValueError(f"codes: must be {len(logits)} grids, are {len(codes)}")
    require_finite(logits=logits)
    own = logits.log_softmax(-1).gather(-1, codes[..., None])
    return own.sum((1, 2, 3))


def sample(logits: LogitsOf, noise: Tensor) -> Tensor:
    """Draw grids code by code, each time from all logits anew.

    Args:
        logits: maps codes [B, h, w] to logits [B, h, w, K].
        noise: standard Gumbel draws [B, h, w, K].

    Returns:
        Codes [B, h, w].
    """
    batch, height, width, _ = noise.shape
    codes = torch.zeros(batch, height, width, dtype=torch.int64, device=noise.device)
    for i in range(height):
        for j in range(width):
            codes[:, i, j] = gumbel_max(logits(codes)[:, i, j], noise[:, i, j])
    return codes


def grid_noise(model: nn.Module, count: int, seed: int) -> Tensor:
    """Draw the noise of a sample.

    Args:
        model: a prior, on the book's device.
        count: of grids.
        seed: of the local generator.

    Returns:
        Standard Gumbel draws, float32 [count, h, w, K], on the book's
        device.
    """
    shape = (count, model.height, model.width, model.codes)
    generator = torch.Generator().manual_seed(seed)
    return gumbel_noise(shape, generator, torch.float32, device())


def mean_bits(log_probs: Tensor, positions: int) -> float:
    """Turn log-probabilities of grids into the mean length of a code.

    Args:
        log_probs: [B] in nats, B at least 1.
        positions: of a grid.

    Returns:
        Bits per code.

    Raises:
        ValueError: if there is no grid or no position.
    """
    if log_probs.ndim != 1 or not len(log_probs):
        raise ValueError(f"log_probs: must be [B], B at least 1, is {tuple(log_probs.shape)}")
    require_sizes(positions=positions)
    return -log_probs.double().mean().item() / (positions * math.log(2))


@torch.no_grad()
def influence(logits: LogitsOf, codes: Tensor, count: int) -> Tensor:
    """Measure how much each position's logits depend on each code.

    Args:
        logits: maps codes [B, h, w] to logits [B, h, w, K].
        codes: one grid, int64 [h, w].
        count: of different codes, K, at least 2.

    Returns:
        [T, T] for T = h w positions in reading order: entry (t, s) is the
        largest change of a logit of position s when code t is replaced
        by the next one, modulo K. A prior that sees only the past has
        zeros for s <= t.

    Raises:
        ValueError: if ``count`` is below 2 or a code is out of range.
    """
    if count < 2:
        raise ValueError(f"count: must be at least 2, got {count}")
    if codes.ndim != 2:
        raise ValueError(f"codes: must be [h, w], is {tuple(codes.shape)}")
    require_codes(codes[None], *codes.shape, count)
    size = codes.numel()
    flat = codes.flatten().expand(size, size)
    step = torch.eye(size, dtype=torch.int64, device=codes.device)
    # Two passes of one shape: what is not changed is rounded alike in both.
    before, after = (
        logits(grid.unflatten(1, codes.shape)).flatten(1, 2)
        for grid in (flat, (flat + step) % count)
    )
    return (after - before).abs().amax(-1)


def require_sizes(**sizes: int) -> None:
    """Raise unless every size is at least 1.

    Args:
        **sizes: under the names of the caller's arguments.

    Raises:
        ValueError: if one is not.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: must be at least 1, got {size}")


def require_codes(codes: Tensor, height: int, width: int, count: int) -> None:
    """Raise unless a tensor is a batch of grids of codes.

    Args:
        codes: to be checked.
        height: of a grid.
        width: of a grid.
        count: of different codes.

    Raises:
        ValueError: if the type is not int64, the shape is not
            [B, height, width], or a code is not from 0 to ``count`` - 1.
    """
    if codes.dtype != torch.int64:
        raise ValueError(f"codes: must be int64, got {codes.dtype}")
    if codes.ndim != 3 or codes.shape[1:] != (height, width):
        raise ValueError(f"codes: must be [B, {height}, {width}], is {tuple(codes.shape)}")
    require((codes >= 0) & (codes < count), f"codes: must be from 0 to {count - 1}")


def require_noise(noise: Tensor, *shape: int) -> None:
    """Raise unless noise has one finite value for every code of every position.

    Noise that broadcasts would be shared between grids without a word.

    Args:
        noise: to be checked.
        shape: what its shape must be, (count, h, w, K).

    Raises:
        ValueError: if the shape is another, or a value is not finite.
    """
    if noise.shape != shape:
        raise ValueError(f"noise: must be {shape}, is {tuple(noise.shape)}")
    require_finite(noise=noise)
