"""A collective carried out in one thread, with a trace, counters and a clock."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.parallel.reductions import COMBINE, require_tensors
from gradbook.parallel.tracing import carry_out, own, require_disjoint
from gradbook.parallel.traffic import chunk_sizes, clock, traffic
from gradbook.parallel.transfers import Schedule, Transfer, bounds, require_transfers, steps


class Arrival(NamedTuple):
    """A transfer that was carried out.

    Attributes:
        transfer: which.
        bytes: of the chunk.
        contributions: ranks whose numbers the destination's chunk holds
            afterwards.
    """

    transfer: Transfer
    bytes: int
    contributions: frozenset[int]


class Simulated(NamedTuple):
    """What a simulation returns.

    Attributes:
        results: one tensor per rank.
        trace: every transfer, in the schedule's order.
        sent: numbers by rank, summed over the steps.
        received: numbers by rank.
        bytes_sent: as `sent`, in bytes.
        bytes_received: as `received`, in bytes.
        messages: how many; see `gradbook.parallel.traffic.Traffic`.
        clock: seconds since the start when each step ends.
    """

    results: list[Tensor]
    trace: tuple[Arrival, ...]
    sent: list[int]
    received: list[int]
    bytes_sent: list[int]
    bytes_received: list[int]
    messages: int
    clock: list[float]

    @property
    def seconds(self) -> float:
        """The clock at the end; 0 without transfers."""
        return self.clock[-1] if self.clock else 0.0


def simulate(
    schedule: Schedule,
    tensors: Sequence[Tensor],
    reduction: str = "sum",
    alpha: float = 0.0,
    beta: float = 0.0,
    gamma: float = 0.0,
) -> Simulated:
    """Carry out a schedule on one tensor per rank.

    All ranks end with the same bits, but that NaNs may differ in their
    payload, and zeros of "max" and "min" in their sign: torch takes one or
    the other zero by the order of the two.

    Args:
        schedule: of any collective.
        tensors: one per rank, of one shape and type, contiguous, on the
            CPU, without gradients. They stay as they are.
        reduction: "sum"; "mean", a sum that is divided by the world's
            size at the end; "max" or "min".
        alpha: seconds of a step without bytes.
        beta: seconds per byte through a port.
        gamma: seconds per byte combined. The model of the clock stands in
            `gradbook.parallel.traffic`.

    Returns:
        Results, trace, counters and clock.

    Raises:
        ValueError: if the schedule cannot be carried out or counts a
            contribution twice, the tensors do not fit (naming the rank),
            the reduction is unknown, or a rate is negative.
    """
    require_transfers(schedule)
    require_tensors(tensors, schedule.world_size, reduction)
    n, item = tensors[0].numel(), tensors[0].element_size()
    sizes = chunk_sizes(schedule, n, item)
    counted = traffic(schedule, chunk_sizes(schedule, n))
    return Simulated(
        results=_results(schedule, tensors, reduction),
        trace=_trace(schedule, sizes),
        sent=counted.sent,
        received=counted.received,
        bytes_sent=[item * sent for sent in counted.sent],
        bytes_received=[item * received for received in counted.received],
        messages=counted.messages,
        clock=clock(schedule, sizes, alpha, beta, gamma),
    )


def _results(
    schedule: Schedule, tensors: Sequence[Tensor], reduction: str
) -> list[Tensor]:  # fmt: skip
    n, p = tensors[0].numel(), schedule.world_size
    cuts = bounds(n, schedule.chunks)
    held = [[t.view(-1)[a:b] for a, b in cuts] for t in tensors]
    for together in steps(schedule):
        carry_out(together, held, COMBINE[reduction])
    results = [torch.cat(row).view(tensors[0].shape) for row in held]
    return [r / p for r in results] if reduction == "mean" else results


def _trace(schedule: Schedule, sizes: list[int]) -> tuple[Arrival, ...]:
    held, trace = own(schedule), []
    for together in steps(schedule):
        require_disjoint(together, held)
        carry_out(together, held, frozenset.union)
        for t in together:
            now = held[t.destination][t.chunk]
            trace.append(Arrival(t, sizes[t.chunk], now))
    return tuple(trace)
