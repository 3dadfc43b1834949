"""Prefix tuning: learnt keys and values in front of those of every attention layer.

A prefix of n positions is two tables [n, d] for each layer; the network is frozen. BERT attends to
them as here, Llama as in :mod:`gradbook.peft.prefix_decoder`.

Source: X. L. Li and P. Liang, 2021, "Prefix-tuning: optimizing continuous prompts for generation".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradbook.checks import require_finite
from gradbook.peft.grouped_attention import (
    behind,
    extended,
    require_text_mask,
    split_heads,
    weights,
)
from gradbook.peft.injection import Injection, Where, inject, matrix, places
from gradbook.peft.prefix_decoder import LLAMA_PARTS, llama_attention, llama_keys
from gradbook.peft.selection import named
from gradbook.priors.grids import require_sizes

IS_SELF_ATTENTION = named(r"(.*\.)?(attention\.self|self_attn)")
BERT_PARTS = ("query", "key", "value", "dropout", "num_attention_heads")


def bert_attention(
    layer: nn.Module,
    keys: Tensor,
    values: Tensor,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attend to a prefix and to the text, as ``BertSelfAttention`` to the text.

    No position is counted for the prefix: the text keeps its own.

    Args:
        layer: a ``BertSelfAttention`` of transformers that is not causal.
        keys: of the prefix, [n, d].
        values: of the prefix, [n, d].
        hidden_states: [B, T, in].
        attention_mask: of the text, [B or 1, 1, T or 1, T], Boolean or added to the scores.
        past_key_values: must be None.
        **kwargs: what the library passes besides; not used.

    Returns:
        [B, T, d], and the weights [B, h, T, n + T].

    Raises:
        ValueError: if a mask does not fit, or there is a cache.
    """
    if past_key_values is not None:
        raise ValueError("past_key_values: must be None, an encoder keeps no cache")
    batch, tokens, _ = hidden_states.shape
    require_text_mask(attention_mask, batch, tokens, tokens)
    size = keys.shape[-1] // layer.num_attention_heads
    maps = layer.query, layer.key, layer.value
    q, k, v = (split_heads(f(hidden_states), size) for f in maps)
    mask = extended(attention_mask, len(keys))
    shares = weights(q, behind(keys, k), mask)
    mixed = layer.dropout(shares) @ behind(values, v)
    return mixed.transpose(-3, -2).flatten(-2), shares


class Kind(NamedTuple):
    """A kind of attention: what its layers have, the check, and what they do with a prefix."""

    parts: tuple[str, ...]
    keys: Callable[[nn.Module], Tensor]
    attention: Callable[..., tuple[Tensor, Tensor]]


def _bert_keys(layer: nn.Module) -> Tensor:
    """Raise unless a layer is BERT's and not causal; give the weights of its keys."""
    # Others have the same parts and compute something else, of inputs that kwargs would swallow.
    if (name := type(layer).__name__) != "BertSelfAttention":
        raise ValueError(f"layer: must be a BertSelfAttention, got {name}")
    # It may be given no mask and leave it to the kernel, which is not used here.
    if getattr(layer, "is_causal", False) or getattr(layer, "is_decoder", False):
        raise ValueError("layer: must not be causal")
    return matrix(layer.key)


KINDS = (
    Kind(BERT_PARTS, _bert_keys, bert_attention),
    Kind(LLAMA_PARTS, llama_keys, llama_attention),
)


def require_attention(layer: nn.Module) -> Tensor:
    """Raise unless a prefix can be put in front of a layer; give the weights of its keys.

    Args:
        layer: any.

    Returns:
        [d, in].

    Raises:
        ValueError: if it is the self-attention of neither BERT nor Llama, a causal one of BERT, or
            as :func:`gradbook.peft.prefix_decoder.llama_keys`.
    """
    return _kind(layer).keys(layer)


