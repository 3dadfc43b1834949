"""A frozen layer, and beside it an addition that its weights can take in."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from gradbook.checks import require_finite
from gradbook.peft.injection import matrix


class Mergeable(nn.Module, ABC):
    """A layer, and beside it an addition to its weights that is learnt.

    While it is merged nothing is saved and nothing is loaded: who reads the weights cannot see that
    they hold the addition, and would count it twice.

    Args:
        layer: is frozen.

    Attributes:
        layer: the layer.
        merged: whether its weights hold the addition now.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.merged = layer.requires_grad_(False), False
        self.register_state_dict_pre_hook(_refuse_saving)
        self.register_load_state_dict_pre_hook(_refuse_loading)

    def weights(self) -> Tensor:
        """Look at the layer's weights, [out, in]; writing changes the layer."""
        return matrix(self.layer)

    @abstractmethod
    def delta(self) -> Tensor:
        """Compute what is added to the weights, [out, in]."""

    @torch.no_grad()
    def merge(self) -> None:
        """Add what is learnt to the weights: it costs nothing any more.

        A layer that shares its weights with another changes both.

        Raises:
            RuntimeError: if it is merged already.
            ValueError: if the addition is not finite; nothing changes.
        """
        if self.merged:
            raise RuntimeError("merge: the layer is merged already")
        delta = self.delta()
        require_finite(delta=delta)
        self.weights().add_(delta)
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take it out of the weights again, up to rounding.

        What is learnt must be as it was at the merge.

        Raises:
            RuntimeError: if it is not merged.
        """
        if not self.merged:
            raise RuntimeError("unmerge: the layer is not merged")
        self.weights().sub_(self.delta())
        self.merged = False


# Functions of the module and not methods, so that a copy has no tie to what it is copied from.
def _refuse_saving(module: Mergeable, *_: object) -> None:
    if module.merged:
        raise RuntimeError("merged: unmerge before saving")


def _refuse_loading(module: Mergeable, *_: object) -> None:
    if module.merged:
        raise RuntimeError("merged: unmerge before loading")
