"""Conditions of a prior, as vectors that stand before its codes, and codes corrupted on purpose.

A prefix is a module that says how many ``vectors`` it gives, P: it turns conditions of B grids into
[B, P, D], which a :class:`gradbook.priors.CausalTransformer` puts before its start. Everything that
is drawn later can look at them. The transformer adds a learnt vector for each place of the prefix.
"""

import math

import torch
from torch import Tensor, nn

from gradbook.checks import require
from gradbook.priors import grids
from gradbook.priors.attention import STD
from gradbook.priors.layers import table
from gradbook.priors.transformer import CausalTransformer
from gradbook.sliding import CoordinatePrefix

__all__ = [
    "ClassPrefix",
    "CodePrefix",
    "ConditionalPrior",
    "CoordinatePrefix",
    "corrupted_log_prob",
    "pkeep_corrupted",
]


class ClassPrefix(nn.Module):
    """One vector, looked up by a class; with a single class a prior without a condition.

    Args:
        classes: how many.
        dim: of a vector.
        generator: of the weights, of the CPU; they are float32.

    Raises:
        ValueError: if a size is below 1.

    Source: Esser, Rombach and Ommer 2021, section 3.2.
    """

    vectors = 1

    def __init__(self, classes: int, dim: int, generator: torch.Generator):
        super().__init__()
        grids.require_sizes(classes=classes, dim=dim)
        self.classes = classes
        self.table = table(classes, dim, STD, generator)

    def forward(self, condition: Tensor) -> Tensor:
        """Look the vectors of classes up.

        Args:
            condition: int64 [B], from 0 to the number of classes - 1.

        Returns:
            [B, 1, D].

        Raises:
            ValueError: if the condition has another type, shape or range.
        """
        _require_condition(condition, 0, self.classes)
        return self.table[condition][:, None]


class CodePrefix(nn.Module):
    """A vector for each code of a picture, coded by an autoencoder of its own.

    Args:
        codes: how many different ones.
        vectors: P, codes of a picture.
        dim: of a vector.
        generator: of the weights, of the CPU; they are float32.

    Raises:
        ValueError: if a size is below 1.

    Source: Esser, Rombach and Ommer 2021, section 3.2: a second VQGAN for
    conditions that have the shape of an image.
    """

    def __init__(self, codes: int, vectors: int, dim: int, generator: torch.Generator):
        super().__init__()
        grids.require_sizes(codes=codes, vectors=vectors, dim=dim)
        self.codes, self.vectors = codes, vectors
        self.table = table(codes, dim, STD, generator)

    def forward(self, condition: Tensor) -> Tensor:
        """Look the vectors of codes up, row by row.

        Args:
            condition: int64 [B, h', w'], with h' w' = P.

        Returns:
            [B, P, D].

        Raises:
            ValueError: if the condition has another type, shape or range.
        """
        _require_condition(condition, 2, self.codes)
        if math.prod(condition.shape[1:]) != self.vectors:
            shape = tuple(condition.shape)
            raise ValueError(f"condition: must have {self.vectors} codes a grid, is {shape}")
        return self.table[condition.flatten(1)]


