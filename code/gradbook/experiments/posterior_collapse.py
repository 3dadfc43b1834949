"""Posterior collapse: a decoder that can do without its code learns to, unless it is held back.

Images are pooled to 14 x 14 and binarized once. The weak decoder draws all pixels independently
given the code. The strong one also sees the pixels before each, in reading order, through a masked
network that was trained without any code before; the fresh one has the same network untrained. All
fits of one seed start from the same encoder and decoder, whose codes tell images hardly apart, and
see the same batches. The bound that is measured is always the true one, at weight 1. A split of the
divergence is that of 1000 test images: the information is at most log 1000, 6.9 nats.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gradbook import normal_vae, vae_terms, vae_training
from gradbook import normal_vae_training as training
from gradbook.devices import device
from gradbook.masked_context import Context, StrongVAE
from gradbook.normal_vae import NormalVAE

SEEDS = tuple(range(5))
SIDE = 14
PIXELS = SIDE**2
LATENTS = 8
HIDDEN = 128
CONTEXT = 256
HEAD_START = 3_000
# Of the encoder's last weights: the smaller, the closer all posteriors start to the prior.
HEADS = 0.01
POINTS = (0, 200, 600, 1_500, 3_000, 5_000)
WARM_UP = 2_000
FREE = 0.5
TEST_IMAGES = 2_000
SPLIT_IMAGES, SPLIT_DRAWS = 1_000, 4
SHORT_HEAD_START = 400
SHORT_POINTS = (200,)
SHORT_IMAGES = (6_000, 1_000)

data_digest = vae_training.data_digest


class Method(NamedTuple):
    """A decoder, made from a seed and a trained context, and an objective."""

    start: Callable[[int, Context], NormalVAE]
    objective: training.Objective


def untrained(seed: int) -> Context:
    """Build a context.

    Args:
        seed: of the weights.

    Returns:
        The context on the book's device.
    """
    generator = torch.Generator().manual_seed(seed + 60_000)
    return Context(PIXELS, CONTEXT, generator).to(device())


def trained(train: Tensor, seed: int, steps: int) -> Context:
    """Train a context alone, as an autoregressive model of images.

    Args:
        train: images, [n, 196].
        seed: of the weights and the order of the images.
        steps: of Adam.

    Returns:
        The context.
    """

    def loss(model: Context, images: Tensor, step: int, generator: torch.Generator) -> Tensor:
        return -normal_vae.log_likelihood(model(images), images).mean()

    context = untrained(seed)
    vae_training.fit(context, loss, train, seed + 70_000, (steps,), lambda model: 0.0)
    return context


def weak(seed: int, context: Context) -> NormalVAE:
    """Build a model whose pixels are independent given the code.

    Args:
        seed: of the weights.
        context: not used.

    Returns:
        The model on the book's device.
    """
    model = training.started(LATENTS, seed, PIXELS, HIDDEN)
    with torch.no_grad():
        model.encoder.mean.weight *= HEADS
        model.encoder.log_variance.weight *= HEADS
    return model


def strong(seed: int, context: Context) -> StrongVAE:
    """Build a model whose decoder has a trained context.

    Args:
        seed: of the other weights.
        context: it is copied.

    Returns:
        The model on the book's device.
    """
    return StrongVAE(weak(seed, context), deepcopy(context))


def fresh(seed: int, context: Context) -> StrongVAE:
    """Build a model whose decoder has an untrained context.

    Args:
        seed: of all weights.
        context: not used.

    Returns:
        The model on the book's device.
    """
    return StrongVAE(weak(seed, context), untrained(seed))


def beta(weight: float) -> training.Objective:
    """Make an objective whose divergence has a constant weight.

    Args:
        weight: of the divergence.

    Returns:
        The objective.
    """
    return lambda log_likelihood, kl, step: vae_terms.beta_loss(log_likelihood, kl, weight)


def warm_up(steps: int) -> training.Objective:
    """Make an objective whose divergence comes in little by little.

    Args:
        steps: until its weight is 1.

    Returns:
        The objective.
    """
    return lambda log_likelihood, kl, step: vae_terms.beta_loss(
        log_likelihood, kl, vae_terms.warm_up(step, steps)
    )


def free_bits(free: float) -> training.Objective:
    """Make an objective in which each latent has a divergence that costs nothing.

    Args:
        free: nats of each latent.

    Returns:
        The objective.
    """
    return lambda log_likelihood, kl, step: vae_terms.free_bits_loss(log_likelihood, kl, free)


METHODS = {
    "strong_beta_1": Method(strong, beta(1.0)),
    "strong_warm_up": Method(strong, warm_up(WARM_UP)),
    "strong_free_bits": Method(strong, free_bits(FREE)),
    "strong_beta_0.25": Method(strong, beta(0.25)),
    "fresh_beta_1": Method(fresh, beta(1.0)),
    "weak_beta_0.25": Method(weak, beta(0.25)),
    "weak_beta_1": Method(weak, beta(1.0)),
    "weak_beta_4": Method(weak, beta(4.0)),
}
SHORT_METHODS = ("strong_beta_1", "strong_free_bits", "weak_beta_1")


def run(seed: int) -> dict[str, Any]:
    """Train by every method from one seed.

    Args:
        seed: of the weights, the order of the images and the noise.

    Returns:
        ``short``, as :func:`run_short`; ``steps``, after which the curves are sampled; ``context``,
        the mean log-probability of test images under the context alone; ``fits`` by method, as
        :func:`climb`.
    """
    train, test = pooled("train"), pooled("test", TEST_IMAGES)
    context = trained(train, seed, HEAD_START)
    with torch.no_grad():
        alone = normal_vae.log_likelihood(context(test), test).mean().item()
    fits = {name: climb(name, context, train, test, seed, POINTS) for name in METHODS}
    return {"short": run_short(seed), "steps": list(POINTS), "context": alone, "fits": fits}


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: of the weights, the order of the images and the noise.

    Returns:
        By three of the methods, the true ELBO of 1000 test images and their mean divergence after
        200 steps, with 6000 images to train on and 400 steps of the context alone.
    """
    splits = zip(("train", "test"), SHORT_IMAGES, strict=True)
    train, test = (pooled(*split) for split in splits)
    context, found = trained(train, seed, SHORT_HEAD_START), {}
    for name in SHORT_METHODS:
        curve = climb(name, context, train, test, seed, SHORT_POINTS)["curve"]
        found[f"{name}_elbo"] = curve["elbo"][-1]
        found[f"{name}_kl"] = sum(curve["kl"][-1])
    return found


