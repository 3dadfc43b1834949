"""Grids of codes that are larger than a prior's own: a window slides, and one code is drawn at a time.

The prior knows grids of s by s codes, the window. The large grid is written in reading order. For
each code, the target, a window is laid around it: the target stands in the window's middle, or
nearer to an edge where the large grid ends. The prior's law of the target given the codes before it
in the window is the law of the code. What is earlier in a window is earlier in the large grid too,
so these conditionals, multiplied, are a law of large grids. Codes after the target hold anything.

Without more, the law is the same wherever the window lies. A prefix tells a prior the window's place.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradbook.checks import require, require_finite
from gradbook.gumbel import gumbel_max
from gradbook.priors import grids
from gradbook.priors.attention import STD
from gradbook.priors.layers import linear
from gradbook.priors.transformer import CausalTransformer

# Half a wave over the whole axis, then waves two, four and eight times as short.
FREQUENCIES = tuple(math.pi * 2**k for k in range(4))
# The place of a window along an axis that it fills.
MIDDLE = 0.5


class Window(NamedTuple):
    """Where a window lies in the large grid, and where in the window its target stands."""

    top: int
    left: int
    local_i: int
    local_j: int


PrefixOf = Callable[[Window], Tensor]


def window(i: int, j: int, height: int, width: int, side: int) -> Window:
    """Lay a window around a target.

    Args:
        i: row of the target in the large grid.
        j: its column.
        height: of the large grid, at least ``side``.
        width: of the large grid, at least ``side``.
        side: s, of the window.

    Returns:
        The window; it lies inside the grid, and the target inside it.

    Raises:
        ValueError: if the large grid is smaller than a window, or the
            target lies outside the grid.

    Source: Esser, Rombach and Ommer 2021, section 3.2; the rule is that of
    the sampler in the code published with it, for windows of 16.
    """
    _require_large(height, width, side)
    if not 0 <= i < height:
        raise ValueError(f"i: must be from 0 to {height - 1}, got {i}")
    if not 0 <= j < width:
        raise ValueError(f"j: must be from 0 to {width - 1}, got {j}")
    # As far up as puts the target in the middle, but never over an edge.
    top = min(max(i - side // 2, 0), height - side)
    left = min(max(j - side // 2, 0), width - side)
    return Window(top, left, i - top, j - left)


def codes_in_view(i: int, j: int, height: int, width: int, side: int) -> int:
    """Count the earlier codes that the law of a target depends on.

    Args:
        i: row of the target in the large grid.
        j: its column.
        height: of the large grid, at least ``side``.
        width: of the large grid, at least ``side``.
        side: s, of the window.

    Returns:
        How many codes of the window come before the target: 136 in the
        interior for s = 16.

    Raises:
        ValueError: as :func:`window`.
    """
    where = window(i, j, height, width, side)
    return where.local_i * side + where.local_j


def conditional_logits(
    prior: CausalTransformer,
    codes: Tensor,
    where: Window,
    prefix: Tensor | None = None,
) -> Tensor:
    """Compute the logits of the target of a window.

    Args:
        prior: of grids of s by s codes.
        codes: of the large grids, int64 [B, H, W]; what comes after the
            target may be any codes.
        where: the window.
        prefix: what the prior is told of the window, [P, D], the same for
            all grids.

    Returns:
        [B, K].

    Raises:
        ValueError: if the prior's grids are not square, the prefix has
            another shape, or the prior refuses the codes.
    """
    side = _side(prior)
    top, left, local_i, local_j = where
    seen = codes[:, top : top + side, left : left + side]
    if prefix is not None and prefix.ndim != 2:
        raise ValueError(f"prefix: must be [P, D], is {tuple(prefix.shape)}")
    given = None if prefix is None else prefix.expand(len(codes), -1, -1)
    return prior.logits(seen, given)[:, local_i, local_j]


@torch.no_grad()
def sample_large(
    prior: CausalTransformer,
    height: int,
    width: int,
    noise: Tensor,
    prefix_of: PrefixOf | None = None,
) -> Tensor:
    """Draw grids larger than the prior's own; each code costs a pass.

    Args:
        prior: of grids of s by s codes.
        height: H of the large grids, at least s.
        width: W of the large grids, at least s.
        noise: standard Gumbel draws [B, H, W, K].
        prefix_of: maps a window to what the prior is told of it, [P, D].

    Returns:
        Codes [B, H, W]; the same noise gives the same ones.

    Raises:
        ValueError: if the noise has another shape or is not finite, the
            grid is smaller than a window, or as :func:`conditional_logits`.
    """
    side, count = _side(prior), noise.shape[0] if noise.ndim else 0
    _require_large(height, width, side)
    grids.require_noise(noise, count, height, width, prior.codes)
    codes = noise.new_zeros(count, height, width, dtype=torch.int64)
    for i in range(height):
        for j in range(width):
            where = window(i, j, height, width, side)
            prefix = prefix_of(where) if prefix_of else None
            logits = conditional_logits(prior, codes, where, prefix)
            codes[:, i, j] = gumbel_max(logits, noise[:, i, j])
    return codes


def log_probs_large(
    prior: CausalTransformer,
    codes: Tensor,
    prefix_of: PrefixOf | None = None,
) -> Tensor:
    """Compute the log-probability of each code of large grids.

    Args:
        prior: of grids of s by s codes.
        codes: int64 [B, H, W], the sides at least s.
        prefix_of: maps a window to what the prior is told of it, [P, D].

    Returns:
        [B, H, W], in nats. Their sum over a grid is the logarithm of the
        probability with which :func:`sample_large` draws it.

    Raises:
        ValueError: if the codes have another type, shape or range, a logit
            is not finite, or as :func:`conditional_logits`.
    """
    side = _side(prior)
    if codes.ndim != 3:
        raise ValueError(f"codes: must be [B, H, W], is {tuple(codes.shape)}")
    height, width = codes.shape[1:]
    _require_large(height, width, side)
    grids.require_codes(codes, height, width, prior.codes)
    rows = []
    for i in range(height):
        for j in range(width):
            where = window(i, j, height, width, side)
            prefix = prefix_of(where) if prefix_of else None
            logits = conditional_logits(prior, codes, where, prefix)
            require_finite(logits=logits)
            rows.append(logits.log_softmax(-1).gather(1, codes[:, i, j, None]))
    return torch.cat(rows, 1).unflatten(1, (height, width))


def places(tops: Tensor, lefts: Tensor, height: int, width: int, side: int) -> Tensor:
    """Say where windows lie, in numbers that do not depend on the grid's size.

    Args:
        tops: first rows of windows, int64 [n].
        lefts: first columns, int64 [n].
        height: of the large grid, at least ``side``.
        width: of the large grid, at least ``side``.
        side: s, of the window.

    Returns:
        float32 [n, 2], down and to the right: 0 at the first edge, 1 at
        the last, and 1/2 along an axis that a window fills.

    Raises:
        ValueError: if a window is not inside the grid, or the starts have
            another type or shape.
    """
    _require_large(height, width, side)
    columns = []
    for name, starts, span in (("tops", tops, height - side), ("lefts", lefts, width - side)):
        if starts.dtype != torch.int64 or starts.shape != (len(tops),):
            raise ValueError(f"{name}: must be int64 [n], the same n as tops")
        require((starts >= 0) & (starts <= span), f"{name}: must be from 0 to {span}")
        shares = starts.to(torch.float32)
        columns.append(shares / span if span else torch.full_like(shares, MIDDLE))
    return torch.stack(columns, 1)


class CoordinatePrefix(nn.Module):
    """Tells a prior a window's place by one vector: a linear map of waves.

    Args:
        dim: D, of a prior's vectors.
        generator: of the weights, of the CPU; they are float32.

    Raises:
        ValueError: if ``dim`` is below 1.

    Source: Esser, Rombach and Ommer 2021, section 3.2, for coordinates as a
    condition; they code them as a second image, here they are two numbers.
    """

    vectors = 1

    def __init__(self, dim: int, generator: torch.Generator):
        super().__init__()
        grids.require_sizes(dim=dim)
        self.linear = linear(4 * len(FREQUENCIES), dim, STD, generator)

    def forward(self, places: Tensor) -> Tensor:
        """Turn places into vectors.

        Args:
            places: [n, 2], each from 0 to 1.

        Returns:
            [n, 1, D], of the weights' type and on their device.

        Raises:
            ValueError: if the places have another shape or range.
        """
        if places.ndim != 2 or places.shape[1] != 2:
            raise ValueError(f"places: must be [n, 2], is {tuple(places.shape)}")
        require((places >= 0) & (places <= 1), "places: must be from 0 to 1")
        there = places.to(self.linear.weight)
        angles = there[:, :, None] * there.new_tensor(FREQUENCIES)
        waves = torch.cat([angles.sin(), angles.cos()], 2)
        return self.linear(waves.flatten(1))[:, None]


def _side(prior: CausalTransformer) -> int:
    if prior.height != prior.width:
        shape = f"{prior.height} by {prior.width}"
        raise ValueError(f"prior: must be of square grids, is of {shape}")
    return prior.height


def _require_large(height: int, width: int, side: int) -> None:
    grids.require_sizes(side=side)
    for name, size in (("height", height), ("width", width)):
        if size < side:
            raise ValueError(f"{name}: must be at least {side}, got {size}")
