"""LoRA: a learnt matrix of low rank beside a frozen one.

Source: E. Hu, Y. Shen, P. Wallis, Z. Allen-Zhu, Y. Li, S. Wang, L. Wang and W. Chen, 2021, "LoRA:
low-rank adaptation of large language models".
"""

import torch
from torch import Tensor, nn

from gradbook.checks import require_finite
from gradbook.peft.injection import matrix, require_input
from gradbook.priors.grids import require_sizes


class LoRALinear(nn.Module):
    """A linear layer W, and beside it scaling B A, which is zero at the start.

    A, [r, in], is uniform within ``1 / sqrt(in)``: Kaiming's bound with a slope of ``sqrt(5)``. B,
    [out, r], is zero, and scaling is alpha / r.

    Args:
        layer: W, linear, as for :func:`gradbook.peft.injection.matrix`.
        rank: r; above the smaller side of W it is allowed, and wasted.
        alpha: positive.
        generator: of A, of the CPU.

    Raises:
        ValueError: if the rank is below 1, alpha is not positive and finite, or the layer is not
            linear.

    Source: Hu et al. 2021, section 4.1; A's law is that of its code, loralib.
    """

    def __init__(self, layer: nn.Module, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        weight = matrix(layer)
        require_sizes(rank=rank)
        require_finite(alpha=alpha)
        if alpha <= 0:
            raise ValueError(f"alpha: must be positive, got {alpha}")
        outputs, inputs = weight.shape
        bound = inputs**-0.5
        drawn = torch.empty(rank, inputs, dtype=weight.dtype, device="cpu")
        drawn.uniform_(-bound, bound, generator=generator)
        self.layer, self.scaling, self.merged = layer, alpha / rank, False
        self.a = nn.Parameter(drawn.to(weight.device))
        zeros = torch.zeros(outputs, rank, dtype=weight.dtype, device=weight.device)
        self.b = nn.Parameter(zeros)

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``W x + bias + scaling B A x``, or after a merge what W gives alone.

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
        return self.layer(x) + self.scaling * (x @ self.a.T @ self.b.T)

    @torch.no_grad()
    def merge(self) -> None:
        """Add scaling B A to the weights of W, so that it costs nothing any more.

        A layer that shares its weights with another changes both.

        Raises:
            RuntimeError: if it is merged already.
        """
        if self.merged:
            raise RuntimeError("merge: the layer is merged already")
        matrix(self.layer).add_(self.b @ self.a, alpha=self.scaling)
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take scaling B A out of the weights again, up to rounding.

        A and B must be those of the merge.

        Raises:
            RuntimeError: if it is not merged.
        """
        if not self.merged:
            raise RuntimeError("unmerge: the layer is not merged")
        matrix(self.layer).sub_(self.b @ self.a, alpha=self.scaling)
        self.merged = False
