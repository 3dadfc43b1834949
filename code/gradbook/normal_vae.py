"""A variational autoencoder with a normal latent: its two networks, its bound, and tighter ones.

The encoder gives the mean and the log variance of q(z | x), whose d coordinates are independent; the
prior is standard normal. Images are rows [n, pixels] with values from 0 to 1, and the decoder gives
the logits of Bernoulli pixels. Another decoder works as well: the bounds take the function that
compares its output with the images. All bounds and divergences are in nats.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradbook.checks import require, require_finite
from gradbook.importance import LogEstimate, iwae_bound, log_prob_estimate
from gradbook.logits import require_fits

__all__ = [
    "Decoder",
    "Encoder",
    "LogEstimate",
    "NormalVAE",
    "Posterior",
    "build",
    "code",
    "elbo",
    "iwae_bound",
    "kl",
    "log_likelihood",
    "log_prob_estimate",
    "log_weights",
]


class Posterior(NamedTuple):
    """The normal q(z | x) of every image: means [n, d] and logarithms of variances [n, d]."""

    mean: Tensor
    log_variance: Tensor


Likelihood = Callable[[Tensor, Tensor], Tensor]


class Encoder(nn.Module):
    """One layer of rectifiers and two linear heads, from an image to q(z | x).

    Args:
        pixels: how many pixels an image has.
        latents: how many coordinates the latent has.
        hidden: how many rectifiers.
    """

    def __init__(self, pixels: int, latents: int, hidden: int):
        super().__init__()
        self.hidden = nn.Linear(pixels, hidden)
        self.mean = nn.Linear(hidden, latents)
        self.log_variance = nn.Linear(hidden, latents)

    def forward(self, x: Tensor) -> Posterior:
        """Compute q(z | x).

        Args:
            x: [n, pixels].

        Returns:
            Means and log variances, [n, latents] each.
        """
        h = self.hidden(x).relu()
        return Posterior(self.mean(h), self.log_variance(h))


class Decoder(nn.Module):
    """One layer of rectifiers and a linear layer, from a code to the logits of pixels.

    Args:
        latents: how many coordinates the latent has.
        pixels: how many pixels an image has.
        hidden: how many rectifiers.
    """

    def __init__(self, latents: int, pixels: int, hidden: int):
        super().__init__()
        self.hidden = nn.Linear(latents, hidden)
        self.logits = nn.Linear(hidden, pixels)

    def forward(self, z: Tensor) -> Tensor:
        """Compute the logits of the pixels.

        Args:
            z: [..., latents].

        Returns:
            [..., pixels].
        """
        return self.logits(self.hidden(z).relu())


class NormalVAE(nn.Module):
    """An encoder and a decoder. The functions of this module ask of a model only these two.

    Attributes:
        encoder: maps images [n, pixels] to a :class:`Posterior`.
        decoder: maps codes [..., d] to what the likelihood takes first.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


def build(
    pixels: int,
    latents: int,
    hidden: int,
    generator: torch.Generator,
) -> NormalVAE:
    """Build a model whose initial weights come from a generator.

    Weights are uniform with Glorot's bound, biases zero.

    Args:
        pixels: how many pixels an image has.
        latents: how many coordinates the latent has.
        hidden: how many rectifiers each of the two networks has.
        generator: of the CPU.

    Returns:
        A float32 model on the CPU.

    Raises:
        ValueError: if a size is not positive.

    Source: X. Glorot and Y. Bengio, 2010, equation 16.
    """
    for name, size in (("pixels", pixels), ("latents", latents), ("hidden", hidden)):
        if size < 1:
            raise ValueError(f"{name}: must be positive, got {size}")
    # torch's own initialization draws from its global generator: put that back as it was.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        encoder = Encoder(pixels, latents, hidden)
        model = NormalVAE(encoder, Decoder(latents, pixels, hidden))
    # A page's default type may be float64, whose draws would be other weights.
    model = model.float()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter, generator=generator)
        else:
            nn.init.zeros_(parameter)
    return model


def code(posterior: Posterior, noise: Tensor) -> Tensor:
    """Push standard normal noise through z = mean + deviation * noise.

    Args:
        posterior: of n images.
        noise: [n, d], or [K, n, d] for K codes of each image.

    Returns:
        The codes, in the shape of the noise, differentiable in the
        posterior.

    Raises:
        ValueError: if the posterior or the noise is not finite, or their
            shapes do not fit.

    Source: Kingma and Welling 2014, section 2.4.
    """
    _require_own_noise(posterior, noise)
    deviation = (0.5 * posterior.log_variance).exp()
    return posterior.mean + deviation * noise


