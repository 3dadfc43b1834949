"""Carry out a schedule with one thread per rank, in one process.

Threads share all memory, so that a rank reads another's tensor where it lies. Each has an inbox of
its own; there is no lock that all of them need. While PyTorch adds it lets go of Python's global
lock, so that several ranks add at once.
"""

import contextlib
import queue
import threading
import time
import traceback
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradbook.parallel.calls import (
    TIMEOUT,
    BeforeStep,
    Call,
    Ran,
    calls_of,
    finish_,
    nothing,
    pieces,
    require_timeout,
)
from gradbook.parallel.failures import (
    GRACE,
    LATE,
    NOT_COME,
    PeerLost,
    Report,
    cause,
    report,
    settled,
)
from gradbook.parallel.plans import plan
from gradbook.parallel.schedules import Schedule
from gradbook.parallel.views import Tokens, carry_out, remaining


def run_threads(
    schedule: Schedule,
    tensors: Sequence[Tensor],
    reduction: str = "sum",
    timeout: float = TIMEOUT,
    before_step: BeforeStep = nothing,
) -> Ran:
    """Carry out a schedule, one thread per rank.

    A thread cannot be ended from outside: one that is stuck in ``before_step`` runs on after the
    error, as a daemon, until it looks at its inbox again.

    Args:
        schedule: of p ranks.
        tensors: p tensors on the CPU, alike; they are not changed.
        reduction: sum, mean, max or min.
        timeout: seconds that the collective may take.
        before_step: called with rank and step at each rank before each step.

    Returns:
        New tensors, one per rank.

    Raises:
        ValueError: if the tensors do not fit the schedule or each other, or the timeout is not a
            finite number above 0.
        CollectiveError: if a rank fails or does not come in time.
    """
    require_timeout(timeout)
    calls = calls_of(schedule, tensors, reduction)
    world = _World(calls, time.monotonic() + timeout, before_step)
    threads = [
        threading.Thread(target=world.work, args=(rank,), name=f"rank {rank}", daemon=True)
        for rank in range(schedule.world_size)
    ]
    for thread in threads:
        thread.start()
    reports, silent = world.hear(world.deadline + GRACE)
    for rank in set(range(schedule.world_size)) - silent:
        threads[rank].join()
    if reports or silent:
        raise world.failure(reports, silent)
    results = tuple(
        flat.view(call.tensor.shape) for flat, call in zip(world.flats, calls, strict=True)
    )
    return Ran(results, tuple(world.seconds), tuple(world.sent))


class _Inbox:
    """The post of one rank: a queue for each, into which the others put."""

    def __init__(self, rank: int, queues: Sequence[queue.SimpleQueue]):
        self._rank, self._queues = rank, queues

    def send(self, peer: int, data: bytes, deadline: float) -> None:
        self._queues[peer].put((self._rank, data))

    def receive(self, left: Mapping[int, int], deadline: float) -> tuple[int, bytes]:
        try:
            source, data = self._queues[self._rank].get(timeout=remaining(deadline))
        except queue.Empty:
            raise TimeoutError from None
        if not data:
            raise PeerLost(source)
        return source, data


class _World:
    """What the threads of a collective share."""

    def __init__(self, calls: Sequence[Call], deadline: float, before_step: BeforeStep):
        size = len(calls)
        self.schedule, _, self.reduction = calls[0]
        self.flats = [call.tensor.detach().reshape(-1).clone() for call in calls]
        self.chunks = [pieces(flat, self.schedule.chunks) for flat in self.flats]
        self.inboxes = [queue.SimpleQueue() for _ in calls]
        self.deadline, self.before_step = deadline, before_step
        self.steps = [-1] * size
        self.seconds, self.sent = [0.0] * size, [0] * size
        self.errors: dict[int, BaseException] = {}
        self.over: queue.SimpleQueue = queue.SimpleQueue()  # who is done, or has failed and how

    def begin(self, rank: int, step: int) -> None:
        self.steps[rank] = step
        self.before_step(rank, step)

    @torch.no_grad()
    def work(self, rank: int) -> None:
        """Do a rank's part; tell everybody if it fails."""
        inbox = _Inbox(rank, self.inboxes)
        started, said = time.perf_counter(), None
        try:
            steps = plan(self.schedule, rank)
            tokens = Tokens(inbox, steps, self.deadline)
            self.sent[rank] = carry_out(
                steps, rank, self.chunks, self.reduction, tokens, self.begin
            )
            finish_(self.flats[rank], self.reduction, self.schedule.world_size)
            self.seconds[rank] = time.perf_counter() - started
        except BaseException as error:
            self.errors[rank] = error
            step = max(self.steps[rank], 0)
            said = report(error, rank, step, traceback.format_exc())
            for peer in range(self.schedule.world_size):
                inbox.send(peer, b"", self.deadline)
        self.over.put((rank, said))

    def hear(self, until: float) -> tuple[dict[int, Report], set[int]]:
        """Wait for all ranks; give the reports of those that failed, and who is still silent."""
        reports, silent = {}, set(range(self.schedule.world_size))
        with contextlib.suppress(queue.Empty):
            while not settled(reports, silent):
                rank, said = self.over.get(timeout=max(until - time.monotonic(), 0))
                silent.remove(rank)
                if said:
                    reports[rank] = said
        return reports, silent

    def failure(self, reports: dict[int, Report], silent: set[int]) -> BaseException:
        """Find the rank that is to blame."""
        reports = reports or {
            rank: Report(rank, self.steps[rank], LATE, NOT_COME) for rank in silent
        }
        error = cause(reports, {}, silent, self.steps)
        error.__cause__ = self.errors.get(error.rank)
        return error
