"""How many bits a pixel a compressor needs: larger codebooks, and codes of larger squares.

Trained by pixels alone. First 8 by 8 codes for a patch of 32 by 32 pixels, out of 16 to 1024. Then
8 by 8 codes out of 256 for patches of 16, 32 and 64 pixels a side, whose networks halve the sides
once, twice and three times: the code of a patch is as long, and has more to say. Patches are cut at
steps of a quarter of their side, so that in every set of patches a pixel occurs as often.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradbook import photographs, pictures, vq_vae_training, vqgan_networks
from gradbook.quantizers import RestartedCodebook

SEEDS = tuple(range(3))
CODES, HALVINGS = 256, 2
CODEBOOKS = (16, 64, 256, 1024)
DEPTHS = (1, 2, 3)
# Codes along a side of a patch.
GRID = 8
SHORT_STEPS = 100

data_digest = photographs.digest


class Scale(NamedTuple):
    """How large a run is.

    Attributes:
        width: channels of the networks.
        dim: numbers of a vector.
        blocks: residual blocks of each network.
        steps: of every training.
        batch: patches of a step.
        rate: Adam's step size at its highest.
    """

    width: int
    dim: int
    blocks: int
    steps: int
    batch: int
    rate: float


SMALL = Scale(48, 16, 1, 500, 32, 2e-3)
FULL = Scale(128, 32, 2, 20_000, 64, 1e-3)


class Patches(NamedTuple):
    """Patches of one side, float32 [n, 3, side, side] from 0 to 1: to train on, and held out."""

    train: Tensor
    held_out: Tensor


def run(seed: int, scale: Scale = SMALL) -> dict[str, Any]:
    """Train compressors with codebooks of four sizes, and with codes of three.

    Args:
        seed: of the weights, the codebook and the order of the patches.
        scale: how large.

    Returns:
        ``short``, as :func:`run_short`; as :func:`compressor`, ``codebooks`` by the number of codes
        and ``sides`` by the side in pixels of a code's square. One compressor stands in both.
    """
    found = {}
    for halvings in DEPTHS:
        patches = cut(halvings)
        for codes in CODEBOOKS if halvings == HALVINGS else (CODES,):
            found[halvings, codes] = compressor(patches, halvings, codes, seed, scale)
    return {
        "short": run_short(seed),
        "codebooks": {str(codes): found[HALVINGS, codes] for codes in CODEBOOKS},
        "sides": {str(2**halvings): found[halvings, CODES] for halvings in DEPTHS},
    }


def run_short(seed: int) -> dict[str, dict[str, float]]:
    """Run one short seed, as a page does live.

    Args:
        seed: of the weights, the codebook and the order of the patches.

    Returns:
        After 100 steps, all of them in the rise of the rate, for the smallest and the largest
        codebook, as :func:`compressor`.
    """
    patches, scale = cut(HALVINGS), SMALL._replace(steps=SHORT_STEPS)
    sizes = (CODEBOOKS[0], CODEBOOKS[-1])
    return {str(codes): compressor(patches, HALVINGS, codes, seed, scale) for codes in sizes}


def cut(halvings: int) -> Patches:
    """Cut the photographs into patches of 8 by 8 codes; those held out do not overlap.

    Args:
        halvings: how often a network halves their sides.

    Returns:
        Patches on the book's device.
    """
    side = GRID * 2**halvings
    train = photographs.training_patches(side, side // 4)
    held_out = photographs.held_out_patches(side, side)
    return Patches(pictures.from_levels(train), pictures.from_levels(held_out))


def compressor(
    patches: Patches, halvings: int, codes: int, seed: int, scale: Scale
) -> dict[str, float]:
    """Train one compressor and measure it on the held-out patches.

    Args:
        patches: of 8 by 8 codes.
        halvings: of the sides in the networks.
        codes: how many there are.
        seed: of the weights, the codebook and the order of the patches.
        scale: how large.

    Returns:
        ``psnr`` in decibels, codes ``used``, their ``perplexity``, the mean ``norm`` of a vector,
        ``bits_per_pixel`` with all codes equally long, and ``seconds`` of a step.
    """
    sizes = (scale.width, scale.dim, scale.blocks, halvings)
    make = partial(quantizer, codes=codes)
    model = vqgan_networks.started(make, patches.train, seed, *sizes)
    settings = (scale.steps, scale.rate)
    curve = vq_vae_training.fit(model, patches.train, seed, *settings, batch=scale.batch)
    return {
        **vq_vae_training.measures(model, patches.held_out)._asdict(),
        "bits_per_pixel": math.log2(codes) / 4**halvings,
        "seconds": curve.seconds,
    }


def quantizer(vectors: Tensor, generator: torch.Generator, codes: int) -> nn.Module:
    """Start a codebook of moving averages, with restarts, at vectors of the encoder.

    Args:
        vectors: [N, D], N at least ``codes``.
        generator: of the choice, on the CPU.
        codes: how many.

    Returns:
        The quantizer.
    """
    chosen = torch.randperm(len(vectors), generator=generator, device="cpu")[:codes]
    return RestartedCodebook(vectors[chosen.to(vectors.device)])
