"""How many parameters a decoder of the Llama and Qwen family has, matrix by matrix.

A layer has four projections of attention (*queries* q, *keys* k, *values* v, *output* o), of which
keys and values may have fewer heads than the queries; a gated feed-forward net of three matrices
(*gate*, *up*, *down*) without biases; and two norms that have a gain but no shift. Before the
layers stands the embedding; after them a last norm and an output matrix, which may be the embedding
once more. A head is as wide as the width over the heads; positions are rotations and have no
parameters.
"""

from typing import NamedTuple


class Shape(NamedTuple):
    """The sizes of a decoder.

    Attributes:
        vocabulary: tokens that the embedding holds.
        width: of the stream between layers.
        layers: how many.
        heads: of the queries; they divide the width.
        key_value_heads: of the keys and values; they divide the heads.
        feed_forward: width inside the feed-forward net.
        output: output matrices beside the embedding: 0 where it is tied, else 1.
        query_bias: 1 where the queries have biases, else 0.
        key_bias: as for the queries.
        value_bias: as for the queries.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    feed_forward: int
    output: int = 1
    query_bias: int = 0
    key_bias: int = 0
    value_bias: int = 0


# Qwen1.5-7B and Qwen1.5-72B.
QWEN_7B = Shape(151_936, 4096, 32, 32, 32, 11_008, 1, 1, 1, 1)
QWEN_72B = Shape(152_064, 8192, 80, 64, 64, 24_576, 1, 1, 1, 1)
_FLAGS = ("output", "query_bias", "key_bias", "value_bias")


def terms(shape: Shape) -> dict[str, int]:
    """Count the parameters of each kind of matrix and vector.

    Args:
        shape: of the decoder.

    Returns:
        Parameters by name, all layers together, biases with their
        matrices. They sum to those of the model.

    Raises:
        ValueError: if a size is not a positive integer, heads do not
            divide, or a flag is neither 0 nor 1.

    Source: Touvron et al. 2023, section 2.2 (the layer); Ainslie et al.
    2023 (fewer heads of keys and values); Bai et al. 2023, section 2.3
    (the biases).
    """
    _require_shape(shape)
    d, f, n = shape.width, shape.feed_forward, shape.layers
    kv = d // shape.heads * shape.key_value_heads
    return {
        "embedding": shape.vocabulary * d,
        "q": n * (d + shape.query_bias) * d,
        "k": n * (d + shape.key_bias) * kv,
        "v": n * (d + shape.value_bias) * kv,
        "o": n * d * d,
        "gate": n * d * f,
        "up": n * d * f,
        "down": n * f * d,
        "norms": n * 2 * d,
        "final norm": d,
        "output": shape.output * shape.vocabulary * d,
    }


def parameters(shape: Shape) -> int:
    """Count the parameters of a decoder; a tied embedding counts once.

    Args:
        shape: of the decoder.

    Returns:
        The sum of :func:`gradbook.transformer_sizes.terms`.

    Raises:
        ValueError: as there.
    """
    return sum(terms(shape).values())


def require_sizes(**sizes: int) -> None:
    """Raise unless every size is a positive integer.

    Args:
        **sizes: under the names that the message gives them.

    Raises:
        ValueError: if one is not.
    """
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name}: must be a positive integer, got {size!r}")


def _require_shape(shape: Shape) -> None:
    for name, value in shape._asdict().items():
        if name not in _FLAGS:
            require_sizes(**{f"shape.{name}": value})
        elif value not in (0, 1):
            raise ValueError(f"shape.{name}: must be 0 or 1, got {value!r}")
    for whole, part in (("width", "heads"), ("heads", "key_value_heads")):
        if getattr(shape, whole) % getattr(shape, part):
            raise ValueError(f"shape.{part}: must divide shape.{whole}, got {shape}")
