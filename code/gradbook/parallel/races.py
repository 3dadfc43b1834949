"""Threads that add to one counter: in a given order, as they happen to run, and mended."""

import mmap
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence

from gradbook.parallel import fresh
from gradbook.parallel.children import fork, reap
from gradbook.parallel.systems import require_fork
from gradbook.transformer_sizes import require_sizes


class Counter:
    """A number that threads share.

    Attributes:
        value: the number.
    """

    def __init__(self) -> None:
        self.value = 0


def increment(counter: Counter, pause: Callable[[], object]) -> None:
    """Add one, with a pause between reading and writing.

    Args:
        counter: the shared number.
        pause: what happens in between; other threads can run.
    """
    register = counter.value
    pause()
    counter.value = register + 1


def run_all(bodies: Sequence[Callable[[], None]], timeout: float = 30.0) -> None:
    """Run functions in threads, until all have ended.

    Args:
        bodies: one for each thread.
        timeout: seconds for all of them together.

    Raises:
        TimeoutError: if one has not ended by then.
        BaseException: the first error of a thread, if one raises.
    """
    errors: list[BaseException] = []

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            errors.append(error)

    group = [threading.Thread(target=guarded, args=(body,), daemon=True) for body in bodies]
    for thread in group:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in group:
        thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    if any(thread.is_alive() for thread in group):
        raise TimeoutError(f"bodies: not all threads ended within {timeout:g} s")


def replay(order: Sequence[int], threads: int, timeout: float = 30.0) -> int:
    """Let real threads add to a counter, each step in its turn.

    Args:
        order: the thread that does each step; a thread's steps are in turn to read and to write.
        threads: how many.
        timeout: seconds for the whole.

    Returns:
        The counter at the end.

    Raises:
        ValueError: if a thread is unknown, or would end between reading and writing.
        TimeoutError: if it takes longer.
    """
    if any(not 0 <= k < threads or order.count(k) % 2 for k in set(order)):
        raise ValueError("order: threads count from 0, and each has an even number of steps")
    counter = Counter()
    turns = [threading.Semaphore(0) for _ in range(threads)]
    following = iter(order)
    deadline = time.monotonic() + timeout

    def pass_on() -> None:
        if (k := next(following, None)) is not None:
            turns[k].release()

    def wait(k: int) -> None:
        if not turns[k].acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise TimeoutError(f"thread {k} waited longer than {timeout:g} s for its turn")

    def body(k: int) -> None:
        for _ in range(order.count(k) // 2):
            wait(k)
            increment(counter, lambda: (pass_on(), wait(k)))
            pass_on()

    pass_on()
    run_all([lambda k=k: body(k) for k in range(threads)], timeout + 1)
    return counter.value


def _yield() -> None:
    time.sleep(0)  # gives up the interpreter and the core


def unmended(threads: int, times: int) -> int:
    """Add from several threads, with nothing to keep them apart.

    Args:
        threads: how many.
        times: increments of each.

    Returns:
        The counter at the end.

    Raises:
        ValueError: if one of the two is less than 1.
        TimeoutError: if the threads take longer than half a minute.
    """
    require_sizes(threads=threads, times=times)
    counter = Counter()

    def body() -> None:
        for _ in range(times):
            increment(counter, _yield)

    run_all([body] * threads)
    return counter.value


def with_a_lock(threads: int, times: int) -> int:
    """Add from several threads, which read and write while they hold a lock.

    Args:
        threads: how many.
        times: increments of each.

    Returns:
        The counter at the end.

    Raises:
        ValueError: if one of the two is less than 1.
        TimeoutError: if the threads take longer than half a minute.
    """
    require_sizes(threads=threads, times=times)
    counter, lock = Counter(), threading.Lock()

    def body() -> None:
        for _ in range(times):
            with lock:
                increment(counter, _yield)

    run_all([body] * threads)
    return counter.value


def with_own_counters(threads: int, times: int) -> int:
    """Let every thread have a counter of its own, and add them up at the end.

    Args:
        threads: how many.
        times: increments of each.

    Returns:
        The sum.

    Raises:
        ValueError: if one of the two is less than 1.
        TimeoutError: if the threads take longer than half a minute.
    """
    require_sizes(threads=threads, times=times)
    counters = [Counter() for _ in range(threads)]

    def body(own: Counter) -> None:
        for _ in range(times):
            increment(own, _yield)

    run_all([lambda own=own: body(own) for own in counters])
    return sum(counter.value for counter in counters)


def with_an_owner(threads: int, times: int) -> int:
    """Let one thread own the counter; the others send it what is to be added.

    Args:
        threads: that send.
        times: increments of each.

    Returns:
        The counter at the end.

    Raises:
        ValueError: if one of the two is less than 1.
        TimeoutError: if the threads take longer than half a minute.
    """
    require_sizes(threads=threads, times=times)
    counter = Counter()
    messages: queue.SimpleQueue[int] = queue.SimpleQueue()

    def send() -> None:
        for _ in range(times):
            messages.put(1)

    def own() -> None:
        for _ in range(threads * times):
            try:
                messages.get(timeout=30)
            except queue.Empty:
                raise TimeoutError("messages: none came for 30 s") from None
            increment(counter, _yield)

    run_all([own, *[send] * threads])
    return counter.value


MENDED = {
    "a lock": with_a_lock,
    "own counters": with_own_counters,
    "one owner": with_an_owner,
}


def lost_as_it_happens(times: int = 100_000) -> dict[str, int]:
    """Count the updates that two threads, or two processes, lose of ``2 * times`` by chance.

    Args:
        times: increments of each.

    Returns:
        By the way the increment is written: how many were lost.

    Raises:
        ValueError: if times is less than 1.
        Unsupported: if the system has no ``fork``.
        RuntimeError: if a process fails: what it has not added is not lost.
        TimeoutError: if it takes longer than a minute.
    """
    require_sizes(times=times)
    require_fork()
    return fresh.call(_lost_as_it_happens, times=times)


def _lost_as_it_happens(times: int) -> dict[str, int]:
    sys.setswitchinterval(1e-6)
    counter = Counter()

    def in_place() -> None:
        for _ in range(times):
            counter.value += 1

    def with_a_call() -> None:
        for _ in range(times):
            counter.value = int(counter.value) + 1

    found = {}
    for name, body in (("x += 1", in_place), ("x = int(x) + 1", with_a_call)):
        counter.value = 0
        run_all([body] * 2)
        found[f"two threads, {name}"] = 2 * times - counter.value
    found["two processes, x += 1 in shared memory"] = 2 * times - _by_processes(times)
    return found


def _by_processes(times: int, patience: float = 30.0) -> int:
    shared = memoryview(mmap.mmap(-1, 16)).cast("q")

    def body() -> None:
        for _ in range(times):
            shared[0] += 1

    def child() -> None:
        shared[1] = 1  # begins, so that the other one does
        body()

    pid = fork(child)
    deadline = time.monotonic() + patience
    while not shared[1] and time.monotonic() < deadline:
        pass
    body()
    reap(pid)
    return shared[0]
