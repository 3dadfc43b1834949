"""Memory that several processes see, and a collective in it.

One process makes a segment, the others find it by its name. As soon as all have it the name is
taken away again: the memory then lives as long as a process uses it, and nothing is left behind
however a process ends.
"""

import os
import sys
from dataclasses import dataclass
from multiprocessing import shared_memory

import torch
from torch import Tensor

from gradbook.parallel.calls import Call, pieces
from gradbook.parallel.plans import plan
from gradbook.parallel.views import Tokens, carry_out

LINE = 64  # bytes: numbers of different ranks share no cache line


class Segment:
    """A piece of shared memory, cut into one part of equal size for each rank.

    Args:
        memory: made or found.
        parts: how many ranks.

    Attributes:
        name: under which others find it until it is taken away.
        capacity: bytes of a part.
    """

    def __init__(self, memory: shared_memory.SharedMemory, parts: int):
        self._memory = memory
        self.name = memory.name
        # Some systems round a segment's size up.
        self.capacity = memory.size // parts // LINE * LINE

    @classmethod
    def create(cls, capacity: int, parts: int) -> "Segment":
        """Make new memory of at least so many bytes for each rank.

        Raises:
            ValueError: if no address reaches so far.
            OSError: if there is not so much.
        """
        size = max(-(-capacity // LINE) * LINE, LINE) * parts
        if size > sys.maxsize:
            raise ValueError(
                f"capacity: {parts} times {capacity} bytes are more than memory can be"
            )
        made = cls(shared_memory.SharedMemory(create=True, size=size), parts)
        try:
            made._reserve()
        except BaseException:
            made.close()
            made.unlink()
            raise
        return made

    @classmethod
    def find(cls, name: str, parts: int) -> "Segment":
        """Find the memory that another process made."""
        return cls(shared_memory.SharedMemory(name), parts)

    def _reserve(self) -> None:
        # Memory that is full otherwise shows only when it is written, as a signal that kills.
        handle = getattr(self._memory, "_fd", -1)
        if handle >= 0 and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, self._memory.size)

    def view(self, part: int, n: int, dtype: torch.dtype) -> Tensor:
        """See the first n numbers of a part as a tensor; it must not outlive the segment."""
        if n == 0:
            return torch.empty(0, dtype=dtype, device="cpu")
        offset = part * self.capacity
        return torch.frombuffer(self._memory.buf, dtype=dtype, count=n, offset=offset)

    def unlink(self) -> None:
        """Take the name away; where it is in use the memory stays."""
        self._memory.unlink()

    def close(self) -> None:
        """Give the memory back; no view of it may be used any more."""
        self._memory.close()


@dataclass(frozen=True)
class SharedMemory:
    """Ranks read each other's tensors where they lie."""

    def join(self, member) -> "SharedMemoryCarrier":
        """Become a rank; called in its process."""
        return SharedMemoryCarrier(member)


class SharedMemoryCarrier:
    """Carries out a rank's part of schedules in shared memory.

    Args:
        member: the rank, with its links and its segment.
    """

    def __init__(self, member):
        self._member = member

    def carry_out(self, call: Call, deadline: float, before_step) -> int:
        """Do the rank's part; return the bytes that others read.

        A tensor that does not lie in the segment is copied there and back.

        Raises:
            ValueError: if it has no room there.
            PeerLost, PeerLate: if another rank fails.
        """
        member, (schedule, tensor, reduction) = self._member, call
        flat = tensor.view(-1)
        views = member.views(flat.numel(), flat.dtype)
        own = views[member.rank]
        inside = own.data_ptr() == flat.data_ptr()
        if not inside:
            own.copy_(flat)
        chunks = [pieces(view, schedule.chunks) for view in views]
        steps = plan(schedule, member.rank)
        tokens = Tokens(member.links, steps, deadline)
        sent = carry_out(steps, member.rank, chunks, reduction, tokens, before_step)
        if not inside:
            flat.copy_(own)
        return sent

    def close(self) -> None:
        """Nothing is held beyond the member's own."""
