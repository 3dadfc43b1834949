"""What a rank asks for when it calls a collective, and what comes of it."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from torch import Tensor

from gradbook.parallel.plans import plan
from gradbook.parallel.reductions import COMBINE, require_reduction, require_tensor, require_tensors
from gradbook.parallel.schedules import REDUCE, Schedule, bounds, require_transfers

TIMEOUT = 30.0  # seconds
BeforeStep = Callable[[int, int], None]  # called with the rank and the step that begins


class Ran(NamedTuple):
    """What a collective gave.

    Attributes:
        results: one tensor per rank.
        seconds: how long each rank was at it, from where all had agreed on the call.
        bytes_sent: of the tensor, that each rank sent or let another read.
    """

    results: tuple[Tensor, ...]
    seconds: tuple[float, ...]
    bytes_sent: tuple[int, ...]


class Call(NamedTuple):
    """What one rank calls.

    Attributes:
        schedule: who sends what to whom.
        tensor: the rank's own, on the CPU.
        reduction: sum, mean, max or min.
    """

    schedule: Schedule
    tensor: Tensor
    reduction: str = "sum"


def nothing(rank: int, step: int) -> None:
    """Do nothing before a step."""


def calls_of(schedule: Schedule, tensors: Sequence[Tensor], reduction: str) -> list[Call]:
    """Make one call per rank out of a collective that all agree on.

    Args:
        schedule: of p ranks.
        tensors: p tensors on the CPU, alike in shape and type.
        reduction: sum, mean, max or min.

    Returns:
        p calls.

    Raises:
        ValueError: if the schedule cannot be carried out, or the tensors cannot be reduced, naming
            the rank.
    """
    require_transfers(schedule)
    require_tensors(tensors, schedule.world_size, reduction)
    return [Call(schedule, tensor, reduction) for tensor in tensors]


def require_call(call: Call, rank: int) -> None:
    """Raise unless a rank's call, taken by itself, can be carried out.

    Args:
        call: of the rank.
        rank: which it is.

    Raises:
        ValueError: as `calls_of` does.
    """
    plan(call.schedule, rank)
    require_tensor(call.tensor, rank)
    require_reduction(call.reduction, call.tensor.dtype)


def require_world(schedule: Schedule, world_size: int) -> None:
    """Raise unless a schedule is for so many ranks.

    Args:
        schedule: that a rank calls.
        world_size: how many ranks there are.

    Raises:
        ValueError: if it is for another number.
    """
    if schedule.world_size != world_size:
        raise ValueError(f"schedule: must be of {world_size} ranks, got {schedule.world_size}")


def require_timeout(timeout: float) -> None:
    """Raise unless a collective can wait for so many seconds.

    Args:
        timeout: seconds.

    Raises:
        ValueError: if it is no number, not finite or not above 0.
    """
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not (number and math.isfinite(timeout) and timeout > 0):
        raise ValueError(f"timeout: must be a finite number of seconds above 0, got {timeout!r}")


def described(call: Call) -> str:
    """Say in words what is called; equal words do not yet mean equal schedules."""
    schedule, tensor, reduction = call
    kind = str(tensor.dtype).removeprefix("torch.")
    parts = f"{schedule.world_size} ranks, {schedule.chunks} chunks"
    return f"{schedule.name} ({parts}): {reduction} of {kind} {list(tensor.shape)}"


def fingerprint(call: Call, number: int) -> bytes:
    """Press a call into 16 bytes that differ when anything that matters does.

    Args:
        call: of a rank; the tensor's values do not count.
        number: how many calls came before it.

    Returns:
        16 bytes.
    """
    words = f"{number} {described(call)}".encode()
    return blake2b(_digest(call.schedule) + words, digest_size=16).digest()


@lru_cache(maxsize=256)
def _digest(schedule: Schedule) -> bytes:
    return blake2b(repr(tuple(schedule)).encode(), digest_size=16).digest()


def pieces(flat: Tensor, chunks: int) -> list[Tensor]:
    """View a tensor of one axis as its chunks."""
    return [flat[start:stop] for start, stop in bounds(len(flat), chunks)]


def write_(own: Tensor, received: Tensor, op: str, reduction: str) -> None:
    """Do with a chunk what a transfer says: own = own (op) received, or own = received.

    Args:
        own: [n], written.
        received: [n].
        op: of the transfer.
        reduction: sum, mean, max or min; a mean adds here and is divided by p at the end.
    """
    if op == REDUCE:
        COMBINE[reduction](own, received, out=own)
    else:
        own.copy_(received)


def finish_(flat: Tensor, reduction: str, world_size: int) -> None:
    """Divide the sum by the number of ranks where a mean is asked for."""
    if reduction == "mean":
        flat.div_(world_size)
