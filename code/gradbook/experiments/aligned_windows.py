"""Sliding windows over images that are aligned: there a window's place matters.

The images of Fashion-MNIST are centred: what is likely depends on where one looks. A VQ-VAE turns
them into 7 by 7 codes, and transformers learn windows of 4 by 4 of them. The ``blind`` one knows
nothing of a window's place; the ``placed`` one is told it. A window that slides over the whole grid
makes each a law of whole grids, which is measured on test images and drawn from. A transformer over
the ``whole`` grid, which needs no window, stands beside them.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradbook import pictures, priors, sliding, vae_training, vq_vae_training
from gradbook import window_priors as windowed
from gradbook.experiments import code_priors
from gradbook.sliding import Window
from gradbook.window_priors import WindowPrior

SEEDS = tuple(range(3))
SIDE, CODES = 4, code_priors.CODES
MAKERS = {"blind": windowed.blind, "placed": windowed.placed}
TEST_IMAGES = 2_000
RATE, SMOOTHING = 1e-2, 1.0
SHOWN = 16
SHORT_IMAGES = 4_000, 300


class Scale(NamedTuple):
    """How large the priors are, and how long everything is trained.

    Attributes:
        stage_steps: of the autoencoder.
        sizes: numbers of a vector, blocks and heads of a prior.
        steps: of a prior.
        batch: windows of a step.
        drawn: how many images each prior draws.
    """

    stage_steps: int
    sizes: tuple[int, int, int]
    steps: int
    batch: int
    drawn: int


SMALL = Scale(500, (64, 2, 4), 600, 64, 500)
FULL = Scale(5_000, (256, 6, 8), 10_000, 512, 2_000)
SHORT = Scale(100, (32, 1, 2), 300, 64, 0)

data_digest = vae_training.data_digest


def run(seed: int, scale: Scale = SMALL) -> dict[str, Any]:
    """Train an autoencoder and priors of its codes.

    Args:
        seed: of all weights, orders and noise.
        scale: of priors and trainings.

    Returns:
        ``short``, as :func:`run_short`; bits of a code over the test images: ``bits``, as
        :func:`bits_of`, with ``whole``, and ``tables``, as :func:`gradbook.priors.table_bits`;
        ``maps``, by kind, the bits of the code at each place, 7 rows of 7; ``profile``, as
        :func:`profile`; ``seconds`` of a step, by prior; and, of the first seed alone, ``pictures``
        of 16 images each: decoded codes of the ``test`` images, and samples by kind.
    """
    train, test = vq_vae_training.grey("train"), vq_vae_training.grey("test", TEST_IMAGES)
    stage = code_priors.first_stage(train, test, seed, scale.stage_steps)
    models, seconds = trained(stage.train, seed, scale)
    side = stage.train.shape[1]
    whole = windowed.blind(side, CODES, scale.sizes, seed + 30_000)
    seconds["whole"] = windowed.fit(whole, [stage.train], seed, scale.steps, RATE, scale.batch)
    every = torch.zeros(len(stage.test), dtype=torch.int64, device=stage.test.device)
    grids = windowed.cut(
        stage.test, torch.arange(len(every), device=every.device), every, every, side
    )
    images = {"test": priors.decoded(stage.model, stage.test)}
    for kind, model in models.items():
        codes = windowed.drawn(model, side, side, scale.drawn, seed + 40_000)
        images[kind] = priors.decoded(stage.model, codes)
    found = {
        "short": run_short(seed),
        "bits": bits_of(models, stage.test) | {"whole": windowed.bits_per_code(whole, grids)},
        "tables": priors.table_bits(stage.train, stage.test, CODES, SMOOTHING),
        "maps": {kind: by_place(model, stage.test).tolist() for kind, model in models.items()},
        "profile": profile(images, scale.drawn),
        "seconds": seconds,
    }
    return found | ({"pictures": sheets(images)} if seed == SEEDS[0] else {})


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: of all weights, orders and noise.

    Returns:
        After 100 steps of the VQ-VAE on 4000 images and 300 of each prior, which are smaller, bits of
        a code over 300 test images, as :func:`bits_of`.
    """
    splits = zip(("train", "test"), SHORT_IMAGES, strict=True)
    train, test = (vq_vae_training.grey(*split) for split in splits)
    stage = code_priors.first_stage(train, test, seed, SHORT.stage_steps)
    models, _ = trained(stage.train, seed, SHORT)
    return bits_of(models, stage.test)


