"""Bits from logistic noise: the relaxed draw, and the hard one that carries its gradient.

A bit is 1 where its logit plus a standard logistic variable is positive. Two classes with Gumbel
noise come to the same: the difference of two Gumbel variables is logistic. The noise is passed in
as uniform numbers u; log u - log(1 - u) is the logistic variable.
"""

from torch import Tensor

from gradbook.checks import require, require_finite
from gradbook.gumbel import straight_through
from gradbook.logits import checked_temperature


def soft_bits(
    logits: Tensor,
    temperature: float,
    uniforms: Tensor,
) -> Tensor:
    """Draw relaxed bits, the binary Concrete variables.

    Args:
        logits: of the bits being 1, any shape.
        temperature: positive.
        uniforms: from 0 to 1, of the same shape.

    Returns:
        sigmoid((logit + log u - log(1 - u)) / temperature).

    Raises:
        ValueError: if the logits are not finite, the temperature is not
            positive, or the uniforms have another shape or a value
            outside [0, 1].

    Source: Maddison, Mnih and Teh 2017, appendix B.
    """
    scores = _perturbed(logits, uniforms)
    return (scores / checked_temperature(temperature, scores)).sigmoid()


def hard_bits(
    logits: Tensor,
    temperature: float,
    uniforms: Tensor,
) -> Tensor:
    """Draw bits that carry the gradient of relaxed ones.

    Args:
        logits: of the bits being 1, any shape.
        temperature: positive; of the backward pass alone.
        uniforms: from 0 to 1, of the same shape.

    Returns:
        Zeros and ones, each 1 with probability sigmoid(logit), of the
        logits' type; the gradient is that of :func:`gradbook.binary_concrete.soft_bits` with the
        same noise.

    Raises:
        ValueError: as :func:`gradbook.binary_concrete.soft_bits`.

    Source: Jang, Gu and Poole 2017, section 2.2.
    """
    hard = (_perturbed(logits, uniforms) > 0).to(logits.dtype)
    return straight_through(hard, soft_bits(logits, temperature, uniforms))


def _perturbed(logits: Tensor, uniforms: Tensor) -> Tensor:
    require_finite(logits=logits)
    if uniforms.shape != logits.shape:
        shapes = f"{tuple(uniforms.shape)} for logits {tuple(logits.shape)}"
        raise ValueError(f"uniforms: must have the shape of the logits, is {shapes}")
    require((uniforms >= 0) & (uniforms <= 1), "uniforms: must be from 0 to 1")
    # An end of the interval, where the logit is infinite, makes a sure bit without a gradient.
    return logits + uniforms.to(logits.dtype).logit()
