"""A prefix computed from fewer numbers while it is learnt; what is computed is kept alone.

Source: X. L. Li and P. Liang, 2021, "Prefix-tuning: optimizing continuous prompts for generation",
section 4.3.
"""

import torch
from torch import Tensor, nn

from gradbook.peft.injection import Injection, Where, inject
from gradbook.peft.prefix import IS_SELF_ATTENTION, Prefixed, layer_order, require_attention
from gradbook.priors.grids import require_sizes


class Reparameterized(nn.Module):
    """A prefix computed from fewer numbers while it is learnt: P = MLP(E).

    Each row of an embedding [n, d] passes d -> hidden, tanh, 2 L d, which
    is its keys and values in all layers. The embedding starts normal, the
    weights uniform within ``1 / sqrt(in)``, the biases zero.

    Args:
        layers: L.
        length: n.
        width: d, of the keys.
        hidden: inner width.
        generator: of the start, on the CPU; draws are in float64.
        dtype: of the parameters.
        device: of the parameters.

    Raises:
        ValueError: if a size is below 1.

    Source: Li and Liang 2021, section 4.3.
    """

    def __init__(
        self,
        layers: int,
        length: int,
        width: int,
        hidden: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        require_sizes(layers=layers, length=length, width=width, hidden=hidden)
        self.layers, self.width = layers, width

        def uniform(*shape: int) -> nn.Parameter:
            drawn = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
            return nn.Parameter(((2 * drawn - 1) * shape[0] ** -0.5).to(device, dtype))

        def zeros(size: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(size, dtype=dtype, device=device))

        shape, outputs = (length, width), 2 * layers * width
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        self.embedding = nn.Parameter(drawn.to(device, dtype))
        self.inner, self.inner_bias = uniform(width, hidden), zeros(hidden)
        self.outer, self.outer_bias = uniform(hidden, outputs), zeros(outputs)

    def of_layer(self, i: int) -> tuple[Tensor, Tensor]:
        """Compute the keys and the values of layer i, [n, d] each."""
        inner = torch.tanh(self.embedding @ self.inner + self.inner_bias)
        columns = slice(2 * i * self.width, 2 * (i + 1) * self.width)
        rows = inner @ self.outer[:, columns] + self.outer_bias[columns]
        keys, values = rows.chunk(2, -1)
        return keys, values

    @torch.no_grad()
    def folded(self) -> Tensor:
        """Compute all keys and values, [L, 2, n, d], for :func:`gradbook.peft.prefix.put`."""
        return torch.stack([torch.stack(self.of_layer(i)) for i in range(self.layers)])


class ReparameterizedSelfAttention(Prefixed):
    """A self-attention whose prefix is computed anew in every forward pass.

    Args:
        layer: as for :class:`gradbook.peft.prefix.PrefixSelfAttention`.
        source: of the prefix; all layers share it.
        index: of the layer.

    Raises:
        ValueError: if the layer is no such attention, the source has another
            width or type or is on another device, or the index is not of
            one of its layers.
    """

    def __init__(self, layer: nn.Module, source: Reparameterized, index: int):
        super().__init__(layer)
        keys, start = require_attention(layer), source.embedding
        if source.width != self.width or start.dtype != keys.dtype:
            raise ValueError(f"source: must be of width {self.width} and {keys.dtype}")
        if start.device != keys.device:
            raise ValueError(f"source: must be on {keys.device}, is on {start.device}")
        if not 0 <= index < source.layers:
            raise ValueError(f"index: must be from 0 to {source.layers - 1}, got {index}")
        self.source, self.index = source, index

    def learnt(self) -> tuple[Tensor, Tensor]:
        """Compute the keys and the values, [n, d] each."""
        return self.source.of_layer(self.index)


def put_reparameterized(
    model: nn.Module, source: Reparameterized, where: Where = IS_SELF_ATTENTION
) -> Injection:
    """Put a reparameterized prefix in front of the attention layers; all of it is trained.

    Args:
        model: changed in place.
        source: of the prefix, of the model's type and on its device.
        where: chooses the L attention layers.

    Returns:
        What was done.

    Raises:
        ValueError: if the source has another number of layers, or as
            :class:`ReparameterizedSelfAttention`.
    """
    order = layer_order(model, where)
    if len(order) != source.layers:
        raise ValueError(f"source: has {source.layers} layers, the model {len(order)}")

    def make(layer: nn.Module) -> nn.Module:
        return ReparameterizedSelfAttention(layer, source, order[layer])

    return inject(model, where, make)