def _kind(layer: nn.Module) -> Kind:
    for kind in KINDS:
        if all(hasattr(layer, part) for part in kind.parts):
            return kind
    choices = ", or ".join(", ".join(kind.parts) for kind in KINDS)
    raise ValueError(f"layer: must have {choices}")


class Prefixed(nn.Module):
    """What plain and reparameterized prefixes share; they differ in ``learnt``.

    Args:
        layer: a self-attention of BERT or Llama.

    Raises:
        ValueError: as :func:`require_attention`.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.width, self.inputs = require_attention(layer).shape
        self.layer, self._attention = layer, _kind(layer).attention

    def learnt(self) -> tuple[Tensor, Tensor]:
        """Give the keys and the values of the prefix, [n, d] each."""
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, *inputs: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Attend to the prefix and to the text; the signature is that of the layer.

        Args:
            hidden_states: [B, T, in].
            *inputs: as :func:`bert_attention` takes, or
                :func:`gradbook.peft.prefix_decoder.llama_attention`.
            **options: likewise.

        Returns:
            [B, T, out], and the weights [B, h, T, n + S].

        Raises:
            ValueError: if a shape or a type does not fit.
        """
        keys, values = self.learnt()
        self._require_hidden(hidden_states, keys.dtype)
        return self._attention(self.layer, keys, values, hidden_states, *inputs, **options)

    def _require_hidden(self, hidden: Tensor, dtype: torch.dtype) -> None:
        if hidden.ndim != 3 or hidden.shape[-1] != self.inputs:
            raise ValueError(
                f"hidden_states: must be [B, T, {self.inputs}], is {list(hidden.shape)}"
            )
        if hidden.dtype != dtype and not torch.is_autocast_enabled(hidden.device.type):
            raise ValueError(f"hidden_states: must be {dtype}, is {hidden.dtype}")


class PrefixSelfAttention(Prefixed):
    """A self-attention of BERT or Llama with learnt keys and values in front.

    Args:
        layer: the attention.
        prefix_keys: [n, d], where the start of the keys is; copied.
        prefix_values: [n, d], likewise.

    Raises:
        ValueError: if the layer is no such attention, or a start has another
            shape or type or is not finite.

    Source: Li and Liang 2021, section 4.2.
    """

    def __init__(self, layer: nn.Module, prefix_keys: Tensor, prefix_values: Tensor):
        super().__init__(layer)
        weight = require_attention(layer)
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
        width: d, of the keys. Where h heads share the keys of h_kv, it is h_kv / h of the
            model's width.

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
        where: chooses the attention layers, of BERT or of Llama.
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
        weight = require_attention(layer)
        shape = 2, length, len(weight)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        return PrefixSelfAttention(layer, *(std * drawn).to(weight.dtype))

    return inject(model, where, make)


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
    order = layer_order(model, where)
    if len(order) != len(start):
        raise ValueError(f"start: has {len(start)} layers, the model {len(order)}")
    return inject(model, where, lambda layer: PrefixSelfAttention(layer, *start[order[layer]]))


def layer_order(model: nn.Module, where: Where) -> dict[nn.Module, int]:
    """Number the layers that :func:`gradbook.peft.injection.inject` would replace.

    Args:
        model: is not changed.
        where: chooses the layers.

    Returns:
        Of each layer its place, from 0, in the order of the model.

    Raises:
        ValueError: if ``where`` holds for no module.
    """
    chosen = dict.fromkeys(place.module for place in places(model, where))
    return {module: i for i, module in enumerate(chosen)}


def _require_table(name: str, x: Tensor, width: int, dtype: torch.dtype) -> None:
    if x.ndim != 2 or x.shape[-1] != width or len(x) < 1:
        raise ValueError(f"{name}: must be [n, {width}] with n at least 1, is {list(x.shape)}")
    if x.dtype != dtype:
        raise ValueError(f"{name}: must be {dtype}, is {x.dtype}")
    if x.device.type != "meta":
        require_finite(**{name: x})
