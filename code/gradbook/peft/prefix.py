"""Prefix tuning: learnt keys and values in front of those of every attention layer.

A prefix of n positions is two tables [n, d] for each layer; the network is frozen. Heads share keys
in groups, as in grouped-query attention, if there are fewer of the keys than of the queries.

Source: X. L. Li and P. Liang, 2021, "Prefix-tuning: optimizing continuous prompts for generation".
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradbook.checks import require, require_finite
from gradbook.peft.injection import Injection, Where, inject, matrix
from gradbook.peft.selection import named
from gradbook.priors.grids import require_sizes

IS_SELF_ATTENTION = named(r"(.*\.)?attention\.self")
PARTS = ("query", "key", "value", "dropout", "num_attention_heads")


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average values with the softmax of scaled dot products as weights.

    Args:
        q: queries, [..., h, T, d].
        k: keys, [..., h_kv, S, d]; a key's head serves h / h_kv heads of
            the queries in a row.
        v: values, [..., h_kv, S, e].
        mask: boolean, broadcasts to [..., h, T, S]; true where a query may
            look. None lets all look everywhere.

    Returns:
        [..., h, T, e].

    Raises:
        ValueError: if shapes or types do not fit, a number is not finite,
            or a query may look nowhere.

    Source: Vaswani et al. 2017, equation 1; groups: Ainslie et al. 2023.
    """
    _require_heads(q, k=k, v=v)
    if v.shape[-3:-1] != k.shape[-3:-1]:
        raise ValueError(f"v: must have the heads and positions of k, is {list(v.shape)}")
    _require_mask(mask, q, k)
    if mask is not None:
        require(mask.any(-1), "mask: every query must see a position")
    return _weights(q, k, mask) @ _for_heads(v, q)


