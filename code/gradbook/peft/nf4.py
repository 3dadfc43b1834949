"""NF4: 16 levels at quantiles of the normal law, and two weights in a byte.

Source: T. Dettmers, A. Pagnoni, A. Holtzman and L. Zettlemoyer, 2023, "QLoRA: efficient finetuning
of quantized LLMs", section 3 and appendix E.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradbook.checks import require
from gradbook.devices import device
from gradbook.peft.blockwise import absmax_quantize, arithmetic, chunks, require_scales
from gradbook.transformer_sizes import require_sizes

POSITIVE, NEGATIVE = 8, 7
# (1 - 1/32 + 1 - 1/30) / 2, to the digits with which the published table was made.
OFFSET = 0.9677083


def quantile_code(
    positive: int,
    negative: int,
    offset: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Place levels at equally spaced probabilities of the normal law.

    On each side the probabilities go from 1/2, whose quantile is 0, to
    ``offset``, whose quantile becomes the largest level.

    Args:
        positive: levels above 0.
        negative: levels below 0.
        offset: the largest probability, between 1/2 and 1.
        dtype: in which probabilities and levels are rounded, float32 or
            float64; by default torch's.

    Returns:
        [negative + 1 + positive], sorted; the largest absolute value is 1.

    Raises:
        ValueError: if a count is below 1, the offset is not between, the
            levels are more than 256, or the type is another.

    Source: Dettmers et al. 2023, section 3 and appendix E.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    _require_quantiles(positive, negative, offset, dtype)

    def quantiles(count: int) -> Tensor:
        kind = {"dtype": dtype, "device": "cpu"}
        p = torch.linspace(offset, 0.5, count + 1, **kind)[:-1]
        return torch.special.ndtri(p.double()).to(dtype)

    zero = torch.zeros(1, dtype=dtype, device="cpu")
    levels = [-quantiles(negative), zero, quantiles(positive).flip(0)]
    code = torch.cat(levels)
    return (code / code.abs().max()).to(device())


def end_offset(positive: int, negative: int) -> float:
    """Choose where the quantiles of a code shall end: half a cell from 1, averaged over the sides.

    Above 0, equal cells of which each level has one fill the probability
    1/2; below 0 they share it with half the cell of 0. For 8 and 7 levels
    this is the offset of NF4's published table, to seven digits.

    Args:
        positive: levels above 0.
        negative: levels below 0.

    Returns:
        The mean of ``1 - 1 / (4 positive)`` and ``1 - 1 / (4 negative + 2)``.

    Raises:
        ValueError: if a count is below 1.
    """
    require_sizes(positive=positive, negative=negative)
    return 1 - (1 / (4 * positive) + 1 / (4 * negative + 2)) / 2


def nf4_code(dtype: torch.dtype | None = None) -> Tensor:
    """Make the levels of NF4: 7 below 0, 0, and 8 above.

    The offset is half a cell from the end, averaged over the sides: with
    8 levels above 0, 16 half-cells of 1/32 fill the probability 1/2, and
    15 of 1/30 fill it with 7 levels below and half the cell of 0. So the
    offset is the mean of 1 - 1/32 and 1 - 1/30. Then both sides end at
    the same quantile, and at -1 and 1.

    Args:
        dtype: as for :func:`quantile_code`.

    Returns:
        [16], sorted. In float32 to the bit the table that was published;
        in float64 within ``1.1e-7`` of it.

    Raises:
        ValueError: if the type is neither float32 nor float64.

    Source: Dettmers et al. 2023, appendix E.
    """
    return quantile_code(POSITIVE, NEGATIVE, OFFSET, dtype)


def quantize_nf4(w: Tensor, block_size: int = 64) -> tuple[Tensor, Tensor]:
    """Turn weights into half-bytes and a scale for each block.

    Args:
        w: of any shape, n B finite numbers.
        block_size: B, even.

    Returns:
        Packed pairs [n B / 2], uint8, and absmax [n], in float64 for
        float64 and in float32 otherwise.

    Raises:
        ValueError: if B is odd, or as
            :func:`gradbook.peft.blockwise.absmax_quantize`.

    Source: Dettmers et al. 2023, section 3.
    """
    require_sizes(block_size=block_size)
    if block_size % 2:
        raise ValueError(f"block_size: must be even, got {block_size}")
    code = nf4_code(arithmetic(w)).to(w.device)
    indices, absmax = absmax_quantize(w, code, block_size)
    return pack(indices), absmax


def dequantize_nf4(
    packed: Tensor,
    absmax: Tensor,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Turn half-bytes and scales back into weights.

    A byte's two levels are looked up at once, in a table of 256 pairs.

    Args:
        packed: [n B / 2] uint8.
        absmax: [n].
        shape: of the result, n B numbers; flat by default.
        dtype: of the result, rounded at the end; by default that of absmax.

    Returns:
        [n B], or of the shape.

    Raises:
        ValueError: if shapes or types do not fit.

    Source: Dettmers et al. 2023, section 3.
    """
    code = nf4_code(arithmetic(absmax)).to(absmax.device)
    require_scales(absmax, code)
    rows = _rows(packed, absmax)
    dtype = absmax.dtype if dtype is None else dtype
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: must be floating, got {dtype}")
    # A complex number is a pair that one look-up finds.
    table = torch.view_as_complex(torch.cartesian_prod(code, code))
    size = len(rows), 2 * rows.shape[1]
    values = torch.empty(size, dtype=dtype, device=packed.device)
    for part in chunks(rows):
        which = rows[part].flatten().int()
        pairs = torch.view_as_real(table.index_select(0, which))
        scales = absmax[part, None]
        values[part] = pairs.view(len(scales), -1) * scales
    return values.view(_shape(values, shape))


