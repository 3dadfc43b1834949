"""How a collective combines numbers, and which tensors it takes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# A mean is a sum, divided once at the end.
COMBINE: dict[str, Callable[..., Tensor]] = {
    "sum": torch.add,
    "mean": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def require_reduction(reduction: str, dtype: torch.dtype) -> None:
    """Raise unless a reduction can combine numbers of a type.

    Args:
        reduction: "sum", "mean", "max" or "min".
        dtype: of the numbers.

    Raises:
        ValueError: if there is no such reduction, the type is not one of FLOATING or INTEGERS
            (Boolean and complex tensors are refused), or the mean of integers is asked for.
    """
    if reduction not in COMBINE:
        raise ValueError(f"reduction: must be one of {list(COMBINE)}, got {reduction!r}")
    if dtype not in FLOATING + INTEGERS:
        raise ValueError(f"tensors: must be real numbers, got {dtype}")
    if reduction == "mean" and dtype not in FLOATING:
        raise ValueError(f"tensors: a mean needs floating-point numbers, got {dtype}")


def require_tensors(tensors: Sequence[Tensor], world_size: int, reduction: str) -> None:
    """Raise unless these are tensors, one per rank, that a collective can combine.

    Args:
        tensors: one per rank.
        world_size: how many there must be.
        reduction: "sum", "mean", "max" or "min".

    Raises:
        ValueError: if their number is wrong, or naming the first rank whose tensor is of another
            shape, type or device than rank 0's, not contiguous, not on the CPU, or asks for a
            gradient; or as `require_reduction` does.
    """
    if len(tensors) != world_size:
        raise ValueError(f"tensors: must be {world_size}, one per rank, got {len(tensors)}")
    for rank, tensor in enumerate(tensors):
        require_tensor(tensor, rank, tensors[0])
    require_reduction(reduction, tensors[0].dtype)


def require_tensor(
    tensor: Tensor, rank: int, first: Tensor | None = None, devices: Sequence[str] = ("cpu",)
) -> None:
    """Raise unless a collective can work on one rank's tensor, whatever its numbers.

    Args:
        tensor: of the rank.
        rank: which it is.
        first: rank 0's, which it must be like in shape and type; None if that is not known.
        devices: types of devices on which it may be.

    Raises:
        ValueError: naming the rank, as `require_tensors` does.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"tensors: rank {rank} must give a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or not tensor.is_contiguous():
        raise ValueError(f"tensors: rank {rank} must give a contiguous one")
    if tensor.device.type not in devices:
        where = " or ".join(devices).replace("cpu", "the CPU")
        raise ValueError(f"tensors: rank {rank} must give one on {where}, got {tensor.device}")
    if tensor.requires_grad:
        raise ValueError(f"tensors: rank {rank} must give one without gradient; detach it")
    if first is None:
        return
    if tensor.shape != first.shape:
        raise ValueError(
            f"tensors: rank {rank} must have rank 0's shape {tuple(first.shape)}, "
            f"got {tuple(tensor.shape)}"
        )
    if tensor.dtype != first.dtype:
        raise ValueError(
            f"tensors: rank {rank} must have rank 0's type {first.dtype}, got {tensor.dtype}"
        )
