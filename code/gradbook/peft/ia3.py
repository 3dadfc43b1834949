"""IA3: tune a transformer by learnt vectors that scale what some of its layers give or take.

Source: H. Liu, D. Tam, M. Muqeeth, J. Mohta, T. Huang, M. Bansal and C. Raffel, 2022, "Few-shot
parameter-efficient fine-tuning is better and cheaper than in-context learning", section 3.3.
"""

import torch
from torch import Tensor, nn

from gradbook.peft.injection import Injection, Where, inject, matrix, require_input


class Scaled(nn.Module):
    """A linear layer whose output is multiplied by a learnt vector, 1 at the start.

    Args:
        layer: linear, as for :func:`gradbook.peft.injection.matrix`.

    Raises:
        ValueError: if the layer is not linear.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        weight = matrix(layer)
        self.layer = layer
        self.scale = _ones(weight.shape[0], weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer and scale.

        Args:
            x: [..., in].

        Returns:
            [..., out].

        Raises:
            ValueError: as :func:`gradbook.peft.injection.require_input`.
        """
        require_input(x, self.layer)
        return self.layer(x) * self.scale

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Write the vector into the layer's weights and bias, and set it to 1.

        A layer that shares its weights with another changes both.

        Returns:
            The layer, which now does by itself what this module does.
        """
        matrix(self.layer).mul_(self.scale[:, None])
        if self.layer.bias is not None:
            self.layer.bias.mul_(self.scale)
        self.scale.fill_(1)
        return self.layer


class ScaledInput(nn.Module):
    """A linear layer whose input is multiplied by a learnt vector, 1 at the start.

    Args:
        layer: linear, as for :func:`gradbook.peft.injection.matrix`.

    Raises:
        ValueError: if the layer is not linear.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        weight = matrix(layer)
        self.layer = layer
        self.scale = _ones(weight.shape[1], weight)

    def forward(self, x: Tensor) -> Tensor:
        """Scale and apply the layer.

        Args:
            x: [..., in].

        Returns:
            [..., out].

        Raises:
            ValueError: as :func:`gradbook.peft.injection.require_input`.
        """
        require_input(x, self.layer)
        return self.layer(x * self.scale)

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Write the vector into the layer's weights, and set it to 1.

        A layer that shares its weights with another changes both.

        Returns:
            The layer, which now does by itself what this module does.
        """
        matrix(self.layer).mul_(self.scale)
        self.scale.fill_(1)
        return self.layer


def ia3(model: nn.Module, key_value: Where, feed_forward: Where) -> Injection:
    """Scale a model's keys, values and hidden units of the feed-forward networks.

    In GPT-2 one layer gives queries, keys and values: its whole output is scaled, as in the
    library ``peft``.

    Args:
        model: changed in place, as by :func:`gradbook.peft.injection.inject`.
        key_value: of a name and a module; holds for the layers that give keys and values, whose
            output is scaled.
        feed_forward: holds for the second layer of each feed-forward network, whose input is
            scaled.

    Returns:
        What was done, and the way back.

    Raises:
        ValueError: if one of the two holds for no module, or both for the same one, or one for a
            layer that is not linear.
    """
    modules = [pair for pair in model.named_modules(remove_duplicate=False) if pair[0]]
    outputs = {module for name, module in modules if key_value(name, module)}
    inputs = {module for name, module in modules if feed_forward(name, module)}
    for name, found in (("key_value", outputs), ("feed_forward", inputs)):
        if not found:
            raise ValueError(f"{name}: holds for no module of the model")
    if outputs & inputs:
        raise ValueError("feed_forward: holds for a module for which key_value holds")

    def make(layer: nn.Module) -> nn.Module:
        return Scaled(layer) if layer in outputs else ScaledInput(layer)

    return inject(model, lambda name, module: module in outputs | inputs, make)


def _ones(size: int, like: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.ones(size, dtype=like.dtype, device=like.device))
