"""Deadlocks: made by two threads, found as a cycle of who waits for whom, and avoided by an order."""

import threading
import time
from collections.abc import Mapping, Sequence

from gradbook.parallel.races import run_all


class Deadlock(RuntimeError):
    """A thread would wait for itself, through others."""


def wait_for(holders: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Tell who waits for whom.

    Args:
        holders: by lock, the thread that holds it.
        wanted: by thread, the lock that it waits for.

    Returns:
        By waiting thread, the thread that holds what it wants.
    """
    return {thread: holders[lock] for thread, lock in wanted.items() if lock in holders}


def cycle(graph: Mapping[str, str]) -> list[str]:
    """Find threads that wait for each other in a circle.

    Args:
        graph: by waiting thread, the one it waits for.

    Returns:
        The threads of a circle, each waiting for the next and the last
        for the first; empty if there is none.
    """
    for thread in sorted(graph):
        path = []
        while thread in graph and thread not in path:
            path.append(thread)
            thread = graph[thread]
        if thread in path:
            return path[path.index(thread) :]
    return []


class Locks:
    """Locks with a table of who holds and who waits.

    Attributes:
        holders: by lock, the thread that holds it.
        wanted: by thread, the lock that it waits for.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.holders: dict[str, str] = {}
        self.wanted: dict[str, str] = {}
        self._changed = threading.Condition()
        self._names = frozenset(names)

    def acquire(self, thread: str, lock: str, timeout: float) -> bool:
        """Take a lock, or wait for it.

        Args:
            thread: who takes it.
            lock: its name.
            timeout: seconds to wait.

        Returns:
            Whether the thread has it now.

        Raises:
            ValueError: if there is no such lock.
        """
        if lock not in self._names:
            raise ValueError(f"lock: must be one of {sorted(self._names)}, got {lock!r}")
        with self._changed:
            self.wanted[thread] = lock
            try:
                self._look()
                free = self._changed.wait_for(lambda: lock not in self.holders, timeout)
            finally:
                del self.wanted[thread]
            if free:
                self.holders[lock] = thread
            return free

    def release(self, thread: str, lock: str) -> None:
        """Give a lock back.

        Args:
            thread: who holds it.
            lock: its name.

        Raises:
            RuntimeError: if the thread does not hold it.
        """
        with self._changed:
            if self.holders.get(lock) != thread:
                raise RuntimeError(f"{thread} does not hold {lock}")
            del self.holders[lock]
            self._changed.notify_all()

    def graph(self) -> dict[str, str]:
        """Tell who waits for whom at this moment.

        Returns:
            As ``wait_for``.
        """
        with self._changed:
            return wait_for(self.holders, self.wanted)

    def _look(self) -> None:
        """A thread has come to wait: nothing is done about it."""


class WatchedLocks(Locks):
    """Locks that refuse a wait which would close a circle."""

    def _look(self) -> None:
        if circle := cycle(wait_for(self.holders, self.wanted)):
            raise Deadlock(" waits for ".join([*circle, circle[0]]))


def meet(
    locks: Locks, orders: Mapping[str, Sequence[str]], timeout: float, together: float
) -> list[str]:
    """Let every thread take two locks in its order; all wait with the first in hand, if they can.

    Args:
        locks: that they take.
        orders: by thread, the names of its two locks.
        timeout: seconds that a thread waits for its second lock.
        together: seconds that a thread which has its first lock waits for the others to have
            theirs. Where all first locks differ the wait ends at once, and a long time makes sure
            that no thread is late; where they do not, the time is spent in vain.

    Returns:
        The threads that did not get both locks.

    Raises:
        Deadlock: if watched locks refuse one.
        TimeoutError: if the threads do not end.
    """
    failed: list[str] = []
    have_one, given_up = _Meeting(len(orders)), _Meeting(len(orders))
    patience = len(orders) * (timeout + 2 * together) + 10

    def body(thread: str) -> None:
        first, second = orders[thread]
        if not locks.acquire(thread, first, patience):
            failed.append(thread)
            return
        try:
            have_one.come(together)
            if locks.acquire(thread, second, timeout):
                locks.release(thread, second)
            else:
                failed.append(thread)
                # Both keep what they hold until both have given up.
                given_up.come(together)
        finally:
            locks.release(thread, first)

    run_all([lambda name=name: body(name) for name in orders], 2 * patience)
    return sorted(failed)


class _Meeting:
    """A place where threads wait for each other, and go on without those who do not come."""

    def __init__(self, parties: int) -> None:
        self._here, self._parties = 0, parties
        self._changed = threading.Condition()

    def come(self, timeout: float) -> None:
        with self._changed:
            self._here += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._here == self._parties, timeout)


def watch(locks: Locks, timeout: float) -> list[str]:
    """Look at the locks again and again, from outside, until threads wait in a circle.

    Args:
        locks: that others take meanwhile.
        timeout: seconds.

    Returns:
        The circle; empty if none was seen in time.
    """
    deadline = time.monotonic() + timeout
    while not (circle := cycle(locks.graph())) and time.monotonic() < deadline:
        time.sleep(0.001)
    return circle
