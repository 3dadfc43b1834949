"""The global interpreter lock: one thread at a time executes Python.

A thread gives the lock up when it waits, when it has had it for a while and another asks for it
(between two instructions, never within one), and inside library calls that were written to.
"""

import math
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from gradbook.parallel import fresh
from gradbook.parallel.children import fork, reap
from gradbook.parallel.systems import Unsupported, require_fork


def enabled() -> bool:
    """Say whether this interpreter has the lock.

    Returns:
        False in a free-threaded build (3.13 and later) that runs without it; else True.
    """
    return getattr(sys, "_is_gil_enabled", lambda: True)()


def require_lock() -> None:
    """Raise unless this interpreter has the lock.

    Raises:
        Unsupported: in a free-threaded build that runs without it.
    """
    if not enabled():
        version = sys.version.split()[0]
        raise Unsupported(f"Python {version}: it runs without the global interpreter lock")


class During(NamedTuple):
    """What another thread did during one long call.

    Attributes:
        seconds: that the call took.
        ticks: how often the other thread woke up meanwhile.
        pause: the longest part of the call, in seconds, without a tick.
    """

    seconds: float
    ticks: int
    pause: float


def ticks_during(call: Callable[[], object], period: float = 0.001) -> During:
    """Count how often a thread that sleeps for short times wakes up during a call.

    Args:
        call: what the calling thread does.
        period: seconds that the other thread sleeps.

    Returns:
        The time, the number of ticks within it, and the longest time without one.
    """
    ticks: list[float] = []
    over = threading.Event()

    def tick() -> None:
        while not over.wait(period):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        while len(ticks) < 3:  # it ticks
            time.sleep(period)
        start = time.perf_counter()
        call()
        end = time.perf_counter()
    finally:
        over.set()
        thread.join()
    within = [t for t in ticks if start < t < end]
    pause = max(b - a for a, b in pairwise([start, *within, end]))
    return During(end - start, len(within), pause)


def long_calls(seconds: float = 0.3) -> dict[str, During]:
    """Count ticks during long calls, each a single one into C.

    Args:
        seconds: that a call takes at least.

    Returns:
        By call: what happened during it.

    Raises:
        ValueError: if seconds is not positive and finite.
    """
    _require_seconds(seconds)
    import torch

    def product(n: int) -> Callable[[], object]:
        # The matrix grows, with its side cubed as the work: a fast machine does not fill its memory.
        side = round(64 * n ** (1 / 3))
        square = torch.ones(side, side, dtype=torch.float32, device="cpu")
        return lambda: torch.mm(square, square)

    makers = {
        "sum of a range": lambda n: lambda: sum(range(1000 * n)),
        "a product of matrices in torch": product,
        "a sleep": lambda n: lambda: time.sleep(n / 10_000),
    }
    return {name: _lengthened(make, seconds) for name, make in makers.items()}


def _require_seconds(seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds: must be positive and finite, got {seconds}")


def _lengthened(make: Callable[[int], Callable], least: float) -> During:
    """Double a call's size until it takes long enough."""
    size = 256
    while (found := ticks_during(make(size))).seconds < least:
        size *= 2
    return found


def cores_used(seconds: float = 0.5) -> dict[str, float]:
    """Find how many cores are kept busy: time of the processor over time of the clock.

    Args:
        seconds: that each measurement takes.

    Returns:
        By who computes: about 1 if two take turns, 2 if they run at once and two cores are idle.

    Raises:
        ValueError: if seconds is not positive and finite.
        Unsupported: if the system has no ``fork``.
        RuntimeError: if a process fails.
    """
    _require_seconds(seconds)
    require_fork()
    variables = {"OMP_NUM_THREADS": "1"}
    return fresh.call(_cores_used, timeout=240 + 3 * seconds, variables=variables, least=seconds)


def _cores_used(least: float) -> dict[str, float]:
    def python(end: float) -> None:
        while time.perf_counter() < end:
            pass

    processes = _busy_processes(python, least)  # before torch has threads
    import torch

    torch.set_num_threads(1)
    square = torch.ones(512, 512, dtype=torch.float32, device="cpu")

    def products(end: float) -> None:
        while time.perf_counter() < end:
            square @ square

    return {
        "Python, two threads": _busy_threads(python, least),
        "torch, two threads": _busy_threads(products, least),
        "Python, two processes": processes,
    }


def _busy_threads(body: Callable[[float], None], least: float) -> float:
    start, before = time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=body, args=(start + least,), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.process_time() - before) / (time.perf_counter() - start)


def _busy_processes(body: Callable[[float], None], least: float) -> float:
    start = time.perf_counter()
    children = [fork(lambda: body(start + least)) for _ in range(2)]
    used = sum(reap(pid) for pid in children)
    return used / (time.perf_counter() - start)
