"""REBAR and RELAX: a control variate on the perturbed logits, drawn again given the outcome.

The perturbed logits z decide b, their argmax. A control c(z) has a pathwise gradient of low
variance, and the part of its score-function gradient that f(b) can use is known given b.
"""

from collections.abc import Callable

from torch import Tensor
from torch.func import grad, vmap

from gradbook.estimators.draws import Objective, no_gradients, per_draw, require_draws, scalar
from gradbook.gumbel import conditional_gumbels, gumbel_max, one_hot
from gradbook.logits import checked_temperature, perturbed

Conditional = Callable[[Tensor, Tensor, Tensor], Tensor]


def relax(
    f: Objective,
    control: Objective,
    logits: Tensor,
    noise: Tensor,
    conditional_noise: Tensor,
    conditional: Conditional = conditional_gumbels,
) -> Tensor:
    """Estimate a categorical gradient with a free control variate.

    With z the perturbed logits, b the one-hot row of their largest, and
    z' drawn again given b, one sample is
    (f(b) - c(z')) grad log p(b) + grad c(z) - grad c(z') + grad_theta f.

    Args:
        f: maps one-hot rows shaped as the logits, and the logits, to a
            scalar.
        control: maps perturbed logits, centred so that the largest logit
            of a row is 0, and the logits, to a scalar; differentiable.
        logits: [..., k]; all axes but the last count independent latents.
        noise: standard Gumbel draws [n, ..., k].
        conditional_noise: standard Gumbel draws [n, ..., k], independent
            of the index that the others pick.
        conditional: draws z' from (logits, index, conditional noise),
            differentiable in the logits.

    Returns:
        Per-sample gradients [n, ..., k]. They carry the graph of what
        the control is made of, so that its variance can be lowered by
        differentiating their squares.

    Raises:
        ValueError: if a noise does not have that shape or is not finite,
            the logits have a NaN, a plus infinity or a row without a
            possible class, or f or the control is not a scalar.

    Source: Grathwohl et al. 2018.
    """
    logits = logits.detach()
    require_draws(logits, noise=noise, conditional_noise=conditional_noise)
    index = gumbel_max(logits, noise)
    if len(noise) == 0:
        return no_gradients(logits)
    b = one_hot(index, logits.shape[-1], logits.dtype)

    def path(logits, b, index, noise, conditional_noise):
        z, _ = perturbed(logits, noise)
        again = conditional(logits, index, conditional_noise)
        given = scalar("control", control(again, logits))
        value = scalar("f", f(b, logits))
        return control(z, logits) - given + value, value - given

    slopes = vmap(grad(path, has_aux=True), in_dims=(None, 0, 0, 0, 0))
    slope, weight = slopes(logits, b, index, noise, conditional_noise)
    score = b - logits.softmax(-1)
    return per_draw(weight, logits) * score + slope


def rebar(
    f: Objective,
    logits: Tensor,
    noise: Tensor,
    conditional_noise: Tensor,
    temperature: float | Tensor,
    scale: float | Tensor = 1.0,
) -> Tensor:
    """Estimate a categorical gradient with relaxed f as control variate.

    It is :func:`relax` with c(z) = scale f(softmax(z / temperature)).

    Args:
        f: maps points of the simplex shaped as the logits, and the
            logits, to a scalar; differentiable.
        logits: [..., k]; all axes but the last count independent latents.
        noise: standard Gumbel draws [n, ..., k].
        conditional_noise: standard Gumbel draws [n, ..., k], independent
            of the index that the others pick.
        temperature: positive, a number or a tensor with one number for
            each latent [..., 1]; any is unbiased.
        scale: any is unbiased; 0 gives the score function.

    Returns:
        Per-sample gradients [n, ..., k], as :func:`relax`.

    Raises:
        ValueError: if the temperature is not positive and finite in the
            type of the logits or has a wrong shape, or as :func:`relax`.

    Source: Tucker et al. 2017.
    """
    temperature = checked_temperature(temperature, logits)

    def control(z, logits):
        # The largest first: a quotient of a small temperature would overflow.
        z = z - z.detach().amax(-1, keepdim=True)
        return scale * f((z / temperature).softmax(-1), logits)

    return relax(f, control, logits, noise, conditional_noise)
