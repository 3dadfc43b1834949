"""A distance of images in the features of a network, and how it ranks distortions.

It has the form of LPIPS, and is not LPIPS: no weight was fitted to what people see, and the network
is another one. Any callable that turns images [B, C, H, W] into a list of features [B, c, h, w]
serves; the book uses that of :mod:`gradbook.efficientnet`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gradbook.checks import require, require_finite

Features = Callable[[Tensor], list[Tensor]]

# Of LPIPS's published code: keeps a place without any feature from dividing by zero.
EPS = 1e-10


def perceptual_distance(
    x: Tensor,
    y: Tensor,
    features: Features,
) -> Tensor:
    """Compare images by the directions of their features at every place.

    A stage's features are scaled to length 1 over the channels of each
    place; the squared difference is summed over channels and averaged
    over places; stages are added.

    Args:
        x: [B, C, H, W].
        y: the same shape.
        features: maps images to a list of stages [B, c, h, w].

    Returns:
        [B], from 0 to 4 times the number of stages; differentiable in
        both.

    Raises:
        ValueError: if the shapes differ, or an image is not finite, or as
            ``features``.

    Source: Zhang et al. 2018, "The unreasonable effectiveness of deep
    features as a perceptual metric", equation 1 with all weights 1.
    """
    _check(x, y)
    stages = zip(features(x), features(y), strict=True)
    return sum(_stage_distance(f, g) for f, g in stages)


def _stage_distance(f: Tensor, g: Tensor) -> Tensor:
    squares = (_unit(f) - _unit(g)).square()
    return squares.sum(1).mean((1, 2))


def _unit(f: Tensor) -> Tensor:
    # vector_norm has the gradient 0 at 0, where that of a square root is not a number.
    length = torch.linalg.vector_norm(f, dim=1, keepdim=True)
    return f / (length + EPS)


def blurred(images: Tensor, width: int) -> Tensor:
    """Average every pixel with its neighbours; at an edge the last pixel repeats.

    Args:
        images: [B, C, H, W].
        width: of the square that is averaged; odd.

    Returns:
        The same shape.

    Raises:
        ValueError: if the images have another shape, or the width is not
            odd and positive.
    """
    if images.ndim != 4:
        raise ValueError(f"images: must be [B, C, H, W], got {list(images.shape)}")
    if width < 1 or width % 2 == 0:
        raise ValueError(f"width: must be odd and positive, got {width}")
    reach = width // 2
    return F.avg_pool2d(F.pad(images, 4 * [reach], mode="replicate"), width, stride=1)


def distorted(
    images: Tensor,
    noise: Tensor,
    width: int = 7,
) -> dict[str, Tensor]:
    """Distort images in four ways that have one mean squared error.

    That of an image is the blur's; the other three changes are scaled to
    it. No pixel is cut off at 0 or 1, which would change the error.

    Args:
        images: [B, C, H, W], none of one colour.
        noise: [B, C, H, W], standard normal.
        width: of the blur; odd, at least 3.

    Returns:
        ``blur``; ``noise``; ``brightness``, the same number added
        everywhere; ``contrast``, every channel drawn to its mean.

    Raises:
        ValueError: if the images are of one colour or not finite, or the
            noise does not fit, or the width is not as it must be.
    """
    _check(images, noise, "images", "noise")
    varies = (images != images[:, :, :1, :1]).flatten(1).any(1)
    require(varies, "images: must not be of one colour")
    require((noise != 0).flatten(1).any(1), "noise: must not be zero")
    if width < 3:
        raise ValueError(f"width: must be at least 3, got {width}")
    blur = blurred(images, width) - images
    changes = {
        "blur": blur,
        "noise": noise,
        "brightness": torch.ones_like(images),
        "contrast": images.mean((2, 3), keepdim=True) - images,
    }
    length = _length(blur)
    return {name: images + length / _length(change) * change for name, change in changes.items()}


def ranked(
    images: Tensor,
    noise: Tensor,
    features: Features,
    width: int = 7,
) -> dict[str, Tensor]:
    """Measure distortions of one mean squared error by the perceptual distance.

    Args:
        images: [B, C, H, W], as for :func:`distorted`.
        noise: [B, C, H, W], standard normal.
        features: as for :func:`perceptual_distance`.
        width: of the blur.

    Returns:
        The distance [B] of every distortion from its image.

    Raises:
        ValueError: as :func:`distorted`.
    """
    changed = distorted(images, noise, width)
    return {name: perceptual_distance(other, images, features) for name, other in changed.items()}


def _length(change: Tensor) -> Tensor:
    return torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)


def _check(x: Tensor, y: Tensor, x_name: str = "x", y_name: str = "y") -> None:
    if x.ndim != 4:
        raise ValueError(f"{x_name}: must be [B, C, H, W], got {list(x.shape)}")
    if x.shape != y.shape:
        raise ValueError(f"{y_name}: must have the shape of {x_name}, got {list(y.shape)}")
    require_finite(**{x_name: x, y_name: y})
