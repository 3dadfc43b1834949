"""Codes of four bits beside NF4: integers, floats, equal spacing; and what each costs on weights.

A *code* is a sorted list of levels in [-1, 1]; a block is divided by its largest absolute value,
and each weight takes the nearest level. An *affine* code has levels equally spaced from the least weight of a
block to the greatest, and so two constants per block where the others have one. Codes are float64.
A *coder* takes weights and a block size and gives back what a code leaves of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require, require_finite
from gradbook.devices import device
from gradbook.peft.blockwise import (
    absmax_dequantize,
    absmax_quantize,
    arithmetic,
    blocks,
    require_code,
)
from gradbook.transformer_sizes import require_sizes

Coder = Callable[[Tensor, int], Tensor]


class Affine(NamedTuple):
    """Indices [n, B], uint8; the least number of each block [n], and the step of each [n]."""

    indices: Tensor
    least: Tensor
    step: Tensor


def int4_code() -> Tensor:
    """List the 15 levels k / 7 of a symmetric integer code.

    The sixteenth index, -8, would be below -1, and is not used.

    Returns:
        [15].
    """
    return torch.arange(-7, 8, dtype=torch.float64, device=device()) / 7


def fp4_code() -> Tensor:
    """List the levels of bitsandbytes' FP4: a sign, two bits of exponent, one of mantissa.

    The magnitudes are 2, 3, 4, 6, 8 and 12 over 12, and one below the
    normal ones, 1/16 over 12. Zero has two indices, so there are 15 levels.

    Returns:
        [15].

    Source: bitsandbytes, ``functional.get_4bit_type``.
    """
    return _signed(1 / 16, 2, 3, 4, 6, 8, 12)


def e2m1_code() -> Tensor:
    """List the levels of E2M1, the four-bit float of OCP's microscaling formats.

    The magnitudes are 1/2, 1, 3/2, 2, 3, 4 and 6 over 6: those of FP4 but
    for the least. There are 15 levels.

    Returns:
        [15].

    Source: Open Compute Project 2023, "OCP microscaling formats (MX) specification", version 1.0,
    section 5.3.3.
    """
    return _signed(1 / 2, 1, 3 / 2, 2, 3, 4, 6)


def affine_quantize(w: Tensor, block_size: int, levels: int = 16) -> Affine:
    """Take the nearest of levels equally spaced from the least to the greatest of a block.

    A block of equal numbers has step 0 and index 0 everywhere.

    Args:
        w: of any shape, n B numbers.
        block_size: B.
        levels: K, 2 to 256.

    Returns:
        Indices and two constants per block.

    Raises:
        ValueError: if w holds a NaN or an infinity, as
            :func:`gradbook.peft.blockwise.blocks`, or if K is not that.
    """
    require_sizes(levels=levels)
    if not 2 <= levels <= 256:
        raise ValueError(f"levels: must be 2 to 256, got {levels}")
    rows = blocks(w, block_size).to(arithmetic(w))
    require_finite(w=rows)
    least, greatest = rows.aminmax(dim=1)
    # In halves: the difference itself may overflow.
    step = 2 * ((greatest / 2 - least / 2) / (levels - 1))
    safe = torch.where(step > 0, step, torch.ones_like(step))
    steps = 2 * ((rows / 2 - least[:, None] / 2) / safe[:, None])
    indices = steps.round().clamp(0, levels - 1)
    return Affine(indices.to(torch.uint8), least, step)


def affine_dequantize(affine: Affine) -> Tensor:
    """Turn indices back into numbers: least + index times step.

    Args:
        affine: as :func:`affine_quantize` gives it.

    Returns:
        [n B], of the type of the constants.

    Raises:
        ValueError: if shapes or types do not fit.
    """
    indices, least, step = affine
    if indices.dtype != torch.uint8 or indices.ndim != 2:
        raise ValueError(f"indices: must be [n, B] uint8, got {list(indices.shape)}")
    if not least.shape == step.shape == indices.shape[:1]:
        raise ValueError(f"least, step: must be [{len(indices)}], got {list(least.shape)}")
    # In halves again: two terms may overflow where their sum does not.
    halves = least[:, None] / 2 + indices * (step[:, None] / 2)
    return 2 * halves.flatten()


def rounded(code: Tensor) -> Coder:
    """Make the coder of a code that is scaled by the largest of a block.

    Args:
        code: [K], sorted, in [-1, 1].

    Returns:
        A function of weights and a block size; it gives what is left of the
        weights, flat, in float64 or float32.
    """
    require_code(code, code.dtype)
    require(code.abs() <= 1, "code: must be in [-1, 1]")

    def coder(w: Tensor, block_size: int) -> Tensor:
        levels = code.to(w.device, arithmetic(w))
        indices, absmax = absmax_quantize(w, levels, block_size)
        return absmax_dequantize(indices, absmax, levels)

    return coder


def affine_rounded(w: Tensor, block_size: int) -> Tensor:
    """Be the coder of 16 levels equally spaced from the least of a block to the greatest.

    Args:
        w: of any shape.
        block_size: divides the count of its numbers.

    Returns:
        What is left of the weights, flat.

    Raises:
        ValueError: as :func:`affine_quantize`.
    """
    return affine_dequantize(affine_quantize(w, block_size))


def errors_by_code(
    weights: Sequence[Tensor],
    coders: Mapping[str, Coder],
    block_size: int,
) -> dict[str, list[float]]:
    """Measure what is lost of each matrix in each code.

    Args:
        weights: matrices, none of them all zero.
        coders: by name.
        block_size: divides the count of every matrix.

    Returns:
        For each name, the root of the mean squared error of each matrix over
        the root of its mean square.

    Raises:
        ValueError: if a matrix is all zero, or as the coder.
    """
    for w in weights:
        require(w.any(), "weights: must not be all zero")
    return {name: [_lost(w, f(w, block_size)) for w in weights] for name, f in coders.items()}


def bits_per_weight(block_size: int, constants: int = 1, width: int = 32) -> float:
    """Count the bits of a weight of four bits, its block's constants included.

    Args:
        block_size: B, at least 1.
        constants: per block: 1 where a block has a largest, 2 for an affine code.
        width: of a constant, in bits.

    Returns:
        4 + constants width / B.

    Raises:
        ValueError: if one is not a positive integer.
    """
    require_sizes(block_size=block_size, constants=constants, width=width)
    return 4 + constants * width / block_size


def _signed(*magnitudes: float) -> Tensor:
    """List magnitudes over the last of them with both signs, and 0."""
    x = torch.tensor(magnitudes, dtype=torch.float64, device=device()) / magnitudes[-1]
    return torch.cat((-x.flip(0), x.new_zeros(1), x))


def _lost(w: Tensor, left: Tensor) -> float:
    exact = w.detach().flatten().double()
    return float((left.double() - exact).norm() / exact.norm())
