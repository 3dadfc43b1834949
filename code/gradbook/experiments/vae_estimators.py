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

from gradbook import vae, vae_gradients, vae_losses, vae_training
from gradbook.vae import CategoricalVAE
from gradbook.vae_losses import Code

SEEDS = tuple(range(5))
CODE = Code(latents=32, classes=10)
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
        drawn = vae_losses.noise(CODE, images, generator)
        loss = vae_gradients.score_function(model, images, drawn, self.average)
        self.average = vae_gradients.moving_average(self.average, loss.item())
        return loss


def annealed(step: int) -> float:
    """Cool as the article does, but only to 0.1.

    Args:
        step: how many batches came before.

    Returns:
        The temperature.
    """
    return max(COOLEST, vae_gradients.temperature_schedule(step))


METHODS = {
    "relaxed": Method(lambda: vae_losses.relaxed(CODE, annealed), 1),
    "straight_through": Method(lambda: vae_losses.straight_through(CODE, 1.0), 1),
    "leave_one_out": Method(lambda: vae_losses.leave_one_out(CODE, DRAWS), DRAWS),
    "moving_average": Method(MovingAverage, 1),
}
SHORT_METHODS = ("relaxed", "straight_through", "leave_one_out")


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
    model = vae_training.started(*CODE, seed, train)
    measure = partial(vae_training.hard_bound, images=test, seed=seed + 20_000)
    curve = vae_training.fit(model, method.make(), train, seed, points, measure, BATCH)
    return {
        "curve": curve.values,
        "kl": vae_training.divergence(model, test),
        "seconds": curve.seconds,
        "passes": method.passes,
    }
