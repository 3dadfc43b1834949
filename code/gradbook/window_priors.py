"""Priors of windows: what they are trained on, and what they may be told of a window's place.

Grids of codes are cut into windows of s by s codes, which a causal transformer learns. Its prefix
says where a window lies, or nothing. :mod:`gradbook.sliding` draws larger grids from such priors.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradbook import vae_training
from gradbook.checks import require
from gradbook.devices import device
from gradbook.priors import grids
from gradbook.priors.training import rate_factor
from gradbook.priors.transformer import CausalTransformer
from gradbook.sliding import CoordinatePrefix, PrefixOf, Window, places, sample_large

# Windows that are measured at once.
CHUNK = 500


class Windows(NamedTuple):
    """Codes of windows, int64 [n, s, s], and their places as of :func:`gradbook.sliding.places`, [n, 2]."""

    codes: Tensor
    places: Tensor


def cut(codes: Tensor, which: Tensor, tops: Tensor, lefts: Tensor, side: int) -> Windows:
    """Cut windows from large grids.

    Args:
        codes: int64 [B, H, W], the sides at least ``side``.
        which: the grid of each window, int64 [n].
        tops: first rows, int64 [n].
        lefts: first columns, int64 [n].
        side: s, of the window.

    Returns:
        The windows and their places.

    Raises:
        ValueError: as :func:`gradbook.sliding.places`, or if ``which`` names no
            grid, or the codes have another shape.
    """
    if codes.ndim != 3:
        raise ValueError(f"codes: must be [B, H, W], is {tuple(codes.shape)}")
    where = places(tops, lefts, *codes.shape[1:], side)
    if which.dtype != torch.int64 or which.shape != tops.shape:
        raise ValueError("which: must be int64 [n], the same n as tops")
    require((which >= 0) & (which < len(codes)), f"which: must be from 0 to {len(codes) - 1}")
    steps = torch.arange(side, device=codes.device)
    rows, columns = tops[:, None, None] + steps[:, None], lefts[:, None, None] + steps
    return Windows(codes[which[:, None, None], rows, columns], where)


def random_windows(codes: Tensor, count: int, side: int, generator: torch.Generator) -> Windows:
    """Cut windows as the sampler will see them: around targets drawn anywhere.

    A window at an edge is the window of several targets, and so comes
    more often than one in the interior.

    Args:
        codes: int64 [B, H, W], B at least 1, the sides at least ``side``.
        count: of windows.
        side: s, of the window.
        generator: of the CPU.

    Returns:
        The windows and their places.

    Raises:
        ValueError: if the codes have another shape, or there are none.
    """
    if codes.ndim != 3 or not len(codes):
        raise ValueError(f"codes: must be [B, H, W], B at least 1, is {tuple(codes.shape)}")
    drawn = [
        torch.randint(size, (count,), generator=generator, device="cpu").to(codes.device)
        for size in codes.shape
    ]
    tops, lefts = (
        (target - side // 2).clamp(min=0).clamp(max=size - side)
        for target, size in zip(drawn[1:], codes.shape[1:], strict=True)
    )
    return cut(codes, drawn[0], tops, lefts, side)


class NoPrefix(nn.Module):
    """Tells a prior nothing of a window's place: no vector at all.

    Args:
        dim: D, of a prior's vectors.
    """

    vectors = 0

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, places: Tensor) -> Tensor:
        """Return no vectors.

        Args:
            places: [n, 2].

        Returns:
            float32 [n, 0, D].
        """
        return torch.empty(len(places), 0, self.dim, dtype=torch.float32, device=places.device)


class WindowPrior(nn.Module):
    """A causal transformer over windows, and what tells it their places.

    Args:
        side: s, of a window.
        codes: how many different ones.
        sizes: numbers of a vector, blocks and heads.
        prefix: :class:`gradbook.sliding.CoordinatePrefix` or :class:`NoPrefix`, of that
            many numbers.
        generator: of the transformer's weights, of the CPU.

    Raises:
        ValueError: as :class:`gradbook.priors.CausalTransformer`.
    """

    def __init__(
        self,
        side: int,
        codes: int,
        sizes: tuple[int, int, int],
        prefix: nn.Module,
        generator: torch.Generator,
    ):
        super().__init__()
        shape = (side, side, codes, *sizes)
        self.side, self.prefix = side, prefix
        self.transformer = CausalTransformer(*shape, generator, prefix.vectors)

    def log_prob(self, windows: Windows) -> Tensor:
        """Compute the log-probability of windows, given their places.

        Args:
            windows: n of them.

        Returns:
            [n], in nats.

        Raises:
            ValueError: if the transformer refuses the codes, or the prefix
                the places.
        """
        return self.transformer.log_prob(windows.codes, self.prefix(windows.places))

    def prefix_of(self, height: int, width: int) -> PrefixOf:
        """Say what the transformer is told of the windows of a large grid.

        Args:
            height: of the large grid.
            width: of the large grid.

        Returns:
            For :func:`gradbook.sliding.sample_large`: from a window to the
            vectors [P, D].
        """

        def told(where: Window) -> Tensor:
            here = self.transformer.start.device
            tops, lefts = (torch.tensor([start], device=here) for start in where[:2])
            return self.prefix(places(tops, lefts, height, width, self.side))[0]

        return told


def blind(side: int, codes: int, sizes: tuple[int, int, int], seed: int) -> WindowPrior:
    """Build a prior that is told nothing of a window's place.

    Args:
        side: s, of a window.
        codes: how many different ones.
        sizes: numbers of a vector, blocks and heads.
        seed: of the weights.

    Returns:
        The prior, on the book's device.
    """
    generator = torch.Generator().manual_seed(seed)
    return WindowPrior(side, codes, sizes, NoPrefix(sizes[0]), generator).to(device())


def placed(side: int, codes: int, sizes: tuple[int, int, int], seed: int) -> WindowPrior:
    """Build a prior that is told a window's place.

    Args:
        side: s, of a window.
        codes: how many different ones.
        sizes: numbers of a vector, blocks and heads.
        seed: of the weights.

    Returns:
        The prior, on the book's device.
    """
    prefix = CoordinatePrefix(sizes[0], torch.Generator().manual_seed(seed + 10_000))
    generator = torch.Generator().manual_seed(seed)
    return WindowPrior(side, codes, sizes, prefix, generator).to(device())


def fit(
    model: WindowPrior,
    sources: Sequence[Tensor],
    seed: int,
    steps: int,
    rate: float,
    each: int,
) -> float:
    """Train a prior in place by Adam on windows that are cut anew for every step.

    Args:
        model: on the sources' device.
        sources: grids of one size each, int64 [n, H, W].
        seed: of the windows.
        steps: how many.
        rate: the highest step size; see
            :func:`gradbook.priors.training.rate_factor`.
        each: windows of a step from each of the sources.

    Returns:
        The mean seconds of a step.

    Raises:
        ValueError: if there are no steps, no sources or no windows, or as
            :func:`random_windows`.
    """
    grids.require_sizes(steps=steps, each=each, sources=len(sources))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * rate_factor(step, steps)
        optimizer.zero_grad()
        parts = [random_windows(codes, each, model.side, generator) for codes in sources]
        windows = Windows(*map(torch.cat, zip(*parts, strict=True)))
        loss = -model.log_prob(windows).mean() / model.side**2
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - start) / steps


@torch.no_grad()
def bits_per_code(model: WindowPrior, windows: Windows) -> float:
    """Measure a prior on windows, in chunks.

    Args:
        model: on the windows' device.
        windows: n of them, n at least 1.

    Returns:
        Mean bits of a code.

    Raises:
        ValueError: if there is no window, or as :meth:`WindowPrior.log_prob`.
    """
    if not len(windows.codes):
        raise ValueError("windows: must be at least one")
    chunks = zip(*(part.split(CHUNK) for part in windows), strict=True)
    log_probs = torch.cat([model.log_prob(Windows(*chunk)) for chunk in chunks])
    return grids.mean_bits(log_probs, model.side**2)


def drawn(model: WindowPrior, height: int, width: int, count: int, seed: int) -> Tensor:
    """Draw large grids, as :func:`gradbook.sliding.sample_large`.

    Args:
        model: on the book's device.
        height: of a grid, at least s.
        width: of a grid, at least s.
        count: of grids.
        seed: of the noise.

    Returns:
        Codes [count, height, width].
    """
    shape = (count, height, width, model.transformer.codes)
    noise = vae_training.gumbels(*shape, generator=torch.Generator().manual_seed(seed))
    told = model.prefix_of(height, width)
    return sample_large(model.transformer, height, width, noise, told)
