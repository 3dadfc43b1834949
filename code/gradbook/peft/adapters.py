"""Adapters: small bottlenecks in a frozen network, and three ways to place them.

A bottleneck maps hidden states h [..., d] to m numbers, bends them and maps back; weights stand at
the right. A placement freezes what was there and reports what is trained. Default places: BERT's.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradbook.checks import require_finite
from gradbook.peft.injection import Injection, Report, Where, count, inject, matrix
from gradbook.peft.selection import named

ENDS_ATTENTION = named(r"(.*\.)?attention\.output\.dense")
ENDS_FEED_FORWARD = named(r"(.*(?<!attention)\.)?output\.dense")
IS_FEED_FORWARD_OUTPUT = named(r"(.*(?<!attention)\.)?output")


class Bottleneck(nn.Module):
    """A two-layer network with a skip: h -> h + f(h W_down + b_down) W_up + b_up.

    Weights are drawn from a normal of standard deviation ``std``, cut off
    at two of them, and the biases are zero: at the start the map is near
    the identity.

    Args:
        width: d, numbers of a hidden state.
        size: m, numbers in the bottleneck.
        generator: of the weights, on the CPU. Draws are in float64, so that
            every type gets the same numbers, rounded.
        activation: f, elementwise.
        std: zero makes the start exactly the identity.
        dtype: of the parameters.
        device: of the parameters.

    Attributes:
        down: W_down, [d, m].
        down_bias: b_down, [m].
        up: W_up, [m, d].
        up_bias: b_up, [d].

    Raises:
        ValueError: if a size is not positive or ``std`` is negative or not
            finite.

    Source: Houlsby et al. 2019, section 2.1 and figure 2.
    """

    def __init__(
        self,
        width: int,
        size: int,
        generator: torch.Generator,
        activation: Callable[[Tensor], Tensor] = functional.gelu,
        std: float = 1e-2,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        bottleneck_parameters(width, size)
        if not 0 <= std < math.inf:
            raise ValueError(f"std: must be finite and not negative, got {std}")
        to = {"dtype": dtype, "device": device}
        self.width, self.activation = width, activation
        self.down = nn.Parameter(_cut_normal(width, size, generator, std).to(**to))
        self.down_bias = nn.Parameter(torch.zeros(size, **to))
        self.up = nn.Parameter(_cut_normal(size, width, generator, std).to(**to))
        self.up_bias = nn.Parameter(torch.zeros(width, **to))

    def branch(self, h: Tensor) -> Tensor:
        """Compute what is added to h.

        Args:
            h: [..., d].

        Returns:
            [..., d].

        Raises:
            ValueError: if the last axis of h is not d long.
        """
        if h.shape[-1:] != (self.width,):
            got = list(h.shape)
            raise ValueError(f"h: must be [..., {self.width}], got {got}")
        inner = self.activation(h @ self.down + self.down_bias)
        return inner @ self.up + self.up_bias

    def forward(self, h: Tensor) -> Tensor:
        """Adapt hidden states, [..., d]; raises as :meth:`branch`."""
        return h + self.branch(h)


class Serial(nn.Module):
    """An adapter after a layer: x -> adapter(layer(x)).

    Around the linear layer that ends a branch of a block, the adapter
    stands before the residual sum.

    Args:
        layer: of one argument.
        adapter: maps the layer's output to its like.

    Attributes:
        passed_over: while true, the layer runs alone: see
            :func:`gradbook.peft.adapter_drop.dropped`.
    """

    def __init__(self, layer: nn.Module, adapter: nn.Module):
        super().__init__()
        self.layer, self.adapter = layer, adapter
        self.passed_over = False

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to what it takes, then the adapter."""
        h = self.layer(x)
        return h if self.passed_over else self.adapter(h)


class Parallel(nn.Module):
    """An adapter beside a feed-forward branch, reading the branch's own input.

    The wrapped module ends the branch. It has ``dense``, ``dropout`` and
    ``LayerNorm``, as BERT's ``BertOutput``, and its second argument, the
    residual, is the input of the branch.

    Args:
        branch: the wrapped module.
        adapter: only its ``branch`` is used; the skip is the block's.
        scale: of the adapter's output.

    Attributes:
        passed_over: while true, the wrapped module runs alone.

    Raises:
        ValueError: if the branch lacks one of its three parts or the scale
            is not finite.

    Source: He et al. 2021, section 3.
    """

    def __init__(self, branch: nn.Module, adapter: Bottleneck, scale: float):
        super().__init__()
        if not all(hasattr(branch, part) for part in ("dense", "dropout", "LayerNorm")):
            raise ValueError("branch: must have dense, dropout and LayerNorm")
        require_finite(scale=scale)
        self.branch, self.adapter, self.scale = branch, adapter, scale
        self.passed_over = False

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """End the branch: from its inner states [..., D] and its input [..., d], to [..., d]."""
        if self.passed_over:
            return self.branch(hidden, residual)
        beside = self.scale * self.adapter.branch(residual)
        h = self.branch.dropout(self.branch.dense(hidden) + beside)
        return self.branch.LayerNorm(h + residual)


