"""The scales of blocks, quantized once more: to a byte each, in blocks of their own.

Source: T. Dettmers, A. Pagnoni, A. Holtzman and L. Zettlemoyer, 2023, "QLoRA: efficient finetuning
of quantized LLMs", section 3; the bytes' levels are those of Dettmers 2016, "8-bit approximations
for parallelism in deep learning", section 3.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gradbook.checks import require_finite
from gradbook.devices import device
from gradbook.peft.blockwise import FLOATS, absmax_dequantize, absmax_quantize
from gradbook.transformer_sizes import require_sizes

# The exponents of a byte's levels: from 1e-6 to 1.
EXPONENTS = 7
SECOND = 256


class QuantizedScales(NamedTuple):
    """Scales as bytes.

    Attributes:
        indices: of the levels, [n], uint8.
        absmax: the scale of each block of scales, [n / B, rounded up].
        mean: of the scales, what was taken off before.
    """

    indices: Tensor
    absmax: Tensor
    mean: Tensor


def dynamic_code(dtype: torch.dtype | None = None) -> Tensor:
    """Make a byte's levels, which are finer near 0: a byte with a moving point.

    Exponent e, from 0 to 6, stands for ``10**(e - 6)`` times a fraction
    from 0.1 to 1, and leaves e bits to the fraction: ``2**e`` equal cells,
    whose middles are levels. That is 127 of each sign; 0 and 1 make 256.

    Args:
        dtype: float32 or float64; by default torch's.

    Returns:
        [256], sorted, from -0.993 to 1. In float32 to the bit those of bitsandbytes.

    Raises:
        ValueError: if the type is another.

    Source: Dettmers 2016, section 3.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in FLOATS[:2]:
        raise ValueError(f"dtype: must be float32 or float64, got {dtype}")
    kind = {"dtype": dtype, "device": "cpu"}
    above = []
    for exponent in range(EXPONENTS):
        ends = torch.linspace(0.1, 1, 2**exponent + 1, **kind)
        middles = (ends[:-1] + ends[1:]) / 2
        above.append(10.0 ** (exponent - EXPONENTS + 1) * middles)
    positive = torch.cat(above)
    rest = torch.tensor([0.0, 1.0], **kind)
    return torch.cat([-positive, rest, positive]).sort().values.to(device())


def double_quantize(
    absmax: Tensor,
    block_size: int = SECOND,
) -> QuantizedScales:
    """Turn scales into bytes.

    Scales are positive, so their mean is taken off: then both signs of the
    byte are used.

    Args:
        absmax: [n], float32 or float64, finite.
        block_size: B; the last block may be shorter.

    Returns:
        The bytes, their scales and the mean.

    Raises:
        ValueError: if absmax is not such a vector, or B is below 1.

    Source: Dettmers et al. 2023, section 3.
    """
    require_sizes(block_size=block_size)
    if absmax.ndim != 1 or absmax.numel() == 0 or absmax.dtype not in FLOATS[:2]:
        got = f"{list(absmax.shape)} {absmax.dtype}"
        raise ValueError(f"absmax: must be [n], float32 or float64, got {got}")
    require_finite(absmax=absmax)
    code = dynamic_code(absmax.dtype).to(absmax.device)
    mean = absmax.mean()
    # Zeros, which change no largest value, fill up the last block.
    missing = -len(absmax) % block_size
    filled = functional.pad(absmax - mean, (0, missing))
    indices, second = absmax_quantize(filled, code, block_size)
    return QuantizedScales(indices.flatten()[: len(absmax)], second, mean)


def double_dequantize(scales: QuantizedScales, block_size: int = SECOND) -> Tensor:
    """Turn bytes back into scales.

    Args:
        scales: as :func:`double_quantize` gave them.
        block_size: B, as there.

    Returns:
        [n], of the type of the bytes' own scales; never below 0, as a scale's rounding may be.

    Raises:
        ValueError: if the parts do not fit each other.
    """
    require_sizes(block_size=block_size)
    indices, absmax, mean = scales
    require_finite(mean=mean)
    if indices.ndim != 1 or mean.ndim or mean.dtype != absmax.dtype:
        got = f"{list(indices.shape)}, {list(mean.shape)} {mean.dtype}"
        raise ValueError(f"scales: must be [n] bytes and a mean like absmax, got {got}")
    code = dynamic_code(absmax.dtype).to(absmax.device)
    filled = functional.pad(indices, (0, -len(indices) % block_size))
    if len(filled) != len(absmax) * block_size:
        got = f"{len(indices)}, {len(absmax)}"
        raise ValueError(f"scales: must be a byte each and a scale for each block, got {got}")
    differences = absmax_dequantize(filled.view(-1, block_size), absmax, code)
    return (differences[: len(indices)] + mean).clamp(min=0)