def kl(posterior: Posterior) -> Tensor:
    """Compute KL(q || prior) of every coordinate.

    Args:
        posterior: of n images.

    Returns:
        [n, d], in nats; the divergence of an image is the sum of its row.

    Raises:
        ValueError: if the posterior is not finite.

    Source: Kingma and Welling 2014, appendix B.
    """
    _require_finite(posterior)
    mean, log_variance = posterior
    # expm1 keeps the digits of a coordinate that is close to the prior.
    return 0.5 * (mean.square() + log_variance.expm1() - log_variance)


def log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """Compute the log-probability of images under Bernoulli pixels.

    Args:
        logits: [..., n, pixels].
        x: [n, pixels], values from 0 to 1, or a shape that broadcasts.

    Returns:
        [..., n], in nats: minus the cross entropy, summed over pixels.
        Grey levels get the mean over the binary pixels that they stand
        for.

    Raises:
        ValueError: if a value of the images is not from 0 to 1, the shapes
            do not broadcast, or a logit is not finite.
    """
    require((x >= 0) & (x <= 1), "x: must be from 0 to 1")
    require_fits("x", x, "logits", logits)
    require_finite(logits=logits)
    entropy = functional.binary_cross_entropy_with_logits(
        *torch.broadcast_tensors(logits, x), reduction="none"
    )
    return -entropy.sum(-1)


def elbo(
    model: NormalVAE,
    x: Tensor,
    noise: Tensor,
    log_likelihood: Likelihood = log_likelihood,
) -> Tensor:
    """Estimate the ELBO of every image from one code, without bias.

    Args:
        model: an encoder and a decoder.
        x: [n, pixels].
        noise: standard normal, [n, d].
        log_likelihood: maps the decoder's output and the images to [n];
            by default that of Bernoulli pixels.

    Returns:
        log p(x | z) - KL(q(z | x) || p(z)), [n], differentiable in the
        weights of both networks.

    Raises:
        ValueError: if the posterior or the noise is not finite, the noise
            not [n, d], or the likelihood refuses the images.

    Source: Kingma and Welling 2014, equation 10.
    """
    posterior = model.encoder(x)
    if noise.ndim != 2:
        raise ValueError(f"noise: must be [n, d], is {tuple(noise.shape)}")
    output = model.decoder(code(posterior, noise))
    return log_likelihood(output, x) - kl(posterior).sum(-1)


def log_weights(
    model: NormalVAE,
    x: Tensor,
    noise: Tensor,
    log_likelihood: Likelihood = log_likelihood,
) -> Tensor:
    """Compute log p(x, z) - log q(z | x) at K codes of every image.

    Args:
        model: an encoder and a decoder.
        x: [n, pixels].
        noise: standard normal, [K, n, d].
        log_likelihood: maps the decoder's output, whose first axes are
            [K, n], and the images to [K, n]; by default that of Bernoulli
            pixels.

    Returns:
        [K, n], in nats. Each has the ELBO as its mean; the weight itself
        has the mean p(x).

    Raises:
        ValueError: if the posterior or the noise is not finite, the noise
            not [K, n, d], or the likelihood refuses the images.

    Source: Burda, Grosse and Salakhutdinov 2016, section 3.
    """
    posterior = model.encoder(x)
    if noise.ndim != 3:
        raise ValueError(f"noise: must be [K, n, d], is {tuple(noise.shape)}")
    z = code(posterior, noise)
    # log p(z) - log q(z | x): the constants of the two normals cancel.
    squares = noise.square() - z.square()
    ratio = 0.5 * (squares + posterior.log_variance).sum(-1)
    return log_likelihood(model.decoder(z), x) + ratio


def _require_finite(posterior: Posterior) -> None:
    require_finite(mean=posterior.mean, log_variance=posterior.log_variance)


def _require_own_noise(posterior: Posterior, noise: Tensor) -> None:
    _require_finite(posterior)
    # Noise that broadcasts would be shared between images without a word.
    if noise.shape[-2:] != posterior.mean.shape:
        shapes = f"{tuple(noise.shape)} for means {tuple(posterior.mean.shape)}"
        raise ValueError(f"noise: must be [n, d] or [K, n, d], is {shapes}")
    require_finite(noise=noise)
