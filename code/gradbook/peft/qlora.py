"""QLoRA: a frozen layer that is kept in 4 bits, and a learnt matrix of low rank beside it.

Source: T. Dettmers, A. Pagnoni, A. Holtzman and L. Zettlemoyer, 2023, "QLoRA: efficient finetuning
of quantized LLMs", section 3.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradbook.checks import require_finite
from gradbook.peft.lora import LoRALinear, over_rank
from gradbook.peft.merging import additions
from gradbook.peft.nf4_linear import NF4Linear


class QLoRALinear(LoRALinear):
    """LoRA beside a layer that is kept in 4 bits: ``decoded W x + bias + scaling B A x``.

    Args:
        layer: W.
        rank: r, as for :class:`gradbook.peft.lora.LoRALinear`.
        alpha: as there.
        generator: as there.
        scale: as there.

    Raises:
        ValueError: as there, or if the layer is none of NF4.

    Source: Dettmers et al. 2023, section 3, equation 5.
    """

    def __init__(
        self,
        layer: NF4Linear,
        rank: int,
        alpha: float,
        generator: torch.Generator | None = None,
        scale: Callable[[float, int], float] = over_rank,
    ):
        if not isinstance(layer, NF4Linear):
            raise ValueError(f"layer: must be NF4Linear, got {type(layer).__name__}")
        # LoRA reads shape, type and device of the weights, so it sees them once in full.
        super().__init__(layer.linear(), rank, alpha, generator, scale)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer's output and the addition, or after a merge the layer's alone.

        Args:
            x: [..., in].

        Returns:
            [..., out].

        Raises:
            ValueError: as :meth:`gradbook.peft.nf4_linear.NF4Linear.forward`.
        """
        base = self.layer(x)
        if self.merged:
            return base
        return base + (self.scaling * (x @ self.A.T)) @ self.B.T

    def weights(self) -> Tensor:
        """Compute the decoded weights, [out, in]: a copy."""
        return self.layer.decoded()

    @torch.no_grad()
    def merged_linear(self) -> nn.Linear:
        """Make an ordinary layer of the decoded weights and the addition.

        Returns:
            A frozen layer; after a merge it has what the merge left.
        """
        made = self.layer.linear()
        if not self.merged:
            made.weight.add_(self.delta())
        return made

    @torch.no_grad()
    def merge(self) -> None:
        """Decode the weights, add the addition, and quantize again.

        This rounds, and may lose the addition: see :func:`merge_loss`.

        Raises:
            RuntimeError: if it is merged already.
        """
        if self.merged:
            raise RuntimeError("merge: the layer is merged already")
        self.layer.quantize(self.merged_linear().weight)
        self.merged = True

    def unmerge(self) -> None:
        """Refuse: what was rounded off cannot be put back.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("unmerge: quantizing again has rounded; keep a copy before the merge")


class MergeLoss(NamedTuple):
    """Root mean squares over a matrix: of the addition, and of what its merge rounds off."""

    addition: float
    error: float


@torch.no_grad()
def merge_loss(adapted: QLoRALinear) -> MergeLoss:
    """Measure what a merge into 4 bits would lose.

    Args:
        adapted: not merged, and left as it is.

    Returns:
        The size of the addition, and of the difference between the weights
        that the merge would give and the decoded ones plus the addition.

    Raises:
        RuntimeError: if it is merged already.
    """
    if adapted.merged:
        raise RuntimeError("merge_loss: the layer is merged already")
    wanted = adapted.merged_linear()
    layer = adapted.layer
    again = NF4Linear(wanted, layer.block_size, layer.scales_kind)
    addition = adapted.delta()
    error = again.decoded() - wanted.weight
    rms = [x.double().square().mean().sqrt().item() for x in (addition, error)]
    return MergeLoss(*rms)


class Kept(NamedTuple):
    """What became of an addition: its norm over that of the weights, and the share that is left."""

    size: float
    share: float


def merge_all(model: nn.Module) -> dict[str, Kept]:
    """Merge all layers of a model into their 4 bits, and measure what is left of each addition.

    What is left is the change of the decoded weights along the addition:
    their product over the addition's square. An addition of zero has 0.

    Args:
        model: with QLoRA's layers, none of them merged; merged afterwards.

    Returns:
        By name of the layer.

    Raises:
        RuntimeError: if one is merged already.
        ValueError: if there is none, one is of another kind, or a sum is not finite. In all cases
            nothing is merged.
    """
    found, learnt = {}, additions(model)
    layers = {name: model.get_submodule(name) for name in learnt}
    for name, layer in layers.items():
        if not isinstance(layer, QLoRALinear):
            raise ValueError(f"model: {name} must be QLoRALinear")
        require_finite(**{name: layer.merged_linear().weight})
    for name, layer in layers.items():
        # In float16 the squares of what is learnt would be zero.
        addition, before = learnt[name].double(), layer.weights().double()
        layer.merge()
        change, square = layer.weights().double() - before, addition.square().sum()
        share = (change * addition).sum() / square if square > 0 else square
        found[name] = Kept((addition.norm() / before.norm()).item(), share.item())
    return found
