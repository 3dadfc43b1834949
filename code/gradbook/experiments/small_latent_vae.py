"""A VAE small enough to be trained exactly: every estimator against enumeration.

Three latents of four classes have 64 codes, so that the ELBO and its gradient are sums. Images are
binary: pixels drawn once from the grey levels of Fashion-MNIST, so that the bound is one of their
log-probability. All fits of one seed start from the same weights and see the same batches; the
yardstick is the fit by the exact gradient. At its end, and at the start, the gradient that each
estimator sends to the encoder's logits is compared with the exact one.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradbook import vae_gradients, vae_losses, vae_training
from gradbook.vae import CategoricalVAE
from gradbook.vae_losses import Code

SEEDS = tuple(range(5))
CODE = Code(latents=3, classes=4)
BATCH = 50
STEPS = 1600
POINTS = (0, 50, 100, 200, 400, 600, 800, 1000, 1300, STEPS)
TEST_IMAGES = 5_000
COOLEST = 0.1
PROBES = 100
REPLICATES = 200
AT_ONCE = 10
SHORT_POINTS = (60,)
SHORT_IMAGES = (6_000, 2_000)
SHORT_REPLICATES = 30

data_digest = vae_training.data_digest


def annealed(step: int) -> float:
    """Cool from 1 to 0.1 over the training, by the same factor at each step.

    Args:
        step: how many batches came before.

    Returns:
        The temperature.
    """
    return COOLEST ** (step / STEPS)


METHODS = {
    "exact": vae_losses.exact(),
    "relaxed_annealed": vae_losses.relaxed(CODE, annealed),
    "relaxed_1": vae_losses.relaxed(CODE, lambda step: 1.0),
    "relaxed_0.1": vae_losses.relaxed(CODE, lambda step: 0.1),
    "straight_through_1": vae_losses.straight_through(CODE, 1.0),
    "leave_one_out_2": vae_losses.leave_one_out(CODE, 2),
}
SHORT_METHODS = ("exact", "relaxed_1", "leave_one_out_2")


def run(seed: int) -> dict[str, Any]:
    """Train by every method from one seed.

    Args:
        seed: of the weights, the order of the images and the noise.

    Returns:
        ``short``, as :func:`run_short`; ``steps``, after which the curves are sampled; ``curves``
        by method, the exact negative ELBO of the test images in nats; ``kl``, by method, their
        mean divergence at the end; ``gradients`` of the model at the ``start`` and of the
        ``exact`` one at its end, as :func:`compare`.
    """
    train = vae_training.binary_images("train")
    test = vae_training.binary_images("test", TEST_IMAGES)
    start = partial(vae_training.started, *CODE, seed, train)
    models = {name: start() for name in METHODS}
    curves = {name: climb(models[name], name, train, test, seed, POINTS) for name in METHODS}
    return {
        "short": run_short(seed),
        "steps": list(POINTS),
        "curves": curves,
        "kl": {name: vae_training.divergence(models[name], test) for name in METHODS},
        "gradients": {
            "start": compare(start(), test[:PROBES], seed, REPLICATES),
            "exact": compare(models["exact"], test[:PROBES], seed, REPLICATES),
        },
    }


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: of the weights, the order of the images and the noise.

    Returns:
        The exact negative ELBO of 2000 test images after 60 steps of three of the methods, with
        6000 images to train on; and how many times the variance of the relaxed gradient at
        temperature 1 two others have at the start, as logarithms to base 10.
    """
    splits = zip(("train", "test"), SHORT_IMAGES, strict=True)
    train, test = (vae_training.binary_images(*split) for split in splits)
    start = partial(vae_training.started, *CODE, seed, train)
    bounds = {
        name: climb(start(), name, train, test, seed, SHORT_POINTS)[-1] for name in SHORT_METHODS
    }
    rows = compare(start(), test[:PROBES], seed, SHORT_REPLICATES)
    ratios = {
        f"log10_ratio_{name}": math.log10(rows[name]["variance"] / rows["relaxed_1"]["variance"])
        for name in ("straight_through_1", "leave_one_out_2")
    }
    return {**bounds, **ratios}


def climb(
    model: CategoricalVAE,
    name: str,
    train: Tensor,
    test: Tensor,
    seed: int,
    points: tuple[int, ...],
) -> list[float]:
    """Train a model in place by one of ``METHODS``.

    Args:
        model: as from :func:`gradbook.vae_training.started`.
        name: of the method.
        train: images to train on.
        test: images to measure on.
        seed: of the order of the images and of the noise.
        points: after how many steps to measure.

    Returns:
        The exact negative ELBO of the test images at the points.
    """
    measure = partial(vae_training.exact_bound, images=test)
    return vae_training.fit(model, METHODS[name], train, seed, points, measure, BATCH).values


def compare(model: CategoricalVAE, images: Tensor, seed: int, replicates: int) -> dict[str, Any]:
    """Compare each estimator's gradient in the encoder's logits with the exact one.

    Args:
        model: an encoder and a decoder.
        images: [n, 28, 28], n at least 2.
        seed: of the noise.
        replicates: how many gradients to draw for each image, a multiple of ten.

    Returns:
        ``norm_squared`` of the exact gradient, a mean over the images; by estimator, means over the
        images of the total ``variance`` of one draw and of ``bias_squared``, the squared distance
        of the expectation from the exact gradient, with its ``stderr``. ``bias_squared`` is
        estimated without bias: it may be negative, and where the estimator is unbiased it is zero
        within its error.
    """
    truth = vae_gradients.logit_gradients(vae_gradients.exact, model, images)
    rows = {"norm_squared": truth.square().sum((-2, -1)).mean().item()}
    for name, loss in estimators(model, images).items():
        generator = torch.Generator().manual_seed(seed + 20_000)
        bound = partial(loss, generator=generator)
        many = images.repeat(AT_ONCE, 1, 1)
        draws = [
            vae_gradients.logit_gradients(bound, model, many).double().unflatten(0, (AT_ONCE, -1))
            for _ in range(replicates // AT_ONCE)
        ]
        draws = torch.cat(draws)
        variance = draws.var(0).sum((-2, -1))
        distance = (draws.mean(0) - truth).square().sum((-2, -1))
        bias = distance - variance / len(draws)
        rows[name] = {
            "bias_squared": bias.mean().item(),
            "stderr": (bias.std() / math.sqrt(len(bias))).item(),
            "variance": variance.mean().item(),
        }
    return rows


def estimators(model: CategoricalVAE, images: Tensor) -> dict[str, Callable[..., Tensor]]:
    """List what :func:`compare` compares.

    Args:
        model: its mean loss is the score function's baseline.
        images: [n, 28, 28].

    Returns:
        By name, a loss of a model, images and ``generator``.
    """
    with torch.no_grad():
        baseline = vae_gradients.exact(model, images).item()

    def score(model, images, step, generator):
        drawn = vae_losses.noise(CODE, images, generator)
        return vae_gradients.score_function(model, images, drawn, baseline)

    kinds = {
        "relaxed_1": METHODS["relaxed_1"],
        "relaxed_0.5": vae_losses.relaxed(CODE, lambda step: 0.5),
        "relaxed_0.1": METHODS["relaxed_0.1"],
        "straight_through_1": METHODS["straight_through_1"],
        "score_function": score,
        "leave_one_out_2": METHODS["leave_one_out_2"],
    }
    return {name: partial(loss, step=0) for name, loss in kinds.items()}
