"""Measures of images that come back from codes: by pixels, by features, and by detail.

A judge is a network with ``features`` and ``pooled``, as that of :mod:`gradbook.efficientnet`.
Images go through in chunks, in evaluation mode and without gradients, and nothing is cut off at 0
and 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradbook import frechet
from gradbook.checks import require
from gradbook.perceptual import Features, perceptual_distance
from gradbook.vq_vae import VQVAE
from gradbook.vq_vae_measures import CHUNK, evaluating, measures


class Progress(NamedTuple):
    """What a curve shows: PSNR in decibels, codes used, perplexity, the distance in features."""

    psnr: float
    used: int
    perplexity: float
    perceptual: float


class Verdict(NamedTuple):
    """What is measured at the end; see the functions of this module.

    Attributes:
        psnr: in decibels.
        used: how many codes.
        perplexity: of their frequencies.
        norm: the mean length of the encoder's vectors.
        perceptual: the mean distance in features.
        frechet: the distance of pooled features in 64 dimensions.
        detail: as :func:`detail`.
    """

    psnr: float
    used: int
    perplexity: float
    norm: float
    perceptual: float
    frechet: float
    detail: float


def progress(model: VQVAE, images: Tensor, judge: nn.Module) -> Progress:
    """Measure a model during training.

    Args:
        model: on the images' device.
        images: [n, C, H, W] from 0 to 1, n at least 1.
        judge: has ``features``.

    Returns:
        The measures.

    Raises:
        ValueError: if there are no images, or the model refuses them.
    """
    found = measures(model, images)
    distance = mean_distance(again(model, images), images, judge.features)
    return Progress(found.psnr, found.used, found.perplexity, distance)


def verdict(model: VQVAE, images: Tensor, judge: nn.Module) -> Verdict:
    """Measure a model at the end.

    Args:
        model: on the images' device.
        images: [n, C, H, W] from 0 to 1, n above 64 and better many times
            above it.
        judge: has ``features`` and ``pooled``.

    Returns:
        The measures. The 64 dimensions are the same at every call.

    Raises:
        ValueError: if there are too few images, or the model refuses them.
    """
    found, back = measures(model, images), again(model, images)
    with torch.no_grad():
        width = judge.pooled(images[:1]).shape[1]
    subspace = frechet.projection(width, frechet.DIM, torch.Generator().manual_seed(0))
    distance = frechet.frechet_of_images(back, images, judge.pooled, subspace).item()
    nearness = mean_distance(back, images, judge.features)
    return Verdict(*found, nearness, distance, detail(back, images))


def again(model: VQVAE, images: Tensor) -> Tensor:
    """Send images through the codes.

    Args:
        model: on the images' device.
        images: [n, C, H, W], n at least 1.

    Returns:
        Reconstructions, of the same shape.
    """
    with evaluating(model):
        return torch.cat([model(chunk).images for chunk in images.split(CHUNK)])


@torch.no_grad()
def mean_distance(images: Tensor, target: Tensor, features: Features) -> float:
    """Average the distance in features over images.

    Args:
        images: [n, C, H, W], n at least 1.
        target: the same shape.
        features: as for :func:`gradbook.perceptual.perceptual_distance`.

    Returns:
        The mean of :func:`gradbook.perceptual.perceptual_distance`.
    """
    pairs = zip(images.split(CHUNK), target.split(CHUNK), strict=True)
    return torch.cat([perceptual_distance(*pair, features) for pair in pairs]).mean().item()


def detail(images: Tensor, target: Tensor) -> float:
    """Compare how much neighbouring pixels differ, by no network.

    Args:
        images: [n, C, H, W], n at least 1, the sides at least 2.
        target: the originals, not all of one colour.

    Returns:
        The mean square of the differences of vertical neighbours and that
        of horizontal ones, added, over the same of the originals: below 1
        what is blurred, above 1 what is noisy.

    Raises:
        ValueError: if the originals have no differences.
    """
    energy = _energy(target)
    require(energy > 0, "target: must not be of one colour")
    return (_energy(images) / energy).item()


def _energy(images: Tensor) -> Tensor:
    x = images.double()
    return x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean()
