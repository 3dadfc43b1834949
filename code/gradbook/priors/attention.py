"""Causal self-attention in blocks, over a whole sequence or one element after another.

``forward`` processes a sequence at once; ``extend`` gets only its new elements, and finds the keys
and values of those before them in a cache.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

from gradbook.priors.layers import linear, norm

STD = 0.02


class Cache(NamedTuple):
    """Keys and values of the elements so far, each [B, heads, T, D / heads], of one block."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Causal self-attention with several heads.

    Args:
        dim: of a vector.
        heads: must divide ``dim``.
        std: of the last layer's weights.
        generator: of the weights, of the CPU.

    Source: Vaswani et al. 2017, section 3.2.
    """

    def __init__(self, dim: int, heads: int, std: float, generator: torch.Generator):
        super().__init__()
        self.heads = heads
        self.inward = linear(dim, 3 * dim, STD, generator)
        self.outward = linear(dim, dim, std, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Let each element look at itself and those before it.

        Args:
            x: [B, T, D].

        Returns:
            [B, T, D].
        """
        q, k, v = self.split(x)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.joined(mixed)

    def extend(self, x: Tensor, cache: Cache, done: int) -> Tensor:
        """Do the same for new elements alone; what is known of the others is in the cache.

        Args:
            x: the new elements, [B, n, D]; only one if others came before.
            cache: gets their keys and values at ``done`` and after it.
            done: how many came before.

        Returns:
            [B, n, D].
        """
        q, k, v = self.split(x)
        end = done + x.shape[1]
        cache.keys[:, :, done:end] = k
        cache.values[:, :, done:end] = v
        k, v = cache.keys[:, :, :end], cache.values[:, :, :end]
        # A single new element may look at everything: torch's mask, aligned
        # to the first key, would leave it that key alone.
        mixed = scaled_dot_product_attention(q, k, v, is_causal=done == 0)
        return self.joined(mixed)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values.

        Args:
            x: [B, T, D].

        Returns:
            Three tensors [B, heads, T, D / heads].
        """
        parts = self.inward(x).unflatten(-1, (3, self.heads, -1))
        return parts.permute(2, 0, 3, 1, 4).unbind(0)

    def joined(self, mixed: Tensor) -> Tensor:
        """Put the heads side by side.

        Args:
            mixed: [B, heads, T, D / heads].

        Returns:
            [B, T, D], after the last layer.
        """
        return self.outward(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and two linear layers, each after a normalization and added to its input.

    The arguments are those of :class:`Attention`.
    """

    def __init__(self, dim: int, heads: int, std: float, generator: torch.Generator):
        super().__init__()
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.attention = Attention(dim, heads, std, generator)
        self.wide = linear(dim, 4 * dim, STD, generator)
        self.narrow = linear(4 * dim, dim, std, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Process a whole sequence.

        Args:
            x: [B, T, D].

        Returns:
            [B, T, D].
        """
        return self.mlp(x + self.attention(self.norm1(x)))

    def extend(self, x: Tensor, cache: Cache, done: int) -> Tensor:
        """Process new elements, as :meth:`Attention.extend`.

        Args:
            x: [B, n, D].
            cache: of this block.
            done: how many elements came before.

        Returns:
            [B, n, D].
        """
        mixed = self.attention.extend(self.norm1(x), cache, done)
        return self.mlp(x + mixed)

    def mlp(self, x: Tensor) -> Tensor:
        """Process each element alone.

        Args:
            x: [B, T, D].

        Returns:
            [B, T, D].
        """
        return x + self.narrow(functional.gelu(self.wide(self.norm2(x))))
