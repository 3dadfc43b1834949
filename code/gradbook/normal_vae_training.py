"""What trainings of a VAE with a normal latent share: pixels, noise, losses and test measures.

Images are flattened, [n, pixels], and binary. The loop is :func:`gradbook.vae_training.fit`; the
losses here are for it. All randomness is drawn on the CPU from the caller's generator, then moved
to the book's device. Everything is in nats.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradbook import aggregate, normal_vae, vae_training
from gradbook.devices import device
from gradbook.normal_vae import Likelihood, NormalVAE, Posterior
from gradbook.vae_training import Loss

CHUNK = 500


class Terms(NamedTuple):
    """The two terms of the bound: log p(x | z) [n] at one code each, and the divergence [n, d]."""

    log_likelihood: Tensor
    kl: Tensor


class Bound(NamedTuple):
    """Means over images: the reconstruction term, and the divergence of each latent [d]."""

    reconstruction: float
    kl: list[float]

    @property
    def elbo(self) -> float:
        """The bound itself."""
        return self.reconstruction - sum(self.kl)


class Reconstruction(NamedTuple):
    """Means over images: log p(x | z) at the posterior's mean, and the squared error of a pixel."""

    log_likelihood: float
    squared_error: float


TermsOf = Callable[[nn.Module, Tensor, torch.Generator], Terms]
Objective = Callable[[Tensor, Tensor, int], Tensor]


def flat_images(split: str, count: int | None = None) -> Tensor:
    """Read Fashion-MNIST as rows of binary pixels, drawn once from the grey levels.

    Args:
        split: ``"train"`` or ``"test"``.
        count: how many of the first images; by default all.

    Returns:
        float32 [n, 784] of zeros and ones, on the book's device.
    """
    return vae_training.binary_images(split, count).flatten(1)


def normals(*shape: int, generator: torch.Generator) -> Tensor:
    """Draw standard normal noise on the CPU, in float32, for the book's device.

    Args:
        shape: of the noise.
        generator: of the CPU.

    Returns:
        Noise of that shape.
    """
    drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return drawn.to(device())


def started(latents: int, seed: int, pixels: int = 784, hidden: int = 256) -> NormalVAE:
    """Build a model on the book's device.

    Args:
        latents: dimensions of the code.
        seed: of the weights.
        pixels: of an image.
        hidden: units of each network.

    Returns:
        As :func:`gradbook.normal_vae.build`.
    """
    generator = torch.Generator().manual_seed(seed)
    return normal_vae.build(pixels, latents, hidden, generator).to(device())


def terms(
    model: NormalVAE,
    images: Tensor,
    generator: torch.Generator,
    log_likelihood: Likelihood = normal_vae.log_likelihood,
) -> Terms:
    """Compute the two terms of the bound with one code drawn for each image.

    Args:
        model: an encoder and a decoder.
        images: [n, pixels].
        generator: of the noise.
        log_likelihood: of the decoder's output and the images, [n]; by default that of Bernoulli
            pixels.

    Returns:
        The terms, differentiable in the model.
    """
    posterior = model.encoder(images)
    noise = normals(*posterior.mean.shape, generator=generator)
    output = model.decoder(normal_vae.code(posterior, noise))
    return Terms(log_likelihood(output, images), normal_vae.kl(posterior))


def descend(objective: Objective, terms: TermsOf = terms) -> Loss:
    """Make a loss for the loop from an objective of the two terms.

    Args:
        objective: makes a scalar from log p(x | z) [n], the divergences
            [n, d] and the number of steps before.
        terms: of a model, images and a generator.

    Returns:
        The loss.
    """

    def loss(model: nn.Module, images: Tensor, step: int, generator: torch.Generator):
        return objective(*terms(model, images, generator), step)

    return loss


def autoencoder(model: NormalVAE, images: Tensor, step: int, generator: torch.Generator) -> Tensor:
    """Compute the loss of a plain autoencoder: no noise, no divergence.

    Args:
        model: an encoder, of which only the mean counts, and a decoder.
        images: [n, pixels].
        step: not used.
        generator: not used.

    Returns:
        Minus the mean log p(x | z) at the mean of each posterior.
    """
    logits = model.decoder(model.encoder(images).mean)
    return -normal_vae.log_likelihood(logits, images).mean()


@torch.no_grad()
def bound(model: nn.Module, images: Tensor, seed: int, terms: TermsOf = terms) -> Bound:
    """Estimate the bound's terms on images from one code each.

    Args:
        model: an encoder and a decoder.
        images: [n, pixels], n at least 1.
        seed: of the noise.
        terms: of a model, images and a generator.

    Returns:
        Their means.
    """
    generator = torch.Generator().manual_seed(seed)
    chunks = [terms(model, chunk, generator) for chunk in images.split(CHUNK)]
    likelihood, kl = (torch.cat(parts).double().mean(0) for parts in zip(*chunks, strict=True))
    return Bound(likelihood.item(), kl.tolist())


@torch.no_grad()
def posteriors(model: nn.Module, images: Tensor) -> Posterior:
    """Encode images in chunks.

    Args:
        model: has an encoder.
        images: [n, pixels], n at least 1.

    Returns:
        The posterior of each.
    """
    chunks = [model.encoder(chunk) for chunk in images.split(CHUNK)]
    return Posterior(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


@torch.no_grad()
def reconstruction(model: NormalVAE, images: Tensor) -> Reconstruction:
    """Measure how well images come back from the means of their posteriors.

    Args:
        model: an encoder and a decoder.
        images: [n, pixels], n at least 1.

    Returns:
        The measures; the squared error is between a pixel and its probability.
    """
    likelihood, error = 0.0, 0.0
    for chunk in images.split(CHUNK):
        logits = model.decoder(model.encoder(chunk).mean)
        likelihood += normal_vae.log_likelihood(logits, chunk).double().sum().item()
        error += (logits.sigmoid() - chunk).square().double().sum().item()
    return Reconstruction(likelihood / len(images), error / images.numel())


@torch.no_grad()
def split(model: nn.Module, images: Tensor, draws: int, seed: int) -> dict[str, float]:
    """Split the mean divergence of images into information and the aggregate's divergence.

    Args:
        model: has an encoder.
        images: [n, pixels], n at least 1.
        draws: codes of each image, even and at least 4.
        seed: of the noise.

    Returns:
        By name, the numbers of :class:`gradbook.aggregate.Split`.
    """
    posterior = posteriors(model, images)
    generator = torch.Generator().manual_seed(seed)
    noise = normals(draws, *posterior.mean.shape, generator=generator)
    found = aggregate.split(*posterior, noise)
    return {name: value.item() for name, value in found._asdict().items()}