class ConditionalPrior(nn.Module):
    """A transformer over codes and what turns conditions into its prefix.

    Args:
        prefix: of conditions, as the module says.
        transformer: a :class:`gradbook.priors.CausalTransformer` with as
            many conditioning vectors.

    Raises:
        ValueError: if the prefix gives another number of vectors.

    Source: Esser, Rombach and Ommer 2021, section 3.2.
    """

    def __init__(self, prefix: nn.Module, transformer: CausalTransformer):
        super().__init__()
        if prefix.vectors != transformer.prefix:
            counts = f"{transformer.prefix} vectors, gives {prefix.vectors}"
            raise ValueError(f"prefix: must give {counts}")
        self.prefix, self.transformer = prefix, transformer
        self.height, self.width = transformer.height, transformer.width
        self.codes = transformer.codes

    @property
    def head(self) -> nn.Module:
        """The layer that gives the logits, for :func:`gradbook.sampling.sample_grids`."""
        return self.transformer.head

    def logits(self, codes: Tensor, condition: Tensor) -> Tensor:
        """Compute the logits of every code given the condition and those before it.

        Args:
            codes: int64 [B, h, w].
            condition: of each grid, as the prefix takes it.

        Returns:
            [B, h, w, K].

        Raises:
            ValueError: if the codes or the condition are not as they must
                be, or not equally many.
        """
        return self.transformer.logits(codes, self.prefix(condition))

    def log_prob(self, codes: Tensor, condition: Tensor) -> Tensor:
        """Compute the log-probability of grids given their conditions.

        Args:
            codes: int64 [B, h, w].
            condition: of each grid, as the prefix takes it.

        Returns:
            [B], in nats.

        Raises:
            ValueError: as :meth:`logits`.
        """
        return grids.log_prob(self.logits(codes, condition), codes)

    @torch.no_grad()
    def sample(self, count: int, noise: Tensor, condition: Tensor) -> Tensor:
        """Draw grids code by code, each for its condition.

        Args:
            count: of the grids.
            noise: standard Gumbel draws [count, h, w, K].
            condition: of each grid, as the prefix takes it.

        Returns:
            Codes [count, h, w]; the same noise gives the same ones.

        Raises:
            ValueError: if the noise has another shape or is not finite, or
                as :meth:`logits`.
        """
        return self.transformer.sample(count, noise, self.prefix(condition))


def pkeep_corrupted(
    codes: Tensor,
    keep: float,
    count: int,
    noise: Tensor,
) -> Tensor:
    """Replace some codes by codes drawn uniformly from all.

    A code drawn may be the old one: a code stays the same with
    probability keep + (1 - keep) / count.

    Args:
        codes: int64 [B, h, w].
        keep: the probability that a code is kept, from 0 to 1.
        count: of different codes, K.
        noise: uniform draws [B, h, w], from 0 to below 1; one decides
            both whether a code is kept and by which it is replaced.

    Returns:
        int64 [B, h, w].

    Raises:
        ValueError: if an argument has another shape or type, or is out of
            range.

    Source: ``pkeep`` of the code of Esser, Rombach and Ommer 2021.
    """
    if codes.ndim != 3:
        raise ValueError(f"codes: must be [B, h, w], is {codes.ndim}-d")
    grids.require_codes(codes, *codes.shape[1:], count)
    if not 0 <= keep <= 1:
        raise ValueError(f"keep: must be from 0 to 1, got {keep}")
    if noise.shape != codes.shape or not noise.is_floating_point():
        wanted = f"floating {tuple(codes.shape)}"
        raise ValueError(f"noise: must be {wanted}, is {noise.dtype}")
    require((noise >= 0) & (noise < 1), "noise: must be from 0 to below 1")
    # Beyond ``keep`` the draw is uniform on what is left of the interval;
    # with nothing left, the quotient decides nothing.
    left = (noise - keep) / max(1 - keep, torch.finfo(noise.dtype).eps)
    other = (left * count).long().clamp(0, count - 1)
    return torch.where(noise < keep, codes, other)


def corrupted_log_prob(
    prior: ConditionalPrior,
    codes: Tensor,
    condition: Tensor,
    keep: float,
    noise: Tensor,
) -> Tensor:
    """Add the log-probabilities of clean codes, each given corrupted ones before it.

    This is what is maximized in training; it is the logarithm of no law
    of grids. The condition is never corrupted.

    Args:
        prior: of grids given conditions.
        codes: int64 [B, h, w].
        condition: of each grid, as the prior takes it.
        keep: the probability that a code is kept, from 0 to 1; with 1 the
            result is the log-probability of the grids.
        noise: uniform draws [B, h, w], from 0 to below 1.

    Returns:
        [B], in nats.

    Raises:
        ValueError: as :func:`pkeep_corrupted` and
            :meth:`ConditionalPrior.logits`.
    """
    inputs = pkeep_corrupted(codes, keep, prior.codes, noise)
    return grids.log_prob(prior.logits(inputs, condition), codes)


def _require_condition(condition: Tensor, axes: int, count: int) -> None:
    if condition.dtype != torch.int64 or condition.ndim != 1 + axes:
        shape = "[B]" if axes == 0 else "[B, h', w']"
        found = f"{condition.dtype} {tuple(condition.shape)}"
        raise ValueError(f"condition: must be int64 {shape}, is {found}")
    require((condition >= 0) & (condition < count), f"condition: must be from 0 to {count - 1}")
