"""Gradients for a VAE with categorical latents: one loss for each estimator.

Each loss is a function of a model, a batch of images and the noise, and returns a scalar: the mean
over the images of a negative bound in nats, so that training descends. What makes an estimator is
its backward pass. The divergence KL(q || p) of the categorical variables is in closed form in all
of them; they differ in how the gradient of E_q[log p(x | z)] reaches the encoder. The decoder's own
gradient is unbiased in all but :func:`relaxed`, whose decoder sees codes that are not one-hot.
"""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from gradbook import gumbel
from gradbook.estimators.draws import fixed_baseline, mean_of_the_others
from gradbook.vae import (
    CategoricalVAE,
    categorical_kl,
    exact_elbo,
    hard_codes,
    log_likelihood,
    require_own_noise,
)


def relaxed(
    model: CategoricalVAE,
    images: Tensor,
    noise: Tensor,
    temperature: float,
) -> Tensor:
    """Compute the Gumbel-Softmax loss: the decoder sees a relaxed code.

    The loss is no bound: its divergence is that of the categorical
    variables, not of the relaxed ones.

    Args:
        model: an encoder and a decoder.
        images: [n, 28, 28].
        noise: standard Gumbel draws [n, latents, classes].
        temperature: positive.

    Returns:
        A scalar; its gradient is that of the relaxed loss, exactly.

    Raises:
        ValueError: if the noise has another shape, the images are not
            from 0 to 1, or as :func:`gradbook.gumbel.gumbel_softmax`.

    Source: Jang, Gu and Poole 2017, section 2.1.
    """
    logits = model.encoder(images)
    require_own_noise(noise, logits)
    codes = gumbel.gumbel_softmax(logits, temperature, noise)
    likelihood = log_likelihood(model.decoder(codes), images)
    return _mean(categorical_kl(logits) - likelihood)


def straight_through(
    model: CategoricalVAE,
    images: Tensor,
    noise: Tensor,
    temperature: float,
) -> Tensor:
    """Compute the bound of a hard code, with the relaxed code's gradient.

    The arguments are those of :func:`relaxed`.

    Returns:
        A scalar: the value is an unbiased negative bound, the gradient in
        the encoder is biased.

    Raises:
        ValueError: as :func:`relaxed`.

    Source: Jang, Gu and Poole 2017, section 2.2.
    """
    logits = model.encoder(images)
    require_own_noise(noise, logits)
    soft = gumbel.gumbel_softmax(logits, temperature, noise)
    codes = gumbel.straight_through(hard_codes(logits, noise), soft)
    likelihood = log_likelihood(model.decoder(codes), images)
    return _mean(categorical_kl(logits) - likelihood)


def score_function(
    model: CategoricalVAE,
    images: Tensor,
    noise: Tensor,
    baseline: float | Tensor,
) -> Tensor:
    """Compute the bound of a hard code, with the score-function gradient.

    Args:
        model: an encoder and a decoder.
        images: [n, 28, 28].
        noise: standard Gumbel draws [n, latents, classes].
        baseline: what the loss is measured from, a number or one per
            image [n]; it must not depend on this noise.

    Returns:
        A scalar: the value is an unbiased negative bound, and so is the
        gradient of its expectation.

    Raises:
        ValueError: if the noise or the baseline has another shape or is
            not finite, or the images are not from 0 to 1.

    Source: Williams 1992, theorem 1; with a baseline from a moving
    average, Mnih and Gregor 2014, section 2.3.
    """
    logits = model.encoder(images)
    require_own_noise(noise, logits)
    codes = hard_codes(logits, noise)
    losses = _losses(model, images, logits, codes)
    excess = losses.detach() - fixed_baseline(baseline, len(images))
    return _with_score(losses, excess, logits, codes)


