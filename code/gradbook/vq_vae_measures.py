"""Measures of an autoencoder with discrete codes: how well images come back, how codes are used.

Images go through in chunks, in evaluation mode and without gradients.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradbook.codebooks import perplexity
from gradbook.vq_vae import VQVAE

CHUNK = 500


class Usage(NamedTuple):
    """How the codes are used: how many different ones, and the perplexity of their frequencies."""

    used: int
    perplexity: float


class Measures(NamedTuple):
    """What a training shows: PSNR in decibels, codes used, perplexity, mean norm of a vector."""

    psnr: float
    used: int
    perplexity: float
    norm: float


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, without gradients, and back into the mode it was in.

    Args:
        model: any.
    """
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(mode)


def measures(model: VQVAE, images: Tensor) -> Measures:
    """Measure a model on images in one pass.

    Args:
        model: on the images' device.
        images: [n, C, H, W] from 0 to 1, n at least 1.

    Returns:
        What :func:`psnr` returns; :func:`code_usage` of the codes of all positions together; and
        the mean Euclidean norm of the encoder's vectors.

    Raises:
        ValueError: if there are no images, or the model refuses them.
    """
    error, norm, indices = 0.0, 0.0, []
    with evaluating(model):
        for chunk in _chunks(images):
            output = model(chunk)
            error += (output.images - chunk).square().double().sum().item()
            norm += output.vectors.double().norm(dim=-1).sum().item()
            indices.append(output.quantized.indices)
    rows = torch.cat(indices)
    mse = error / images.numel()
    decibels = -10 * math.log10(mse) if mse else math.inf
    return Measures(decibels, *code_usage(rows), norm / len(rows))


def psnr(model: VQVAE, images: Tensor) -> float:
    """Measure how well images come back.

    Args:
        model: on the images' device.
        images: [n, C, H, W] from 0 to 1, n at least 1.

    Returns:
        The peak signal-to-noise ratio 10 log10(1 / mse) in decibels, of the mean squared error
        over all pixels of all images; infinite where that is 0.

    Raises:
        ValueError: if there are no images, or the model refuses them.
    """
    return measures(model, images).psnr


def codes(model: VQVAE, images: Tensor) -> Tensor:
    """Encode images as integers, in chunks.

    Args:
        model: on the images' device.
        images: [n, C, H, W], n at least 1.

    Returns:
        int64 [n, h, w], or [n, h, w, depth].

    Raises:
        ValueError: if there are no images, or the model refuses them.
    """
    with evaluating(model):
        return torch.cat([model.codes(chunk) for chunk in _chunks(images)])


def vectors(model: VQVAE, images: Tensor) -> Tensor:
    """Encode images as vectors, in chunks, and forget their places.

    Args:
        model: on the images' device.
        images: [n, C, H, W], n at least 1.

    Returns:
        [n h w, D].

    Raises:
        ValueError: if there are no images, or the model refuses them.
    """
    with evaluating(model):
        return torch.cat([model.vectors(chunk).flatten(0, 2) for chunk in _chunks(images)])


def code_usage(rows: Tensor) -> Usage:
    """Count codes. That of a residual quantizer is the whole row of its stages.

    Args:
        rows: int64 [N] or [N, depth], N at least 1.

    Returns:
        How many different codes there are, and the perplexity of their frequencies.

    Raises:
        ValueError: if there are no rows.
    """
    if not len(rows):
        raise ValueError("rows: must not be empty")
    kinds, kind = rows.unique(return_inverse=True, dim=0)
    return Usage(len(kinds), perplexity(kind, len(kinds)).item())


def _chunks(images: Tensor) -> tuple[Tensor, ...]:
    if not len(images):
        raise ValueError("images: must not be empty")
    return images.split(CHUNK)