def pack(indices: Tensor) -> Tensor:
    """Put two 4-bit indices into a byte, the first one high.

    Args:
        indices: of any shape, uint8, below 16, an even count from 2.

    Returns:
        Bytes, flat, half as many.

    Raises:
        ValueError: if they are not such indices.
    """
    count = indices.numel()
    if indices.dtype != torch.uint8 or count == 0 or count % 2:
        got = f"{count} {indices.dtype}"
        raise ValueError(f"indices: must be uint8, an even count, got {got}")
    require(indices.amax() < 16, "indices: must be below 16")
    high, low = indices.reshape(-1, 2).unbind(1)
    return 16 * high + low


def unpack(packed: Tensor) -> Tensor:
    """Take the two 4-bit indices out of each byte.

    Args:
        packed: of any shape, uint8.

    Returns:
        Indices, flat, uint8, twice as many.

    Raises:
        ValueError: if it is of another type.
    """
    if packed.dtype != torch.uint8:
        raise ValueError(f"packed: must be uint8, got {packed.dtype}")
    return torch.stack([packed >> 4, packed & 15], -1).flatten()


def _rows(packed: Tensor, absmax: Tensor) -> Tensor:
    """Look at bytes as blocks, [n, B / 2]."""
    if packed.dtype != torch.uint8 or packed.numel() == 0 or packed.numel() % len(absmax):
        got = f"{packed.numel()} {packed.dtype}"
        raise ValueError(f"packed: must be uint8, a multiple of {len(absmax)}, got {got}")
    return packed.reshape(len(absmax), -1)


def _shape(values: Tensor, shape: Sequence[int] | None) -> Sequence[int]:
    if shape is None:
        return (values.numel(),)
    if math.prod(shape) != values.numel() or min(shape, default=1) < 1:
        raise ValueError(f"shape: must hold {values.numel()} numbers, got {list(shape)}")
    return shape


def _require_quantiles(positive: int, negative: int, offset: float, dtype: torch.dtype) -> None:
    require_sizes(positive=positive, negative=negative)
    if not 0.5 < offset < 1:
        raise ValueError(f"offset: must be between 1/2 and 1, got {offset}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype: must be float32 or float64, got {dtype}")
    if positive + negative > 255:
        got = positive + negative
        raise ValueError(f"positive, negative: must be at most 255 together, got {got}")
