"""From grids to images and back: decoded codes, bits of grey levels given codes, and mean pixels."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from gradbook import discretized
from gradbook.checks import require
from gradbook.priors.grids import require_sizes

CHUNK = 500
LEVELS = 256


class LevelBits(NamedTuple):
    """A logistic law about the decoded pixels: its scale, and the bits of a pixel under it."""

    scale: float
    bits: float


@torch.no_grad()
def decoded(model: nn.Module, codes: Tensor) -> Tensor:
    """Decode grids in chunks.

    Args:
        model: has ``decode``, as :class:`gradbook.vq_vae.VQVAE`.
        codes: int64 [n, h, w], n at least 1.

    Returns:
        Images [n, C, H, W].

    Raises:
        ValueError: if there is no grid, or as the model's ``decode``.
    """
    if not len(codes):
        raise ValueError("codes: must be at least one grid")
    return torch.cat([model.decode(chunk) for chunk in codes.split(CHUNK)])


def level_bits(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
) -> LevelBits:
    """Measure how many bits the 256 grey levels need, once the codes are known.

    A level has a discretized logistic law about the decoded pixel; one
    scale serves all pixels.

    Args:
        model: has ``decode``, as :class:`gradbook.vq_vae.VQVAE`.
        train: codes [n, h, w] and their images [n, C, H, W] from 0 to 1,
            on which the scale is fitted.
        test: codes and images to measure on.

    Returns:
        The scale, and the mean bits of a test pixel.

    Raises:
        ValueError: if there are no images, codes do not belong to them in
            number, or a pixel is not from 0 to 1.
    """
    (fit_levels, fit_means), (levels, means) = (
        _levels_and_means(model, *pair) for pair in (train, test)
    )
    scale = discretized.fitted_scale(fit_levels, fit_means, LEVELS)
    nats = -discretized.log_prob(levels, means, scale, LEVELS).double().mean().item()
    return LevelBits(scale, nats / math.log(2))


def pooled(images: Tensor, side: int, levels: int) -> Tensor:
    """Take means of square patches of pixels, rounded to a few grey levels.

    Args:
        images: [n, 1, S, S] from 0 to 1.
        side: of the result; must divide S.
        levels: how many, at least 2.

    Returns:
        int64 [n, side, side]; 0 is black.

    Raises:
        ValueError: if the images have another shape or range, ``side``
            does not divide theirs, or there are fewer than 2 levels.
    """
    require_sizes(side=side)
    if images.ndim != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images: must be [n, 1, S, S], got {tuple(images.shape)}")
    if images.shape[2] % side:
        raise ValueError(f"side: must divide {images.shape[2]}, got {side}")
    if levels < 2:
        raise ValueError(f"levels: must be at least 2, got {levels}")
    _require_grey(images)
    means = avg_pool2d(images, images.shape[2] // side)[:, 0]
    return (means * (levels - 1)).round().long()


def _levels_and_means(model: nn.Module, codes: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    if len(codes) != len(images):
        raise ValueError(f"codes: must be of {len(images)} images, are of {len(codes)}")
    _require_grey(images)
    return (images * (LEVELS - 1)).round().long(), decoded(model, codes)


def _require_grey(images: Tensor) -> None:
    require((images >= 0) & (images <= 1), "images: must be from 0 to 1")
