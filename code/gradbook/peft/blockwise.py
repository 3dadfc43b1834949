"""Numbers as indices of a short list of levels, block by block, each block scaled by its largest.

A block is B numbers that follow one another. Its *absmax* is the largest absolute value in it, and
the block over its absmax lies in [-1, 1], where a *code* has its levels. Arithmetic is in float64
for float64 numbers and in float32 for float32, float16 and bfloat16.

Source: T. Dettmers, M. Lewis, S. Shleifer and L. Zettlemoyer, 2022, "8-bit optimizers via
block-wise quantization".
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from gradbook.checks import require, require_finite
from gradbook.transformer_sizes import require_sizes

# So many numbers, in float32 256 KiB, are worked on at once: they stay in a core's cache.
CHUNK = 2**16
# Up to so many levels, comparing with every midpoint is faster than a binary search.
FEW = 64
# Below it the reciprocal of a float32 is infinite; bitsandbytes takes the same bound.
TINY = 1e-38
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def arithmetic(w: Tensor) -> torch.dtype:
    """Choose the type in which numbers are quantized, and which their scales have.

    Args:
        w: of any shape.

    Returns:
        float64 for float64, else float32.

    Raises:
        ValueError: if the type is not one of the four floating types.
    """
    if w.dtype not in FLOATS:
        raise ValueError(f"w: must be floating, 16 to 64 bits, got {w.dtype}")
    return torch.float64 if w.dtype == torch.float64 else torch.float32


def blocks(w: Tensor, block_size: int) -> Tensor:
    """Look at numbers as blocks.

    Args:
        w: of any shape, its numbers taken in the order of its axes.
        block_size: B; it divides the count of numbers.

    Returns:
        [n, B]; a view where the memory has that order, else a copy.

    Raises:
        ValueError: if there are no numbers, they are not floating, or B is below 1 or does not
            divide their count.
    """
    require_sizes(block_size=block_size)
    arithmetic(w)
    if w.numel() == 0 or w.numel() % block_size:
        raise ValueError(f"block_size: must divide the count {w.numel()}, got {block_size}")
    return w.reshape(-1, block_size)


def nearest_level(x: Tensor, code: Tensor) -> Tensor:
    """Find the nearest level of each number: how many midpoints are below it.

    Half-way between two levels, the lower one is taken.

    Args:
        x: of any shape.
        code: K sorted levels, 2 to 256, of the type of x.

    Returns:
        Their indices, uint8, in the shape of x.

    Raises:
        ValueError: if x holds a NaN, the code is not sorted, not finite or
            too long, or the types differ.
    """
    require_code(code, x.dtype)
    require(~x.isnan(), "x: must not hold a NaN")
    return _nearest(x, (code[1:] + code[:-1]) / 2)


def absmax_quantize(
    w: Tensor,
    code: Tensor,
    block_size: int,
) -> tuple[Tensor, Tensor]:
    """Scale every block by its absmax and take the nearest levels.

    A block of zeros has absmax 0, and the level nearest to 0 everywhere.

    Args:
        w: of any shape, n B numbers.
        code: as for :func:`nearest_level`, of the type of the arithmetic.
        block_size: B.

    Returns:
        Indices [n, B], uint8, and absmax [n], of the arithmetic's type.

    Raises:
        ValueError: if w holds a NaN or an infinity, or as :func:`blocks`
            and :func:`nearest_level`.
    """
    rows = blocks(w, block_size)
    require_code(code, arithmetic(w))
    midpoints = (code[1:] + code[:-1]) / 2
    indices = torch.empty_like(rows, dtype=torch.uint8)
    absmax = rows.new_empty(len(rows), dtype=code.dtype)
    for part in chunks(rows):
        x = rows[part].to(code.dtype)
        largest = absmax[part] = x.abs().amax(1)
        x = x * (1 / largest.clamp(min=TINY))[:, None]
        indices[part] = _nearest(x, midpoints)
    # A NaN and an infinity both show in the absmax of their block.
    require_finite(w=absmax)
    return indices, absmax


def absmax_dequantize(
    indices: Tensor,
    absmax: Tensor,
    code: Tensor,
) -> Tensor:
    """Turn indices back into numbers: level times absmax.

    Args:
        indices: [n, B] uint8, below K.
        absmax: [n], of the type of the code.
        code: [K].

    Returns:
        [n B], of the type of the code.

    Raises:
        ValueError: if shapes or types do not fit, or an index is not below K.
    """
    require_scales(absmax, code)
    is_matrix = indices.ndim == 2 and indices.numel() > 0 and len(indices) == len(absmax)
    if indices.dtype != torch.uint8 or not is_matrix:
        got = f"{list(indices.shape)} {indices.dtype}"
        raise ValueError(f"indices: must be [{len(absmax)}, B] uint8, got {got}")
    # As int: a byte would compare with 256 as with 0.
    require(indices.amax().int() < len(code), f"indices: must be below {len(code)}")
    values = code[indices.int()] * absmax[:, None]
    return values.flatten()


def chunks(rows: Tensor) -> Iterator[slice]:
    """Cut rows into parts that fit a cache.

    Args:
        rows: [n, B].

    Yields:
        Slices of rows, in order; together all of them.
    """
    step = max(1, CHUNK // rows.shape[1])
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


def require_code(code: Tensor, dtype: torch.dtype) -> None:
    """Raise unless a code can be used.

    Args:
        code: must be a vector of 2 to 256 finite levels, each above the one before.
        dtype: what the code must have.

    Raises:
        ValueError: if it is not.
    """
    if code.ndim != 1 or not 2 <= len(code) <= 256:
        raise ValueError(f"code: must be 2 to 256 levels, got {list(code.shape)}")
    if code.dtype != dtype:
        raise ValueError(f"code: must be {dtype}, got {code.dtype}")
    require_finite(code=code)
    require(code[1:] > code[:-1], "code: must be sorted, its levels distinct")


def require_scales(absmax: Tensor, code: Tensor) -> None:
    """Raise unless scales of blocks and a code fit each other.

    Args:
        absmax: must be one or more numbers, finite and not negative, of the type of the code.
        code: as for :func:`require_code`, float32 or float64.

    Raises:
        ValueError: if they do not.
    """
    if absmax.ndim != 1 or absmax.numel() == 0 or absmax.dtype not in FLOATS[:2]:
        got = f"{list(absmax.shape)} {absmax.dtype}"
        raise ValueError(f"absmax: must be [n], float32 or float64, got {got}")
    require_code(code, absmax.dtype)
    require((absmax >= 0) & absmax.isfinite(), "absmax: must be finite and not negative")


def _nearest(x: Tensor, midpoints: Tensor) -> Tensor:
    if len(midpoints) >= FEW:
        return torch.bucketize(x, midpoints, out_int32=True).to(torch.uint8)
    above, found = torch.empty_like(x), torch.zeros_like(x)
    for midpoint in midpoints.tolist():
        found += torch.gt(x, midpoint, out=above)
    return found.to(torch.uint8)
