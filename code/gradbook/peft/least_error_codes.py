"""Codes of least error for normal weights: Lloyd-Max under the law of a block, and AF4.

A code is fitted as :mod:`gradbook.k_means` fits a codebook, in one dimension and with a density in
place of samples: a level moves to the mean of its cell, or for absolute errors to its median, and
the cells move with the levels. The levels that stay where they are solve an equation. No small
move betters them; that no other code does is not proved, since the law jumps at -1 and 1.

Source: S. Lloyd, 1982, "Least squares quantization in PCM"; D. Yoshida, 2023, "NF4 isn't
information theoretically optimal (and that's good)".
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import root
from torch import Tensor

from gradbook.checks import require
from gradbook.devices import device
from gradbook.peft.block_law import (
    Maxima,
    maxima,
    midpoint_edges,
    partial_moments,
    require_at_least_two,
)

Edges = Callable[[Tensor], Tensor]
Centres = Callable[[Tensor, Maxima], Tensor]
# So many steps of Lloyd put the levels in reach of a solver of equations.
LLOYD_STEPS = 30


def least_squares_code(block: int, levels: int = 16) -> Tensor:
    """Find a code whose squared error of normal weights no small change lowers.

    Every level is free, and is the mean of its cell, the square of the
    largest of a block being the weight: Lloyd-Max under the law of the
    block.

    Args:
        block: n, at least 2.
        levels: K, at least 2.

    Returns:
        [K].

    Raises:
        ValueError: if n or K is not an integer of at least 2.
        RuntimeError: if the levels were not found.

    Source: Lloyd 1982; Max 1960.
    """
    start = _even(levels)
    held = torch.zeros_like(start, dtype=torch.bool)
    return _fixed_point(start, held, block, _means(block, 2))


def least_absolute_code(block: int, levels: int = 16) -> Tensor:
    """Find a code whose absolute error of normal weights no small change lowers.

    Every level is free, and is the median of its cell, the largest of a
    block being the weight.

    Args:
        block: as for :func:`least_squares_code`.
        levels: as there.

    Returns:
        [K].

    Raises:
        ValueError: as there.
        RuntimeError: as there.
    """
    start = _even(levels)
    held = torch.zeros_like(start, dtype=torch.bool)
    return _fixed_point(start, held, block, _medians(block, 1, midpoint_edges))


def pinned_code(block: int, edges: Edges = midpoint_edges) -> Tensor:
    """Find 16 levels of which -1, 0 and 1 are given, and the others are medians of their cells.

    With the cells that the nearest level makes, no small change of the
    free levels lowers its absolute error of u, the weight over the largest.

    Args:
        block: n, at least 2.
        edges: of the cells of a code.

    Returns:
        [16]: seven levels below 0, eight above.

    Raises:
        ValueError: if n is not an integer of at least 2.
        RuntimeError: if the levels were not found.
    """
    start = torch.cat((_even(15)[:7], _even(17)[8:]))
    held = (start.abs() == 1) | (start == 0)
    return _fixed_point(start, held, block, _medians(block, 0, edges))


def af4_code(block: int) -> Tensor:
    """Build AF4 as it was published.

    Its levels are medians, but those on both sides of 0 are medians of
    cells that end at 0, not half-way to it: as though 0 were an edge and
    no level. So small changes lower the error that it is made for;
    :func:`pinned_code` has the nearest cells.

    Args:
        block: n, at least 2.

    Returns:
        [16].

    Raises:
        ValueError: as :func:`pinned_code`.
        RuntimeError: as there.

    Source: Yoshida 2023, and its code, ``generate_af4.py``.
    """
    return pinned_code(block, zero_edges)


def zero_edges(code: Tensor) -> Tensor:
    """Give the edges half-way between levels, but let the cells beside the level 0 end at 0.

    Args:
        code: [K], sorted, in [-1, 1], 0 among its inner levels.

    Returns:
        [K + 1], from -1 to 1; the cell of 0 is empty.

    Raises:
        ValueError: if 0 is not a level.
    """
    require((code == 0).any(), "code: must have a level 0")
    zero = int((code == 0).nonzero())
    edges = midpoint_edges(code)
    edges[zero : zero + 2] = 0
    return edges


def _means(block: int, s: float) -> Centres:
    """A step of Lloyd: every level to the mean of the weights nearest to it."""

    def centres(code: Tensor, rule: Maxima) -> Tensor:
        moments = partial_moments(midpoint_edges(code), rule, block, s)
        return _inside(moments.first) / _inside(moments.mass)

    return centres


def _medians(block: int, s: float, edges: Edges) -> Centres:
    """A step towards the median: Newton's, for the level with half of the cell's mass below."""

    def centres(code: Tensor, rule: Maxima) -> Tensor:
        ends = edges(code)
        mass = _cumulative(partial_moments(ends, rule, block, s).mass)
        # Where the jump at 1 is more than half of the last cell, 1 is the
        # median: come from below.
        at = partial_moments(code.clamp(max=1 - 1e-15), rule, block, s)
        short = (mass[1:] + mass[:-1]) / 2 - at.mass
        moved = code + short / at.density
        return moved.maximum(ends[:-1]).minimum(ends[1:])

    return centres


def _fixed_point(start: Tensor, held: Tensor, block: int, centres: Centres) -> Tensor:
    """Find levels that a step leaves where they are."""
    rule, code = maxima(block), start.clone()

    def step(code: Tensor) -> Tensor:
        return torch.where(held, code, centres(code, rule))

    def moves(free: np.ndarray) -> np.ndarray:
        code[~held] = torch.from_numpy(free)
        return (step(code) - code)[~held].numpy()

    for _ in range(LLOYD_STEPS):
        code = step(code)
    found = root(moves, code[~held].numpy(), tol=1e-13)
    code[~held] = torch.from_numpy(found.x)
    if not (found.success and (code.diff() > 0).all()):
        raise RuntimeError(f"no code found for block {block}: {found.message}")
    return code.to(device())


def _cumulative(mass: Tensor) -> Tensor:
    """At the edge -1 nothing is below, though the law's jump there counts as reached."""
    return torch.cat((torch.zeros_like(mass[:1]), mass[1:]))


def _inside(below: Tensor) -> Tensor:
    return _cumulative(below).diff()


def _even(levels: int) -> Tensor:
    require_at_least_two(levels=levels)
    return torch.linspace(-1, 1, levels, dtype=torch.float64, device="cpu")
