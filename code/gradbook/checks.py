"""Checks of inputs that also work inside ``torch.func`` transforms."""

import math

from torch import Tensor
from torch._C import _functorch


def plain(tensor: Tensor) -> Tensor:
    """Look through the wrappers that ``torch.func`` transforms put around a tensor.

    Under ``torch.func.vmap`` a plain ``if`` on a tensor is refused, because a batch may answer both
    ways. A check, or a bound that serves the whole batch, may look at all of it.

    Args:
        tensor: any tensor.

    Returns:
        The values of the whole batch, batch axes included; no gradient flows through them.
    """
    while is_transformed(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor.detach()


def is_transformed(*tensors: Tensor) -> bool:
    """Say whether a tensor stands for a batch, or for a function's argument, of ``torch.func``.

    Args:
        *tensors: any tensors.

    Returns:
        True if one of them is such a wrapper.
    """
    return any(map(_functorch.is_functorch_wrapped_tensor, tensors))


def require(holds: Tensor, message: str) -> None:
    """Raise unless every element of a comparison is true.

    Args:
        holds: a Boolean tensor of any shape; an empty one holds.
        message: what to say, in the form "argument: what it must be".

    Raises:
        ValueError: if an element is false.
    """
    if not plain(holds).all():
        raise ValueError(message)


def require_finite(**tensors: Tensor | float) -> None:
    """Raise unless every element of every tensor is a finite number.

    Args:
        **tensors: tensors of any shape, or numbers, under the names of the caller's arguments.

    Raises:
        ValueError: if one holds a NaN or an infinity.
    """
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            require(value.isfinite(), f"{name}: must be finite")
        elif not math.isfinite(value):
            raise ValueError(f"{name}: must be finite")


def require_positive(**tensors: Tensor) -> None:
    """Raise unless every element of every tensor is positive and finite.

    Args:
        **tensors: tensors of any shape, under the names of the caller's arguments.

    Raises:
        ValueError: if one holds a NaN, an infinity, zero or a negative number.
    """
    for name, value in tensors.items():
        require((value > 0) & value.isfinite(), f"{name}: must be positive")
