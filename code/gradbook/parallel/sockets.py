"""Sockets between ranks, and a collective over them.

Every two ranks share a pair of connected sockets: what one writes the other reads, in order. A rank
must send and receive at the same time, or all of them wait for each other once the buffers are
full; so a thread of its own sends while the rank receives. What arrives is combined in segments
that are still in the processor's cache.
"""

import queue
import select
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from gradbook.parallel.calls import BeforeStep, Call, pieces, write_
from gradbook.parallel.failures import PeerLate, PeerLost
from gradbook.parallel.plans import plan
from gradbook.parallel.schedules import COPY
from gradbook.parallel.views import remaining

SEGMENT = 256 * 1024  # bytes that are received before they are combined
BUFFER = 1024 * 1024  # bytes on their way that a socket is asked to hold


def mesh(world_size: int) -> list[dict[int, socket.socket]]:
    """Connect every rank with every other.

    Args:
        world_size: p.

    Returns:
        For every rank its p - 1 sockets, by the other's rank.
    """
    ends: list[dict[int, socket.socket]] = [{} for _ in range(world_size)]
    for one, other in combinations(range(world_size), 2):
        ends[one][other], ends[other][one] = socket.socketpair()
    for end in (end for mine in ends for end in mine.values()):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, BUFFER)
    return ends


class Links:
    """One rank's sockets.

    Args:
        sockets: by the other's rank.
    """

    def __init__(self, sockets: Mapping[int, socket.socket]):
        self._sockets = dict(sockets)

    def send(self, peer: int, data: bytes | memoryview, deadline: float) -> None:
        """Send all of it; PeerLost or PeerLate if that fails."""
        with _Blaming(peer):
            end = self._sockets[peer]
            end.settimeout(remaining(deadline))
            end.sendall(data)

    def receive(self, left: Mapping[int, int], deadline: float) -> tuple[int, bytes]:
        """Wait for bytes of any rank, of each as many as are left; TimeoutError if none come."""
        ends = {self._sockets[peer]: peer for peer, count in left.items() if count}
        ready, _, _ = select.select(list(ends), [], [], remaining(deadline))
        if not ready:
            raise TimeoutError
        peer = ends[ready[0]]
        with _Blaming(peer):
            data = ready[0].recv(left[peer])
        if not data:
            raise PeerLost(peer)
        return peer, data

    def read_into(self, peer: int, buffer: memoryview, deadline: float) -> None:
        """Fill a buffer with what a rank sends; PeerLost or PeerLate if that fails."""
        end, filled = self._sockets[peer], 0
        with _Blaming(peer):
            while filled < len(buffer):
                end.settimeout(remaining(deadline))
                count = end.recv_into(buffer[filled:])
                if not count:
                    raise PeerLost(peer)
                filled += count

    def close(self) -> None:
        """Close all sockets, so that the others notice."""
        for end in self._sockets.values():
            end.close()


class _Blaming:
    """Names the rank with which an operation on a socket failed."""

    def __init__(self, peer: int):
        self._peer = peer

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, TimeoutError):
            raise PeerLate(self._peer) from None
        if isinstance(error, OSError):
            raise PeerLost(self._peer) from None


class Sender:
    """A thread that sends what is posted, in order.

    Args:
        links: of its rank.
    """

    def __init__(self, links: Links):
        self._links = links
        self._posted: queue.SimpleQueue = queue.SimpleQueue()
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        self._waiting = 0
        self._thread = threading.Thread(target=self._work, name="sender", daemon=True)
        self._thread.start()

    def post(self, peer: int, data: memoryview, deadline: float) -> None:
        """Send soon; the data must stay as they are until `flush` returns."""
        self._waiting += 1
        self._posted.put((peer, data, deadline))

    def flush(self) -> None:
        """Wait until all is sent; every sending ends at its deadline."""
        while self._waiting:
            error = self._done.get()
            self._waiting -= 1
            if error:
                raise error

    def close(self) -> None:
        """End the thread, once all that was posted is sent or has failed."""
        self._posted.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (posted := self._posted.get()) is not None:
            try:
                self._links.send(*posted)
            except Exception as error:
                self._done.put(error)
            else:
                self._done.put(None)


@dataclass(frozen=True)
class Sockets:
    """Ranks send each other chunks through sockets."""

    def join(self, member) -> "SocketCarrier":
        """Become a rank; called in its process."""
        return SocketCarrier(member)


class SocketCarrier:
    """Carries out a rank's part of schedules over sockets.

    Args:
        member: the rank, with its links.
    """

    def __init__(self, member):
        self._rank, self._links = member.rank, member.links
        self._sender = Sender(member.links)
        self._segment = torch.empty(SEGMENT, dtype=torch.uint8, device="cpu")

    def carry_out(self, call: Call, deadline: float, before_step: BeforeStep) -> int:
        """Do the rank's part; return the bytes that it sent.

        All ranks send and receive in the schedule's order, so that the first transfer that is not
        done is always under way at both ends: nobody waits in a circle.

        Raises:
            PeerLost, PeerLate: if another rank fails.
        """
        schedule, tensor, reduction = call
        chunks, sent = pieces(tensor.view(-1), schedule.chunks), 0
        for number, step in enumerate(plan(schedule, self._rank)):
            before_step(self._rank, number)
            for offer in step.offers:
                chunk = chunks[offer.chunk]
                # What is rewritten while it is being sent must be sent from a copy.
                data = bytes_of(chunk.clone() if offer.rewritten else chunk)
                self._sender.post(offer.destination, data, deadline)
                sent += len(data)
            for take in step.takes:
                self._take(take.source, chunks[take.chunk], take.op, reduction, deadline)
            self._sender.flush()
        return sent

    def close(self) -> None:
        """End the thread that sends."""
        self._sender.close()

    def _take(self, source: int, own: Tensor, op: str, reduction: str, deadline: float) -> None:
        if op == COPY:
            self._links.read_into(source, bytes_of(own), deadline)
            return
        received = self._segment.view(own.dtype)
        for part in own.split(len(received)):
            arrived = received[: len(part)]
            self._links.read_into(source, bytes_of(arrived), deadline)
            write_(part, arrived, op, reduction)


def bytes_of(flat: Tensor) -> memoryview:
    """See the bytes of a tensor of one axis on the CPU.

    Args:
        flat: [n], contiguous.

    Returns:
        Its memory; what is written there is written to the tensor.
    """
    return memoryview(flat.view(torch.uint8).numpy())
