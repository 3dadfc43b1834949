"""PixelCNN over grids of codes: convolutions that see only the past, in two stacks.

The vertical stack sees the rows above, the horizontal one the row so far and the vertical one. One
stack of masked 3x3 convolutions would be blind to codes above on the right. A mask of zeros would be
multiplied for nothing, so the kernels here are only what such a mask leaves::

    vertical, type A: the row above      x x x      horizontal, type A: on the left     x o
    vertical, type B: and the own row    x x x      horizontal, type B: and the own     x x
                                         x x x
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradbook.priors import grids
from gradbook.priors.layers import convolution, table

Sides = tuple[int, int, int, int]


class Mask(NamedTuple):
    """Kernels, height and width, and how many zeros they need left, right, above and below."""

    vertical: tuple[int, int]
    vertical_sides: Sides
    horizontal: tuple[int, int]
    horizontal_sides: Sides


# A side of -1 drops the last row or column, which type A must not see.
TYPE_A = Mask((1, 3), (1, 1, 1, -1), (1, 1), (1, -1, 0, 0))
TYPE_B = Mask((2, 3), (1, 1, 1, 0), (1, 2), (1, 0, 0, 0))


def gate(x: Tensor) -> Tensor:
    """Let one half of the channels decide how much of the other half passes.

    Args:
        x: [B, 2 C, h, w].

    Returns:
        [B, C, h, w], from -1 to 1.

    Source: van den Oord et al. 2016, "Conditional image generation with
    PixelCNN decoders", equation 2.
    """
    content, opening = x.chunk(2, dim=1)
    return content.tanh() * opening.sigmoid()


class GatedLayer(nn.Module):
    """One layer of both stacks.

    Args:
        channels: of each stack.
        mask: what the layer may see.
        generator: of the weights, of the CPU.

    Source: van den Oord et al. 2016, "Conditional image generation with
    PixelCNN decoders", figure 2.
    """

    def __init__(self, channels: int, mask: Mask, generator: torch.Generator):
        super().__init__()
        self.mask, both = mask, 2 * channels
        self.vertical = convolution(channels, both, mask.vertical, generator)
        self.horizontal = convolution(channels, both, mask.horizontal, generator)
        self.across = convolution(both, both, (1, 1), generator)
        self.outward = convolution(channels, channels, (1, 1), generator)

    def forward(self, above: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what both stacks add.

        Args:
            above: of the vertical stack, [B, C, h, w].
            left: of the horizontal stack, [B, C, h, w].

        Returns:
            The next values of the vertical stack, and what is to be added
            to those of the horizontal stack.
        """
        mask = self.mask
        rows = self.vertical(functional.pad(above, mask.vertical_sides))
        row = self.horizontal(functional.pad(left, mask.horizontal_sides))
        return gate(rows), self.outward(gate(row + self.across(rows)))


class PixelCNN(nn.Module):
    """A gated PixelCNN: the logits of each code given those before it.

    A layer sees one row and one column further than the layer below. From
    max(height, width) - 1 layers on, every position sees all before it.

    Args:
        height: of a grid.
        width: of a grid.
        codes: how many different ones.
        channels: of each stack.
        layers: of gated convolutions: one of type A, the others of type B.
        generator: of the weights, of the CPU; they are float32.

    Raises:
        ValueError: if a size is below 1.

    Source: van den Oord et al. 2016, "Pixel recurrent neural networks",
    section 3.4; "Conditional image generation with PixelCNN decoders",
    section 2.2.
    """

    def __init__(
        self,
        height: int,
        width: int,
        codes: int,
        channels: int,
        layers: int,
        generator: torch.Generator,
    ):
        super().__init__()
        grids.require_sizes(
            height=height, width=width, codes=codes, channels=channels, layers=layers
        )
        self.height, self.width, self.codes = height, width, codes
        self.table = table(codes, channels, 1.0, generator)
        self.first = GatedLayer(channels, TYPE_A, generator)
        rest = [GatedLayer(channels, TYPE_B, generator) for _ in range(layers - 1)]
        self.rest = nn.ModuleList(rest)
        self.hidden = convolution(channels, channels, (1, 1), generator)
        self.head = convolution(channels, codes, (1, 1), generator)

    def logits(self, codes: Tensor) -> Tensor:
        """Compute the logits of every code given those before it.

        Args:
            codes: int64 [B, h, w].

        Returns:
            [B, h, w, K].

        Raises:
            ValueError: if the codes have another type, shape or range.
        """
        grids.require_codes(codes, self.height, self.width, self.codes)
        vectors = self.table[codes].permute(0, 3, 1, 2)
        above, left = self.first(vectors, vectors)
        for layer in self.rest:
            above, change = layer(above, left)
            left = left + change
        hidden = self.hidden(left.relu()).relu()
        return self.head(hidden).permute(0, 2, 3, 1)

    def log_prob(self, codes: Tensor) -> Tensor:
        """Compute the log-probability of grids.

        Args:
            codes: int64 [B, h, w].

        Returns:
            [B], in nats.

        Raises:
            ValueError: as :meth:`logits`, or if a logit is not finite.
        """
        return grids.log_prob(self.logits(codes), codes)

    @torch.no_grad()
    def sample(self, count: int, noise: Tensor) -> Tensor:
        """Draw grids code by code; every code costs a pass over the grid.

        Args:
            count: of the grids.
            noise: standard Gumbel draws [count, h, w, K].

        Returns:
            Codes [count, h, w]; the same noise gives the same ones.

        Raises:
            ValueError: if the noise has another shape or is not finite.
        """
        grids.require_noise(noise, count, self.height, self.width, self.codes)
        return grids.sample(self.logits, noise)
