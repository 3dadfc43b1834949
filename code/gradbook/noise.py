"""Noise that is the same on every device: drawn on the CPU, then moved."""

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
    returns multiples of 2^-53, so half a multiple more is inside the interval and changes no bin.

    Args:
        shape: the shape of the result.
        seed: the seed of the local generator.

    Returns:
        float64 draws on the book's device, from 2^-54 to 1 - 2^-53.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    return draws.add_(2.0**-54).clamp_(max=1 - 2.0**-53).to(device())
