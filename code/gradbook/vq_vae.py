"""An autoencoder with discrete codes: a convolutional encoder, a quantizer and a decoder.

Images are [B, C, H, W] with values from 0 to 1. The encoder halves their sides some times, two in a
VQ-VAE, and turns each patch of 2^halvings pixels a side into a vector of D numbers, channels last,
[B, h, w, D]; the quantizer sees those vectors as rows [N, D], N = B h w, whatever their place. Any
quantizer of :mod:`gradbook.quantizers` or :mod:`gradbook.quantizer_variants` fits.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradbook.checks import require_finite
from gradbook.quantizers import Quantized

# Pixels a side that a code stands for, with two halvings.
PATCH = 4
# Of a convolution that halves a side, and of a transposed one that doubles it.
_STRIDE = {"kernel_size": 4, "stride": 2, "padding": 1}


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
    """Convolutions of stride 2, residual blocks, and a linear map of every position.

    Args:
        channels: of an image.
        width: channels within.
        dim: D, numbers of a vector.
        blocks: how many residual blocks.
        halvings: how many convolutions of stride 2.
    """

    def __init__(self, channels: int, width: int, dim: int, blocks: int, halvings: int = 2):
        super().__init__()
        inward = [channels, *[width] * (halvings - 1)]
        self.halves = nn.ModuleList(nn.Conv2d(size, width, **_STRIDE) for size in inward)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.last = nn.Conv2d(width, dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: [B, C, H, W], the sides positive multiples of 2^halvings.

        Returns:
            [B, D, H / 2^halvings, W / 2^halvings].

        Raises:
            ValueError: if the images have another shape.
        """
        channels, unit = self.halves[0].in_channels, 2 ** len(self.halves)
        fits = images.ndim == 4 and images.shape[1] == channels
        if not fits or any(side % unit or not side for side in images.shape[2:]):
            shape = f"[B, {channels}, H, W], sides multiples of {unit}"
            raise ValueError(f"images: must be {shape}, got {list(images.shape)}")
        x = self.halves[0](images)
        for conv in self.halves[1:]:
            x = conv(x.relu())
        return self.last(self.blocks(x).relu())


class Decoder(nn.Module):
    """The encoder's mirror: a convolution, residual blocks, transposed convolutions.

    The arguments are those of :class:`Encoder`.
    """

    def __init__(self, channels: int, width: int, dim: int, blocks: int, halvings: int = 2):
        super().__init__()
        self.first = nn.Conv2d(dim, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        doubles = [nn.ConvTranspose2d(width, width, **_STRIDE) for _ in range(halvings - 1)]
        self.doubles = nn.ModuleList(doubles)
        self.last = nn.ConvTranspose2d(width, channels, **_STRIDE)

    def forward(self, vectors: Tensor) -> Tensor:
        """Decode vectors.

        Args:
            vectors: [B, D, h, w].

        Returns:
            Images [B, C, H, W]; nothing keeps a pixel between 0 and 1.
        """
        x = self.blocks(self.first(vectors)).relu()
        for conv in self.doubles:
            x = conv(x).relu()
        return self.last(x)


class VQVAE(nn.Module):
    """An encoder, a quantizer and a decoder.

    Attributes:
        encoder: maps images [B, C, H, W] to [B, D, h, w].
        decoder: maps [B, D, h, w] to images.
        quantizer: as :mod:`gradbook.quantizers` says, on rows [N, D].
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, quantizer: nn.Module):
        super().__init__()
        self.encoder, self.decoder, self.quantizer = encoder, decoder, quantizer

    def vectors(self, images: Tensor) -> Tensor:
        """Encode images, without quantization.

        Args:
            images: [B, C, H, W], sides that the encoder takes.

        Returns:
            [B, h, w, D].

        Raises:
            ValueError: if the images are not finite, or the encoder refuses them.
        """
        if images.ndim != 4 or not images.is_floating_point():
            kind = f"{images.dtype} {list(images.shape)}"
            raise ValueError(f"images: must be [B, C, H, W], floating, got {kind}")
        require_finite(images=images)
        return self.encoder(images).permute(0, 2, 3, 1)

    def codes(self, images: Tensor) -> Tensor:
        """Encode images as integers.

        Args:
            images: [B, C, H, W], sides that the encoder takes.

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
            images: [B, C, H, W], sides that the encoder takes.

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
    halvings: int = 2,
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
        halvings: how often a side is halved; a code stands for a square of
            2^halvings pixels a side.

    Returns:
        A model with float32 networks on the CPU, channels last in memory.

    Raises:
        ValueError: if a size is not positive.

    Source: van den Oord, Vinyals and Kavukcuoglu 2017, "Neural discrete
    representation learning", section 4.1; X. Glorot and Y. Bengio, 2010,
    equation 16.
    """
    sizes = {"channels": channels, "width": width, "dim": dim, "halvings": halvings}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: must be positive, got {size}")
    if blocks < 0:
        raise ValueError(f"blocks: must not be negative, got {blocks}")
    # torch's own initialization draws from its global generator: put that back as it was.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        parts = [kind(channels, width, dim, blocks, halvings) for kind in (Encoder, Decoder)]
    for network in parts:
        network.float().to(memory_format=torch.channels_last)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                nn.init.zeros_(parameter)
    return VQVAE(*parts, quantizer)


def compression(height: int, width: int, channels: int, grid: tuple[int, int], codes: int) -> Rate:
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
