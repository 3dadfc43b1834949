"""LoRA for a layer that computes several outputs at once, as GPT-2's queries, keys and values.

One product of rank r beside the whole matrix has one A, so that all parts read the same r numbers
of the input. Here each part has a product of its own, or none.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from gradbook.peft.injection import matrix, require_input
from gradbook.peft.lora import LowRank, kaiming, over_rank, require_factor, require_rank
from gradbook.transformer_sizes import require_sizes


class FusedLoRALinear(LowRank):
    """A linear layer of several parts, and beside some of them a product B A each.

    ``A`` holds those of the g adapted parts one below the other, [g r, in], and so does ``B``:
    [sum of their sizes, r]. They start as those of :class:`gradbook.peft.lora.LoRALinear`.

    Args:
        layer: linear, as for :func:`gradbook.peft.injection.matrix`; is frozen.
        sizes: how many outputs each part has, in their order; GPT-2's are (d, d, d).
        adapted: which parts get a product, counted from 0 and rising: (0, 2) are queries and
            values.
        rank: r, from 1 to the smallest side of an adapted part.
        alpha: positive.
        generator: of A, of the CPU; without one A is drawn by torch's own.
        scale: the factor of the products, of alpha and the rank.

    Attributes:
        sizes: of the parts.
        adapted: those with a product.

    Raises:
        ValueError: if the sizes do not sum to the outputs, a part does not exist or comes twice,
            there is none, the rank is out of range, alpha or the factor is not positive and finite,
            or the layer is not linear.

    Source: ``MergedLinear`` of loralib, the code of Hu et al. 2021.
    """

    def __init__(
        self,
        layer: nn.Module,
        sizes: Sequence[int],
        adapted: Sequence[int],
        rank: int,
        alpha: float,
        generator: torch.Generator | None = None,
        scale: Callable[[float, int], float] = over_rank,
    ):
        weight, sizes, adapted = matrix(layer), tuple(sizes), tuple(adapted)
        _require_parts(weight, sizes, adapted)
        for part in adapted:
            require_rank(rank, weight.split(sizes)[part])
        require_factor(alpha=alpha)
        first = kaiming(len(adapted) * rank, weight, generator)
        zeros = weight.new_zeros(sum(sizes[part] for part in adapted), rank)
        super().__init__(layer, first, zeros, scale(alpha, rank))
        self.sizes, self.adapted = sizes, adapted

    def products(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Give each adapted part, its A [r, in] and its B [size, r]."""
        firsts = self.A.chunk(len(self.adapted))
        seconds = self.B.split([self.sizes[part] for part in self.adapted])
        yield from zip(self.adapted, firsts, seconds, strict=True)

    def delta(self) -> Tensor:
        """Compute what is added to the weights, [out, in]; zero elsewhere."""
        inputs = self.A.shape[1]
        parts = [self.A.new_zeros(size, inputs) for size in self.sizes]
        for part, first, second in self.products():
            parts[part] = (self.scaling * second) @ first
        return torch.cat(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Compute all parts, each adapted one with its scaling B A x.

        Args:
            x: [..., in].

        Returns:
            [..., out]; after a merge what the layer gives alone.

        Raises:
            ValueError: as :func:`gradbook.peft.injection.require_input`.
        """
        require_input(x, self.layer)
        if self.merged:
            return self.layer(x)
        parts = list(self.layer(x).split(self.sizes, -1))
        for part, first, second in self.products():
            added = (self.scaling * (x @ first.T)) @ second.T
            parts[part] = parts[part] + added
        return torch.cat(parts, -1)


def _require_parts(weight: Tensor, sizes: tuple[int, ...], adapted: tuple[int, ...]) -> None:
    require_sizes(**{f"sizes[{i}]": size for i, size in enumerate(sizes)})
    if sum(sizes) != len(weight):
        raise ValueError(f"sizes: must sum to {len(weight)}, got {list(sizes)}")
    # A list of True and False would pass as one of parts 1 and 0.
    known = all(type(part) is int and 0 <= part < len(sizes) for part in adapted)
    if not adapted or not known or list(adapted) != sorted(set(adapted)):
        got = f"of {len(sizes)}, got {list(adapted)}"
        raise ValueError(f"adapted: must be parts in rising order, {got}")
