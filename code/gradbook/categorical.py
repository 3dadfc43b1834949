"""Categorical latents as families of the estimators, and their objectives summed out exactly.

Theta is the logits, [..., k]: all axes but the last count independent latents. A draw has the shape
of the logits, one row per latent; its noise is standard Gumbel, of that shape too.
"""

from torch import Tensor
from torch.func import grad, vmap

from gradbook.checks import require
from gradbook.estimators import Family, Objective
from gradbook.expectation import enumerated, strings
from gradbook.gumbel import (
    concrete_log_prob,
    gumbel_one_hot,
    gumbel_softmax,
    one_hot,
    straight_through,
)

MOST_CODES = 2**16


def _one_hot_log_prob(z: Tensor, logits: Tensor) -> Tensor:
    # An impossible class that was not drawn counts 0, where 0 * -inf would be NaN.
    log_probs = logits.log_softmax(-1).masked_fill(z == 0, 0.0)
    return (z * log_probs).sum()


#: One-hot rows drawn by Gumbel-Max, the family of the score function and its kin.
#:
#: :meta hide-value:
categorical = Family(gumbel_one_hot, _one_hot_log_prob)


def relaxed(temperature: float) -> Family:
    """Make the Concrete family: points of the simplex near one-hot rows.

    ``pathwise(f, relaxed(temperature), logits, noise)`` is the
    Gumbel-Softmax estimator: it differentiates E f of the relaxed draw,
    which is not E f of the one-hot one.

    Args:
        temperature: positive.

    Returns:
        The family; its log density needs positive coordinates.

    Raises:
        ValueError: when drawing, if the temperature is not positive and
            finite, or the logits or the noise are not legal.

    Source: Jang, Gu and Poole 2017; Maddison, Mnih and Teh 2017.
    """

    def sample(logits, noise):
        return gumbel_softmax(logits, temperature, noise)

    def log_prob(y, logits):
        return concrete_log_prob(y, logits, temperature).sum()

    return Family(sample, log_prob)


def straight_through_gumbel(temperature: float) -> Family:
    """Make one-hot draws with the gradient of the relaxed draw.

    ``pathwise`` with this family is the straight-through Gumbel-Softmax
    estimator: f sees the one-hot row, and its slope there is carried
    back through the softmax of the same noise.

    Args:
        temperature: positive; of the backward pass alone.

    Returns:
        The family; its log mass is the categorical one.

    Raises:
        ValueError: when drawing, as :func:`relaxed`.

    Source: Jang, Gu and Poole 2017, section 2.2.
    """

    def sample(logits, noise):
        soft = gumbel_softmax(logits, temperature, noise)
        return straight_through(gumbel_one_hot(logits, noise), soft)

    return Family(sample, _one_hot_log_prob)


def _straight_through_softmax_draw(logits: Tensor, noise: Tensor) -> Tensor:
    return straight_through(gumbel_one_hot(logits, noise), logits.softmax(-1))


#: One-hot draws with the gradient of softmax(logits), which has no noise in it; after Bengio,
#: Léonard and Courville 2013, whose own version leaves out the slope of the softmax too.
#:
#: :meta hide-value:
straight_through_softmax = Family(_straight_through_softmax_draw, _one_hot_log_prob)


def all_one_hots(latents: int, classes: int) -> Tensor:
    """List every configuration of independent categoricals.

    Args:
        latents: how many, at least 1.
        classes: of each, at least 1.

    Returns:
        One-hot rows [classes^latents, latents, classes], the first latent
        slowest, of torch's default type.

    Raises:
        ValueError: if an argument is below 1, or there are more than 65536
            configurations.
    """
    if classes**latents > MOST_CODES:
        raise ValueError(f"latents: {classes}^{latents} configurations are too many to list")
    return one_hot(strings(classes, latents), classes)


def exact_mean(f: Objective, logits: Tensor) -> Tensor:
    """Sum f over every configuration of independent categoricals.

    Args:
        f: maps one-hot rows shaped as the logits, and the logits, to a
            scalar.
        logits: [k], or [..., k] for several latents; k to the power of
            their number must be at most 65536.

    Returns:
        E f, a scalar, differentiable in the logits.

    Raises:
        ValueError: if the logits are empty or have a NaN, a plus infinity
            or a row without a possible class, or there are too many
            configurations.
    """
    if logits.ndim == 0 or logits.numel() == 0:
        raise ValueError("logits: must be [..., k], and not empty")
    total, k = logits.logsumexp(-1), logits.shape[-1]
    require(total.isfinite(), "logits: every row needs a possible class, and no NaN")
    z = all_one_hots(total.numel(), k).to(logits).reshape(-1, *logits.shape)
    values = vmap(f, in_dims=(0, None))(z, logits)
    log_probs = vmap(_one_hot_log_prob, in_dims=(0, None))(z, logits)
    return enumerated(values, log_probs)


def exact_gradient(f: Objective, logits: Tensor) -> Tensor:
    """Differentiate the exact mean in the logits.

    Args:
        f: maps one-hot rows shaped as the logits, and the logits, to a
            scalar.
        logits: [k], or [..., k] for several latents.

    Returns:
        The gradient of E f, shaped as the logits; 0 at an impossible
        class.

    Raises:
        ValueError: as :func:`exact_mean`.
    """
    return grad(lambda logits: exact_mean(f, logits))(logits.detach())
