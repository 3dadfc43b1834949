"""Four gradient estimators train the same VAE: 32 latents of 10 classes, too many to enumerate.

Images are binary: pixels drawn once from the grey levels of Fashion-MNIST. All fits of one seed
start from the same weights, see the same batches and take the same number of Adam's steps; what
they pay for a step differs, and is recorded: passes through the decoder, and seconds. The measure
is the negative ELBO of the test images with hard codes, the same for all.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradbook import device, vae, vae_gradients, vae_training
from gradbook.vae import CategoricalVAE

SEEDS = tuple(range(5))
LATENTS = 32
CLASSES = 10
BATCH = 50
POINTS = (0, 100, 200, 400, 700, 1000, 1400, 1800, 2400, 3000)
TEST_IMAGES = 5_000
SHORT_POINTS = (60,)
SHORT_IMAGES = (6_000, 2_000)
COOLEST = 0.1
DRAWS = 4
BLIND_LOSS = vae.SIDE**2 * math.log(2)

data_digest = vae_training.data_digest


class Method(NamedTuple):
    """A way to train: what makes its loss, and the passes through the decoder of one image."""

    make: Callable[[], vae_training.Loss]
    passes: int


class MovingAverage:
    """The score function's loss, measured from an average of the losses of earlier batches."""

    def __init__(self):
        # The loss of a decoder that knows nothing: a constant leaves the first step unbiased too.
        self.average = BLIND_LOSS

    def __call__(
        self, model: CategoricalVAE, images: Tensor, step: int, generator: torch.Generator
    ) -> Tensor:
        """Compute the loss of a batch, then let the average see it."""
        drawn = noise(images, generator)
        loss = vae_gradients.score_function(model, images, drawn, self.average)
        self.average = vae_gradients.moving_average(self.average, loss.item())
        return loss


def relaxed(model: CategoricalVAE, images: Tensor, step: int, generator: torch.Generator) -> Tensor:
    """Compute the Gumbel-Softmax loss, annealed as the article does, but only to 0.1."""
    temperature = max(COOLEST, vae_gradients.temperature_schedule(step))
    return vae_gradients.relaxed(model, images, noise(images, generator), temperature)


def straight_through(
    model: CategoricalVAE, images: Tensor, step: int, generator: torch.Generator
) -> Tensor:
    """Compute the straight-through Gumbel-Softmax loss at temperature 1."""
    return vae_gradients.straight_through(model, images, noise(images, generator), 1.0)


def leave_one_out(
    model: CategoricalVAE, images: Tensor, step: int, generator: torch.Generator
) -> Tensor:
    """Compute the leave-one-out loss of four codes to an image."""
    return vae_gradients.leave_one_out(model, images, noise(images, generator, DRAWS))


METHODS = {
    "relaxed": Method(lambda: relaxed, 1),
    "straight_through": Method(lambda: straight_through, 1),
    "leave_one_out": Method(lambda: leave_one_out, DRAWS),
    "moving_average": Method(MovingAverage, 1),
}
SHORT_METHODS = ("relaxed", "straight_through", "leave_one_out")


def noise(images: Tensor, generator: torch.Generator, *draws: int) -> Tensor:
    """Draw the Gumbel noise of a batch.

    Args:
        images: [n, 28, 28].
        generator: of the CPU.
        draws: how many to an image; by default one, without an axis.

    Returns:
        [*draws, n, latents, classes].
    """
    return vae_training.gumbels(*draws, len(images), LATENTS, CLASSES, generator=generator)


def run(seed: int) -> dict[str, Any]:
    """Train by every method from one seed.

    Args:
        seed: of the weights, the order of the images and the noise.

    Returns:
        ``short``, as :func:`run_short`; ``steps``, after which the curves are sampled; ``fits`` by
        method: the ``curve`` of the test images' negative ELBO in nats, each image with one hard
        code; at the end their mean ``kl``; ``seconds`` of a step and ``passes`` of each image
        through the decoder.
    """
    train = vae_training.binary_images("train")
    test = vae_training.binary_images("test", TEST_IMAGES)
    fits = {name: climb(name, train, test, seed, POINTS) for name in METHODS}
    return {"short": run_short(seed), "steps": list(POINTS), "fits": fits}


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: of the weights, the order of the images and the noise.

    Returns:
        The negative ELBO of 2000 test images after 60 steps of three of the methods, with 6000
        images to train on.
    """
    splits = zip(("train", "test"), SHORT_IMAGES, strict=True)
    train, test = (vae_training.binary_images(*split) for split in splits)
    fits = {name: climb(name, train, test, seed, SHORT_POINTS) for name in SHORT_METHODS}
    return {name: fit["curve"][-1] for name, fit in fits.items()}


def climb(
    name: str, train: Tensor, test: Tensor, seed: int, points: tuple[int, ...]
) -> dict[str, Any]:
    """Train a model by one of ``METHODS``.

    Args:
        name: of the method.
        train: images to train on.
        test: images to measure on.
        seed: of the weights, the order of the images and the noise.
        points: after how many steps to measure.

    Returns:
        What :func:`run` says of a fit.
    """
    method = METHODS[name]
    weights = torch.Generator().manual_seed(seed)
    model = vae.build(LATENTS, CLASSES, weights).to(device())
    measure = partial(vae_training.hard_bound, images=test, seed=seed + 20_000)
    curve = vae_training.fit(model, method.make(), train, seed, points, measure, BATCH)
    return {
        "curve": curve.values,
        "kl": divergence(model, test),
        "seconds": curve.seconds,
        "passes": method.passes,
    }


@torch.no_grad()
def divergence(model: CategoricalVAE, images: Tensor) -> float:
    """Compute the mean divergence of the codes from their prior.

    Args:
        model: an encoder and a decoder.
        images: [n, 28, 28].

    Returns:
        Nats per image.
    """
    chunks = images.split(vae_training.CHUNK)
    total = sum(vae.categorical_kl(model.encoder(chunk)).sum().item() for chunk in chunks)
    return total / len(images)
