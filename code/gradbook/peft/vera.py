"""VeRA: two vectors are learnt for each layer, between random matrices that all layers share.

Source: D. Kopiczko, T. Blankevoort and Y. Asano, 2024, "VeRA: vector-based random matrix
adaptation".
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradbook.checks import require_finite
from gradbook.peft.injection import matrix, require_input
from gradbook.peft.merging import Mergeable
from gradbook.transformer_sizes import require_sizes


class Projections(NamedTuple):
    """What all layers share, frozen: A, [r, in], and B, [out, r], of the largest layer's sizes."""

    A: nn.Parameter
    B: nn.Parameter


def projections(
    outputs: int,
    inputs: int,
    rank: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Projections:
    """Draw the matrices that all layers share; they need not be stored, but drawn again.

    They are uniform, within ``sqrt(6 / in)`` and ``sqrt(6 / r)``: He's law, under which the entries
    of B y have on average twice the mean square of those of y. So have those of A x in a layer with
    as many inputs as A; a layer with fewer cuts A off, and they are smaller by the share.

    Args:
        outputs: of the layer with the most.
        inputs: of the layer with the most.
        rank: r; often larger than the layers, as it costs r numbers for each.
        generator: of A and then B, of the CPU.
        dtype: of the layers' weights.
        device: of the layers' weights.

    Returns:
        A and B.

    Raises:
        ValueError: if a size is below 1.

    Source: Kopiczko et al. 2024, section 3.2; uniform as in peft.
    """
    require_sizes(outputs=outputs, inputs=inputs, rank=rank)

    def drawn(rows: int, columns: int) -> nn.Parameter:
        bound = math.sqrt(6 / columns)
        values = torch.empty(rows, columns, dtype=torch.float64, device="cpu")
        values.uniform_(-bound, bound, generator=generator)
        return nn.Parameter(values.to(device, dtype), requires_grad=False)

    return Projections(drawn(rank, inputs), drawn(outputs, rank))


def vera_parameters(layers: int, outputs: int, rank: int) -> int:
    """Count the learnt numbers of equal layers: L (out + r).

    Args:
        layers: L.
        outputs: of each.
        rank: r.

    Returns:
        The count, without what is shared and can be drawn again.

    Raises:
        ValueError: if one is below 1.

    Source: Kopiczko et al. 2024, section 3.3.
    """
    require_sizes(layers=layers, outputs=outputs, rank=rank)
    return layers * (outputs + rank)


class VeRALinear(Mergeable):
    """A linear layer W, and beside it diag(b) B diag(d) A, which is zero at the start.

    Of matrices that are larger than the layer the first columns of A and the first rows of B are
    used.

    Args:
        layer: W, linear, as for :func:`gradbook.peft.injection.matrix`; is frozen.
        shared: A and B, the same parameters in all layers, so that a moved model still has one.
        start: of every d, not zero: as b starts at zero, neither would ever move.

    Attributes:
        A: [r, in] or wider.
        B: [out, r] or taller.
        d: [r], learnt.
        b: [out], learnt.
        merged: whether W holds the product now.

    Raises:
        ValueError: if the layer is not linear, A and B do not fit it or each other, or ``start``
            is zero or not finite.

    Source: Kopiczko et al. 2024, section 3; a slice for each layer is peft's way.
    """

    def __init__(self, layer: nn.Module, shared: Projections, start: float = 0.1):
        weight = matrix(layer)
        _require_fit(weight, *shared)
        require_finite(start=start)
        if start == 0:
            raise ValueError("start: must not be zero")
        super().__init__(layer)
        self.A, self.B = shared
        # From the weights, whose device and type they get.
        self.d = nn.Parameter(weight.new_full((len(self.A),), start))
        self.b = nn.Parameter(weight.new_zeros(len(weight)))

    def slices(self) -> tuple[Tensor, Tensor]:
        """Cut out what the layer uses of the shared matrices.

        Returns:
            A, [r, in], and B, [out, r].
        """
        outputs, inputs = matrix(self.layer).shape
        return self.A[:, :inputs], self.B[:outputs]

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``W x + bias + b B (d A x)``, or after a merge what W gives alone.

        Args:
            x: [..., in].

        Returns:
            [..., out].

        Raises:
            ValueError: as :func:`gradbook.peft.injection.require_input`.
        """
        require_input(x, self.layer)
        output = self.layer(x)
        if self.merged:
            return output
        a, b = self.slices()
        added = self.b * ((self.d * (x @ a.T)) @ b.T)
        # Inside autocast the vectors are wider than the products.
        return output + added.to(output.dtype)

    def delta(self) -> Tensor:
        """Compute what is added to W, diag(b) B diag(d) A.

        Returns:
            [out, in].
        """
        a, b = self.slices()
        return (self.b[:, None] * b) @ (self.d[:, None] * a)


def _require_fit(weight: Tensor, a: Tensor, b: Tensor) -> None:
    outputs, inputs = weight.shape
    if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
        shapes = f"{list(a.shape)} and {list(b.shape)}"
        raise ValueError(f"shared: must be [r, in] and [out, r], got {shapes}")
    if a.shape[1] < inputs or len(b) < outputs:
        got = f"{a.shape[1]} inputs and {len(b)} outputs"
        raise ValueError(f"shared: must have {inputs} inputs and {outputs} outputs, got {got}")
    for tensor in (a, b):
        if tensor.dtype != weight.dtype:
            raise ValueError(f"shared: must be {weight.dtype}, got {tensor.dtype}")
        if not isinstance(tensor, nn.Parameter) or tensor.requires_grad:
            raise ValueError("shared: must be frozen parameters")
