"""How a codebook is trained, and how many of its codes are used, on Fashion-MNIST.

Grey images of 28 by 28 pixels become 7 by 7 codes of 128, 343 bits. All methods of one seed start
from the same networks, whose first vectors have mean 0 and variance 1, and see the same batches.
Codes start as standard normal draws unless the method says otherwise. The curves are those of 1000
test images. The commitment is swept with the codebook that the loss trains; its weight in the
methods is 0.25.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradbook import vae_training
from gradbook import vq_vae_training as training
from gradbook.codebook_starts import k_means_start
from gradbook.quantizer_variants import normal_codebook
from gradbook.quantizers import (
    CosineCodebook,
    EmaCodebook,
    LossCodebook,
    ProjectedCodebook,
    RestartedCodebook,
)
from gradbook.vq_vae import VQVAE

SEEDS = tuple(range(5))
CODES = 128
LOW_DIM = 4
BETA = 0.25
BETAS = (0.0, 0.1, 0.25, 1.0, 4.0)
K_MEANS_STEPS = 10
STEPS = 1000
RATE = 2e-3
POINTS = (0, 25, 50, 100, 150, 200, 300, 400, 500, 650, 800, STEPS)
TEST_IMAGES = 1_000
FEWER_IMAGES = (1, 8, 32, 128, TEST_IMAGES)
SHORT_STEPS = 200
SHORT_IMAGES = (6_000, 1_000)

data_digest = vae_training.data_digest


def run(seed: int) -> dict[str, Any]:
    """Train by every method, and with every commitment, from one seed.

    Args:
        seed: of the weights, the codes, the order of the images and the restarts.

    Returns:
        ``short``, as :func:`run_short`; ``steps``, after which the curves are sampled; ``images``,
        numbers of images; ``methods``, by name, as :func:`study`; ``betas``, the weights of the
        commitment, and ``commitment``, in their order, as :func:`study`.
    """
    train = training.grey("train")
    test = training.grey("test", TEST_IMAGES)
    methods = {name: study(make, train, test, seed) for name, make in METHODS.items()}
    swept = [
        # The same training is not run twice.
        methods["loss"] if beta == BETA else study(by_loss(beta), train, test, seed)
        for beta in BETAS
    ]
    return {
        "short": run_short(seed),
        "steps": list(POINTS),
        "images": list(FEWER_IMAGES),
        "methods": methods,
        "betas": list(BETAS),
        "commitment": swept,
    }


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: of the weights, the codes, the order of the images and the restarts.

    Returns:
        After 200 steps on 6000 images by averages with restarts, on 1000 test images: ``psnr`` in
        decibels, ``used`` codes, their ``perplexity``, and the mean ``norm`` of a vector.
    """
    splits = zip(("train", "test"), SHORT_IMAGES, strict=True)
    train, test = (training.grey(*split) for split in splits)
    model = training.started(METHODS["restarts"], train, seed)
    training.fit(model, train, seed, SHORT_STEPS, RATE)
    return training.measures(model, test)._asdict()


def study(
    make_quantizer: training.MakeQuantizer,
    train: Tensor,
    test: Tensor,
    seed: int,
) -> dict[str, Any]:
    """Train one model and measure it.

    Args:
        make_quantizer: see :func:`gradbook.vq_vae_training.started`.
        train: images to train on, [n, 1, 28, 28].
        test: images to measure on, [n, 1, 28, 28].
        seed: of the weights, the codes, the order of the images and the restarts.

    Returns:
        ``curve``, by measure of :class:`gradbook.vq_vae_measures.Measures`, a value at each of
        ``POINTS``; ``seconds`` of a step; ``by_images``, as :func:`by_images` at the end.
    """
    model = training.started(make_quantizer, train, seed)
    measure = partial(training.measures, images=test)
    curve = training.fit(model, train, seed, STEPS, RATE, POINTS, measure)
    columns = zip(training.Measures._fields, zip(*curve.values, strict=True), strict=True)
    return {
        "curve": {name: list(column) for name, column in columns},
        "seconds": curve.seconds,
        "by_images": by_images(model, test),
    }


def by_images(model: VQVAE, images: Tensor) -> dict[str, list[float]]:
    """Measure how the count of codes depends on how many images are looked at.

    Args:
        model: trained.
        images: [n, 1, 28, 28].

    Returns:
        ``used`` codes and ``perplexity`` of the first images, at each of ``FEWER_IMAGES``.
    """
    codes = training.codes(model, images)
    found = [training.code_usage(codes[:count].flatten(0, 2)) for count in FEWER_IMAGES]
    return {name: [row[i] for row in found] for i, name in enumerate(training.Usage._fields)}


def normal_start(vectors: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the codes at the start without a look at the vectors.

    Args:
        vectors: [N, D].
        generator: of the CPU.

    Returns:
        [128, D], standard normal.
    """
    return normal_codebook(CODES, vectors.shape[1], generator)


def by_loss(beta: float) -> training.MakeQuantizer:
    """Make a codebook that the loss trains.

    Args:
        beta: the weight of the commitment.

    Returns:
        Makes the quantizer.
    """
    return lambda vectors, generator: LossCodebook(normal_start(vectors, generator), beta)


def by_averages(vectors: Tensor, generator: torch.Generator) -> EmaCodebook:
    """Make a codebook of moving averages.

    Args:
        vectors: [N, D].
        generator: of the CPU.

    Returns:
        The quantizer.
    """
    return EmaCodebook(normal_start(vectors, generator), BETA)


def from_k_means(vectors: Tensor, generator: torch.Generator) -> EmaCodebook:
    """Make a codebook of moving averages that starts at the means of the first vectors.

    Args:
        vectors: [N, D].
        generator: of the CPU.

    Returns:
        The quantizer.
    """
    return EmaCodebook(k_means_start(vectors, CODES, generator, K_MEANS_STEPS), BETA)


def with_restarts(vectors: Tensor, generator: torch.Generator) -> RestartedCodebook:
    """Make a codebook of moving averages whose unused codes start again.

    Args:
        vectors: [N, D].
        generator: of the CPU.

    Returns:
        The quantizer.
    """
    return RestartedCodebook(normal_start(vectors, generator), BETA)


def in_low_dimension(vectors: Tensor, generator: torch.Generator) -> ProjectedCodebook:
    """Make a codebook that the loss trains, in four dimensions.

    Args:
        vectors: [N, D].
        generator: of the CPU.

    Returns:
        The quantizer, between two linear maps that keep the size of a coordinate at the start.
    """
    dim = vectors.shape[1]
    down = normal_codebook(dim, LOW_DIM, generator) / dim**0.5
    up = normal_codebook(LOW_DIM, dim, generator) / LOW_DIM**0.5
    inner = LossCodebook(normal_codebook(CODES, LOW_DIM, generator), BETA)
    return ProjectedCodebook(inner, down, up)


def of_directions(vectors: Tensor, generator: torch.Generator) -> CosineCodebook:
    """Make a codebook of unit vectors that the loss trains.

    Args:
        vectors: [N, D].
        generator: of the CPU.

    Returns:
        The quantizer.
    """
    return CosineCodebook(normal_start(vectors, generator), BETA)


METHODS: dict[str, training.MakeQuantizer] = {
    "loss": by_loss(BETA),
    "averages": by_averages,
    "k_means": from_k_means,
    "restarts": with_restarts,
    "low_dimension": in_low_dimension,
    "cosine": of_directions,
}
