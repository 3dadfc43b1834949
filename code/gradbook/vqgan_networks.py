"""The networks of a VQGAN: those of :mod:`gradbook.vq_vae`, with any number of halvings.

A code stands for a square of 2^halvings pixels a side. With two halvings the weights are the same
numbers as there, and so is the start.
"""

import torch
from torch import Tensor, nn

from gradbook.devices import device
from gradbook.vq_vae import VQVAE, Residual
from gradbook.vq_vae_measures import vectors
from gradbook.vq_vae_training import FIRST, LEAST_SCALE, MakeQuantizer


class Encoder(nn.Module):
    """Convolutions of stride 2, residual blocks, and a linear map of every position.

    Args:
        channels: of an image.
        width: channels within.
        dim: D, numbers of a vector.
        blocks: how many residual blocks.
        halvings: how many convolutions of stride 2.
    """

    def __init__(self, channels: int, width: int, dim: int, blocks: int, halvings: int):
        super().__init__()
        inward = [channels, *[width] * (halvings - 1)]
        halve = {"kernel_size": 4, "stride": 2, "padding": 1}
        self.halves = nn.ModuleList(nn.Conv2d(size, width, **halve) for size in inward)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.last = nn.Conv2d(width, dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: [B, C, H, W], the sides multiples of 2^halvings.

        Returns:
            [B, D, H / 2^halvings, W / 2^halvings].

        Raises:
            ValueError: if the images have another shape.
        """
        channels, side = self.halves[0].in_channels, 2 ** len(self.halves)
        fits = images.ndim == 4 and images.shape[1] == channels
        if not fits or images.shape[2] % side or images.shape[3] % side:
            shape = f"[B, {channels}, H, W], the sides multiples of {side}"
            raise ValueError(f"images: must be {shape}, got {list(images.shape)}")
        x = self.halves[0](images)
        for conv in self.halves[1:]:
            x = conv(x.relu())
        return self.last(self.blocks(x).relu())


class Decoder(nn.Module):
    """The encoder's mirror: a convolution, residual blocks, transposed convolutions.

    The arguments are those of :class:`Encoder`.
    """

    def __init__(self, channels: int, width: int, dim: int, blocks: int, halvings: int):
        super().__init__()
        double = {"kernel_size": 4, "stride": 2, "padding": 1}
        self.first = nn.Conv2d(dim, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.doubles = nn.ModuleList(
            nn.ConvTranspose2d(width, width, **double) for _ in range(halvings - 1)
        )
        self.last = nn.ConvTranspose2d(width, channels, **double)

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


def build(
    channels: int,
    width: int,
    dim: int,
    blocks: int,
    halvings: int,
    quantizer: nn.Module,
    generator: torch.Generator,
) -> VQVAE:
    """Build a model as :func:`gradbook.vq_vae.build`, with any number of halvings.

    With two, its weights are the same numbers.

    Args:
        channels: of an image.
        width: channels within.
        dim: D, numbers of a vector.
        blocks: residual blocks of each network; may be 0.
        halvings: how often a side is halved; a code stands for a square
            of 2^halvings pixels a side. Sides of images must be multiples
            of that, and of 4.
        quantizer: of rows [N, D]; it is left as it is.
        generator: of the CPU.

    Returns:
        A model with float32 networks on the CPU, channels last in memory.

    Raises:
        ValueError: if a size is not positive.
    """
    sizes = {"channels": channels, "width": width, "dim": dim, "halvings": halvings}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: must be positive, got {size}")
    if blocks < 0:
        raise ValueError(f"blocks: must not be negative, got {blocks}")
    # torch's own initialization draws from its global generator: put that back as it was.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        networks = [
            kind(channels, width, dim, blocks, halvings).float() for kind in (Encoder, Decoder)
        ]
    for network in networks:
        network.to(memory_format=torch.channels_last)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                nn.init.zeros_(parameter)
    return VQVAE(*networks, quantizer)


def started(
    make_quantizer: MakeQuantizer,
    images: Tensor,
    seed: int,
    width: int,
    dim: int,
    blocks: int,
    halvings: int = 2,
) -> VQVAE:
    """Build a model whose first vectors have mean 0 and variance 1 in every coordinate.

    With two halvings it is that of
    :func:`gradbook.vq_vae_training.started`.

    Args:
        make_quantizer: from the vectors [N, D] of the first 2000 images and
            a generator of the CPU.
        images: what it will be trained on, [n, C, H, W], n at least 1.
        seed: of the weights and, apart from it, of the quantizer.
        width: see :func:`build`.
        dim: see :func:`build`.
        blocks: see :func:`build`.
        halvings: see :func:`build`.

    Returns:
        A model on the book's device.

    Raises:
        ValueError: if there are no images, or as :func:`build`.
    """
    if images.ndim != 4:
        raise ValueError(f"images: must be [n, C, H, W], got {list(images.shape)}")
    generator = torch.Generator().manual_seed(seed)
    sizes = (images.shape[1], width, dim, blocks, halvings)
    model = build(*sizes, nn.Identity(), generator).to(device())
    first, last = images[:FIRST], model.encoder.last
    with torch.no_grad():
        scale, mean = torch.std_mean(vectors(model, first), 0, correction=0)
        scale = scale.clamp(min=LEAST_SCALE)
        last.weight /= scale[:, None, None, None]
        last.bias.sub_(mean).div_(scale)
    generator = torch.Generator().manual_seed(seed + 10_000)
    model.quantizer = make_quantizer(vectors(model, first), generator).to(device())
    return model
