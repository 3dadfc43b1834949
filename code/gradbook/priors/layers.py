"""Layers in float32 on the CPU, whose weights come from the caller's generator.

torch's own constructors draw from its global generator and take a page's default type and device.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

HERE = {"dtype": torch.float32, "device": "cpu"}
_zeros = partial(torch.zeros, **HERE)


def linear(inputs: int, outputs: int, std: float, generator: torch.Generator) -> nn.Linear:
    """Build a linear layer with normal weights and no bias at the start.

    Args:
        inputs: features.
        outputs: features.
        std: of the weights.
        generator: of the CPU.

    Returns:
        A layer whose bias is zero.
    """
    return _started(skip_init(nn.Linear, inputs, outputs, **HERE), std, generator)


def convolution(
    inputs: int,
    outputs: int,
    kernel: tuple[int, int],
    generator: torch.Generator,
) -> nn.Conv2d:
    """Build a convolution without padding whose outputs start as large as its inputs.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: its height and width.
        generator: of the CPU.

    Returns:
        A layer with normal weights of variance 1 / fan-in and zero bias.
    """
    layer = skip_init(nn.Conv2d, inputs, outputs, kernel, **HERE)
    return _started(layer, (inputs * kernel[0] * kernel[1]) ** -0.5, generator)


def table(rows: int, dim: int, std: float, generator: torch.Generator) -> nn.Parameter:
    """Draw vectors to be looked up.

    Args:
        rows: how many.
        dim: of a vector.
        std: of a coordinate.
        generator: of the CPU.

    Returns:
        [rows, dim], normal.
    """
    return nn.Parameter(_zeros(rows, dim).normal_(0, std, generator=generator))


def norm(dim: int) -> nn.LayerNorm:
    """Build a layer that brings each vector to mean 0 and variance 1, then scales it by learnt numbers.

    Args:
        dim: of a vector.

    Returns:
        A layer whose scales are one and shifts zero.
    """
    return nn.LayerNorm(dim, **HERE)


def _started(layer: nn.Module, std: float, generator: torch.Generator) -> nn.Module:
    weight: Tensor = layer.weight
    nn.init.normal_(weight, 0, std, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
