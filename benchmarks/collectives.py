"""Time all-reduces of several processes on one machine: ``python -m benchmarks.collectives``.

Every side takes its turn in one run, because a machine that slows down then slows all of them, and
the fastest turn of each counts. A rank's clock runs from where it has met the others until it has its
result, and a turn takes as long as the slowest rank. Each side has its turn while the others' processes
wait.
The *floor* is what a ring has to do with memory, done by every rank on numbers of its own: it adds
(p - 1)/p of the tensor and copies (p - 1)/p of it. Bus bandwidth is 2 (p - 1)/p bytes for each of
the tensor's bytes, over the time. More ranks than cores measure how these are shared.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
import torch.distributed as dist
from tabulate import tabulate

from gradbook.parallel.backends import Group, SharedMemory, Sockets, TorchDistributed
from gradbook.parallel.schedules import Schedule, ring

MIB = 2**20
REPEATS = 7
GLOO = "gloo, all_reduce"


class Side(NamedTuple):
    """One way to all-reduce.

    Attributes:
        name: in the table.
        transport: of its group.
        turn: called in every process with its member, the schedule and the number of elements;
            gives the seconds.
    """

    name: str
    transport: object
    turn: Callable[..., float]


def in_place(member, schedule: Schedule, n: int) -> float:
    """All-reduce numbers that lie in the memory that the ranks share."""
    return _ours(member, schedule, member.buffer((n,), torch.float32))


def outside(member, schedule: Schedule, n: int) -> float:
    """All-reduce numbers that lie in the memory of each rank."""
    return _ours(member, schedule, torch.empty(n, dtype=torch.float32))


def _ours(member, schedule: Schedule, tensor: torch.Tensor) -> float:
    tensor.fill_(member.rank + 1)
    seconds = member.run(schedule, tensor).seconds
    _require_sum(tensor, member.world_size)
    return seconds


def gloo(member, schedule: Schedule, n: int) -> float:
    """All-reduce with the backend's own algorithm."""
    tensor = torch.full((n,), member.rank + 1, dtype=torch.float32)
    dist.barrier()
    started = time.perf_counter()
    dist.all_reduce(tensor)
    seconds = time.perf_counter() - started
    _require_sum(tensor, member.world_size)
    return seconds


def floor(member, schedule: Schedule, n: int) -> float:
    """Do a ring's additions and copies on numbers of one's own."""
    p = member.world_size
    own, other = torch.ones(n, dtype=torch.float32), torch.ones(n, dtype=torch.float32)
    part = n // p
    member.run(schedule, torch.ones(1))  # where all meet
    started = time.perf_counter()
    for chunk in range(p - 1):
        place = slice(chunk * part, (chunk + 1) * part)
        own[place].add_(other[place])
    for chunk in range(1, p):
        place = slice(chunk * part, (chunk + 1) * part)
        own[place].copy_(other[place])
    return time.perf_counter() - started


def _require_sum(tensor: torch.Tensor, p: int) -> None:
    if not (tensor == p * (p + 1) // 2).all():
        raise ArithmeticError("a side of the benchmark computes something else")


SIDES = (
    Side("floor: a ring's additions and copies alone", SharedMemory(), floor),
    Side("ours, ring in shared memory", SharedMemory(), in_place),
    Side("ours, the same and copied there and back", SharedMemory(), outside),
    Side("ours, ring over sockets", Sockets(), outside),
    Side(GLOO, TorchDistributed(), gloo),
)


def measure(world_size: int, n: int, repeats: int = REPEATS) -> list[float]:
    """Time every side in turns.

    Args:
        world_size: p.
        n: float32 numbers of each rank.
        repeats: turns of each side after one warm-up.

    Returns:
        Seconds of each side's fastest turn; a turn takes as long as its slowest rank.

    Raises:
        ValueError: if repeats < 1.
        CollectiveError: if a side's sum is wrong or a process fails.
    """
    if repeats < 1:
        raise ValueError("repeats: must be at least 1")
    schedule, best = ring(world_size), [math.inf] * len(SIDES)
    with ExitStack() as stack:
        groups = {
            transport: stack.enter_context(Group(world_size, transport, capacity=4 * n))
            for transport in dict.fromkeys(side.transport for side in SIDES)
        }
        for turn in range(repeats + 1):
            for index, side in enumerate(SIDES):
                seconds = max(groups[side.transport].call(side.turn, schedule, n))
                if turn:
                    best[index] = min(best[index], seconds)
    return best


def table(world_size: int, n: int, seconds: Sequence[float]) -> str:
    """Write the times as a Markdown table.

    Args:
        world_size: p.
        n: float32 numbers of each rank.
        seconds: of each side.

    Returns:
        One row for each side; bus bandwidths in 10⁹ bytes per second.
    """
    moved = 2 * (world_size - 1) / world_size * 4 * n
    peer = seconds[[side.name for side in SIDES].index(GLOO)]
    rows = [
        (
            side.name,
            f"{time * 1000:.2f}",
            f"{moved / time / 1e9:.2f}",
            f"{peer / time:.2f}",
            f"{time / seconds[0]:.2f}",
        )
        for side, time in zip(SIDES, seconds, strict=True)
    ]
    headers = ("side", "ms", "bus GB/s", "bandwidth / gloo's", "time / floor")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time all sides and print the table."""
    parser = argparse.ArgumentParser(description="Time all-reduces on one machine.")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args(arguments)
    n = chosen.mib * MIB // 4
    runs = [measure(chosen.ranks, n) for _ in range(chosen.runs)]
    print(
        f"{chosen.mib} MiB of float32, {chosen.ranks} ranks, one thread each where cores allow no "
        f"more; the fastest of {REPEATS} turns, {chosen.runs} runs.\n"
    )
    for seconds in runs:
        print(table(chosen.ranks, n, seconds) + "\n")


if __name__ == "__main__":
    main()
