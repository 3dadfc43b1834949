"""Attention over queries whose heads share keys in groups, and what a prefix does to it.

A prefix is learnt keys and values in front of those of a text; every query sees all of it.
"""

import torch
from torch import Tensor
from torch.nn import functional

from gradbook.checks import require, require_finite


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
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
        got = list(v.shape)
        raise ValueError(f"v: must have k's heads and positions, is {got}")
    _require_mask(mask, q, k)
    if mask is not None:
        require(mask.any(-1), "mask: every query must see a position")
    return weights(q, k, mask) @ for_heads(v, q)


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
    prefix_mass = scores(q, k_prefix, None).logsumexp(-1)
    content_mass = scores(q, k_content, mask).logsumexp(-1)
    return torch.sigmoid(prefix_mass - content_mass)


def scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the scaled dot products of queries and keys; nothing is checked.

    Args:
        q: queries, [..., h, T, d].
        k: keys, [..., h_kv, S, d].
        mask: broadcasts to [..., h, T, S]: Boolean, true where a query may
            look, or numbers to be added. None lets all look everywhere.

    Returns:
        [..., h, T, S], minus infinity where a Boolean mask is false.
    """
    products = q @ for_heads(k, q).mT * q.shape[-1] ** -0.5
    if mask is None:
        return products
    if mask.dtype == torch.bool:
        return products.masked_fill(~mask, -torch.inf)
    return products + mask


def weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the weights of attention: the softmax of :func:`scores`.

    Args:
        q: queries, [..., h, T, d].
        k: keys, [..., h_kv, S, d].
        mask: as for :func:`scores`; a query that it lets look nowhere gets
            NaN.

    Returns:
        [..., h, T, S], with sums of one over S.
    """
    return scores(q, k, mask).softmax(-1)


def for_heads(x: Tensor, q: Tensor) -> Tensor:
    """Repeat the heads of keys or values for the queries of their groups.

    Args:
        x: keys or values, [..., h_kv, S, e].
        q: queries, [..., h, T, d]; h is a multiple of h_kv.

    Returns:
        [..., h, S, e]; heads of one group stand in a row.
    """
    return x.repeat_interleave(q.shape[-3] // x.shape[-3], -3)


def split_heads(x: Tensor, size: int) -> Tensor:
    """Cut a width into heads: [..., T, h d] to [..., h, T, d].

    Args:
        x: rows of queries, keys or values.
        size: d.

    Returns:
        A view.
    """
    return x.unflatten(-1, (x.shape[-1] // size, size)).transpose(-3, -2)


def behind(rows: Tensor, x: Tensor) -> Tensor:
    """Put the keys or values of a batch of texts behind those of a prefix.

    Args:
        rows: of the prefix, [n, h_kv d].
        x: of the texts, [B, h_kv, S, d].

    Returns:
        [B, h_kv, n + S, d].
    """
    front = split_heads(rows, x.shape[-1])
    return torch.cat([front.expand(len(x), -1, -1, -1), x], -2)


def extended(mask: Tensor | None, length: int) -> Tensor | None:
    """Let every query see a prefix too.

    Args:
        mask: of the text, [..., S], Boolean or added to the scores.
        length: of the prefix, n.

    Returns:
        [..., n + S]; None if the mask is.
    """
    if mask is None:
        return None
    seen = True if mask.dtype == torch.bool else 0.0
    return functional.pad(mask, (length, 0), value=seen)


def require_text_mask(mask: Tensor | None, batch: int, rows: int, columns: int) -> None:
    """Raise unless a mask is one that a model gives to its attention layers.

    Args:
        mask: must be None or [B or 1, 1, T or 1, S], Boolean or floating.
        batch: B.
        rows: T, the queries.
        columns: S, the keys of the text.

    Raises:
        ValueError: if it is not.
    """
    if mask is None:
        return
    shape = batch, 1, rows, columns
    pairs = zip(mask.shape, shape, strict=False)
    if mask.ndim != 4 or mask.shape[-1] != columns or any(a not in (1, b) for a, b in pairs):
        raise ValueError(f"attention_mask: must be {list(shape)}, is {list(mask.shape)}")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"attention_mask: must be boolean or floating, is {mask.dtype}")


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
