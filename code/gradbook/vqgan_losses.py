"""Losses of images for an autoencoder: by pixels, and by pixels and features.

Each compares what the decoder gives with what it should have given.
"""

from collections.abc import Callable

from torch import Tensor

from gradbook.codebooks import require_amounts
from gradbook.perceptual import Features, perceptual_distance

# A loss of images, from those of the decoder and the originals, both [B, C, H, W].
Reconstruction = Callable[[Tensor, Tensor], Tensor]


def squared_loss(images: Tensor, target: Tensor, variance: float) -> Tensor:
    """Compute the mean squared error of a pixel in units of a variance.

    Args:
        images: of the decoder, [B, C, H, W], B at least 1.
        target: the originals.
        variance: of the training pixels, positive.

    Returns:
        A scalar.

    Raises:
        ValueError: if the shapes differ, there is no image, or the
            variance is not positive.
    """
    _check(images, target, variance=variance)
    return (images - target).square().mean() / variance


def perceptual_loss(
    images: Tensor,
    target: Tensor,
    features: Features,
    deviation: float,
    weight: float,
) -> Tensor:
    """Compute the mean absolute error of a pixel, and a distance in features.

    The published loss has LPIPS, and both weights are 1, for pixels from
    -1 to 1.

    Args:
        images: of the decoder, [B, C, H, W], B at least 1.
        target: the originals.
        features: as for :func:`gradbook.perceptual.perceptual_distance`.
        deviation: unit of the error, positive: the standard deviation of
            the training pixels.
        weight: of the distance, at least 0.

    Returns:
        A scalar.

    Raises:
        ValueError: if the shapes differ, there is no image, or a number
            is out of its range.

    Source: P. Esser, R. Rombach and B. Ommer, 2021, "Taming transformers for
    high-resolution image synthesis", section 3.1, and the published code.
    """
    _check(images, target, deviation=deviation)
    require_amounts(weight=weight)
    error = (images - target).abs().mean() / deviation
    distance = perceptual_distance(images, target, features).mean()
    return error + weight * distance


def _check(images: Tensor, target: Tensor, **units: float) -> None:
    if images.shape != target.shape or not len(images):
        shapes = f"{list(target.shape)}, got {list(images.shape)}"
        raise ValueError(f"images: must have the shape of target and not be empty, {shapes}")
    require_amounts(**units)
    for name, unit in units.items():
        if not unit:
            raise ValueError(f"{name}: must be positive")
