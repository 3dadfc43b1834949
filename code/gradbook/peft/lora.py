"""LoRA: a learnt matrix of low rank beside a frozen one.

Source: E. Hu, Y. Shen, P. Wallis, Z. Allen-Zhu, Y. Li, S. Wang, L. Wang and W. Chen, 2021, "LoRA:
low-rank adaptation of large language models".
"""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from gradbook.checks import require_finite
from gradbook.peft.injection import matrix, require_input
from gradbook.peft.merging import Mergeable
from gradbook.transformer_sizes import require_sizes


def over_rank(alpha: float, rank: int) -> float:
    """Compute LoRA's factor, alpha / r."""
    return alpha / rank


def over_root(alpha: float, rank: int) -> float:
    """Compute the factor of rank-stabilized LoRA, alpha over the root of r.

    Source: Kalajdzievski 2023, "A rank stabilization scaling factor for fine-tuning with LoRA".
    """
    return alpha / math.sqrt(rank)


def require_rank(rank: int, weight: Tensor) -> None:
    """Raise unless a matrix may get an addition of a rank.

    Args:
        rank: must be an integer from 1 to the smaller side.
        weight: [out, in].

    Raises:
        ValueError: if it is not.
    """
    require_sizes(rank=rank)
    if rank > min(weight.shape):
        raise ValueError(f"rank: must be at most {min(weight.shape)}, got {rank}")


def require_factor(**factors: float) -> None:
    """Raise unless every factor is a positive and finite number.

    Args:
        **factors: under the names that the message gives them.

    Raises:
        ValueError: if one is not.
    """
    require_finite(**factors)
    for name, factor in factors.items():
        if factor <= 0:
            raise ValueError(f"{name}: must be positive, got {factor}")


def kaiming(rank: int, weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw A as LoRA starts it: uniform within ``1 / sqrt(in)``.

    That is Kaiming's bound with a slope of ``sqrt(5)``.

    Args:
        rank: r, the rows of A.
        weight: [out, in]; A gets its type and device.
        generator: of the CPU; None is torch's own.

    Returns:
        [r, in].

    Source: the code of Hu et al. 2021, loralib.
    """
    inputs = weight.shape[1]
    bound = inputs**-0.5
    drawn = torch.empty(rank, inputs, dtype=weight.dtype, device="cpu")
    drawn.uniform_(-bound, bound, generator=generator)
    return drawn.to(weight.device)


class LowRank(Mergeable):
    """A layer, and beside it scaling B A, which the layer's weights can take in.

    Args:
        layer: is frozen.
        first: A at the start, [r, in].
        second: B at the start, [out, r].
        scaling: the factor of the product.

    Attributes:
        layer: the layer.
        A: the parameter.
        B: the parameter.
        scaling: the factor.
        merged: whether the weights hold the product now.

    Raises:
        ValueError: if the scaling is not positive and finite.
    """

    def __init__(self, layer: nn.Module, first: Tensor, second: Tensor, scaling: float):
        require_factor(scaling=scaling)
        super().__init__(layer)
        self.A, self.B = nn.Parameter(first), nn.Parameter(second)
        self.scaling = scaling

    def delta(self) -> Tensor:
        """Compute what is added to the weights: scaling B A, [out, in]."""
        return (self.scaling * self.B) @ self.A


class LoRALinear(LowRank):
    """A linear layer W, and beside it scaling B A, which is zero at the start.

    A, [r, in], is uniform within ``1 / sqrt(in)``: Kaiming's bound with a slope of ``sqrt(5)``. B,
    [out, r], is zero.

    Args:
        layer: W, linear, as for :func:`gradbook.peft.injection.matrix`; is frozen.
        rank: r, from 1 to the smaller side of W.
        alpha: positive.
        generator: of A, of the CPU; without one A is drawn by torch's own.
        scale: the factor of the product, of alpha and the rank.

    Raises:
        ValueError: if the rank is out of range, alpha or the factor is not positive and finite, or
            the layer is not linear.

    Source: Hu et al. 2021, section 4.1; A's law is that of its code, loralib.
    """

    def __init__(
        self,
        layer: nn.Module,
        rank: int,
        alpha: float,
        generator: torch.Generator | None = None,
        scale: Callable[[float, int], float] = over_rank,
    ):
        weight = matrix(layer)
        require_rank(rank, weight)
        require_factor(alpha=alpha)
        first = kaiming(rank, weight, generator)
        zeros = weight.new_zeros(len(weight), rank)
        super().__init__(layer, first, zeros, scale(alpha, rank))

    @classmethod
    def of(cls, layer: nn.Module, first: Tensor, second: Tensor, scaling: float) -> Self:
        """Make one of a given A and B; nothing is drawn.

        Args:
            layer: as above.
            first: A, [r, in], is copied.
            second: B, [out, r], is copied.
            scaling: the factor of the product, positive.

        Returns:
            A layer whose A and B are trained where ``first`` and ``second`` are.

        Raises:
            TypeError: of a class that is built upon this one, which may hold more than A and B.
            ValueError: if a shape or type does not fit the layer, or as above.
        """
        if cls is not LoRALinear:
            raise TypeError(f"of: makes a LoRALinear, not a {cls.__name__}")
        weight, rank = matrix(layer), first.shape[:1].numel()
        require_rank(rank, weight)
        shapes = (rank, weight.shape[1]), (len(weight), rank)
        for name, factor, shape in zip(("first", "second"), (first, second), shapes, strict=True):
            if factor.shape != shape or factor.dtype != weight.dtype:
                got = f"{list(factor.shape)} {factor.dtype}"
                raise ValueError(f"{name}: must be {list(shape)} {weight.dtype}, got {got}")
        made = cls.__new__(cls)
        LowRank.__init__(made, layer, first.detach().clone(), second.detach().clone(), scaling)
        made.A.requires_grad_(first.requires_grad)
        made.B.requires_grad_(second.requires_grad)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``W x + bias + scaling B A x``.

        Args:
            x: [..., in].

        Returns:
            [..., out]; after a merge what W gives alone.

        Raises:
            ValueError: as :func:`gradbook.peft.injection.require_input`.
        """
        require_input(x, self.layer)
        if self.merged:
            return self.layer(x)
        return self.layer(x) + (self.scaling * (x @ self.A.T)) @ self.B.T