def bottleneck_parameters(width: int, size: int) -> int:
    """Count the numbers of a bottleneck: 2 m d + d + m.

    Args:
        width: d.
        size: m.

    Returns:
        The count.

    Raises:
        ValueError: if a size is not positive.
    """
    for name, value in {"width": width, "size": size}.items():
        if value < 1:
            raise ValueError(f"{name}: must be positive, got {value}")
    return 2 * size * width + width + size


def houlsby(
    model: nn.Module,
    size: int,
    generator: torch.Generator,
    attention: Where = ENDS_ATTENTION,
    feed_forward: Where = ENDS_FEED_FORWARD,
) -> Injection:
    """Put two adapters into every block, and train the LayerNorms too.

    Args:
        model: changed in place.
        size: m, of every adapter.
        generator: of their weights, on the CPU.
        attention: chooses the linear layers that end attention.
        feed_forward: chooses those that end the feed-forward branch.

    Returns:
        What was done; ``trainable`` includes every LayerNorm of the model.

    Raises:
        ValueError: if a chosen layer is not linear, or as
            :class:`Bottleneck` and :func:`gradbook.peft.injection.inject`.

    Source: Houlsby et al. 2019, section 2.1.
    """

    def where(name: str, module: nn.Module) -> bool:
        return attention(name, module) or feed_forward(name, module)

    injection = pfeiffer(model, size, generator, where)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)
    injection.report = Report(*count(model), injection.report.layers)
    return injection


def pfeiffer(
    model: nn.Module,
    size: int,
    generator: torch.Generator,
    feed_forward: Where = ENDS_FEED_FORWARD,
) -> Injection:
    """Put one adapter into every block, at the end of the feed-forward branch.

    Args:
        model: changed in place.
        size: m, of every adapter.
        generator: of their weights, on the CPU.
        feed_forward: chooses the linear layers that an adapter follows.

    Returns:
        What was done.

    Raises:
        ValueError: as :func:`houlsby`.

    Source: Pfeiffer et al. 2020, AdapterFusion.
    """

    def make(layer: nn.Module) -> nn.Module:
        return Serial(layer, _after(layer, size, generator))

    return inject(model, feed_forward, make)


def parallel(
    model: nn.Module,
    size: int,
    generator: torch.Generator,
    scale: float = 4.0,
    feed_forward: Where = IS_FEED_FORWARD_OUTPUT,
) -> Injection:
    """Put one scaled adapter beside every feed-forward branch.

    Args:
        model: changed in place.
        size: m, of every adapter.
        generator: of their weights, on the CPU.
        scale: of every adapter's output.
        feed_forward: chooses the modules that end a feed-forward branch.

    Returns:
        What was done.

    Raises:
        ValueError: as :func:`houlsby` and :class:`Parallel`.

    Source: He et al. 2021, section 4.
    """

    def make(branch: nn.Module) -> nn.Module:
        dense = getattr(branch, "dense", branch)
        return Parallel(branch, _after(dense, size, generator), scale)

    return inject(model, feed_forward, make)


def adapters_of(model: nn.Module) -> list[nn.Module]:
    """List the adapters of a model in the order of its layers, two in one block as they run."""
    return [m.adapter for m in model.modules() if isinstance(m, Serial | Parallel)]


def innermost(layer: nn.Module) -> nn.Module:
    """Look through adapters at the layer that they follow."""
    while isinstance(layer, Serial):
        layer = layer.layer
    return layer


def _after(layer: nn.Module, size: int, generator: torch.Generator) -> Bottleneck:
    """Make an adapter for what a linear layer returns, of its type and on its device."""
    weight = matrix(innermost(layer))
    to = {"dtype": weight.dtype, "device": weight.device}
    return Bottleneck(weight.shape[0], size, generator, **to)


def _cut_normal(rows: int, columns: int, generator: torch.Generator, std: float) -> Tensor:
    drawn = torch.empty(rows, columns, dtype=torch.float64, device="cpu")
    return std * nn.init.trunc_normal_(drawn, a=-2, b=2, generator=generator)
