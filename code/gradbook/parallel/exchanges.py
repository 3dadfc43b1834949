"""What it costs to tell another thread or process something, and to get an answer.

A message is a byte, through a pipe or a socket; or it is the release of a lock, and carries none.

All is measured in a fresh interpreter, on one core.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

from gradbook.parallel import fresh
from gradbook.parallel.children import fork, reap
from gradbook.parallel.systems import require_cores, require_fork, require_loopback, require_proc
from gradbook.parallel.task_costs import Spread, spread
from gradbook.parallel.tasks import task

EXCHANGES = ("threads, locks", "threads, pipes", "processes, pipes", "processes, TCP")


class Exchange(NamedTuple):
    """What a message to another task, and its answer, cost.

    Attributes:
        seconds: for one message and its answer; quartiles of the means of batches.
        switches: how often one of the two tasks gave its core up or lost it, for one message and
            its answer.
    """

    seconds: Spread
    switches: float


def exchange(kind: str, batches: int = 20, rounds: int = 50) -> Exchange:
    """Send messages to and fro between two tasks on one core.

    On one core the one must leave it before the other can answer: two switches at least.

    Args:
        kind: one of ``EXCHANGES``: who exchanges, and by what.
        batches: how often the time is taken.
        rounds: messages with their answers in a batch.

    Returns:
        The time, and the switches as the system counts them.

    Raises:
        ValueError: if the kind is unknown, or there are fewer than two batches or no round.
        Unsupported: if the system cannot fork, count switches, choose a core or connect by TCP.
    """
    if kind not in EXCHANGES:
        raise ValueError(f"kind: must be one of {EXCHANGES}, got {kind!r}")
    if batches < 2 or rounds < 1:
        raise ValueError(f"batches, rounds: at least 2 and 1, got {batches}, {rounds}")
    require_proc()
    require_fork()
    require_cores()
    if kind.endswith("TCP"):
        require_loopback()
    seconds, switches = fresh.call(
        _exchange, timeout=240, kind=kind, batches=batches, rounds=rounds
    )
    return Exchange(spread(seconds), switches)


def _exchange(kind: str, batches: int, rounds: int) -> tuple[list[float], float]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    who, what = kind.split(", ")
    here, there = _WAYS[what]()
    total = batches * rounds + 1  # one to begin with

    def answer() -> None:
        send, receive = there
        for _ in range(total):
            receive()
            send()
        receive()  # stays until it is told to go, so that its switches can be read

    process, thread, end = (_as_thread if who == "threads" else _as_process)(answer)
    send, receive = here

    def both() -> int:
        places = (task(os.getpid()), task(process, thread))
        return sum(x.voluntary + x.involuntary for x in places)

    send()
    receive()
    before, seconds = both(), []
    for _ in range(batches):
        start = time.perf_counter()
        for _ in range(rounds):
            send()
            receive()
        seconds.append((time.perf_counter() - start) / rounds)
    switches = (both() - before) / (batches * rounds)
    send()
    end()
    return seconds, switches


def _as_thread(body: Callable[[], None]) -> tuple[int, int, Callable]:
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return os.getpid(), thread.native_id, thread.join


def _as_process(body: Callable[[], None]) -> tuple[int, int, Callable]:
    pid = fork(body)
    return pid, pid, lambda: reap(pid)


Ends = tuple[tuple[Callable, Callable], tuple[Callable, Callable]]


def _locks() -> Ends:
    """Two locks that both begin as taken: to send is to release one, to receive to acquire it."""
    a, b = threading.Lock(), threading.Lock()
    a.acquire()
    b.acquire()
    return (a.release, b.acquire), (b.release, a.acquire)


def _pipes() -> Ends:
    (a_out, a_in), (b_out, b_in) = os.pipe(), os.pipe()

    def end(sink: int, source: int) -> tuple[Callable, Callable]:
        return lambda: os.write(sink, b"."), lambda: os.read(source, 1)

    return end(a_in, b_out), end(b_in, a_out)


def _sockets() -> Ends:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        first = socket.create_connection(server.getsockname())
        second, _ = server.accept()
    for end in (first, second):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ways(end: socket.socket) -> tuple[Callable, Callable]:
        return lambda: end.send(b"."), lambda: end.recv(1)

    return ways(first), ways(second)


_WAYS: dict[str, Callable[[], Ends]] = {"locks": _locks, "pipes": _pipes, "TCP": _sockets}
