"""What runs in the process of one rank.

A worker waits for commands, a function and its arguments each, calls it with itself as the first
argument and sends back what it returns. After an error it reports and ends.
"""

import contextlib
import os
import pickle
import signal
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from socket import socket
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gradbook.parallel.calls import (
    BeforeStep,
    Call,
    described,
    fingerprint,
    finish_,
    nothing,
    require_call,
    require_world,
)
from gradbook.parallel.failures import CollectiveError, report
from gradbook.parallel.schedules import Schedule
from gradbook.parallel.shared_memory import Segment
from gradbook.parallel.sockets import Links
from gradbook.parallel.views import soon

BLOCK = 256  # bytes in which every rank tells the others what it calls


class Carrier(Protocol):
    """Carries out one rank's part of schedules."""

    def carry_out(self, call: Call, deadline: float, before_step: BeforeStep) -> int:
        """Change the call's tensor in place; return the bytes that left the rank."""

    def close(self) -> None:
        """Give back what it holds; called once, when no collective will follow."""


class Transport(Protocol):
    """How chunks get from rank to rank. It must be fit for `pickle`."""

    def join(self, member: "Member") -> Carrier:
        """Become a rank; called in its process, at every rank."""


class World(NamedTuple):
    """What a new worker is told.

    Attributes:
        rank: its own.
        size: p.
        transport: how chunks travel.
        timeout: seconds that a collective may take.
        threads: that PyTorch may use in this process.
        steps: name of the segment in which every rank writes its step.
        meeting: a folder that all ranks see, where one of them makes it.
    """

    rank: int
    size: int
    transport: Transport
    timeout: float
    threads: int
    steps: str
    meeting: str


class Done(NamedTuple):
    """What a rank knows after a collective.

    Attributes:
        seconds: since all ranks had agreed on the call.
        bytes_sent: that left this rank.
    """

    seconds: float
    bytes_sent: int


class Member:
    """One rank of a group, seen from its own process.

    Args:
        world: it belongs to.
        links: to the other ranks.

    Attributes:
        rank: from 0.
        world_size: p.
        links: to the other ranks.
        timeout: seconds that a collective may take.
    """

    def __init__(self, world: World, links: Links):
        self.rank, self.world_size, self.links = world.rank, world.size, links
        self.timeout, self._meeting = world.timeout, world.meeting
        self._segment: Segment | None = None
        self._calls = 0
        self._steps = Segment.find(world.steps, world.size)
        self._step = self._steps.view(self.rank, 1, torch.int64).numpy()
        self._carrier = world.transport.join(self)

    @property
    def step(self) -> int:
        """The step of the schedule it is at; -1 outside of one."""
        return int(self._step[0])

    @property
    def meeting(self) -> str:
        """A folder that all ranks see; it is made when the first of them asks for it."""
        os.makedirs(self._meeting, mode=0o700, exist_ok=True)
        return self._meeting

    def run(
        self,
        schedule: Schedule,
        tensor: Tensor,
        reduction: str = "sum",
        before_step: BeforeStep = nothing,
    ) -> Done:
        """Take part in a collective; the tensor becomes its result.

        Args:
            schedule: the same at all ranks.
            tensor: the rank's own, on the CPU.
            reduction: sum, mean, max or min.
            before_step: called with rank and step before each step.

        Returns:
            Time and bytes.

        Raises:
            ValueError: if this rank's call cannot be carried out.
            CollectiveError: if another rank calls something else.
            PeerLost, PeerLate: if another rank has gone or does not come.
        """
        call = Call(schedule, tensor, reduction)
        require_world(schedule, self.world_size)
        require_call(call, self.rank)
        deadline = soon(self.timeout)
        self._agree(call, deadline)

        def begin(rank: int, step: int) -> None:
            self._step[0] = step
            before_step(rank, step)

        started = time.perf_counter()
        sent = self._carrier.carry_out(call, deadline, begin)
        finish_(tensor, reduction, self.world_size)
        self._step[0] = -1
        return Done(time.perf_counter() - started, sent)

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See this rank's shared memory as a tensor; in it `run` need not copy.

        Args:
            shape: of the tensor.
            dtype: its type.

        Returns:
            The same memory each time. It must not be used after the function that the group calls.

        Raises:
            ValueError: if the group's capacity is too small.
        """
        n = torch.Size(shape).numel()
        return self.views(n, dtype)[self.rank].view(shape)

    def views(self, n: int, dtype: torch.dtype) -> list[Tensor]:
        """See every rank's shared memory as n numbers."""
        needed, there = n * dtype.itemsize, self._segment.capacity if self._segment else 0
        if needed > there:
            raise ValueError(
                f"capacity: the group has {there} bytes of shared memory for each rank, the tensor "
                f"needs {needed}; say so when the group is made"
            )
        if self._segment is None:
            return [torch.empty(0, dtype=dtype, device="cpu") for _ in range(self.world_size)]
        return [self._segment.view(rank, n, dtype) for rank in range(self.world_size)]

    def use(self, name: str) -> None:
        """Find the segment of this name and use it from now on."""
        self._segment = Segment.find(name, self.world_size)

    def close(self) -> None:
        """Give back what the transport holds; no collective may follow."""
        self._carrier.close()

    def _agree(self, call: Call, deadline: float) -> None:
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        digest, words = fingerprint(call, self._calls), described(call).encode()
        block = (digest + words)[:BLOCK].ljust(BLOCK)
        self._calls += 1
        for peer in others:
            self.links.send(peer, block, deadline)
        blocks = {self.rank: block}
        for peer in others:
            received = bytearray(BLOCK)
            self.links.read_into(peer, memoryview(received), deadline)
            blocks[peer] = bytes(received)
        require_same([blocks[rank] for rank in range(self.world_size)])