def prefix_share(
    q: Tensor, k_prefix: Tensor, k_content: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Compute lambda, the part of the attention that a prefix draws.

    Attention over prefix and content is (1 - lambda) times that over the
    content plus lambda times that over the prefix: see :func:`attention`.

    Args:
        q: queries, [..., h, T, d].
        k_prefix: [..., h_kv, n, d]; every query sees all of it.
        k_content: [..., h_kv, S, d].
        mask: of the content, as for :func:`attention`. A query that may
            look nowhere in the content gives all to the prefix.

    Returns:
        lambda, [..., h, T], from 0 to 1.

    Raises:
        ValueError: if shapes or types do not fit or a number is not finite.

    Source: He et al. 2022, section 3.1.
    """
    _require_heads(q, k_prefix=k_prefix, k_content=k_content)
    _require_mask(mask, q, k_content)
    prefix_mass = _scores(q, k_prefix, None).logsumexp(-1)
    content_mass = _scores(q, k_content, mask).logsumexp(-1)
    return torch.sigmoid(prefix_mass - content_mass)


class _Prefixed(nn.Module):
    """The forward pass that plain and reparameterized prefixes share; they differ in ``learnt``."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.width, self.inputs = _require_attention(layer).shape
        self.layer = layer

    def learnt(self) -> tuple[Tensor, Tensor]:
        """Give the keys and the values of the prefix, [n, d] each."""
        raise NotImplementedError

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attend to the prefix and to the text; the signature is that of ``BertSelfAttention``.

        Args:
            hidden_states: [B, T, in].
            attention_mask: of the text, [B, 1, 1 or T, T], boolean or added to the scores.
            past_key_values: must be None.
            **kwargs: what the library passes besides; not used.

        Returns:
            [B, T, d], and the weights [B, h, T, n + T].

        Raises:
            ValueError: if a shape or a type does not fit.
        """
        keys, values = self.learnt()
        given = hidden_states, attention_mask, past_key_values
        self._require_inputs(*given, keys.dtype)
        layer = self.layer
        maps = layer.query, layer.key, layer.value
        q, k, v = (self._heads(f(hidden_states)) for f in maps)
        k, v = (
            torch.cat([self._heads(p).expand(len(x), -1, -1, -1), x], -2)
            for p, x in ((keys, k), (values, v))
        )
        weights = _weights(q, k, _extended(attention_mask, len(keys)))
        mixed = layer.dropout(weights) @ v
        return mixed.transpose(-3, -2).flatten(-2), weights

    def _heads(self, x: Tensor) -> Tensor:
        """Cut the width into heads: [..., T, d] to [..., h, T, d / h]."""
        heads = self.layer.num_attention_heads
        return x.unflatten(-1, (heads, self.width // heads)).transpose(-3, -2)

    def _require_inputs(
        self, hidden: Tensor, mask: Tensor | None, past: object, dtype: torch.dtype
    ) -> None:
        if past is not None:
            raise ValueError("past_key_values: must be None, a prefix keeps no cache")
        if hidden.ndim != 3 or hidden.shape[-1] != self.inputs:
            raise ValueError(
                f"hidden_states: must be [B, T, {self.inputs}], is {list(hidden.shape)}"
            )
        if hidden.dtype != dtype and not torch.is_autocast_enabled(hidden.device.type):
            raise ValueError(f"hidden_states: must be {dtype}, is {hidden.dtype}")
        if mask is not None and (mask.ndim != 4 or mask.shape[-1] != hidden.shape[1]):
            raise ValueError(
                f"attention_mask: must be [B, 1, 1 or T, {hidden.shape[1]}], is {list(mask.shape)}"
            )
        if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
            raise ValueError(f"attention_mask: must be boolean or floating, is {mask.dtype}")


class PrefixSelfAttention(_Prefixed):
    """A self-attention of BERT with learnt keys and values in front.

    No position is counted for the prefix: the text keeps its own.

    Args:
        layer: has ``query``, ``key``, ``value``, ``dropout`` and
            ``num_attention_heads``, as ``BertSelfAttention``.
        prefix_keys: [n, d], where the start of the keys is; copied.
        prefix_values: [n, d], likewise.

    Raises:
        ValueError: if the layer is no such attention or a causal one, or a
            start has another shape or type or is not finite.

    Source: Li and Liang 2021, section 4.2.
    """

    def __init__(self, layer: nn.Module, prefix_keys: Tensor, prefix_values: Tensor):
        super().__init__(layer)
        weight = matrix(layer.key)
        for name, x in {"prefix_keys": prefix_keys, "prefix_values": prefix_values}.items():
            _require_table(name, x, self.width, weight.dtype)
        if prefix_values.shape != prefix_keys.shape:
            raise ValueError("prefix_values: must be as long as prefix_keys")
        self.keys = nn.Parameter(prefix_keys.detach().to(weight.device, copy=True))
        self.values = nn.Parameter(prefix_values.detach().to(weight.device, copy=True))

    def learnt(self) -> tuple[Tensor, Tensor]:
        """Give the keys and the values, [n, d] each."""
        return self.keys, self.values


def prefix_parameters(layers: int, length: int, width: int) -> int:
    """Count the numbers of a prefix: 2 L n d.

    Args:
        layers: L.
        length: n.
        width: d.

    Returns:
        The count.

    Raises:
        ValueError: if one of them is below 1.
    """
    require_sizes(layers=layers, length=length, width=width)
    return 2 * layers * length * width


def prefix(
    model: nn.Module,
    length: int,
    generator: torch.Generator,
    where: Where = IS_SELF_ATTENTION,
    std: float = 0.02,
) -> Injection:
    """Put a prefix in front of every attention layer of a model, and freeze the rest.

    Args:
        model: changed in place.
        length: n.
        generator: of the start, on the CPU; draws are normal, in float64, then rounded.
        where: chooses the attention layers.
        std: of the draws.

    Returns:
        What was done; 2 L n d numbers are trained.

    Raises:
        ValueError: if the length is below 1, ``std`` is negative or not finite, or as
            :class:`PrefixSelfAttention` and :func:`gradbook.peft.injection.inject`.
    """
    require_sizes(length=length)
    require_finite(std=std)
    if std < 0:
        raise ValueError(f"std: must not be negative, got {std}")

    def make(layer: nn.Module) -> nn.Module:
        weight = _require_attention(layer)
        shape = 2, length, len(weight)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        return PrefixSelfAttention(layer, *(std * drawn).to(weight.dtype))

    return inject(model, where, make)


class Reparameterized(nn.Module):
    """A prefix computed from fewer numbers while it is learnt: P = MLP(E).

    Each row of an embedding [n, d] passes d -> hidden, tanh, 2 L d, which
    is its keys and values in all layers. The embedding starts normal, the
    weights uniform within ``1 / sqrt(in)``, the biases zero.

    Args:
        layers: L.
        length: n.
        width: d.
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
        """Compute all keys and values, [L, 2, n, d], to be kept alone: see :func:`put`."""
        return torch.stack([torch.stack(self.of_layer(i)) for i in range(self.layers)])


class ReparameterizedSelfAttention(_Prefixed):
    """A self-attention of BERT whose prefix is computed anew in every forward pass.

    Args:
        layer: as for :class:`PrefixSelfAttention`.
        source: of the prefix; all layers share it.
        index: of the layer.

    Raises:
        ValueError: if the layer is no such attention, or the source has
            another width, type or number of layers.
    """

    def __init__(self, layer: nn.Module, source: Reparameterized, index: int):
        super().__init__(layer)
        dtype = matrix(layer.key).dtype
        if source.width != self.width or source.embedding.dtype != dtype:
            raise ValueError(f"source: must be of width {self.width} and {dtype}")
        if not 0 <= index < source.layers:
            raise ValueError(f"index: must be from 0 to {source.layers - 1}, got {index}")
        self.source, self.index = source, index

    def learnt(self) -> tuple[Tensor, Tensor]:
        """Compute the keys and the values, [n, d] each."""
        return self.source.of_layer(self.index)


def put(model: nn.Module, start: Tensor, where: Where = IS_SELF_ATTENTION) -> Injection:
    """Put a given prefix in front of the attention layers, as :func:`prefix` puts a drawn one.

    Args:
        model: changed in place.
        start: keys and values, [L, 2, n, d], in the order of the layers.
        where: chooses the L attention layers.

    Returns:
        What was done.

    Raises:
        ValueError: if the shape does not fit, or as :func:`prefix`.
    """
    if start.ndim != 4 or start.shape[1] != 2:
        raise ValueError(f"start: must be [L, 2, n, d], is {list(start.shape)}")
    order = _order(model, where)
    if len(order) != len(start):
        raise ValueError(f"start: has {len(start)} layers, the model {len(order)}")
    return inject(model, where, lambda layer: PrefixSelfAttention(layer, *start[order[layer]]))


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
    order = _order(model, where)
    if len(order) != source.layers:
        raise ValueError(f"source: has {source.layers} layers, the model {len(order)}")

    def make(layer: nn.Module) -> nn.Module:
        return ReparameterizedSelfAttention(layer, source, order[layer])

    return inject(model, where, make)


def _order(model: nn.Module, where: Where) -> dict[nn.Module, int]:
    """Number the layers that will be replaced."""
    chosen = [module for name, module in model.named_modules() if name and where(name, module)]
    if not chosen:
        raise ValueError("where: holds for no module of the model")
    return {module: i for i, module in enumerate(chosen)}


def _scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Give scaled dot products [..., h, T, S], masked by a Boolean or an added mask."""
    scores = q @ _for_heads(k, q).mT * q.shape[-1] ** -0.5
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -torch.inf)
    return scores + mask


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    return _scores(q, k, mask).softmax(-1)


def _for_heads(x: Tensor, q: Tensor) -> Tensor:
    """Repeat each head of keys or values for the heads of queries in its group."""
    return x.repeat_interleave(q.shape[-3] // x.shape[-3], -3)


def _extended(mask: Tensor | None, length: int) -> Tensor | None:
    """Let a mask of the text, Boolean or added, show a prefix to every query."""
    if mask is None:
        return None
    seen = True if mask.dtype == torch.bool else 0.0
    return functional.pad(mask, (length, 0), value=seen)


def _require_attention(layer: nn.Module) -> Tensor:
    """Raise unless a layer is a self-attention like BERT's; give the weights of its keys."""
    if not all(hasattr(layer, part) for part in PARTS):
        raise ValueError(f"layer: must have {', '.join(PARTS)}")
    # A causal layer may be given no mask and leave it to the kernel, which is not used here.
    if getattr(layer, "is_causal", False) or getattr(layer, "is_decoder", False):
        raise ValueError("layer: must not be causal")
    return matrix(layer.key)


def _require_table(name: str, x: Tensor, width: int, dtype: torch.dtype) -> None:
    if x.ndim != 2 or x.shape[-1] != width or len(x) < 1:
        raise ValueError(f"{name}: must be [n, {width}] with n at least 1, is {list(x.shape)}")
    if x.dtype != dtype:
        raise ValueError(f"{name}: must be {dtype}, is {x.dtype}")
    if x.device.type != "meta":
        require_finite(**{name: x})


def _require_heads(q: Tensor, **others: Tensor) -> None:
    if q.ndim < 3 or q.shape[-1] < 1:
        raise ValueError(f"q: must be [..., h, T, d], is {list(q.shape)}")
    for name, x in others.items():
        if x.ndim < 3 or x.shape[-2] < 1 or (name != "v" and x.shape[-1] != q.shape[-1]):
            raise ValueError(f"{name}: must be [..., h_kv, S, {q.shape[-1]}], is {list(x.shape)}")
        if x.shape[-3] < 1 or q.shape[-3] % x.shape[-3]:
            raise ValueError(f"{name}: must have heads that divide {q.shape[-3]}")
        if x.dtype != q.dtype:
            raise ValueError(f"{name}: must be {q.dtype}, is {x.dtype}")
    require_finite(q=q, **others)


def _require_mask(mask: Tensor | None, q: Tensor, k: Tensor) -> None:
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: must be boolean, is {mask.dtype}")
    rows, columns = q.shape[-2], k.shape[-2]
    if mask.ndim < 2 or mask.shape[-1] != columns or mask.shape[-2] not in (1, rows):
        raise ValueError(f"mask: must be [..., {rows}, {columns}], is {list(mask.shape)}")
