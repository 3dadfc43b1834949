"""Freeze a model and put new modules in the place of some of its own, so that it can be undone.

A place is a name in a parent module. What stood there usually lives on inside the module that
takes its place. A tensor or a module that is used twice exists once, and counts once.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

Where = Callable[[str, nn.Module], bool]
Make = Callable[[nn.Module], nn.Module]


class Report(NamedTuple):
    """What is trained of a model: numbers that are, all numbers, and names of what was chosen."""

    trainable: int
    total: int
    layers: tuple[str, ...]


class Place(NamedTuple):
    """A module's name in its parent and in the whole model, and the module that stands there."""

    parent: nn.Module
    key: str
    name: str
    module: nn.Module


class Held(NamedTuple):
    """A tensor, found by its owner because moving a model replaces it, and whether it was trained."""

    owner: nn.Module
    key: str
    trained: bool

    @property
    def tensor(self) -> Tensor:
        """What stands there now."""
        return getattr(self.owner, self.key)


class Injection:
    """What :func:`inject` did to a model, and the way back.

    Args:
        model: as it is now, with the new modules in their places.
        before: all tensors that the model had, parameters and buffers.
        places: what was replaced.
    """

    def __init__(self, model: nn.Module, before: list[Held], places: list[Place]):
        self.report = Report(*count(model), tuple(place.name for place in places))
        self._model, self._before, self._places = model, before, places
        self._modules = _modules(model)

    def digest(self) -> str:
        """Summarize what was in the model before and is frozen now.

        Training must leave it as it is. Buffers count, since no optimizer moves them but a forward
        pass may. Letting one of the tensors be trained changes the digest too: it leaves the sum.

        Returns:
            The SHA-256 of types, shapes and values in the order of the model; the same on every
            device.
        """
        found = hashlib.sha256()
        tensors = {id(held.tensor): held.tensor for held in self._before}
        for tensor in tensors.values():
            if not tensor.requires_grad:
                found.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
                # A single number cut out of a row counts as contiguous, but keeps its stride.
                flat = tensor.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
                found.update(flat.view(torch.uint8).numpy())
        return found.hexdigest()

    def undo(self) -> None:
        """Put the replaced modules back, and train again what was trained before.

        Values stay as they are now. Several injections into one model are undone in reverse order.

        Raises:
            RuntimeError: if the model has not the modules that this injection left: it is undone
                already, or another came after it.
        """
        if _modules(self._model) != self._modules:
            raise RuntimeError("undo: other modules are in the model than the injection left")
        for place in self._places:
            setattr(place.parent, place.key, place.module)
        _restore(self._before)


def inject(model: nn.Module, where: Where, make: Make) -> Injection:
    """Freeze a model and put new modules in the place of some of its own.

    Every parameter that is there is frozen, what an earlier injection added included. What ``make``
    adds is trainable, unless ``make`` freezes it, and starts in the mode, training or evaluation,
    of the module it replaces. If anything is refused, modules and what is trained are as before;
    values that ``make`` has written into the model stay.

    Args:
        model: changed in place.
        where: of a module's name and the module; the model itself, which has no name, is not asked
            for. Inside a module for which it holds nothing is looked at.
        make: of such a module, what takes its place; called once for a module that stands in
            several places.

    Returns:
        What was done, and the way back.

    Raises:
        ValueError: if ``where`` holds for no module, or ``make`` returns something else than a
            module.
    """
    chosen = places(model, where)
    before = _held(model)
    try:
        made = _made(chosen, make, set(model.modules()))
    except BaseException:
        _restore(before)
        raise
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for place in chosen:
        setattr(place.parent, place.key, made[place.module])
    return Injection(model, before, chosen)


def places(model: nn.Module, where: Where) -> list[Place]:
    """Find where :func:`inject` would put new modules.

    Args:
        model: is not changed.
        where: as for :func:`inject`.

    Returns:
        The places in the order of the model. A module that stands in several comes several times.

    Raises:
        ValueError: if ``where`` holds for no module.
    """
    found = list(_walk(model, where))
    if not found:
        raise ValueError("where: holds for no module of the model")
    return found


def count(model: nn.Module) -> tuple[int, int]:
    """Count the numbers in a model's parameters.

    Args:
        model: any; buffers do not count, and a tensor that is used twice counts once.

    Returns:
        How many are trainable, and how many there are.
    """
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def matrix(layer: nn.Module) -> Tensor:
    """Look at the weights of a linear layer as [out, in].

    Args:
        layer: a ``torch.nn.Linear``, or the layer of GPT-2, ``Conv1D`` of transformers, which
            keeps its weights as [in, out].

    Returns:
        The weights or a transposed view: writing into it changes the layer.

    Raises:
        ValueError: if the layer is neither, or of a class that has a forward pass of its own; if
            its weights are computed, as by ``torch.nn.utils.parametrizations``: what is written
            into them would be lost; or if they are not floating numbers.
    """
    kind = type(layer)
    # By what it has, so that nothing here imports transformers. Only the first of that name stands
    # right upon Module, not what is derived from it.
    transposed = kind.__name__ == "Conv1D" and kind.__bases__ == (nn.Module,)
    if getattr(kind, "forward", None) is not nn.Linear.forward and not transposed:
        raise ValueError(f"layer: must be linear, got {kind.__name__}")
    # Looked up where modules keep them: this is asked in every forward pass.
    if layer._parameters.get("weight") is None or "parametrizations" in layer._modules:
        raise ValueError(f"layer: must hold its weights itself, got {kind.__name__}")
    weight = layer.weight.T if transposed else layer.weight
    if not weight.is_floating_point():
        raise ValueError(f"layer: must have floating weights, got {weight.dtype}")
    return weight


def require_input(x: Tensor, layer: nn.Module) -> None:
    """Raise unless a linear layer can take a tensor.

    Args:
        x: must be [..., in] and of the type of the layer's weights; inside autocast of any type.
        layer: as for :func:`matrix`.

    Raises:
        ValueError: if it cannot. torch would let one number broadcast with a vector of the input.
    """
    weight = matrix(layer)
    if x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"x: must be [..., {weight.shape[1]}], is {list(x.shape)}")
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"x: must be {weight.dtype}, is {x.dtype}")


def _walk(parent: nn.Module, where: Where, prefix: str = "") -> Iterator[Place]:
    for key, module in parent._modules.items():
        if module is None:
            continue
        if where(prefix + key, module):
            yield Place(parent, key, prefix + key, module)
        else:
            yield from _walk(module, where, f"{prefix}{key}.")


def _made(chosen: list[Place], make: Make, modules: set[nn.Module]) -> dict[nn.Module, nn.Module]:
    made = {module: make(module) for module in dict.fromkeys(place.module for place in chosen)}
    for module, new in made.items():
        if not isinstance(new, nn.Module):
            raise ValueError(f"make: must return a module, got {type(new).__name__}")
        for added in set(new.modules()) - modules:
            added.training = module.training
    return made


def _restore(before: list[Held]) -> None:
    for held in before:
        held.tensor.requires_grad_(held.trained)


def _held(model: nn.Module) -> list[Held]:
    return [
        Held(owner, key, tensor.requires_grad)
        for owner in model.modules()
        for key, tensor in [*owner._parameters.items(), *owner._buffers.items()]
        if tensor is not None
    ]


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules(remove_duplicate=False))
