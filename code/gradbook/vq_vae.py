"""An autoencoder with discrete codes: a convolutional encoder, a quantizer and a decoder.

Images are [B, C, H, W] with values from 0 to 1. The encoder turns each patch of 4 by 4 pixels into
a vector of D numbers, channels last, [B, h, w, D]; the quantizer sees those vectors as rows [N, D],
N = B h w, whatever their place. Any quantizer of :mod:`gradbook.quantizers` or
:mod:`gradbook.quantizer_variants` fits.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradbook.checks import require_finite
from gradbook.quantizers import Quantized

# Two convolutions of stride 2.
PATCH = 4


class Output(NamedTuple):
    """What a pass gives: images [B, C, H, W], the quantizer's part, and vectors [B, h, w, D]."""

    images: Tensor
    quantized: Quantized
    vectors: Tensor


class Rate(NamedTuple):
    """The bits of one image: as it came, and as codes."""

    bits_in: float
    bits_out: float


class Residual(nn.Module):
    """A convolution of 3 by 3 and one of 1 by 1, added to their input.

    Args:
        width: channels.
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the sum.

        Args:
            x: [B, width, h, w].

        Returns:
            The same shape.
        """
        return x + self.conv2(self.conv1(x.relu()).relu())


class Encoder(nn.Module):
    """Two convolutions of stride 2, residual blocks, and a linear map of every position.

    Args:
        channels: of an image.
        width: channels within.
        dim: D, numbers of a vector.
        blocks: how many residual blocks.
    """

    def __init__(self, channels: int, width: int, dim: int, blocks: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, width, 4, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.last = nn.Conv2d(width, dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: [B, C, H, W].

        Returns:
            [B, D, h, w].

        Raises:
            ValueError: if the images have another number of channels.
        """
        channels = self.conv1.in_channels
        if images.shape[1] != channels:
            raise ValueError(f"images: must have {channels} channels, got {images.shape[1]}")
        x = self.conv2(self.conv1(images).relu())
        return self.last(self.blocks(x).relu())


class Decoder(nn.Module):
    """The encoder's mirror: a convolution, residual blocks, two transposed convolutions.

    The arguments are those of :class:`Encoder`.
    """

    def __init__(self, channels: int, width: int, dim: int, blocks: int):
        super().__init__()
        self.first = nn.Conv2d(dim, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.conv1 = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
        self.conv2 = nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1)

    def forward(self, vectors: Tensor) -> Tensor:
        """Decode vectors.

        Args:
            vectors: [B, D, h, w].

        Returns:
            Images [B, C, H, W]; nothing keeps a pixel between 0 and 1.
        """
        x = self.blocks(self.first(vectors)).relu()
        return self.conv2(self.conv1(x).relu())


class VQVAE(nn.Module):
    """An encoder, a quantizer and a decoder.

    Attributes:
        encoder: maps images [B, C, H, W] to [B, D, h, w].
        decoder: maps [B, D, h, w] to images.
        quantizer: as :mod:`gradbook.quantizers` says, on rows [N, D].
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        quantizer: nn.Module,
    ):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.quantizer = quantizer

    def vectors(self, images: Tensor) -> Tensor:
        """Encode images, without quantization.

        Args:
            images: [B, C, H, W], the sides multiples of 4.

        Returns:
            [B, h, w, D].

        Raises:
            ValueError: if the images are not finite, or of another shape.
        """
        _check_images(images)
        return self.encoder(images).permute(0, 2, 3, 1)

    def codes(self, images: Tensor) -> Tensor:
        """Encode images as integers.

        Args:
            images: [B, C, H, W], the sides multiples of 4.

        Returns:
            int64 [B, h, w], or [B, h, w, depth].

        Raises:
            ValueError: as :meth:`vectors`.
        """
        vectors = self.vectors(images)
        indices = self.quantizer(vectors.flatten(0, 2)).indices
        return indices.unflatten(0, vectors.shape[:3])

    def decode(self, codes: Tensor) -> Tensor:
        """Decode integers.

        Args:
            codes: int64 [B, h, w], or [B, h, w, depth].

        Returns:
            Images [B, C, H, W].

        Raises:
            ValueError: if they have another shape, or are no codes.
        """
        if codes.ndim not in (3, 4):
            raise ValueError("codes: must be [B, h, w] or [B, h, w, depth]")
        rows = self.quantizer.decode(codes.flatten(0, 2))
        if rows.ndim != 2:
            raise ValueError(f"codes: are not this quantizer's, got {list(codes.shape)}")
        return self.pixels(rows.unflatten(0, codes.shape[:3]))

    def forward(self, images: Tensor) -> Output:
        """Encode, quantize and decode images.

        Args:
            images: [B, C, H, W], the sides multiples of 4.

        Returns:
            Images, the quantizer's values, loss and indices, and vectors.

        Raises:
            ValueError: as :meth:`vectors`.
        """
        vectors = self.vectors(images)
        quantized = self.quantizer(vectors.flatten(0, 2))
        grid = quantized.values.unflatten(0, vectors.shape[:3])
        return Output(self.pixels(grid), quantized, vectors)

    def pixels(self, vectors: Tensor) -> Tensor:
        """Decode vectors.

        Args:
            vectors: [B, h, w, D].

        Returns:
            Images [B, C, H, W].
        """
        return self.decoder(vectors.permute(0, 3, 1, 2))


def build(
    channels: int,
    width: int,
    dim: int,
    blocks: int,
    quantizer: nn.Module,
    generator: torch.Generator,
) -> VQVAE:
    """Build a model whose initial weights come from a generator.

    Weights are uniform with Glorot's bound, biases zero.

    Args:
        channels: of an image.
        width: channels within.
        dim: D, numbers of a vector.
        blocks: residual blocks of each network; may be 0.
        quantizer: of rows [N, D]; it is left as it is.
        generator: of the CPU.

    Returns:
        A model with float32 networks on the CPU, channels last in memory.

    Raises:
        ValueError: if a size is not positive.

    Source: van den Oord, Vinyals and Kavukcuoglu 2017, "Neural discrete
    representation learning", section 4.1; X. Glorot and Y. Bengio, 2010,
    equation 16.
    """
    for name, size in (("channels", channels), ("width", width), ("dim", dim)):
        if size < 1:
            raise ValueError(f"{name}: must be positive, got {size}")
    if blocks < 0:
        raise ValueError(f"blocks: must not be negative, got {blocks}")
    # torch's own initialization draws from its global generator: put that back as it was.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        sizes = (channels, width, dim, blocks)
        networks = [kind(*sizes).float() for kind in (Encoder, Decoder)]
    for network in networks:
        network.to(memory_format=torch.channels_last)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                nn.init.zeros_(parameter)
    return VQVAE(*networks, quantizer)


def compression(
    height: int,
    width: int,
    channels: int,
    grid: tuple[int, int],
    codes: int,
) -> Rate:
    """Count the bits of an image, at 8 bits a channel, and of its codes.

    Args:
        height: of the image.
        width: of the image.
        channels: of the image.
        grid: rows and columns of codes.
        codes: how many different codes a position has.

    Returns:
        The bits before and after, with all codes equally likely.

    Raises:
        ValueError: if a number is not positive.
    """
    sizes = {"height": height, "width": width, "channels": channels, "codes": codes}
    for name, size in {**sizes, "grid": min(grid)}.items():
        if size < 1:
            raise ValueError(f"{name}: must be positive, got {size}")
    return Rate(8 * height * width * channels, math.prod(grid) * math.log2(codes))


def _check_images(images: Tensor) -> None:
    fits = all(side and side % PATCH == 0 for side in images.shape[2:])
    if images.ndim != 4 or not fits or not images.is_floating_point():
        raise ValueError(f"images: must be [B, C, H, W], floating, sides multiples of {PATCH}")
    require_finite(images=images)
