"""AdapterDrop: run a model without the adapters of its lowest layers.

Where adapters alone are trained, the backward pass ends at the lowest that runs. Houlsby's placement
trains the LayerNorms below it too, so there it goes on. Inference skips the work of the others.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gradbook.peft.adapters import Parallel, Serial


@contextmanager
def dropped(model: nn.Module, layers: int) -> Iterator[None]:
    """Pass over the adapters of the first layers within a ``with`` block.

    There the wrapped layers run alone, as if nothing had been put into
    them. All other adapters run, also those that an outer block passes
    over: the inner block alone counts until its end.

    A layer's number is the first number in a module's name, as 3 in
    ``encoder.layer.3.output.dense``.

    Args:
        model: has adapters, each in a numbered layer.
        layers: n, how many of the first layers go without; 0 drops none.

    Yields:
        Nothing; at the end, also after an exception, all is as before.

    Raises:
        ValueError: if the model has no adapters, or one in a layer without
            a number, or n is negative or more than the layers up to the
            last adapter's.

    Source: Rücklé et al. 2020, section 3.
    """
    number = numbered(model)
    depth = 1 + max(number.values())
    if not 0 <= layers <= depth:
        raise ValueError(f"layers: must be from 0 to {depth}, got {layers}")
    before = {wrapper: wrapper.passed_over for wrapper in number}
    try:
        for wrapper, layer in number.items():
            wrapper.passed_over = layer < layers
        yield
    finally:
        for wrapper, passed_over in before.items():
            wrapper.passed_over = passed_over


def drawn_layers(layers: int, generator: torch.Generator) -> int:
    """Draw how many layers go without adapters in a training step.

    A model trained so works with any number of them at inference.

    Args:
        layers: L, of the model.
        generator: of the CPU.

    Returns:
        n, uniform on 0, ..., L - 1: the last layer keeps its adapters.

    Raises:
        ValueError: if L is not positive.

    Source: Rücklé et al. 2020, section 3, "robust" dropping.
    """
    if layers < 1:
        raise ValueError(f"layers: must be positive, got {layers}")
    to = {"dtype": torch.int64, "device": "cpu"}
    return int(torch.randint(layers, (), generator=generator, **to))


def numbered(model: nn.Module) -> dict[Serial | Parallel, int]:
    """Find the adapters of a model, and the numbers of their layers.

    Args:
        model: has adapters, each in a numbered layer.

    Returns:
        By what holds an adapter, the first number in its name.

    Raises:
        ValueError: if there is none, or one in a layer without a number.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Serial | Parallel):
            numbers = [int(part) for part in name.split(".") if part.isdecimal()]
            if not numbers:
                raise ValueError(f"model: no number in the name of a layer with adapter, {name!r}")
            found[module] = numbers[0]
    if not found:
        raise ValueError("model: has no adapters")
    return found