def pooled(split: str, count: int | None = None) -> Tensor:
    """Read Fashion-MNIST at half its size, pixels drawn once from means of four grey levels.

    Args:
        split: ``"train"`` or ``"test"``.
        count: how many of the first images; by default all.

    Returns:
        float32 [n, 196] of zeros and ones, on the book's device.
    """
    grey = vae_training.grey_images(split)[:count].cpu()
    small = functional.avg_pool2d(grey, 2).flatten(1)
    return vae_training.binarized(small, torch.Generator().manual_seed(0)).to(device())


def terms(model: NormalVAE, images: Tensor, generator: torch.Generator) -> training.Terms:
    """Compute the two terms of the bound of either model.

    Args:
        model: from :func:`weak` or :func:`strong`.
        images: [n, 196].
        generator: of the noise.

    Returns:
        As :func:`gradbook.normal_vae_training.terms`.
    """
    own = getattr(model, "log_likelihood", normal_vae.log_likelihood)
    return training.terms(model, images, generator, own)


def climb(
    name: str,
    context: Context,
    train: Tensor,
    test: Tensor,
    seed: int,
    points: tuple[int, ...],
) -> dict[str, Any]:
    """Train a model by one of ``METHODS``.

    Args:
        name: of the method.
        context: as from :func:`trained`.
        train: images to train on, [n, 196].
        test: images to measure on, [n, 196].
        seed: of the weights, the order of the images and the noise.
        points: after how many steps to measure.

    Returns:
        ``curve``, by measure, a value at each point, as :func:`progress`; ``seconds`` of a step.
    """
    method = METHODS[name]
    loss = training.descend(method.objective, terms)
    measure = partial(progress, images=test, seed=seed + 20_000)
    curve = vae_training.fit(method.start(seed, context), loss, train, seed, points, measure)
    columns = {key: [row[key] for row in curve.values] for key in curve.values[0]}
    return {"curve": columns, "seconds": curve.seconds}


def progress(model: NormalVAE, images: Tensor, seed: int) -> dict[str, Any]:
    """Measure a model during training.

    Args:
        model: from :func:`weak` or :func:`strong`.
        images: [n, 196].
        seed: of the noise.

    Returns:
        Means over images: the true ``elbo``, its ``reconstruction`` term and ``kl`` of each latent;
        ``active``, the number of active units; and the ``split`` of the divergence, as
        :func:`gradbook.normal_vae_training.split`.
    """
    found = training.bound(model, images, seed, terms)
    posterior = training.posteriors(model, images)
    return {
        "elbo": found.elbo,
        **found._asdict(),
        "active": vae_terms.active_units(posterior.mean).sum().item(),
        "split": training.split(model, images[:SPLIT_IMAGES], SPLIT_DRAWS, seed),
    }
