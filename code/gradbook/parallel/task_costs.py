"""What it costs to make a thread or a process.

All is measured in a fresh interpreter with one thread, so that a fork doubles a small process.
"""

import mmap
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from gradbook.parallel import fresh
from gradbook.parallel.children import fork, in_child, reap
from gradbook.parallel.isolation import own_pages
from gradbook.parallel.systems import require_fork, require_pages
from gradbook.transformer_sizes import require_sizes


class Spread(NamedTuple):
    """The middle of some measurements, and how far they spread.

    Attributes:
        low: the first quartile.
        median: the second.
        high: the third.
    """

    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Find the quartiles of measurements.

    Args:
        values: at least two.

    Returns:
        The quartiles; between two measurements the value is interpolated.

    Raises:
        ValueError: if there are fewer than two.
    """
    if len(values) < 2:
        raise ValueError(f"values: must be at least two, got {len(values)}")
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


class Creation(NamedTuple):
    """What it costs to make something that does nothing, until it has ended.

    Attributes:
        seconds: by the clock, for one.
        work: seconds of the processor for one, its own and its maker's. On a busy machine the clock
            goes on while everyone waits, and this does not.
    """

    seconds: Spread
    work: Spread


def creation(kind: str, repeats: int = 20) -> Creation:
    """Time the making of something that does nothing, until it has ended.

    Args:
        kind: one of ``CREATIONS``: a thread; a process by ``os.fork``, from a small process or from
            one that has written to 256 MiB; a process by ``multiprocessing``'s start method spawn,
            that is, a new interpreter.
        repeats: how often.

    Returns:
        The cost of one.

    Raises:
        ValueError: if the kind is unknown or repeats is less than 2.
        Unsupported: if the system has no ``fork``.
    """
    if kind not in CREATIONS:
        raise ValueError(f"kind: must be one of {tuple(CREATIONS)}, got {kind!r}")
    if repeats < 2:
        raise ValueError(f"repeats: must be at least 2, got {repeats}")
    require_fork()
    seconds, work = fresh.call(_creation, timeout=240, kind=kind, repeats=repeats)
    return Creation(spread(seconds), spread(work))


def _creation(kind: str, repeats: int) -> tuple[list[float], list[float]]:
    make, size = CREATIONS[kind]
    memory = _filled(size)
    make()  # the first one loads what it needs
    seconds, works = [], []
    for _ in range(repeats):
        start, before = time.perf_counter(), _work()
        make()
        works.append(_work() - before)
        seconds.append(time.perf_counter() - start)
    memory.close()
    return seconds, works


def _filled(size: int) -> mmap.mmap:
    """Memory that a fork has to double the tables of: private, and in small pages."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError, AttributeError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.write(b"\1" * size)
    return memory


def _work() -> float:
    """Seconds of the processor for this process and those children whose end it has asked for."""
    import resource  # not on Windows

    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(x.ru_utime + x.ru_stime for x in used)


def _make_thread() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def _make_fork() -> None:
    reap(fork(int))


def _make_spawned() -> None:
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()


# How each is made, and the bytes that its maker has written to beforehand.
CREATIONS: dict[str, tuple[Callable[[], None], int]] = {
    "thread": (_make_thread, mmap.PAGESIZE),
    "fork": (_make_fork, mmap.PAGESIZE),
    "fork, 256 MiB": (_make_fork, 256 << 20),
    "spawn": (_make_spawned, mmap.PAGESIZE),
}


def memory(threads: int = 16) -> dict[str, float]:
    """Count the pages that one more thread, or process, writes to and no other process holds.

    Args:
        threads: of which the mean is taken.

    Returns:
        Pages for a thread that waits, for a child by fork that has done nothing, and for a new
        interpreter that has imported next to nothing.

    Raises:
        ValueError: if threads is less than 1.
        Unsupported: if the system has no ``fork``, or does not tell whose pages are.
    """
    require_sizes(threads=threads)
    require_pages()
    require_fork()
    return {
        "thread": fresh.call(_pages_of_threads, threads=threads) / threads,
        "fork": fresh.call(_pages_of_a_fork),
        "spawn": fresh.call(own_pages),
    }


def _pages_of_threads(threads: int) -> int:
    over, all_there = threading.Event(), threading.Barrier(threads + 1)

    def body() -> None:
        all_there.wait()
        over.wait()

    before = own_pages()
    group = [threading.Thread(target=body, daemon=True) for _ in range(threads)]
    for thread in group:
        thread.start()
    all_there.wait()
    pages = own_pages() - before
    over.set()
    for thread in group:
        thread.join()
    return pages


def _pages_of_a_fork() -> int:
    return in_child(own_pages)