def leave_one_out(
    model: CategoricalVAE,
    images: Tensor,
    noise: Tensor,
) -> Tensor:
    """Compute the bound of K hard codes, each the others' baseline.

    Args:
        model: an encoder and a decoder.
        images: [n, 28, 28].
        noise: standard Gumbel draws [K, n, latents, classes], K at
            least 2.

    Returns:
        A scalar: the value is an unbiased negative bound, and so is the
        gradient of its expectation.

    Raises:
        ValueError: if K < 2, the noise has another number of axes, or as
            :func:`score_function`.

    Source: Kool, van Hoof and Welling 2019.
    """
    if noise.ndim != 4 or len(noise) < 2:
        raise ValueError("noise: must be [draws, n, latents, classes], draws at least 2")
    logits = model.encoder(images)
    require_own_noise(noise[0], logits)
    codes = hard_codes(logits, noise)
    losses = _losses(model, images, logits, codes)
    fixed = losses.detach()
    return _with_score(losses, fixed - mean_of_the_others(fixed), logits, codes)


def exact(model: CategoricalVAE, images: Tensor) -> Tensor:
    """Compute the negative bound, and its gradient, by enumeration.

    Args:
        model: an encoder and a decoder.
        images: [n, 28, 28].

    Returns:
        A scalar without noise.

    Raises:
        ValueError: as :func:`gradbook.vae.exact_elbo`.
    """
    return _mean(-exact_elbo(model, images))


def temperature_schedule(step: int) -> float:
    """Cool from 1 to 0.01 as the article does, by a factor 0.999 per step.

    Args:
        step: how many batches came before; 0 for the first.

    Returns:
        0.01 + 0.99 * 0.999^step.

    Raises:
        ValueError: if ``step`` is negative.

    Source: J. Su, 2019, the code of the article's experiment.
    """
    if step < 0:
        raise ValueError(f"step: must not be negative, got {step}")
    return 0.01 + 0.99 * 0.999**step


def moving_average(average: float, value: float, decay: float = 0.9) -> float:
    """Mix a value into an exponential moving average.

    Args:
        average: of the values so far.
        value: the new one.
        decay: the weight that the average keeps, from 0 to 1.

    Returns:
        The new average.

    Raises:
        ValueError: if ``decay`` is not from 0 to 1.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay: must be from 0 to 1, got {decay}")
    return decay * average + (1 - decay) * value


def logit_gradients(
    loss: Callable[[CategoricalVAE, Tensor], Tensor],
    model: CategoricalVAE,
    images: Tensor,
) -> Tensor:
    """Compute what a loss sends back to each image's logits.

    Args:
        loss: a function of a model and images that is a mean over the
            images; bind the noise and other arguments first.
        model: an encoder and a decoder.
        images: [n, 28, 28]; an image that is repeated gives independent
            draws of its gradient.

    Returns:
        [n, latents, classes]: the gradient of each image's own loss.
    """
    logits = model.encoder(images).detach().requires_grad_()
    given = SimpleNamespace(encoder=lambda _: logits, decoder=model.decoder)
    (gradient,) = torch.autograd.grad(loss(given, images), logits)
    return len(images) * gradient


def _losses(
    model: CategoricalVAE,
    images: Tensor,
    logits: Tensor,
    codes: Tensor,
) -> Tensor:
    """Negative bounds [..., n] of codes [..., n, latents, classes]."""
    flat = codes.flatten(0, -3)
    pixel_logits = model.decoder(flat).unflatten(0, codes.shape[:-2])
    return categorical_kl(logits) - log_likelihood(pixel_logits, images)


def _with_score(
    losses: Tensor,
    weight: Tensor,
    logits: Tensor,
    codes: Tensor,
) -> Tensor:
    """Add the weighted score to the gradient, and exactly nothing to the value."""
    log_q = (logits.log_softmax(-1) * codes).sum((-2, -1))
    return _mean(losses + weight * (log_q - log_q.detach()))


def _mean(losses: Tensor) -> Tensor:
    if losses.numel() == 0:
        raise ValueError("images: must not be empty, their losses have no mean")
    return losses.mean()
