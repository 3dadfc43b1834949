"""Logits, noise and temperatures: what every draw from them checks, and how it keeps its digits.

Logits are log-probabilities up to a constant of each row, so only differences within a row count.
They are taken first, before noise of ordinary size is added or a small temperature divides: sums
with large numbers would round the noise away, and quotients by small ones would overflow.
"""

import math

import torch
from torch import Tensor

from gradbook.checks import is_transformed, plain, require


def centred(logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Subtract its largest logit from every row.

    The largest is a constant for autograd: only functions that ignore a
    constant of the row get a whole gradient.

    Args:
        logits: [..., k].
        dtype: the type to subtract in; by default that of the logits.

    Returns:
        Logits [..., k] whose largest is 0, a tensor of their own.

    Raises:
        ValueError: if there is no class, or a row has a NaN, a plus
            infinity or no possible class.
    """
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError("logits: must have at least one class on the last axis")
    largest = logits.detach().amax(-1, keepdim=True)
    require(
        largest.isfinite(),
        "logits: must have no NaN and no plus infinity, and a possible class in every row",
    )
    return logits - (largest if dtype is None else largest.to(dtype))


def perturbed(logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Add noise to centred logits.

    Args:
        logits: [..., k].
        noise: broadcasts with the logits; it has all k classes.

    Returns:
        The scores [..., k], a tensor of their own in the wider type of
        the two, and the largest of each row [..., 1], detached.

    Raises:
        ValueError: as :func:`centred`; or if the noise has another number
            of classes, another device or a shape that does not broadcast,
            or a NaN or an infinity where it decides.
    """
    # Differences of half-precision logits need the digits of the noise.
    scores = centred(logits, torch.promote_types(logits.dtype, noise.dtype))
    require_classes("noise", noise, logits.shape[-1])
    require_fits("noise", noise, "logits", logits)
    # In place where that is allowed: at [65536, 32] a fresh tensor costs as much as four additions.
    batched = is_transformed(scores, noise)
    if batched or torch.broadcast_shapes(scores.shape, noise.shape) != scores.shape:
        scores = scores + noise
    else:
        scores = scores.add_(noise)
    # A NaN or an infinity shows in the largest score; one look at each row is cheaper than at each.
    largest = scores.detach().amax(-1, keepdim=True)
    require(largest.isfinite(), "noise: must not have a NaN, nor an infinity where it decides")
    return scores, largest


def over_temperature(
    scores: Tensor,
    largest: Tensor,
    temperature: float | Tensor,
    floor: float,
) -> Tensor:
    """Divide scores by a temperature, after their largest is brought to 0.

    Args:
        scores: [..., k]; overwritten.
        largest: the largest score of each row [..., 1].
        temperature: as :func:`checked_temperature` takes it.
        floor: what need not be told from minus infinity. A quotient at or
            below it gets no gradient: in a learned temperature that would
            be zero times infinity.

    Returns:
        Quotients [..., k], the largest of a row 0.

    Raises:
        ValueError: as :func:`checked_temperature`.
    """
    temperature = checked_temperature(temperature, scores)
    scores = scores.sub_(largest)
    if not isinstance(temperature, Tensor):
        return scores.div_(temperature)
    far = scores.detach() / temperature.detach() <= floor
    return torch.where(far, -math.inf, torch.where(far, 0.0, scores) / temperature)


def exp_underflow(dtype: torch.dtype) -> float:
    """Find a number whose exponential is exactly 0 in a floating type.

    Args:
        dtype: the type.

    Returns:
        The logarithm of the smallest positive number, less 1.
    """
    finfo = torch.finfo(dtype)
    return math.log(finfo.tiny) + math.log(finfo.eps) - 1


def checked_temperature(temperature: float | Tensor, scores: Tensor) -> float | Tensor:
    """Check a temperature against the scores that it will divide.

    Args:
        temperature: a number, a scalar tensor, or one with a last axis of
            1 that broadcasts with the scores.
        scores: [..., k].

    Returns:
        The temperature, a number as a ``float``.

    Raises:
        ValueError: if it is not positive and finite, is so small that the
            type of the quotient has no normal number for it, is on
            another device, or has a wrong shape.
    """
    if not isinstance(temperature, Tensor):
        # No tensor is made of a number: on a GPU, each look at one would wait for the device.
        temperature, finfo = float(temperature), torch.finfo(scores.dtype)
        in_range = finfo.tiny <= temperature <= finfo.max
    else:
        if temperature.ndim and temperature.shape[-1] != 1:
            raise ValueError("temperature: must be a number or have a last axis of 1")
        if temperature.ndim:
            require_fits("temperature", temperature, "logits", scores)
        finfo = torch.finfo(torch.result_type(scores, temperature))
        value = plain(temperature)
        in_range = ((value >= finfo.tiny) & (value <= finfo.max)).all()
    if not in_range:
        least = f"in {finfo.dtype} at least {finfo.tiny:.3g}"
        raise ValueError(f"temperature: must be positive and finite, {least}")
    return temperature


def one_hot(index: Tensor, classes: int, dtype: torch.dtype | None = None) -> Tensor:
    """Write indices as rows with a single one.

    Args:
        index: integers [...], from 0 to ``classes`` - 1.
        classes: the length of a row, at least 1.
        dtype: of the result; by default torch's.

    Returns:
        [..., classes].

    Raises:
        ValueError: if there is no class, or an index is not an integer or
            out of range.
    """
    return picks("index", index, classes).to(torch.get_default_dtype() if dtype is None else dtype)


def picks(name: str, index: Tensor, classes: int) -> Tensor:
    """Mark indices in rows of Booleans.

    Args:
        name: what the caller calls the indices.
        index: integers [...], from 0 to ``classes`` - 1.
        classes: the length of a row, at least 1.

    Returns:
        Booleans [..., classes], one of them true in each row.

    Raises:
        ValueError: as :func:`one_hot`, under the caller's name.
    """
    if classes < 1:
        raise ValueError(f"classes: must be at least 1, got {classes}")
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ValueError(f"{name}: must be integers, got {index.dtype}")
    require((index >= 0) & (index < classes), f"{name}: must be from 0 to {classes - 1}")
    return index[..., None] == torch.arange(classes, device=index.device)


def require_classes(name: str, tensor: Tensor, classes: int) -> None:
    """Raise unless the last axis of a tensor counts the classes.

    Args:
        name: what the caller calls the tensor.
        tensor: any tensor.
        classes: how many there must be.

    Raises:
        ValueError: if the last axis is missing or has another length.
    """
    if tensor.ndim == 0 or tensor.shape[-1] != classes:
        shape = tuple(tensor.shape)
        raise ValueError(f"{name}: must have {classes} classes on the last axis, has shape {shape}")


def require_fits(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless two tensors are on one device and broadcast.

    Args:
        name: what the caller calls the first; the message begins with it.
        tensor: the first.
        other_name: what the caller calls the second.
        other: the second.

    Raises:
        ValueError: if the devices differ or the shapes do not broadcast.
    """
    if tensor.device != other.device:
        raise ValueError(f"{name}: is on {tensor.device}, {other_name} on {other.device}")
    try:
        torch.broadcast_shapes(tensor.shape, other.shape)
    except RuntimeError as error:
        shapes = f"{tuple(tensor.shape)} and {tuple(other.shape)}"
        raise ValueError(f"{name}: does not broadcast with {other_name}: {shapes}") from error
