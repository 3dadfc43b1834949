"""A causal transformer over grids of codes in reading order.

The sequence is a start token, then all codes but the last. The output at each element gives the
logits of the code that comes next. Conditioning vectors, where there are any, stand before the start.
"""

import torch
from torch import Tensor, nn

from gradbook.checks import require_finite
from gradbook.gumbel import gumbel_max
from gradbook.priors import grids
from gradbook.priors.attention import STD, Block, Cache
from gradbook.priors.layers import linear, norm, table


class CausalTransformer(nn.Module):
    """A transformer over a grid: the logits of each code given those before it.

    An element's place is the row and the column of the code that it
    predicts: the sum of two learnt vectors.

    Args:
        height: of a grid.
        width: of a grid.
        codes: how many different ones.
        dim: of a vector.
        layers: blocks of attention.
        heads: must divide ``dim``.
        generator: of the weights, of the CPU; they are float32.
        prefix: how many conditioning vectors there are.

    Raises:
        ValueError: if a size is below 1, ``prefix`` is negative or
            ``heads`` does not divide ``dim``.

    Source: Vaswani et al. 2017; Radford et al. 2019, section 2.3, for the
    order within a block and the starting weights.
    """

    def __init__(
        self,
        height: int,
        width: int,
        codes: int,
        dim: int,
        layers: int,
        heads: int,
        generator: torch.Generator,
        prefix: int = 0,
    ):
        super().__init__()
        grids.require_sizes(height=height, width=width, codes=codes, dim=dim, layers=layers)
        if heads < 1 or dim % heads:
            raise ValueError(f"heads: must divide dim, {dim}, got {heads}")
        if prefix < 0:
            raise ValueError(f"prefix: must not be negative, got {prefix}")
        self.height, self.width, self.codes, self.prefix = height, width, codes, prefix
        self.table = table(codes, dim, STD, generator)
        self.start = table(1, dim, STD, generator)
        self.rows = table(height, dim, STD, generator)
        self.columns = table(width, dim, STD, generator)
        self.places = table(prefix, dim, STD, generator)
        # Two additions a block: together they leave a vector's variance as it starts.
        std = STD / (2 * layers) ** 0.5
        blocks = [Block(dim, heads, std, generator) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(dim)
        self.head = linear(dim, codes, STD, generator)

    def logits(self, codes: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Compute the logits of every code given those before it.

        Args:
            codes: int64 [B, h, w].
            prefix: conditioning vectors [B, P, D], where the model has any.

        Returns:
            [B, h, w, K].

        Raises:
            ValueError: if the codes have another type, shape or range, or
                the prefix another shape, or a value that is not finite.
        """
        grids.require_codes(codes, self.height, self.width, self.codes)
        before = self._before(len(codes), prefix)
        x = torch.cat([before, self._elements(codes.flatten(1)[:, :-1])], 1)
        for block in self.blocks:
            x = block(x)
        read = self._read(x[:, self.prefix :])
        return read.unflatten(1, (self.height, self.width))

    def log_prob(self, codes: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Compute the log-probability of grids.

        Args:
            codes: int64 [B, h, w].
            prefix: conditioning vectors [B, P, D], where the model has any.

        Returns:
            [B], in nats.

        Raises:
            ValueError: as :meth:`logits`, or if a logit is not finite.
        """
        return grids.log_prob(self.logits(codes, prefix), codes)

    @torch.no_grad()
    def sample(self, count: int, noise: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Draw grids code by code, with keys and values kept.

        Args:
            count: of the grids.
            noise: standard Gumbel draws [count, h, w, K].
            prefix: conditioning vectors [count, P, D], where the model has
                any.

        Returns:
            Codes [count, h, w]; the same noise gives the same ones.

        Raises:
            ValueError: if the noise has another shape or is not finite, or
                as :meth:`logits`.
        """
        grids.require_noise(noise, count, self.height, self.width, self.codes)
        x, noise, drawn, done = self._before(count, prefix), noise.flatten(1, 2), [], 0
        caches = [self._empty_cache(count) for _ in self.blocks]
        for t in range(noise.shape[1]):
            length = x.shape[1]
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block.extend(x, cache, done)
            done += length
            drawn.append(gumbel_max(self._read(x[:, -1]), noise[:, t]))
            if t + 1 < noise.shape[1]:
                x = self._elements(drawn[-1][:, None], t)
        return torch.stack(drawn, 1).unflatten(1, (self.height, self.width))

    @torch.no_grad()
    def sample_without_cache(
        self, count: int, noise: Tensor, prefix: Tensor | None = None
    ) -> Tensor:
        """Draw the grids of :meth:`sample`, with the sequence so far processed anew for every code.

        Args:
            count: of the grids.
            noise: standard Gumbel draws [count, h, w, K].
            prefix: conditioning vectors [count, P, D], where the model has
                any.

        Returns:
            Codes [count, h, w].

        Raises:
            ValueError: as :meth:`sample`.
        """
        grids.require_noise(noise, count, self.height, self.width, self.codes)
        before, noise = self._before(count, prefix), noise.flatten(1, 2)
        drawn = torch.empty(count, 0, dtype=torch.int64, device=noise.device)
        for t in range(noise.shape[1]):
            x = torch.cat([before, self._elements(drawn)], 1)
            for block in self.blocks:
                x = block(x)
            code = gumbel_max(self._read(x[:, -1]), noise[:, t])
            drawn = torch.cat([drawn, code[:, None]], 1)
        return drawn.unflatten(1, (self.height, self.width))

    def _before(self, count: int, prefix: Tensor | None) -> Tensor:
        """What stands before the codes: conditioning vectors and the start, [B, P + 1, D]."""
        start = (self.start + self._places()[:1]).expand(count, -1, -1)
        if not self.prefix and prefix is None:
            return start
        shape = (count, self.prefix, self.start.shape[1])
        if prefix is None or prefix.shape != shape:
            found = None if prefix is None else tuple(prefix.shape)
            raise ValueError(f"prefix: must be {shape}, is {found}")
        require_finite(prefix=prefix)
        return torch.cat([prefix + self.places, start], 1)

    def _elements(self, codes: Tensor, done: int = 0) -> Tensor:
        """The vectors [B, n, D] of n codes [B, n] in reading order, after ``done`` others."""
        places = self._places()[done + 1 : done + 1 + codes.shape[1]]
        return self.table[codes] + places

    def _places(self) -> Tensor:
        return (self.rows[:, None] + self.columns).flatten(0, 1)

    def _read(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))

    def _empty_cache(self, count: int) -> Cache:
        heads, dim = self.blocks[0].attention.heads, self.start.shape[1]
        length = self.prefix + self.height * self.width
        shape = (2, count, heads, length, dim // heads)
        return Cache(*self.start.new_empty(shape).unbind(0))
