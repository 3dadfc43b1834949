"""The causal self-attention of Llama with a prefix in front; heads share keys in groups.

The keys of a text are rotated by their positions, those of a prefix are not. A learnt key may be
any vector, one that is rotated already too, so nothing is lost. The text keeps its positions: from
0, or those that the model is given. What a query sees in the prefix depends on its own position, so
that padding on the left asks for ``position_ids``: see :func:`gradbook.peft.prompts.positions`.

Source: Su et al. 2021, "RoFormer", section 3.4.2; Ainslie et al. 2023, "GQA".
"""

from typing import Any

import torch
from torch import Tensor, nn

from gradbook.peft.grouped_attention import (
    behind,
    extended,
    for_heads,
    require_text_mask,
    split_heads,
    weights,
)
from gradbook.peft.injection import matrix

LLAMA_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "layer_idx")


def llama_attention(
    layer: nn.Module,
    keys: Tensor,
    values: Tensor,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attend to a prefix and to the text up to each token, as ``LlamaAttention`` to the text.

    The prefix is not in the cache, which holds the keys and values of the text alone.

    Args:
        layer: the attention: see :func:`llama_keys`.
        keys: of the prefix, [n, h_kv d].
        values: of the prefix, [n, h_kv d].
        hidden_states: [B, T, in].
        position_embeddings: cosines and sines, [B or 1, T, d] each.
        attention_mask: [B or 1, 1, T or 1, S], Boolean or added to the scores; S counts the tokens
            in the cache and the T of now. None lets each token see itself and those before.
        past_key_values: the cache of the model, to which the text's keys and values are added.
        **kwargs: what the library passes besides; not used.

    Returns:
        [B, T, out], and the weights [B, h, T, n + S].

    Raises:
        ValueError: if positions or mask do not fit, or there is no mask for several tokens with
            some in the cache.
    """
    size, maps = layer.head_dim, (layer.q_proj, layer.k_proj, layer.v_proj)
    cos, sin = _angles(position_embeddings, hidden_states, size)
    q, k, v = (split_heads(f(hidden_states), size) for f in maps)
    q, k = rotated(q, cos, sin), rotated(k, cos, sin)
    if past_key_values is not None:
        k, v = past_key_values.update(k, v, layer.layer_idx)
    mask = _seen(attention_mask, q, k)
    shares = weights(q, behind(keys, k), extended(mask, len(keys)))
    mixed = shares @ for_heads(behind(values, v), q)
    return layer.o_proj(mixed.transpose(-3, -2).flatten(-2)), shares


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + d / 2) of the numbers of a head by an angle.

    Args:
        x: queries or keys, [..., T, d].
        cos: broadcasts to [..., T, d]; both of a pair have one angle.
        sin: likewise.

    Returns:
        [..., T, d].

    Source: Su et al. 2021, equation 34; there the pairs are neighbours.
    """
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def llama_keys(layer: nn.Module) -> Tensor:
    """Raise unless a layer is the self-attention of Llama; give the weights of its keys.

    Args:
        layer: a ``LlamaAttention`` of transformers.

    Returns:
        [h_kv d, in].

    Raises:
        ValueError: if it is something else, also if its parts have the same names: others rotate
            other pairs, scale or cap the scores, or normalize queries; if it is not causal, or
            drops weights in training.
    """
    # By its name, so that nothing here imports transformers.
    name = type(layer).__name__
    if name != "LlamaAttention":
        raise ValueError(f"layer: must be a LlamaAttention, got {name}")
    if not layer.is_causal:
        raise ValueError("layer: must be causal")
    if layer.attention_dropout:
        raise ValueError(f"layer: must not drop weights, got {layer.attention_dropout}")
    return matrix(layer.k_proj)


def _angles(
    given: tuple[Tensor, Tensor] | None, hidden: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Check cosines and sines, and give them an axis for the heads."""
    if given is None:
        raise ValueError("position_embeddings: must be given")
    batch, rows, _ = hidden.shape
    for x in given:
        if x.ndim != 3 or len(x) not in (1, batch) or x.shape[1:] != (rows, size):
            raise ValueError(
                f"position_embeddings: must be [{batch}, {rows}, {size}], is {list(x.shape)}"
            )
    cos, sin = given
    return cos.unsqueeze(1), sin.unsqueeze(1)


def _seen(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    """Check the mask of a text, or make it: no token sees what comes behind it."""
    rows, columns = q.shape[-2], k.shape[-2]
    if mask is not None:
        require_text_mask(mask, len(q), rows, columns)
        return mask
    # With tokens in the cache, or room for some, it is not known which the queries are.
    if rows not in (1, columns):
        raise ValueError(f"attention_mask: must be given for {rows} of {columns} tokens")
    everything = torch.ones(rows, columns, dtype=torch.bool, device=q.device)
    return everything.tril(columns - rows)
