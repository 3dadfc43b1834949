"""Memory that several processes see, and the usual tools around it.

Workers stand in this module and not in a notebook: a spawned process imports what it runs.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import shared_memory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, multiprocessing
from torch.utils.data import Dataset, get_worker_info

from gradbook.parallel.transfers import bounds


def run_workers(
    context: Any, worker: Callable[..., None], arguments: Sequence[tuple], timeout: float = 120.0
) -> list[int]:
    """Run processes until all have ended.

    Args:
        context: of a start method, from ``multiprocessing`` or ``torch.multiprocessing``.
        worker: what each does; stands in a module.
        arguments: one tuple for each process.
        timeout: seconds for all of them together; who is not done by then is killed.

    Returns:
        Their exit codes.

    Raises:
        TimeoutError: if one was killed.
    """
    group = [context.Process(target=worker, args=given, daemon=True) for given in arguments]
    started = []
    try:
        for process in group:
            process.start()
            started.append(process)
        deadline = time.monotonic() + timeout
        for process in group:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [process for process in group if process.is_alive()]
        codes = [process.exitcode for process in group]
    finally:
        for process in started:
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
    if late:
        raise TimeoutError(f"worker: {len(late)} did not end within {timeout:g} s")
    return codes


class Sent(NamedTuple):
    """What the parent finds after a child has added one to what it was sent.

    Attributes:
        array: a NumPy array's number.
        tensor: a tensor's number.
        named: a byte of shared memory of which the child was sent the name.
        was_shared: whether the tensor lay in shared memory before it was sent.
        is_shared: whether it does afterwards.
    """

    array: float
    tensor: float
    named: int
    was_shared: bool
    is_shared: bool


def add_one(array: np.ndarray, tensor: Tensor, name: str) -> None:
    """Add one to everything, in place.

    Args:
        array: numbers.
        tensor: numbers.
        name: of shared memory, whose first byte counts.
    """
    array += 1
    tensor += 1
    memory = shared_memory.SharedMemory(name)
    memory.buf[0] += 1
    memory.close()


def send_and_add() -> Sent:
    """Send an array, a tensor and a name to a spawned process that adds one to each.

    Returns:
        What the parent holds then; it held zeros before.

    Raises:
        RuntimeError: if the process fails.
        TimeoutError: if it does not end.
    """
    tensor = torch.zeros(1, dtype=torch.float64, device="cpu")
    array = np.zeros(1)
    before = tensor.is_shared()
    memory = shared_memory.SharedMemory(create=True, size=1)
    try:
        context = multiprocessing.get_context("spawn")
        codes = run_workers(context, add_one, [(array, tensor, memory.name)])
        if any(codes):
            raise RuntimeError(f"add_one: the process ended with exit code {codes[0]}")
        named = memory.buf[0]
    finally:
        memory.close()
        memory.unlink()
    return Sent(array.item(), tensor.item(), named, before, tensor.is_shared())


def sum_own_chunk(rows: Tensor, total: Tensor, rank: int) -> None:
    """Add up one part of all rows.

    Args:
        rows: [workers, n], one for each worker.
        total: [n], takes the sum at the worker's part.
        rank: which worker this is.
    """
    start, stop = bounds(len(total), len(rows))[rank]
    part = slice(start, stop)
    torch.sum(rows[:, part], 0, dtype=total.dtype, out=total[part])


def sum_in_shared_memory(rows: Tensor, timeout: float = 120.0) -> Tensor:
    """Add up rows in as many processes, each of which sums its own part of all of them.

    Args:
        rows: [workers, n], on the CPU.
        timeout: seconds for all processes together.

    Returns:
        The sum, [n].

    Raises:
        ValueError: if rows is not a matrix with at least one row.
        RuntimeError: if a process fails.
        TimeoutError: if they take longer.
    """
    if rows.dim() != 2 or not len(rows):
        raise ValueError(f"rows: must be [workers, n], got {tuple(rows.shape)}")
    rows = rows.detach().clone().share_memory_()
    total = torch.empty_like(rows[0]).share_memory_()
    context = multiprocessing.get_context("spawn")
    codes = run_workers(
        context, sum_own_chunk, [(rows, total, rank) for rank in range(len(rows))], timeout
    )
    if any(codes):
        raise RuntimeError(f"rows: the processes ended with exit codes {codes}")
    return total.clone()


def who() -> tuple[int, int]:
    """Say where this runs: work for a pool.

    Returns:
        The numbers of the process and of the thread.
    """
    return os.getpid(), threading.get_native_id()


def bounded_sum(first: int, last: int) -> int:
    """Add up whole numbers in Python: work for a pool.

    Args:
        first: of the numbers.
        last: the one after the last.

    Returns:
        The sum.
    """
    total = 0
    for i in range(first, last):
        total += i
    return total


class Loaded(Dataset):
    """Rows that say who has loaded them.

    Args:
        size: how many rows.

    Row i is [i, the loading worker's number (-1 in the main process), the process's number].
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Tensor:
        if not 0 <= i < self.size:
            raise IndexError(f"i: must be from 0 to {self.size - 1}, got {i}")
        worker = get_worker_info()
        number = -1 if worker is None else worker.id
        return torch.tensor([i, number, os.getpid()], dtype=torch.int64, device="cpu")
