"""Noise that is the same on every device: drawn on the CPU, then moved.

``standard_normal``, ``uniform`` and ``gumbel`` take a seed and serve a page; ``gumbel_noise`` takes a
generator and serves whoever draws batch after batch.
"""

import math

import torch
from torch import Tensor

from gradbook.devices import device


def standard_normal(*shape: int, seed: int) -> Tensor:
    """Draw independent standard normals from a generator of their own.

    Args:
        shape: the shape of the result.
        seed: the seed of the local generator.

    Returns:
        float64 draws on the book's device.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return draws.to(device())


def uniform(*shape: int, seed: int) -> Tensor:
    """Draw independent uniforms on the open interval (0, 1).

    ``torch.rand`` can return 0 exactly, where logarithms and quantile functions are infinite; it
    returns multiples of 2^-53, so half a multiple more is inside the interval; above 1/2 it rounds.

    Args:
        shape: the shape of the result.
        seed: the seed of the local generator.

    Returns:
        float64 draws on the book's device, from 2^-54 to 1 - 2^-53.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    return draws.add_(2.0**-54).clamp_(max=1 - 2.0**-53).to(device())


def gumbel(*shape: int, seed: int) -> Tensor:
    """Draw independent standard Gumbel variables from a generator of their own.

    Args:
        shape: the shape of the result.
        seed: the seed of the local generator.

    Returns:
        float64 draws on the book's device.
    """
    generator = torch.Generator().manual_seed(seed)
    return gumbel_noise(shape, generator, torch.float64, device())


def gumbel_noise(
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw independent standard Gumbel variables.

    Every draw takes the random bits of one integer, 32 of them in float32
    and 64 in float64: see :func:`noise_from_bits`.

    Args:
        shape: the shape of the result.
        generator: draws on its own device; by default torch's.
        dtype: float32 or float64; by default torch's. Half precision is
            refused: one pair of bfloat16 draws in a thousand would tie,
            and a tie always falls to the same class. Half-precision
            logits take float32 noise.
        device: of the result; by default torch's.

    Returns:
        Noise of the given shape.

    Raises:
        ValueError: if ``dtype`` is neither float32 nor float64.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    # torch 2.6 tells its default device only so.
    device = torch.empty(0).device if device is None else device
    if dtype not in _BITS:
        raise ValueError(f"dtype: must be float32 or float64, got {dtype}")
    where = device if generator is None else generator.device
    count = math.prod(shape)
    # 64 random bits at once cost less than twice 32.
    words = -(-count * dtype.itemsize // 8)
    drawn = torch.empty(words, dtype=torch.int64, device=where)
    drawn.random_(-(2**63), None, generator=generator)
    bits = drawn.view(_BITS[dtype])[:count].reshape(shape)
    return _overwrite_with_noise(bits).to(device)


def noise_from_bits(bits: Tensor) -> Tensor:
    """Turn random integers into standard Gumbel variables.

    An integer n of b bits is the uniform ``v = |n + 1/2| / 2**(b - 1)``,
    and the noise ``-log(-log(1 - v))``. Large noise has small v, which
    floating numbers resolve best: the noise ends at b log 2, 22.2 in
    float32 and 44.4 in float64, and a share ``2**-b`` of the law beyond
    is missing. At the other end 1 - v has the steps of the type and may
    be 0, which counts as half a step: the noise begins at -2.85 in
    float32 and -3.62 in float64.

    Args:
        bits: int32 for float32 noise, int64 for float64 noise; every
            value must be as likely as any other.

    Returns:
        Noise of the same shape.

    Raises:
        ValueError: if the bits are neither int32 nor int64.
    """
    if bits.dtype not in _BITS.values():
        raise ValueError(f"bits: must be int32 or int64, got {bits.dtype}")
    return _overwrite_with_noise(bits.clone())


_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def _overwrite_with_noise(bits: Tensor) -> Tensor:
    dtype = torch.float32 if bits.dtype == torch.int32 else torch.float64
    # The conversion is in place too: a second buffer costs as much as the logarithms.
    v = bits.view(dtype).copy_(bits).add_(0.5).abs_().div_(2.0 ** (8 * dtype.itemsize - 1))
    half_step = torch.finfo(dtype).eps / 4
    return v.neg_().log1p_().clamp_(min=math.log(half_step)).neg_().log_().neg_()
