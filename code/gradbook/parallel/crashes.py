"""What ends a thread, and what ends its process with all its threads."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

from gradbook.parallel import fresh
from gradbook.parallel.children import in_child
from gradbook.parallel.systems import require_fork, require_proc


class Crash(NamedTuple):
    """How a process ended in which one thread failed.

    Attributes:
        code: its exit code; minus the number of the signal that ended it.
        finished: whether two other threads, the first one and a second, came to the end of the work
            that they had left when the thread failed.
        words: the last line that it wrote to standard error.
    """

    code: int
    finished: bool
    words: str


def _raise() -> None:
    raise ValueError("a mistake in a thread")


def _exit() -> None:
    sys.exit(3)


def _exit_at_once() -> None:
    os._exit(3)


def _read_address_zero() -> None:
    ctypes.string_at(0)


def _recurse_for_ever() -> None:
    def deeper() -> None:
        deeper()

    deeper()


def _no_memory() -> None:
    bytearray(1 << 60)


FAILURES: dict[str, Callable[[], None]] = {
    "an exception": _raise,
    "an endless recursion": _recurse_for_ever,
    "a request for too much memory": _no_memory,
    "sys.exit": _exit,
    "os._exit": _exit_at_once,
    "a read from address 0": _read_address_zero,
}


def crash(what: str) -> Crash:
    """Let one thread of a fresh process fail while two others still have work to do.

    Args:
        what: one of ``FAILURES``.

    Returns:
        How the process ended.

    Raises:
        ValueError: if the failure is unknown.
        Unsupported: on Windows, whose exit codes are others.
    """
    if what not in FAILURES:
        raise ValueError(f"what: must be one of {sorted(FAILURES)}, got {what!r}")
    require_fork()
    ended = fresh.run(_crash, what=what)
    words = ended.errors.strip().splitlines()
    return Crash(ended.code, "finished" in ended.output, words[-1] if words else "")


def _crash(what: str) -> str:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # leave no file with its memory
    failed, done = threading.Event(), threading.Event()

    def work_on() -> None:
        if failed.wait(60):
            done.set()

    threading.Thread(target=work_on, daemon=True).start()
    thread = threading.Thread(target=FAILURES[what], daemon=True)
    thread.start()
    thread.join(30)
    failed.set()
    return "finished" if done.wait(30) else "alone"


def inverse(x: float) -> float:
    """Divide 1 by a number: work for a pool.

    Args:
        x: the number.

    Returns:
        Its inverse.

    Raises:
        ZeroDivisionError: if it is zero.
    """
    return 1 / x


def die() -> None:
    """End the process that this runs in as the kernel would, for want of memory: by SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


class Forked(NamedTuple):
    """A child of a process in which another thread held a lock at the fork.

    Attributes:
        threads: that the parent had, and that the child has, as the system lists them.
        got: whether the parent, and the child, could take the lock within the time given.
    """

    threads: tuple[int, int]
    got: tuple[bool, bool]


def fork_while_locked(wait: float = 0.2) -> Forked:
    """Fork while another thread holds a lock that it will give back, and try to take the lock.

    Args:
        wait: seconds that the child tries.

    Returns:
        What came of it.

    Raises:
        ValueError: if wait is negative or longer than an hour.
        Unsupported: if the system has no ``fork`` or no ``/proc``.
    """
    if not 0 <= wait <= 3600:
        raise ValueError(f"wait: must be from 0 to 3600 seconds, got {wait}")
    require_fork()
    require_proc()
    threads, got = fresh.call(_fork_while_locked, timeout=wait + 60, wait=wait)
    return Forked(tuple(threads), tuple(got))


def _fork_while_locked(wait: float) -> tuple[tuple[int, int], tuple[bool, bool]]:
    lock, held, over = threading.Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            over.wait()

    # Python's own list is no evidence here: it is emptied in the child.
    def listed() -> int:
        return len(os.listdir("/proc/self/task"))

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    held.wait()
    parents = listed()
    # The child touches no lock but this one: any other could be held as well.
    childs, child_got = in_child(lambda: (listed(), lock.acquire(timeout=wait)))
    over.set()
    parent_got = lock.acquire(timeout=30)
    thread.join()
    return (parents, childs), (parent_got, child_got)
