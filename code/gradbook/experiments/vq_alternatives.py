"""Other ways to quantize the same autoencoder, most of them at 7 bits a position.

Model, images, batches, steps and rate are those of :mod:`gradbook.experiments.vq_codebooks`; all
methods of one seed start from the same networks. Two of them quantize a plain autoencoder after its
training, by k-means on its vectors of 2000 training images; the second then trains the decoder on,
for steps that the others do not have.
"""

import math
from typing import Any

import torch
from torch import Tensor

from gradbook import vae_training
from gradbook import vq_vae_training as training
from gradbook.experiments import vq_codebooks
from gradbook.quantizer_variants import (
    GumbelCodebook,
    Identity,
    ResidualCodebook,
    RotatedCodebook,
    ScalarQuantizer,
)
from gradbook.residual import residual_start
from gradbook.vq_vae import VQVAE
from gradbook.vq_vae_afterwards import k_means_afterwards, tune_decoder

SEEDS = vq_codebooks.SEEDS
CODES = vq_codebooks.CODES
LEVELS = (8, 4, 4)
STAGES = (16, 8)
DOUBLE_STAGES = (CODES, CODES)
TEMPERATURE = 1.0
KL_WEIGHT = 5e-4
K_MEANS_STEPS = 30
STEPS = vq_codebooks.STEPS
TUNING_STEPS = 500
RATE = vq_codebooks.RATE
TEST_IMAGES = 1_000
SHORT_STEPS = 200
SHORT_IMAGES = (6_000, 1_000)

data_digest = vae_training.data_digest


def run(seed: int) -> dict[str, Any]:
    """Train by every method from one seed.

    Args:
        seed: of the weights, the codes, the order of the images, the noise and the restarts.

    Returns:
        ``short``, as :func:`run_short`; ``steps`` of every training; ``tuning_steps``, the decoder's
        more; ``methods``, by name, as :func:`row`: those of ``METHODS``, ``plain``, without
        quantization, ``afterwards``, with codes by k-means, and ``tuned``, with a decoder trained
        on. The seconds of ``afterwards`` are those of ``plain``.
    """
    train = training.grey("train")
    test = training.grey("test", TEST_IMAGES)
    rows = {}
    for name, make_quantizer in METHODS.items():
        model, seconds = trained(make_quantizer, train, seed, STEPS)
        rows[name] = row(model, test, seconds)
    plain, seconds = trained(without_codes, train, seed, STEPS)
    rows["plain"] = row(plain, test, seconds)
    generator = torch.Generator().manual_seed(seed + 30_000)
    vectors = training.vectors(plain, train[: training.FIRST])
    later = k_means_afterwards(plain, vectors, CODES, generator, K_MEANS_STEPS)
    rows["afterwards"] = row(later, test, seconds)
    # Other batches than those the decoder has just seen.
    tuned, curve = tune_decoder(later, train, seed + 40_000, TUNING_STEPS, RATE)
    rows["tuned"] = row(tuned, test, curve.seconds)
    return {
        "short": run_short(seed),
        "steps": STEPS,
        "tuning_steps": TUNING_STEPS,
        "methods": rows,
    }


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: of the weights and the order of the images.

    Returns:
        After 200 steps on 6000 images with finite scalar quantization, on 1000 test images:
        ``psnr`` in decibels, ``used`` codes, and their ``perplexity``.
    """
    splits = zip(("train", "test"), SHORT_IMAGES, strict=True)
    train, test = (training.grey(*split) for split in splits)
    model, _ = trained(METHODS["scalar"], train, seed, SHORT_STEPS)
    found = training.measures(model, test)
    return {"psnr": found.psnr, "used": found.used, "perplexity": found.perplexity}


def trained(
    make_quantizer: training.MakeQuantizer,
    train: Tensor,
    seed: int,
    steps: int,
) -> tuple[VQVAE, float]:
    """Train one model.

    Args:
        make_quantizer: see :func:`gradbook.vq_vae_training.started`.
        train: images, [n, 1, 28, 28].
        seed: of the weights, the codes, the order of the images, the noise and the restarts.
        steps: how many.

    Returns:
        The model, and the seconds of a step.
    """
    model = training.started(make_quantizer, train, seed)
    return model, training.fit(model, train, seed, steps, RATE).seconds


def row(model: VQVAE, images: Tensor, seconds: float) -> dict[str, float]:
    """Measure one model.

    Args:
        model: trained.
        images: to measure on, [n, 1, 28, 28].
        seconds: of a step of its training.

    Returns:
        ``psnr`` in decibels, ``used`` codes, of ``codes``, their ``perplexity``, ``bits`` of a
        position, and ``seconds``. A plain autoencoder has one code and 0 bits here: its indices say
        nothing, and its vectors are not codes.
    """
    found, codes = training.measures(model, images), model.quantizer.codes
    return {
        "psnr": found.psnr,
        "used": found.used,
        "perplexity": found.perplexity,
        "codes": codes,
        "bits": math.log2(codes),
        "seconds": seconds,
    }


def rotated(vectors: Tensor, generator: torch.Generator) -> RotatedCodebook:
    """Make a codebook of moving averages with the gradient of the rotation trick.

    Args:
        vectors: [N, D].
        generator: of the CPU.

    Returns:
        The quantizer.
    """
    return RotatedCodebook(vq_codebooks.normal_start(vectors, generator), vq_codebooks.BETA)


def gumbel(vectors: Tensor, generator: torch.Generator) -> GumbelCodebook:
    """Make codes drawn from logits, with the straight-through Gumbel-Softmax gradient.

    Args:
        vectors: [N, D].
        generator: of the CPU.

    Returns:
        The quantizer.
    """
    return GumbelCodebook(vectors.shape[1], CODES, TEMPERATURE, KL_WEIGHT, generator)


def scalar(vectors: Tensor, generator: torch.Generator) -> ScalarQuantizer:
    """Make a finite scalar quantizer.

    Args:
        vectors: [N, D].
        generator: of the CPU.

    Returns:
        The quantizer.
    """
    return ScalarQuantizer(vectors.shape[1], LEVELS, generator)


def residual(vectors: Tensor, generator: torch.Generator) -> ResidualCodebook:
    """Make two stages of codes, of 4 and 3 bits.

    Args:
        vectors: [N, D].
        generator: of the CPU.

    Returns:
        The quantizer.
    """
    return ResidualCodebook(residual_start(vectors, STAGES, generator), vq_codebooks.BETA)


def residual_double(vectors: Tensor, generator: torch.Generator) -> ResidualCodebook:
    """Make two stages of codes, of 7 bits each.

    Args:
        vectors: [N, D].
        generator: of the CPU.

    Returns:
        The quantizer.
    """
    return ResidualCodebook(residual_start(vectors, DOUBLE_STAGES, generator), vq_codebooks.BETA)


def without_codes(vectors: Tensor, generator: torch.Generator) -> Identity:
    """Make no quantizer.

    Args:
        vectors: not used.
        generator: not used.

    Returns:
        What passes vectors on.
    """
    return Identity()


METHODS: dict[str, training.MakeQuantizer] = {
    "restarts": vq_codebooks.with_restarts,
    "rotation": rotated,
    "gumbel": gumbel,
    "scalar": scalar,
    "residual": residual,
    "residual_double": residual_double,
}
