"""A head of attention that answers with the value of one of two tokens, a red and a blue one.

A text is a red token with value u and a blue one with value v, each -1 or 1. One query looks at
both. The frozen layer scores red higher by ``gap``, so that its answer has the sign of u if the gap
is positive. The new task is to answer v. The head can be given a prefix, or LoRA for its keys.

The four texts stand in the order (u, v) = (1, 1), (1, -1), (-1, 1), (-1, -1).

Source: worked out here, for :mod:`gradbook.peft.prefix_limits`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require_finite
from gradbook.devices import device as book_device
from gradbook.peft.grouped_attention import attention

FEATURES = 4  # red, blue, value, and a constant 1
WIDTH = 2


class Layer(NamedTuple):
    """A frozen head: the token that asks [4], and matrices [2, 4], [2, 4] and [1, 4]."""

    asker: Tensor
    w_q: Tensor
    w_k: Tensor
    w_v: Tensor


def colour_layer(
    gap: float,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Layer:
    """Build the head that scores a red token ``gap`` above a blue one, and reads their values.

    Args:
        gap: finite; with a positive one the layer answers u.
        dtype: of the tensors, floating.
        device: of the tensors; None is the book's.

    Returns:
        The layer. The query is ``sqrt(2) (1, -1)``, a key ``gap / 2 (red, blue)``, and the scores
        are ``gap / 2`` and ``-gap / 2`` after the division by ``sqrt(2)``.

    Raises:
        ValueError: if the gap is not finite or the type not floating.
    """
    require_finite(gap=gap)
    made = _making(dtype, device)
    root = WIDTH**0.5
    w_q = made([[0, 0, 0, root], [0, 0, 0, -root]])
    w_k = made([[gap / 2, 0, 0, 0], [0, gap / 2, 0, 0]])
    return Layer(made([0, 0, 0, 1]), w_q, w_k, made([[0, 0, 1, 0]]))


def contents(
    dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """List the four texts, and what the new task asks for.

    Args:
        dtype: of the tensors, floating.
        device: of the tensors; None is the book's.

    Returns:
        Tokens [4, 2, 4], red before blue, each (red, blue, value, 1); and
        the targets v, [4].

    Raises:
        ValueError: if the type is not floating.
    """
    made = _making(dtype, device)
    texts = [(u, v) for u in (1, -1) for v in (1, -1)]
    tokens = [[[1, 0, u, 1], [0, 1, v, 1]] for u, v in texts]
    return made(tokens), made([v for _, v in texts])


def answers(layer: Layer, contents: Tensor) -> Tensor:
    """Compute what the layer answers.

    Args:
        layer: frozen.
        contents: tokens, [B, T, 4].

    Returns:
        [B].

    Raises:
        ValueError: if shape or type do not fit, or a number is not finite.
    """
    _require_like("contents", contents, (None, None, FEATURES), layer)
    return _answered(layer, contents @ layer.w_k.T, contents @ layer.w_v.T)


def with_prefix(
    layer: Layer,
    contents: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Compute what the layer answers behind a prefix.

    Args:
        layer: frozen.
        contents: tokens, [B, T, 4].
        keys: of the prefix, [n, 2].
        values: of the prefix, [n, 1].

    Returns:
        [B].

    Raises:
        ValueError: if a shape or type does not fit, the prefix is empty, or
            a number is not finite.

    Source: Li and Liang 2021, section 4.2, for one head.
    """
    _require_like("contents", contents, (None, None, FEATURES), layer)
    _require_like("keys", keys, (None, WIDTH), layer)
    _require_like("values", values, (len(keys), 1), layer)
    front = len(contents), -1, -1
    k = torch.cat([keys.expand(front), contents @ layer.w_k.T], 1)
    v = torch.cat([values.expand(front), contents @ layer.w_v.T], 1)
    return _answered(layer, k, v)


def with_lora(
    layer: Layer,
    contents: Tensor,
    a: Tensor,
    b: Tensor,
) -> Tensor:
    """Compute what the layer answers with W_k + b a for its keys.

    Args:
        layer: frozen.
        contents: tokens, [B, T, 4].
        a: [r, 4].
        b: [2, r].

    Returns:
        [B].

    Raises:
        ValueError: if a shape or type does not fit, the rank is 0, or a
            number is not finite.

    Source: Hu et al. 2021, section 4.1, with a scaling of 1.
    """
    _require_like("a", a, (None, FEATURES), layer)
    _require_like("b", b, (WIDTH, len(a)), layer)
    return answers(layer._replace(w_k=layer.w_k + b @ a), contents)


def turning_lora(change: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Build the LoRA of rank one that adds a number to the gap of a :func:`colour_layer`.

    Args:
        change: finite; below -gap the layer answers v, and its mean squared
            error is 2 sigmoid(gap + change)^2.
        like: gives type, floating, and device.

    Returns:
        a [1, 4] and b [2, 1], for :func:`with_lora`.

    Raises:
        ValueError: if the change is not finite or the type not floating.
    """
    require_finite(change=change)
    if not like.is_floating_point():
        raise ValueError(f"like: must be floating, got {like.dtype}")
    a = like.new_tensor([[change / 4, -change / 4, 0, 0]])
    return a, like.new_tensor([[1], [-1]])


def right(answers: Tensor, targets: Tensor) -> Tensor:
    """Count the answers that have the sign of their target; an answer of 0 is wrong.

    Args:
        answers: [..., B].
        targets: [B], -1 or 1.

    Returns:
        int64 [...].

    Raises:
        ValueError: if the lengths differ, or a number is not finite.
    """
    if targets.ndim != 1 or answers.shape[-1:] != targets.shape:
        got = f"{list(answers.shape)} and {list(targets.shape)}"
        raise ValueError(f"answers: must be [..., B] for targets [B], got {got}")
    require_finite(answers=answers, targets=targets)
    return (answers.sign() == targets).sum(-1)


def _making(dtype: torch.dtype, device: torch.device | str | None) -> Callable[[list], Tensor]:
    """Make a function that turns numbers into a tensor."""
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: must be floating, got {dtype}")
    place = book_device() if device is None else device
    return lambda numbers: torch.tensor(numbers, dtype=dtype, device=place)


def _answered(layer: Layer, k: Tensor, v: Tensor) -> Tensor:
    """Let the asker look at keys [B, S, 2] and values [B, S, 1]."""
    q = (layer.w_q @ layer.asker).expand(len(k), 1, 1, -1)
    return attention(q, k[:, None], v[:, None]).flatten()


def _require_like(name: str, x: Tensor, shape: tuple[int | None, ...], layer: Layer) -> None:
    """Raise unless a tensor has the layer's type and a shape, in which None is any size from 1."""
    fits = x.ndim == len(shape) and all(
        got == want or (want is None and got >= 1) for got, want in zip(x.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: must be [{wanted}], got {list(x.shape)}")
    if x.dtype != layer.w_k.dtype:
        raise ValueError(f"{name}: must be {layer.w_k.dtype}, got {x.dtype}")
    require_finite(**{name: x})
