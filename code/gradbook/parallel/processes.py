"""Carry out schedules with one process per rank: how processes start stands in `workforce`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradbook.parallel.calls import (
    TIMEOUT,
    BeforeStep,
    Call,
    Ran,
    calls_of,
    nothing,
    require_call,
    require_timeout,
    require_world,
)
from gradbook.parallel.failures import GRACE
from gradbook.parallel.schedules import Schedule
from gradbook.parallel.shared_memory import Segment, SharedMemory
from gradbook.parallel.workers import Transport, take_part, use
from gradbook.parallel.workforce import Workforce
from gradbook.transformer_sizes import require_sizes

PATIENCE = 600.0  # seconds that a function may take


class Group:
    """Processes, one per rank, that carry out one collective after the other.

    Use it with ``with``. After an error at a rank the group is closed: all its processes have ended
    and its memory is gone.

    Args:
        world_size: p.
        transport: how chunks travel: `SharedMemory` (if none is given), `Sockets` or
            `TorchDistributed`.
        timeout: seconds that one collective may take.
        capacity: bytes of shared memory for each rank, for functions that need them; `run` makes
            the room that it needs.

    Attributes:
        world_size: p.

    Raises:
        ValueError: if the world's size is not a positive integer, the timeout not a finite number
            above 0, or the capacity not an integer of at least 0.
        OSError: if there is not so much shared memory.
        CollectiveError: if a process does not start.
    """

    def __init__(
        self,
        world_size: int,
        transport: Transport | None = None,
        timeout: float = TIMEOUT,
        capacity: int = 0,
    ):
        require_sizes(world_size=world_size)
        require_timeout(timeout)
        if type(capacity) is not int or capacity < 0:
            raise ValueError(f"capacity: must be an integer of at least 0, got {capacity!r}")
        self.world_size, self._timeout = world_size, timeout
        self._segment: Segment | None = None
        self._workers = Workforce(world_size, transport or SharedMemory(), timeout)
        try:
            self._make_room(capacity)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes' numbers, by rank; none once the group is closed."""
        return self._workers.pids

    def run(
        self,
        schedule: Schedule,
        tensors: Sequence[Tensor],
        reduction: str = "sum",
        before_step: BeforeStep = nothing,
    ) -> Ran:
        """Carry out a schedule.

        Args:
            schedule: of p ranks.
            tensors: p tensors on the CPU, alike; they are not changed.
            reduction: sum, mean, max or min.
            before_step: called with rank and step, at each rank before each step, in the rank's
                process; it must be fit for `pickle`.

        Returns:
            New tensors, one per rank. The time does not count the way to the processes and back.

        Raises:
            ValueError: if the tensors do not fit the schedule or each other.
            CollectiveError: if a rank fails or does not come in time.
            RuntimeError: if the group is closed.
        """
        return self.run_calls(calls_of(schedule, tensors, reduction), before_step)

    def run_calls(self, calls: Sequence[Call | None], before_step: BeforeStep = nothing) -> Ran:
        """Let every rank make a call of its own; they should be the same.

        Args:
            calls: of each rank; None for a rank that does not come.
            before_step: as in `run`.

        Returns:
            As `run`.

        Raises:
            ValueError: if there are not p calls, none at all, or one cannot be carried out.
            CollectiveError: if they differ, or as in `run`.
            RuntimeError: if the group is closed.
        """
        if len(calls) != self.world_size:
            raise ValueError(f"calls: must be {self.world_size}, one per rank, got {len(calls)}")
        made = {rank: call for rank, call in enumerate(calls) if call is not None}
        if not made:
            raise ValueError("calls: at least one rank must come")
        for rank, call in made.items():
            require_world(call.schedule, self.world_size)
            require_call(call, rank)
        self._make_room(max(call.tensor.nbytes for call in made.values()))
        commands = {}
        for rank, (schedule, tensor, reduction) in made.items():
            self._view(rank, tensor).copy_(tensor.view(-1))
            what = schedule, reduction, tuple(tensor.shape), tensor.dtype, before_step
            commands[rank] = take_part, what
        done = self._ask(commands, self._timeout + GRACE)
        return Ran(
            tuple(self._view(r, c.tensor).clone().view(c.tensor.shape) for r, c in made.items()),
            tuple(done[rank].seconds for rank in made),
            tuple(done[rank].bytes_sent for rank in made),
        )

    def call(
        self, function: Callable[..., Any], *arguments: Any, limit: float = PATIENCE
    ) -> list[Any]:
        """Call a function in every process, with its `Member` as the first argument.

        Args:
            function: of a module that the processes can import.
            *arguments: for it, the same at every rank and fit for `pickle`.
            limit: seconds that it may take.

        Returns:
            What it returned, by rank.

        Raises:
            CollectiveError: if it failed at a rank, or took too long.
            RuntimeError: if the group is closed.
        """
        command = function, arguments
        done = self._ask(dict.fromkeys(range(self.world_size), command), limit)
        return [done[rank] for rank in range(self.world_size)]

    def close(self) -> None:
        """End all processes and give the memory back; nothing happens if that is done."""
        if not self._workers.ended:
            self._workers.close()
        self._release()

    def _ask(self, commands: dict, limit: float) -> dict[int, Any]:
        try:
            return self._workers.ask(commands, limit)
        except BaseException:
            if self._workers.ended:
                self._release()
            raise

    def _make_room(self, capacity: int) -> None:
        if capacity <= (self._segment.capacity if self._segment else 0):
            return
        segment = Segment.create(capacity, self.world_size)
        try:
            self.call(use, segment.name, limit=self._timeout + GRACE)
        except BaseException:
            segment.close()
            raise
        finally:
            segment.unlink()
        self._release()
        self._segment = segment

    def _view(self, rank: int, tensor: Tensor) -> Tensor:
        if self._segment is None:
            return torch.empty(0, dtype=tensor.dtype, device="cpu")
        return self._segment.view(rank, tensor.numel(), tensor.dtype)

    def _release(self) -> None:
        if self._segment:
            self._segment.close()
            self._segment = None


def run_processes(
    schedule: Schedule,
    tensors: Sequence[Tensor],
    reduction: str = "sum",
    timeout: float = TIMEOUT,
    transport: Transport | None = None,
    before_step: BeforeStep = nothing,
) -> Ran:
    """Carry out a schedule in processes that are started for it and end with it.

    Args:
        schedule: of p ranks.
        tensors: p tensors on the CPU, alike; they are not changed.
        reduction: sum, mean, max or min.
        timeout: seconds that the collective may take, once the processes have started.
        transport: how chunks travel; `SharedMemory` if none is given.
        before_step: called with rank and step at each rank before each step, in its process.

    Returns:
        New tensors, one per rank.

    Raises:
        ValueError: if the tensors do not fit the schedule or each other.
        CollectiveError: if a rank fails or does not come in time.
    """
    calls = calls_of(schedule, tensors, reduction)
    with Group(schedule.world_size, transport, timeout) as group:
        return group.run_calls(calls, before_step)
