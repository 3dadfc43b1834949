"""DoRA: the lengths of a matrix's rows are learnt apart from their directions.

The rows are those of torch's weights [out, in], one for each output. The paper takes the norm of
every column, and makes m a [1, k] beside a W of [d, k]; that W is [in, out], says its first author,
so that his columns are our rows. His code and peft's take the rows of the weights too.

Source: S. Liu, C. Wang, H. Yin, P. Molchanov, Y. F. Wang, K. Cheng and M. Chen, 2024, "DoRA:
weight-decomposed low-rank adaptation". On the axis: issue 1 of nbasyl/DoRA.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradbook.checks import require
from gradbook.peft.injection import matrix, require_input
from gradbook.peft.lora import LoRALinear, over_rank

# Of W, A, B and the scaling: the norms of the rows of W + scaling B A.
Norms = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def row_norms(
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float,
) -> Tensor:
    """Compute the norms of the rows of W + s B A without forming B A.

    A squared norm is ``|w|^2 + 2 s <W A^T, B> + s^2 <B (A A^T), B>``, where
    the products in brackets have r columns. Where a sum nearly cancels its
    row of W, the norm is as wrong as rounding makes its square.

    Args:
        weight: W, [out, in].
        a: A, [r, in].
        b: B, [out, r].
        scaling: s.

    Returns:
        [out], of the type of W; gradients flow to all three matrices.

    Source: Liu et al. 2024, the norm in equation 5; this form of it is ours.
    """
    # Halves have too few digits for the sum of squares.
    wide = torch.promote_types(weight.dtype, torch.float32)
    norms = torch.linalg.vector_norm(weight, dim=1, dtype=wide)
    cross = 2 * scaling * (weight @ a.T)
    own = scaling**2 * (b @ (a @ a.T))
    added = ((cross + own) * b).sum(1, dtype=wide)
    squares = (norms.square() + added).clamp(min=0)
    return squares.sqrt().to(weight.dtype)


@torch.no_grad()
def constant_norms(
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float,
) -> Tensor:
    """Compute :func:`row_norms`, and let no gradient through.

    The gradient of V = W + s B A then keeps its part along each row, which
    the full one lacks: the direction does not change with the length. The
    backward pass saves the norms' share of time and memory.

    Args:
        weight: as there, like the others.
        a: A.
        b: B.
        scaling: s.

    Returns:
        [out].

    Source: Liu et al. 2024, section 4.3.
    """
    return row_norms(weight, a, b, scaling)


class DoRALinear(LoRALinear):
    """A linear layer whose rows W + s B A are scaled to learnt lengths m.

    The weights are ``m (W + s B A) / |W + s B A|``, row by row. m starts as the norms of the rows
    of W, so that at the start the layer computes what it did, up to rounding.

    Args:
        layer: W, linear, as for :func:`gradbook.peft.injection.matrix`; is frozen.
        rank: r, from 1 to the smaller side of W.
        alpha: positive.
        generator: of A, of the CPU; without one A is drawn by torch's own.
        scale: s, of alpha and the rank.
        norms: :func:`constant_norms`, or :func:`row_norms` for the full gradient.

    Attributes:
        magnitude: m, [out].

    Raises:
        ValueError: if a row of W is zero, as it has no direction, or is not finite; or as
            :class:`gradbook.peft.lora.LoRALinear`.

    Source: Liu et al. 2024, sections 4.1 and 4.3.
    """

    def __init__(
        self,
        layer: nn.Module,
        rank: int,
        alpha: float,
        generator: torch.Generator | None = None,
        scale: Callable[[float, int], float] = over_rank,
        norms: Norms = constant_norms,
    ):
        weight = matrix(layer)
        # As the forward pass computes them, so that the quotient is 1 to the bit: from B = 0.
        a, b = weight.new_zeros(1, weight.shape[1]), weight.new_zeros(len(weight), 1)
        lengths = constant_norms(weight, a, b, 1.0)
        # Nothing stands on the meta device.
        if not lengths.is_meta:
            require((lengths > 0) & lengths.isfinite(), "layer: must have rows of positive length")
        super().__init__(layer, rank, alpha, generator, scale)
        self.norms, self.magnitude = norms, nn.Parameter(lengths)
        self.register_buffer("merged_factor", None, persistent=False)

    def factor(self) -> Tensor:
        """Compute what the rows are multiplied by, m over their norms.

        Returns:
            [out]. Infinite or without meaning where a row of W + s B A has become zero.
        """
        norms = self.norms(self.weights(), self.A, self.B, self.scaling)
        return self.magnitude / norms

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``m (W + s B A) x / |W + s B A| + bias``; after a merge the layer alone.

        Args:
            x: [..., in].

        Returns:
            [..., out].

        Raises:
            ValueError: as :func:`gradbook.peft.injection.require_input`.
        """
        require_input(x, self.layer)
        if self.merged:
            return self.layer(x)
        added = x @ self.A.T @ (self.scaling * self.B).T
        rows = functional.linear(x, self.weights()) + added
        output = self.factor() * rows
        if self.layer.bias is not None:
            output = output + self.layer.bias
        # Inside autocast the factor and the bias are wider than the products.
        return output.to(rows.dtype)

    def change(self) -> Tensor:
        """Compute what must be added to the weights, [out, in]: their rows are scaled, too.

        Raises:
            ValueError: as :meth:`merge`.
        """
        weights = self.weights()
        return self._possible_factor()[:, None] * (weights + self.delta()) - weights

    @torch.no_grad()
    def merge(self) -> None:
        """Put the rows that the forward pass stands for in the place of those of W.

        A layer that shares its weights with another changes both.

        Raises:
            RuntimeError: if it is merged already.
            ValueError: if a row would become zero or infinite: W could not be had again. Nothing
                changes then.
        """
        if self.merged:
            raise RuntimeError("merge: the layer is merged already")
        factor = self._possible_factor()
        super().merge()
        self.weights().mul_(factor[:, None])
        self.merged_factor = factor

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put W back, up to rounding.

        A and B must be those of the merge.

        Raises:
            RuntimeError: if it is not merged.
        """
        if not self.merged:
            raise RuntimeError("unmerge: the layer is not merged")
        self.weights().div_(self.merged_factor[:, None])
        super().unmerge()
        self.merged_factor = None

    def _possible_factor(self) -> Tensor:
        factor = self.factor()
        possible = (factor != 0) & factor.isfinite()
        require(possible, "magnitude: must be finite and not zero, over norms that are not zero")
        return factor
