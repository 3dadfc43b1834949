"""A discriminator of patches, and the piece of the image that one of its logits sees.

The network is convolutional: it gives a grid of logits, and each judges only the square of pixels
under it, its receptive field. A field's side follows from the kernels and strides, and also from the
gradient of one logit with respect to the image.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.utils import skip_init

from gradbook.checks import require_finite

KERNEL = 4
LEAK = 0.2
STD = 0.02
# Channels double from layer to layer, up to 8 times the first layer's.
MOST = 8
_HERE = {"dtype": torch.float32, "device": "cpu"}


class PatchGAN(nn.Module):
    """Convolutions of 4 by 4, each with a padding of 1, from images to a grid of logits of "real".

    The first layer has no normalization and the last neither that nor a
    nonlinearity. A convolution before batch normalization has no bias,
    which the normalization would remove.

    Args:
        channels: of an image.
        filters: channels of the first layer; 64 as published.
        layers: how many layers of stride 2, 3 as published; two of stride
            1 follow.
        generator: of the weights, of the CPU.

    Attributes:
        kernels: of the layers, from the image on.
        strides: of the layers, from the image on.

    Raises:
        ValueError: if a size is not positive.

    Source: P. Isola, J.-Y. Zhu, T. Zhou and A. Efros, 2017, "Image-to-image
    translation with conditional adversarial networks", section 3.2.2 and
    appendix 6.1; the numbers are those of the published code.
    """

    def __init__(self, channels: int, filters: int, layers: int, generator: torch.Generator):
        super().__init__()
        for name, size in (("channels", channels), ("filters", filters), ("layers", layers)):
            if size < 1:
                raise ValueError(f"{name}: must be positive, got {size}")
        self.strides = (2,) * layers + (1, 1)
        self.kernels = (KERNEL,) * len(self.strides)
        widths = [min(2**i, MOST) * filters for i in range(layers + 1)]
        inward, outward = [channels, *widths], [*widths, 1]
        inner = [False, *[True] * layers, False]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for sizes in zip(inward, outward, self.strides, inner, strict=True):
            self.convs.append(_convolution(*sizes, generator))
        for width in widths[1:]:
            self.norms.append(_norm(width, generator))

    def forward(self, images: Tensor) -> Tensor:
        """Judge every patch.

        Args:
            images: [B, C, H, W] with values from 0 to 1; sides of at least
                3 times 2 to the power of the number of layers.

        Returns:
            Logits [B, 1, h, w].

        Raises:
            ValueError: if the images are not finite, or of another shape.
        """
        self._check(images)
        # The published network sees pixels from -1 to 1.
        x = leaky_relu(self.convs[0](2 * images - 1), LEAK)
        for conv, norm in zip(self.convs[1:-1], self.norms, strict=True):
            x = leaky_relu(norm(conv(x)), LEAK)
        return self.convs[-1](x)

    def _check(self, images: Tensor) -> None:
        channels, least = self.convs[0].in_channels, 3 * 2 ** len(self.norms)
        fits = images.ndim == 4 and images.shape[1] == channels and min(images.shape[2:]) >= least
        if not fits or not images.is_floating_point():
            shape = f"[B, {channels}, H, W], sides at least {least}"
            raise ValueError(f"images: must be numbers {shape}, got {tuple(images.shape)}")
        require_finite(images=images)


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Compute how many pixels wide the piece is that one output sees.

    Neighbours in a layer are as far apart in the image as the strides
    before it multiply to, so a kernel of k adds k - 1 such jumps.

    Args:
        kernels: of the layers, from the image on.
        strides: as many.

    Returns:
        The side of the field; 1 without a layer.

    Raises:
        ValueError: if the two are not as many, or one is not positive.

    Source: A. Araujo, W. Norris and J. Sim, 2019, "Computing receptive
    fields of convolutional neural networks", part "Single-path networks".
    """
    if len(strides) != len(kernels):
        raise ValueError(f"strides: must be as many as kernels, {len(kernels)}")
    for name, sizes in (("kernels", kernels), ("strides", strides)):
        if any(size < 1 for size in sizes):
            raise ValueError(f"{name}: must be positive, got {tuple(sizes)}")
    field, jump = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * jump
        jump *= stride
    return field


def slope_at_centre(discriminator: PatchGAN, size: int) -> Tensor:
    """Compute how the logit in the middle depends on each pixel of a grey image.

    A copy in float64 is differentiated, in evaluation mode: in training,
    the means of batch normalization couple every logit with every pixel.

    Args:
        discriminator: is left as it is.
        size: side of the image.

    Returns:
        float64 [size, size], the sum over channels of absolute slopes.

    Raises:
        ValueError: as :meth:`PatchGAN.forward`.
    """
    judge = copy.deepcopy(discriminator).double().eval()
    weight = judge.convs[0].weight
    image = weight.new_full((1, weight.shape[1], size, size), 0.5).requires_grad_()
    logits = judge(image)[0, 0]
    row, column = (side // 2 for side in logits.shape)
    (slope,) = torch.autograd.grad(logits[row, column], image)
    return slope[0].abs().sum(0)


def measured_field(discriminator: PatchGAN, size: int) -> int:
    """Measure how many pixels wide the piece is that the middle logit sees.

    Args:
        discriminator: is left as it is.
        size: side of an image that is larger than the field on every side.

    Returns:
        The number of rows from the first to the last pixel on which the
        logit depends, see :func:`slope_at_centre`.

    Raises:
        ValueError: if the field reaches the image's border, where it may
            be cut off, or as :meth:`PatchGAN.forward`.
    """
    seen = slope_at_centre(discriminator, size).amax(1).nonzero().flatten().tolist()
    if not seen or seen[0] == 0 or seen[-1] == size - 1:
        raise ValueError(f"size: the field reaches the border of {size} pixels")
    return seen[-1] - seen[0] + 1


def _convolution(
    inward: int,
    outward: int,
    stride: int,
    inner: bool,
    generator: torch.Generator,
) -> nn.Conv2d:
    options = {"stride": stride, "padding": 1, "bias": not inner, **_HERE}
    layer = skip_init(nn.Conv2d, inward, outward, KERNEL, **options)
    nn.init.normal_(layer.weight, 0, STD, generator=generator)
    if not inner:
        nn.init.zeros_(layer.bias)
    return layer


def _norm(width: int, generator: torch.Generator) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(width, **_HERE)
    nn.init.normal_(layer.weight, 1, STD, generator=generator)
    return layer