def trained(
    codes: Tensor, seed: int, scale: Scale
) -> tuple[dict[str, WindowPrior], dict[str, float]]:
    """Train both priors of windows.

    Args:
        codes: of the training images, int64 [n, 7, 7].
        seed: of the weights and, apart from it, of the windows, which both priors share.
        scale: of priors and trainings.

    Returns:
        The priors, and the mean seconds of a step, by kind.
    """
    models = {kind: make(SIDE, CODES, scale.sizes, seed + 30_000) for kind, make in MAKERS.items()}
    settings = ([codes], seed, scale.steps, RATE, scale.batch)
    return models, {kind: windowed.fit(model, *settings) for kind, model in models.items()}


def bits_of(models: dict[str, WindowPrior], codes: Tensor) -> dict[str, float]:
    """Measure the priors on whole grids, under the sliding window.

    Args:
        models: by kind.
        codes: of test images, int64 [n, 7, 7].

    Returns:
        Mean bits of a code by kind, and ``turned``, of the placed prior when it is told the place
        across the middle.
    """
    found = {kind: by_place(model, codes).mean().item() for kind, model in models.items()}
    return found | {"turned": turned(models["placed"], codes)}


@torch.no_grad()
def by_place(model: WindowPrior, codes: Tensor) -> Tensor:
    """Measure a prior at each place of whole grids, under the sliding window.

    Args:
        model: of windows.
        codes: int64 [n, 7, 7], n at least 1.

    Returns:
        Mean bits of the code at each place, float64 [7, 7].
    """
    told = model.prefix_of(*codes.shape[1:])
    log_probs = sliding.log_probs_large(model.transformer, codes, told)
    return -log_probs.double().mean(0) / math.log(2)


@torch.no_grad()
def turned(model: WindowPrior, codes: Tensor) -> float:
    """Measure a placed prior that is told the place across the middle.

    Args:
        model: of windows.
        codes: int64 [n, 7, 7], n at least 1.

    Returns:
        Mean bits of a code.
    """
    height, width = codes.shape[1:]
    told = model.prefix_of(height, width)

    def across(where: Window) -> Tensor:
        top, left = height - model.side - where.top, width - model.side - where.left
        return told(where._replace(top=top, left=left))

    log_probs = sliding.log_probs_large(model.transformer, codes, across)
    return priors.mean_bits(log_probs.sum((1, 2)), height * width)


def profile(images: dict[str, Tensor], count: int) -> dict[str, float]:
    """Compare the mean image of samples with that of the decoded test codes.

    Args:
        images: ``test``, and samples by kind, each [n, 1, 28, 28].
        count: of images in each mean.

    Returns:
        The root mean squared error of a pixel's mean, by kind; and of ``test``, of the first
        ``count`` test images themselves.
    """
    target = images["test"].mean(0)
    return {
        name: (rows[:count].mean(0) - target).square().mean().sqrt().item()
        for name, rows in images.items()
    }


def sheets(images: dict[str, Tensor]) -> dict[str, str]:
    """Keep the first images of each name.

    Args:
        images: by name, each [n, 1, 28, 28].

    Returns:
        Texts for :func:`gradbook.pictures.decode`.
    """
    return {
        name: pictures.encode(pictures.to_levels(rows[:SHOWN])) for name, rows in images.items()
    }
