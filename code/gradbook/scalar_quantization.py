"""Finite scalar quantization: every coordinate is rounded to a few levels, and no codebook is learnt.

A coordinate with L levels is squashed by tanh and rounded to one of L whole numbers, from -h to
L - 1 - h with h = L // 2, and divided by h. So an odd L gives a symmetric grid on [-1, 1], and an
even L one that ends a step short of 1. The code of a vector is the number whose digits are its
levels, in the mixed radix of the levels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradbook.checks import require, require_finite
from gradbook.gumbel import straight_through

# How far tanh reaches beyond the outermost levels: without a margin, two levels would need an
# infinite shift.
MARGIN = 1e-3
# With more, the margin would round to a level that does not exist.
MOST_LEVELS = 1000
# How far a value may be from the grid, in steps: the rounding of half precision.
_OFF_GRID = 0.01


def finite_scalar_quantize(z: Tensor, levels: Sequence[int]) -> Tensor:
    """Round every coordinate to one of its levels.

    Zero is always a level. With an even number of levels there is one
    more below zero than above; the argument of tanh is then shifted such
    that z = 0 still lies in the middle of the zero level. Two levels are
    -1 and 0 and work badly: only z below -3.8 gives -1.

    Args:
        z: [..., D].
        levels: how many levels each of the D coordinates has.

    Returns:
        [..., D], on the grid of the levels in [-1, 1]. The gradient is
        that of the squashed coordinate before rounding.

    Raises:
        ValueError: if ``z`` is not floating [..., D] or not finite, or
            the levels are not D whole numbers from 2 to 1000 whose
            product fits in 63 bits.

    Source: Mentzer et al. 2024, "Finite scalar quantization: VQ-VAE made
    simple", appendix A.1. The paper's margin is inward; ours is outward,
    as in vector-quantize-pytorch, such that two levels are possible.
    """
    _require_coordinates("z", z, levels)
    counts = _counts(levels, z)
    reach = (counts - 1) * (1 + MARGIN) / 2
    offset = (counts % 2 == 0).to(z.dtype) / 2
    bounded = (z + (offset / reach).atanh()).tanh() * reach - offset
    return straight_through(bounded.round(), bounded) / (counts // 2)


def scalar_indices(values: Tensor, levels: Sequence[int]) -> Tensor:
    """Number the codes of quantized vectors.

    Args:
        values: [..., D], on the grid of the levels.
        levels: how many levels each of the D coordinates has.

    Returns:
        int64 [...], from 0 to the product of the levels less 1. The first
        coordinate is the lowest digit, and its lowest level the digit 0.

    Raises:
        ValueError: if a value is off the grid, or as
            :func:`finite_scalar_quantize`.
    """
    _require_coordinates("values", values, levels)
    counts = _counts(levels, values)
    steps = (values.detach() + 1) * (counts // 2)
    digits = steps.round()
    on_grid = ((steps - digits).abs() < _OFF_GRID) & (digits >= 0) & (digits < counts)
    require(on_grid, "values: must be on the grid of the levels")
    return (digits.long() * _places(levels, values.device)).sum(-1)


def scalar_codes(
    indices: Tensor,
    levels: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Find the quantized vectors of codes: the inverse of numbering them.

    Args:
        indices: integers [...], from 0 to the product of the levels less 1.
        levels: how many levels each coordinate has.
        dtype: of the result.

    Returns:
        [..., D], such that :func:`scalar_indices` gives the indices back.

    Raises:
        ValueError: if an index is not an integer or out of range, or the
            levels are not as in :func:`finite_scalar_quantize`.
    """
    codes = number_of_codes(levels)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"indices: must be integers, got {indices.dtype}")
    require((indices >= 0) & (indices < codes), f"indices: must be from 0 to {codes - 1}")
    counts = torch.tensor(levels, dtype=torch.int64, device=indices.device)
    digits = indices.long()[..., None] // _places(levels, indices.device) % counts
    half = counts // 2
    return (digits - half).to(dtype) / half.to(dtype)


def number_of_codes(levels: Sequence[int]) -> int:
    """Count the codes that the levels of all coordinates make together.

    Args:
        levels: how many levels each coordinate has.

    Returns:
        The product of the levels.

    Raises:
        ValueError: if the levels are not as in
            :func:`finite_scalar_quantize`.
    """
    whole = all(isinstance(count, int) and 2 <= count <= MOST_LEVELS for count in levels)
    if not levels or not whole:
        raise ValueError(f"levels: must be whole numbers from 2 to {MOST_LEVELS}, got {levels}")
    codes = math.prod(levels)
    if codes >= 2**63:
        raise ValueError(f"levels: their product must fit in 63 bits, got {codes}")
    return codes


def _require_coordinates(name: str, x: Tensor, levels: Sequence[int]) -> None:
    number_of_codes(levels)
    if x.ndim == 0 or x.shape[-1] != len(levels) or not x.is_floating_point():
        got = f"{x.dtype} {tuple(x.shape)}"
        raise ValueError(f"{name}: must be floating [..., {len(levels)}], got {got}")
    require_finite(**{name: x})


def _counts(levels: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(levels, dtype=like.dtype, device=like.device)


def _places(levels: Sequence[int], device: torch.device) -> Tensor:
    places = [math.prod(levels[:i]) for i in range(len(levels))]
    return torch.tensor(places, dtype=torch.int64, device=device)
