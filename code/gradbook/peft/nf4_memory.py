"""How many bits a quantized weight takes, and how many bytes a whole decoder.

Source: T. Dettmers, A. Pagnoni, A. Holtzman and L. Zettlemoyer, 2023, "QLoRA: efficient finetuning
of quantized LLMs", sections 2 and 3.
"""

from fractions import Fraction
from typing import NamedTuple

from gradbook.peft.double_quantization import SECOND
from gradbook.transformer_sizes import Shape, parameters, require_sizes, terms

# Llama of 65 billion: Touvron et al. 2023, table 2; the feed-forward width is that of its weights.
LLAMA_65B = Shape(32_000, 8192, 80, 64, 64, 22_016)


class ModelBytes(NamedTuple):
    """The bytes of a decoder's weights: the quantized ones with their scales, and the others."""

    quantized: int
    kept: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.quantized + self.kept


def bits_per_parameter(
    block_size: int = 64,
    second: int | None = None,
) -> Fraction:
    """Count a weight's bits: its four, and its share of the scales.

    Args:
        block_size: weights that share a scale.
        second: scales that share a scale of their own, 8 bits each; None
            keeps the scales as they are, 32 bits each.

    Returns:
        Exact bits. The mean of the scales, 32 bits for each matrix, comes
        on top.

    Raises:
        ValueError: if a size is below 1.

    Source: Dettmers et al. 2023, section 3.
    """
    require_sizes(block_size=block_size)
    if second is None:
        return 4 + Fraction(32, block_size)
    require_sizes(second=second)
    return 4 + Fraction(8, block_size) + Fraction(32, block_size * second)


def linear_parameters(shape: Shape) -> int:
    """Count the weights that are quantized.

    They are those of the seven matrices in each layer, without biases.
    Embedding, output matrix, norms and biases stay as they are.

    Args:
        shape: of the decoder.

    Returns:
        Weights.

    Raises:
        ValueError: as :func:`gradbook.transformer_sizes.terms`.
    """
    counts = terms(shape)
    matrices = ("q", "k", "v", "o", "gate", "up", "down")
    width = shape.width
    key_width = width // shape.heads * shape.key_value_heads
    biases = shape.query_bias * width + (shape.key_bias + shape.value_bias) * key_width
    return sum(counts[name] for name in matrices) - shape.layers * biases


def model_bytes(
    shape: Shape,
    block_size: int = 64,
    second: int | None = SECOND,
    kept: int = 2,
) -> ModelBytes:
    """Compute what the weights of a decoder take.

    Args:
        shape: of the decoder.
        block_size: as for :func:`bits_per_parameter`.
        second: as there.
        kept: bytes of a parameter that is not quantized.

    Returns:
        Bytes, rounded up; without adapters, activations and what they need.

    Raises:
        ValueError: if a size is below 1 or the shape is wrong.
    """
    require_sizes(kept=kept)
    linear = linear_parameters(shape)
    bits = linear * bits_per_parameter(block_size, second)
    rest = parameters(shape) - linear
    return ModelBytes(-int(-bits // 8), kept * rest)
