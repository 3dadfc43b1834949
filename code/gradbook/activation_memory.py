"""Compute the bytes of activations: what a forward pass keeps for the backward pass.

They are counted for a stack of L layers with the letters of Korthikanti et al.: s tokens in a
sequence, b sequences in a batch, width h, a heads. A *token term* is so many bytes for each of the
s b h numbers of the stream, a *pair term* for each of the a s^2 b weights of attention, a
pair of tokens in a head.
"""

from typing import NamedTuple

from gradbook.transformer_sizes import require_sizes

# Bytes of 16-bit activations in one layer. A dropout mask has one byte a number.
TOKEN_TERMS = {
    "first norm's input": 2,
    "attention's input": 2,
    "queries": 2,
    "keys": 2,
    "values": 2,
    "projection's input": 2,
    "projection's dropout mask": 1,
    "second norm's input": 2,
    "feed-forward's input": 2,
    "GELU's input, 4 h wide": 8,
    "GELU's output, 4 h wide": 8,
    "feed-forward's dropout mask": 1,
}
PAIR_TERMS = {"softmax": 2, "its dropout mask": 1, "softmax after dropout": 2}


class Stack(NamedTuple):
    """A stack of equal layers and the batch that goes through it: L, s, b, h and a."""

    layers: int
    sequence: int
    batch: int
    width: int
    heads: int


def activations(stack: Stack) -> int:
    """Compute the bytes in 16 bits when nothing is computed again.

    Args:
        stack: its feed-forward nets are 4 h wide, and dropout is on.

    Returns:
        L s b h (34 + 5 a s / h).

    Raises:
        ValueError: if a size of the stack is not a positive integer.

    Source: Korthikanti et al. 2022, equations 1 and 2 without parallelism.
    """
    pairs = _pairs(stack) * sum(PAIR_TERMS.values())
    return selective_activations(stack) + stack.layers * pairs


def selective_activations(stack: Stack) -> int:
    """Compute the bytes when the backward pass repeats the scores, softmax and their dropout.

    Args:
        stack: as for :func:`gradbook.activation_memory.activations`.

    Returns:
        34 L s b h.

    Raises:
        ValueError: as there.

    Source: Korthikanti et al. 2022, section 5.
    """
    return stack.layers * _numbers(stack) * sum(TOKEN_TERMS.values())


def full_activations(stack: Stack) -> int:
    """Compute the bytes when only the layers' inputs are kept and each layer is run again.

    While a layer is run again its own activations live, with its input
    among them; the inputs of the other layers come on top.

    Args:
        stack: as for :func:`gradbook.activation_memory.activations`.

    Returns:
        2 (L - 1) s b h + s b h (34 + 5 a s / h).

    Raises:
        ValueError: as there.

    Source: Korthikanti et al. 2022, section 5, gives 2 L s b h and
    leaves the one layer out.
    """
    one = activations(stack._replace(layers=1))
    return (stack.layers - 1) * _numbers(stack) * TOKEN_TERMS["first norm's input"] + one


def encoder_activations(
    stack: Stack,
    feed_forward: int,
    size: int = 4,
    mask: int = 0,
) -> dict[str, int]:
    """Compute the bytes that PyTorch keeps for an encoder of BERT's kind, attention written out.

    Each of a layer's two norms stands behind a sum, x + f(x), and also
    keeps a mean and a deviation of every token, in float32.

    Args:
        stack: the encoder and its batch.
        feed_forward: width inside the feed-forward nets.
        size: bytes of a number.
        mask: bytes of a number of a dropout mask: 0 without dropout, 1 on
            CUDA, ``size`` on the CPU, whose mask is scaled.

    Returns:
        Bytes by name, of all layers and of the norm behind the
        embedding. The output of the last layer is the ``"output"``.

    Raises:
        ValueError: if a size is not a positive integer or the mask is
            negative.

    Source: Korthikanti et al. 2022, section 4.1, with the terms that
    PyTorch's operations save.
    """
    require_sizes(feed_forward=feed_forward, size=size)
    if mask < 0:
        raise ValueError(f"mask: must not be negative, got {mask}")
    shared = _linear_terms(stack, feed_forward, size)
    numbers, pairs = _numbers(stack), stack.layers * _pairs(stack)
    return shared | {
        "softmax": pairs * size,
        "softmax after dropout": pairs * size if mask else 0,
        "softmax's dropout masks": pairs * mask,
        "dropout masks": (2 * stack.layers + 1) * numbers * mask,
    }


def fused_encoder_activations(stack: Stack, feed_forward: int, size: int = 4) -> dict[str, int]:
    """Compute the bytes of the same encoder with fused attention and without dropout.

    Fused attention keeps no weight of a pair, but for every token and
    head the log of the softmax's sum, in float32. For a padded batch the
    CPU also keeps the mask of each layer as s^2 b numbers: not counted.

    Args:
        stack: the encoder and its batch.
        feed_forward: width inside the feed-forward nets.
        size: bytes of a number.

    Returns:
        As :func:`gradbook.activation_memory.encoder_activations`.

    Raises:
        ValueError: if a size is not a positive integer.

    Source: Dao et al. 2022, section 3.1 (what the backward pass needs).
    """
    require_sizes(feed_forward=feed_forward, size=size)
    sums = stack.layers * stack.heads * stack.sequence * stack.batch * 4
    return _linear_terms(stack, feed_forward, size) | {"log-sums of the softmax": sums}


def _linear_terms(stack: Stack, feed_forward: int, size: int) -> dict[str, int]:
    """Count what grows in proportion to the tokens, whatever the attention."""
    once = _numbers(stack) * size
    each = stack.layers * once
    inner = stack.layers * stack.sequence * stack.batch * feed_forward * size
    statistics = (2 * stack.layers + 1) * 2 * stack.sequence * stack.batch * 4
    return {
        "embedding norm's input": once,
        "attention's input": each,
        "queries": each,
        "keys": each,
        "values": each,
        "projection's input": each,
        "first norm's input": each,
        "feed-forward's input": each,
        "GELU's input": inner,
        "GELU's output": inner,
        "second norm's input": each,
        "norms' statistics": statistics,
        "output": once,
    }


def _numbers(stack: Stack) -> int:
    _require_stack(stack)
    return stack.sequence * stack.batch * stack.width


def _pairs(stack: Stack) -> int:
    _require_stack(stack)
    return stack.heads * stack.sequence**2 * stack.batch


def _require_stack(stack: Stack) -> None:
    require_sizes(**{f"stack.{name}": size for name, size in stack._asdict().items()})
