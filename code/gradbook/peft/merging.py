"""A frozen layer, and beside it an addition that its weights can take in."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

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

    def change(self) -> Tensor:
        """Compute what must be added to the weights for the layer alone to do the same, [out, in]."""
        return self.delta()

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


@torch.no_grad()
def additions(model: nn.Module) -> dict[str, Tensor]:
    """Compute what must be added to the weights of a model, as they are, to do the same alone.

    Args:
        model: with mergeable layers, none of them merged.

    Returns:
        By name of such a layer, the change of its weights, [out, in].

    Raises:
        RuntimeError: if a layer is merged: its addition is in its weights already.
        ValueError: if there is none.
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, Mergeable)}
    if not found:
        raise ValueError("model: must have layers with additions, has none")
    merged = [name for name, layer in found.items() if layer.merged]
    if merged:
        raise RuntimeError(f"additions: {merged[0]} is merged already")
    return {name: layer.change() for name, layer in found.items()}


@torch.no_grad()
def add_to(model: nn.Module, learnt: Mapping[str, Tensor]) -> None:
    """Add to the weights of a model what was learnt beside those of another one.

    Args:
        model: with linear layers of the names; changed in place.
        learnt: as :func:`additions`.

    Raises:
        AttributeError: if the model has no layer of a name.
        ValueError: if a layer is not linear, has another shape, or a sum is not finite; the model
            is then as it was.
    """
    weights = {name: matrix(model.get_submodule(name)) for name in learnt}
    sums = {}
    for name, delta in learnt.items():
        if delta.shape != weights[name].shape or not delta.is_floating_point():
            want = list(weights[name].shape)
            raise ValueError(f"{name}: must be {want}, floating, got {list(delta.shape)}")
        sums[name] = weights[name] + delta.to(weights[name])
        require_finite(**{name: sums[name]})
    for name, weight in weights.items():
        weight.copy_(sums[name])


# Functions of the module and not methods, so that a copy has no tie to what it is copied from.
def _refuse_saving(module: Mergeable, *_: object) -> None:
    if module.merged:
        raise RuntimeError("merged: unmerge before saving")


def _refuse_loading(module: Mergeable, *_: object) -> None:
    if module.merged:
        raise RuntimeError("merged: unmerge before loading")
