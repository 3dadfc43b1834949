"""What trainings of a VAE on Fashion-MNIST share: images, batches, noise and test bounds.

All randomness is drawn on the CPU from the caller's generator, then moved to the book's device.
"""

import time
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook import data, gumbel, vae
from gradbook.checks import require
from gradbook.devices import device

CHUNK = 500
LEAK = 0.2
# Pixels that are always black have no logit.
LEAST_MEAN = 1e-3
Loss = Callable[[vae.CategoricalVAE, Tensor, int, torch.Generator], Tensor]


class Curve(NamedTuple):
    """What a training showed: a measure at some steps, and the seconds of one step."""

    values: list[float]
    seconds: float


def data_digest() -> str:
    """Summarize the images that a record depends on.

    Returns:
        The SHA-256 of the pixels of both splits, training first. It needs no data on this machine:
        :func:`gradbook.data.fashion_mnist` refuses all other files.
    """
    return data.FASHION_MNIST_PIXELS_SHA256


def grey_images(split: str) -> Tensor:
    """Read Fashion-MNIST as grey levels.

    Args:
        split: ``"train"`` or ``"test"``.

    Returns:
        float32 [n, 28, 28] from 0 to 1, on the book's device.
    """
    return data.fashion_mnist(split).images.to(device()).float() / 255


def binary_images(split: str, count: int | None = None) -> Tensor:
    """Read Fashion-MNIST with pixels drawn once, from a fixed seed, from the grey levels.

    Args:
        split: ``"train"`` or ``"test"``.
        count: how many of the first images; by default all.

    Returns:
        float32 [n, 28, 28] of zeros and ones, on the book's device.
    """
    grey = data.fashion_mnist(split).images[:count].float() / 255
    return binarized(grey, torch.Generator().manual_seed(0)).to(device())


def binarized(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each pixel as a Bernoulli variable whose mean is its grey level.

    Args:
        images: values from 0 to 1, on the generator's device.
        generator: of the draw.

    Returns:
        Zeros and ones of the same shape and type.

    Raises:
        ValueError: if a value is not from 0 to 1.
    """
    require((images >= 0) & (images <= 1), "images: must be from 0 to 1")
    u = torch.empty_like(images).uniform_(generator=generator)
    return (u < images).to(images.dtype)


def minibatches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of indices for ever, each pass in a new order.

    Args:
        count: of the images; what is left over of a pass is dropped.
        size: of a batch.
        generator: of the CPU.

    Yields:
        ``size`` different indices, on the book's device.

    Raises:
        ValueError: if ``size`` is not from 1 to ``count``.
    """
    if not 1 <= size <= count:
        raise ValueError(f"size: must be from 1 to {count}, got {size}")
    while True:
        order = torch.randperm(count, generator=generator, device="cpu").to(device())
        yield from order[: count - count % size].split(size)


def gumbels(*shape: int, generator: torch.Generator) -> Tensor:
    """Draw standard Gumbel noise on the CPU, in float32, for the book's device.

    Args:
        shape: of the noise.
        generator: of the CPU.

    Returns:
        Noise of that shape.
    """
    return gumbel.gumbel_noise(shape, generator, torch.float32, device())


def started(latents: int, classes: int, seed: int, images: Tensor) -> vae.CategoricalVAE:
    """Build a model whose start leaves no unit dead and no code unused.

    Hidden units leak below zero, the encoder sees images less their mean, and the decoder starts
    from it.

    Args:
        latents: how many latent variables.
        classes: how many classes each has.
        seed: of the weights.
        images: what it will be trained on, [n, 28, 28].

    Returns:
        A model on the book's device.
    """
    mean = images.mean(0).clamp(LEAST_MEAN, 1 - LEAST_MEAN)
    generator = torch.Generator().manual_seed(seed)
    return vae.build(latents, classes, generator, leak=LEAK, mean=mean).to(device())


@torch.no_grad()
def hard_bound(model: vae.CategoricalVAE, images: Tensor, seed: int) -> float:
    """Estimate the mean negative bound of images from one hard code each.

    Args:
        model: an encoder and a decoder.
        images: [n, 28, 28].
        seed: of the noise.

    Returns:
        Nats per image.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = model.encoder(images[:1]).shape[1:]
    total = 0.0
    for chunk in images.split(CHUNK):
        noise = gumbels(len(chunk), *shape, generator=generator)
        total -= vae.sampled_elbo(model, chunk, noise).sum().item()
    return total / len(images)


@torch.no_grad()
def exact_bound(model: vae.CategoricalVAE, images: Tensor) -> float:
    """Compute the mean negative bound of images by a sum over every code.

    Args:
        model: an encoder and a decoder.
        images: [n, 28, 28].

    Returns:
        Nats per image.
    """
    chunks = images.split(CHUNK)
    return -sum(vae.exact_elbo(model, chunk).sum().item() for chunk in chunks) / len(images)


@torch.no_grad()
def divergence(model: vae.CategoricalVAE, images: Tensor) -> float:
    """Compute the mean divergence of the codes from their prior.

    Args:
        model: an encoder and a decoder.
        images: [n, 28, 28].

    Returns:
        Nats per image.
    """
    chunks = images.split(CHUNK)
    total = sum(vae.categorical_kl(model.encoder(chunk)).sum().item() for chunk in chunks)
    return total / len(images)


def fit(
    model: vae.CategoricalVAE,
    loss: Loss,
    images: Tensor,
    seed: int,
    points: Collection[int],
    measure: Callable[[vae.CategoricalVAE], float],
    batch: int = 100,
    rate: float = 1e-3,
) -> Curve:
    """Train a model in place by Adam, and measure it on the way.

    Args:
        model: on the book's device.
        loss: makes a scalar from the model, a batch, the number of steps
            before it and a generator for the noise.
        images: [n, 28, 28].
        seed: of the order of the images and, apart from it, of the noise:
            all losses of one seed see the same batches.
        points: after how many steps to measure; the last one ends the
            training.
        measure: of a model.
        batch: images of a step.
        rate: Adam's step size.

    Returns:
        The measures, and the mean seconds of a step without them.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    batches = minibatches(len(images), batch, torch.Generator().manual_seed(seed))
    noise = torch.Generator().manual_seed(seed + 10_000)
    values, seconds, done = [], 0.0, 0
    for point in sorted(points):
        start = time.perf_counter()
        for step in range(done, point):
            optimizer.zero_grad()
            loss(model, images[next(batches)], step, noise).backward()
            optimizer.step()
        done = point
        seconds += time.perf_counter() - start
        values.append(measure(model))
    return Curve(values, seconds / max(done, 1))
