"""The states of a task, each brought about in a child and then observed.

R runs or waits for a core; S sleeps until something happens, or a signal comes; D sleeps, and no
signal wakes it, or SIGKILL alone; T is stopped; Z, a zombie, has ended and keeps its exit code for
its parent.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from gradbook.parallel import fresh
from gradbook.parallel.children import fork, kill, reap
from gradbook.parallel.systems import require_fork, require_proc
from gradbook.parallel.tasks import task

STATES = {
    "R": "a loop",
    "S": "a read from an empty pipe",
    "D": "a vfork, until the child has a program of its own",
    "T": "the signal SIGSTOP",
    "Z": "its end, not yet asked for",
}


def observed(timeout: float = 10.0) -> dict[str, str]:
    """Bring children into every state, and look at each from its parent.

    Args:
        timeout: seconds to wait for a state.

    Returns:
        By the state that was meant: the state that was seen, the last one if the time ran out.

    Raises:
        ValueError: if timeout is negative.
        Unsupported: if the system has no ``/proc`` or no ``fork``.
        TimeoutError: if the children do not end.
    """
    if not timeout >= 0:
        raise ValueError(f"timeout: must be at least 0, got {timeout}")
    require_proc()
    require_fork()
    return fresh.call(_observed, timeout=60 + 5 * timeout, wait=timeout)


def _observed(wait: float) -> dict[str, str]:
    makers = {"R": _running, "S": _sleeping, "D": _deaf, "T": _stopped, "Z": _zombie}
    return {letter: make(wait) for letter, make in makers.items()}


def _seen(pid: int, meant: str, wait: float) -> str:
    """Look until the state is the one meant, or the time is over; tell the last one."""
    deadline = time.monotonic() + wait
    while (state := task(pid).state) != meant and time.monotonic() < deadline:
        time.sleep(0.001)
    return state


def _loop() -> None:
    while True:
        pass


def _running(wait: float) -> str:
    pid = fork(_loop)
    try:
        return _seen(pid, "R", wait)
    finally:
        kill(pid)


def _sleeping(wait: float) -> str:
    source, sink = os.pipe()
    pid = fork(lambda: os.read(source, 1))
    try:
        return _seen(pid, "S", wait)
    finally:
        kill(pid)
        os.close(source)
        os.close(sink)


def _stopped(wait: float) -> str:
    pid = fork(_loop)
    try:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)  # returns when it has stopped
        return _seen(pid, "T", wait)
    finally:
        kill(pid)


def _zombie(wait: float) -> str:
    pid = fork(lambda: None)
    try:
        # Waits for its end and leaves it as it is.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return _seen(pid, "Z", wait)
    finally:
        kill(pid)


def _deaf(wait: float) -> str:
    """Start a program by ``posix_spawn``, whose child opens a pipe that no one writes to.

    Until that child has its own program it borrows its parent's memory, so its parent sleeps, and
    no signal but SIGKILL wakes it.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipe = str(Path(folder, "pipe"))
        os.mkfifo(pipe)
        actions = [(os.POSIX_SPAWN_OPEN, 0, pipe, os.O_RDONLY, 0)]
        program = [sys.executable, "-I", "-S", "-c", ""]

        def start() -> None:
            child = os.posix_spawn(sys.executable, program, os.environ, file_actions=actions)
            reap(child)

        pid = fork(start)
        try:
            return _seen(pid, "D", wait)
        finally:
            # Open for both, so that this end does not wait for the other.
            end = os.open(pipe, os.O_RDWR)
            try:
                reap(pid)
            finally:
                os.close(end)