def require_same(blocks: list[bytes]) -> None:
    """Raise unless all ranks call the same.

    Args:
        blocks: of each rank, 16 bytes that tell calls apart and then words.

    Raises:
        CollectiveError: naming the first rank that is not with most of them. Where there is no
            majority rank 0 is taken to be right.
    """
    digests = [block[:16] for block in blocks]
    most = max(digests, key=digests.count)
    if digests.count(most) == len(digests):
        return
    odd = next(rank for rank, digest in enumerate(digests) if digest != most)
    usual = digests.index(most)
    words = [block[16:].decode(errors="replace").strip() for block in blocks]
    why = f"calls {words[odd]}, rank {usual} calls {words[usual]}"
    if words[odd] == words[usual]:
        why += "; their transfers, or the numbers of calls before it, differ"
    raise CollectiveError(odd, 0, why)


def serve(world: World, sockets: Mapping[int, socket], commands: Connection) -> None:
    """Be a worker until the group closes or something fails.

    Args:
        world: it belongs to.
        sockets: to the other ranks.
        commands: from the group.
    """
    # An interrupt goes to all processes of a terminal; the group decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(world.threads)
    links = Links(sockets)
    member = None
    try:
        member = Member(world, links)
        answer(commands, (None,))
        while (command := next_command(commands)) is not None:
            function, arguments = pickle.loads(command)
            answer(commands, (function(member, *arguments),))
        member.close()
    except BaseException as error:
        step = max(member.step, 0) if member else 0
        answer(commands, report(error, world.rank, step, traceback.format_exc()))
    finally:
        links.close()


def next_command(commands: Connection) -> bytes | None:
    """Wait for a command; None once the group has closed."""
    try:
        return commands.recv_bytes()
    except (EOFError, OSError):
        return None


def answer(commands: Connection, value: Any) -> None:
    """Send back a report, or a value in a tuple of one."""
    # Plain pickling sends a tensor as its bytes; the pipe's own would share its memory.
    data = pickle.dumps(value)
    with contextlib.suppress(OSError):  # the group may have gone
        commands.send_bytes(data)


def take_part(
    member: Member,
    schedule: Schedule,
    reduction: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    before_step: BeforeStep,
) -> Done:
    """Run a collective on what the group has written into this rank's shared memory."""
    return member.run(schedule, member.buffer(shape, dtype), reduction, before_step)


def use(member: Member, name: str) -> None:
    """Use the segment of this name from now on."""
    member.use(name)
