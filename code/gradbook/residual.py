"""Residual quantization: every stage codes what the stages before it left.

Stage s has a codebook of its own. The vector of a tuple of indices is the sum of one code of each
stage, so depth stages of K codes make K^depth vectors from depth K stored ones. The choice is
greedy: a stage takes the code nearest to what is left, which is not always part of the nearest sum.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradbook.checks import require, require_finite
from gradbook.gumbel import straight_through
from gradbook.nearest import nearest_code
from gradbook.quantizers import Quantized, RestartedCodebook


class ResidualCodes(NamedTuple):
    """Sums of codes [N, D], and the index of each stage's code, int64 [N, depth]."""

    values: Tensor
    indices: Tensor


def residual_quantize(
    z: Tensor,
    codebooks: Tensor | Sequence[Tensor],
) -> ResidualCodes:
    """Code vectors stage by stage, each by the code nearest to the rest.

    Args:
        z: [N, D].
        codebooks: [depth, K, D], or one [K, D] for each stage, whose K
            may differ.

    Returns:
        The sums of codes and their indices. Gradients flow from the sums
        to the codebooks, none to z.

    Raises:
        ValueError: if there is no codebook, or one does not fit z, or an
            argument is not finite.

    Source: Juang and Gray 1982; Zeghidour et al. 2021, "SoundStream",
    algorithm 1.
    """
    _require_codebooks(codebooks)
    rest = z.detach()
    values, indices = torch.zeros_like(rest), []
    for codebook in codebooks:
        index = nearest_code(rest, codebook)
        chosen = codebook[index]
        values, rest = values + chosen, rest - chosen.detach()
        indices.append(index)
    return ResidualCodes(values, torch.stack(indices, -1))


def residual_decode(
    indices: Tensor,
    codebooks: Tensor | Sequence[Tensor],
) -> Tensor:
    """Sum the codes of every stage.

    Args:
        indices: int64 [..., depth].
        codebooks: as for :func:`residual_quantize`.

    Returns:
        [..., D], equal to the values that the indices came with.

    Raises:
        ValueError: if the indices are not int64 [..., depth] or one is
            no code of its stage, or as :func:`residual_quantize`.
    """
    _require_codebooks(codebooks)
    _require_indices(indices, codebooks)
    total = torch.zeros_like(codebooks[0][0])
    stages = zip(indices.unbind(-1), codebooks, strict=True)
    for index, codebook in stages:
        total = total + codebook[index]
    return total


def residual_start(
    z: Tensor,
    sizes: Sequence[int],
    generator: torch.Generator,
) -> list[Tensor]:
    """Choose the codes of every stage among what the earlier stages leave of vectors.

    Args:
        z: [N, D].
        sizes: codes of each stage, at most N.
        generator: of the CPU.

    Returns:
        A codebook [K, D] for each stage, of different rows.

    Raises:
        ValueError: if there is no stage, a size is not from 1 to N, or as
            :func:`gradbook.nearest.nearest_code`.
    """
    if not sizes or not all(1 <= size <= len(z) for size in sizes):
        raise ValueError(f"sizes: must be from 1 to {len(z)}, got {list(sizes)}")
    rest, codebooks = z.detach(), []
    for size in sizes:
        rows = torch.randperm(len(z), generator=generator, device="cpu")[:size]
        codebooks.append(rest[rows.to(z.device)])
        rest = rest - residual_quantize(rest, codebooks[-1:]).values
    return codebooks


class ResidualCodebook(nn.Module):
    """Codebooks of moving averages, one after another, each on what the earlier ones left.

    Args:
        codebooks: [depth, K, D], or one [K, D] for each stage, whose K
            may differ; copied.
        beta: the weight of the commitment, at least 0.
        decay: of the averages, from 0 to 1.
        eps: of the smoothing, at least 0.

    Raises:
        ValueError: if there is no codebook, or as
            :class:`gradbook.quantizers.RestartedCodebook`.

    Source: Zeghidour et al. 2021 (SoundStream), section III.C.
    """

    def __init__(
        self,
        codebooks: Tensor | Sequence[Tensor],
        beta: float = 0.25,
        decay: float = 0.99,
        eps: float = 1e-5,
    ):
        super().__init__()
        _require_codebooks(codebooks)
        stages = [RestartedCodebook(codebook, beta, decay, eps) for codebook in codebooks]
        self.stages = nn.ModuleList(stages)
        self.codes = math.prod(stage.codes for stage in stages)

    @property
    def codebooks(self) -> list[Tensor]:
        """The codes of every stage."""
        return [stage.codebook for stage in self.stages]

    def forward(self, z: Tensor) -> Quantized:
        """Replace every vector by a sum of codes.

        Args:
            z: [N, D], of the codebooks' type and device.

        Returns:
            The sums, with the straight-through gradient, and indices
            [N, depth]; the loss is beta times the sum of the commitments
            of every stage to its code.

        Raises:
            ValueError: if z has another shape or type or is not finite.
        """
        rest, losses, found = z, [], []
        for stage in self.stages:
            quantized = stage(rest)
            rest = rest - quantized.values.detach()
            losses.append(quantized.loss)
            found.append(quantized.indices)
        indices = torch.stack(found, -1)
        values = self.decode(indices)
        return Quantized(straight_through(values, z), sum(losses), indices)

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor, generator: torch.Generator) -> None:
        """Update every stage with what the earlier ones left, as they were in the lookup.

        Args:
            z: [N, D], of the batch.
            indices: [N, depth], its codes.
            generator: of the CPU; draws where codes start again.

        Raises:
            ValueError: as :class:`gradbook.quantizers.RestartedCodebook`.
        """
        rest = z
        for stage, index in zip(self.stages, indices.unbind(-1), strict=True):
            left = rest - stage.decode(index)
            stage.update(rest, index, generator)
            rest = left

    def decode(self, indices: Tensor) -> Tensor:
        """Sum the codes of every stage.

        Args:
            indices: int64 [..., depth].

        Returns:
            [..., D].

        Raises:
            ValueError: as :func:`gradbook.residual.residual_decode`.
        """
        return residual_decode(indices, self.codebooks)


def _require_indices(indices: Tensor, codebooks: Tensor | Sequence[Tensor]) -> None:
    depth = len(codebooks)
    if indices.dtype != torch.int64 or indices.ndim == 0 or indices.shape[-1] != depth:
        got = f"{indices.dtype} {tuple(indices.shape)}"
        raise ValueError(f"indices: must be int64 [..., {depth}], got {got}")
    sizes = torch.tensor([len(codebook) for codebook in codebooks], device=indices.device)
    fits = (indices >= 0) & (indices < sizes)
    require(fits, f"indices: must be below the stages' numbers of codes, {sizes.tolist()}")


def _require_codebooks(codebooks: Tensor | Sequence[Tensor]) -> None:
    shapes = [tuple(codebook.shape) for codebook in codebooks]
    fits = all(len(shape) == 2 and shape[0] and shape[1] == shapes[0][1] for shape in shapes)
    if not shapes or not fits:
        raise ValueError(f"codebooks: must be [K, D] with one D, K at least 1, got {shapes}")
    for codebook in codebooks:
        require_finite(codebooks=codebook)
