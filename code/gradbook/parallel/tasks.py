"""The threads of a process: as Python sees them, and as the operating system does.

Linux calls both a thread and a process's only thread a *task*, and shows each as a folder
``/proc/PID/task/TID``. Python's list holds the threads that Python started or has met; those which a
library starts in C are missing in it.
"""

import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

from gradbook.parallel import fresh
from gradbook.parallel.systems import Unsupported, require_proc
from gradbook.transformer_sizes import require_sizes


class Task(NamedTuple):
    """One task of a process.

    Attributes:
        id: the number that the system knows it by.
        name: at most 15 characters.
        state: one letter: R runs or could run, S sleeps, D sleeps and is not woken by signals (but
            perhaps by SIGKILL), T is stopped, Z has ended and was not yet asked for its exit code;
            rarer ones are t (stopped by a debugger), I (a kernel thread at rest) and X (gone).
        voluntary: times that it gave up its core, because it had to wait.
        involuntary: times that its core was taken from it.
    """

    id: int
    name: str
    state: str
    voluntary: int
    involuntary: int


def parse_task(text: str) -> Task:
    """Read a ``status`` file of ``/proc``.

    Args:
        text: lines "key:<tab>value".

    Returns:
        The task.

    Raises:
        ValueError: if a line that is needed is missing.
    """
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    try:
        return Task(
            int(fields["Pid"]),
            fields["Name"].strip(),
            fields["State"].split()[0],
            int(fields["voluntary_ctxt_switches"]),
            int(fields["nonvoluntary_ctxt_switches"]),
        )
    except KeyError as error:
        raise ValueError(f"text: a status has a line {error.args[0]}") from None


def task(process: int, thread: int | None = None) -> Task:
    """Look at one task.

    Args:
        process: its number.
        thread: the task's number; the process's first thread if it is left out.

    Returns:
        The task as it is now.

    Raises:
        ValueError: if a number is less than 1.
        Unsupported: if the system has no ``/proc``.
        ProcessLookupError: if there is no such task.
    """
    require_proc()
    thread = process if thread is None else thread
    require_sizes(process=process, thread=thread)
    try:
        # Any bytes can stand in a name, and it is cut within a letter.
        text = Path(f"/proc/{process}/task/{thread}/status").read_text(errors="replace")
    except FileNotFoundError:
        raise ProcessLookupError(f"task {thread} of process {process}") from None
    return parse_task(text)


def tasks(process: int | None = None) -> list[Task]:
    """List the tasks of a process.

    Args:
        process: its number; this process if it is left out.

    Returns:
        The tasks that lived through the listing, by number.

    Raises:
        ValueError: if the number is less than 1.
        Unsupported: if the system has no ``/proc``.
        ProcessLookupError: if there is no such process.
    """
    require_proc()
    process = os.getpid() if process is None else process
    require_sizes(process=process)
    found = []
    try:
        numbers = sorted(map(int, os.listdir(f"/proc/{process}/task")))
    except FileNotFoundError:
        raise ProcessLookupError(f"process {process}") from None
    for number in numbers:
        try:
            found.append(task(process, number))
        except ProcessLookupError:
            continue  # it ended since the listing
    return found


def python_threads() -> dict[int, str]:
    """List the threads of this process that Python knows.

    Returns:
        Their names, by the system's number.
    """
    return {t.native_id: t.name for t in threading.enumerate() if t.native_id is not None}


def count_around_torch(threads: int = 3) -> dict[str, tuple[int, int]]:
    """Count the threads of a fresh interpreter while it imports torch and computes.

    Args:
        threads: that torch may use for one operation.

    Returns:
        By moment: how many threads Python lists, and how many the system does.

    Raises:
        ValueError: if threads is less than 1.
        Unsupported: if the system has no ``/proc``.
    """
    require_proc()
    require_sizes(threads=threads)
    counts = fresh.call(_count_around_torch, threads=threads)
    return {moment: tuple(pair) for moment, pair in counts.items()}


def _count_around_torch(threads: int) -> dict[str, tuple[int, int]]:
    def now() -> tuple[int, int]:
        return len(threading.enumerate()), len(os.listdir("/proc/self/task"))

    counts = {"at the start": now()}
    import torch

    counts["torch imported"] = now()
    torch.set_num_threads(threads)
    square = torch.ones(600, 600)
    (square @ square).sum()
    counts["after a product of matrices"] = now()
    ready, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (ready.set(), over.wait()), daemon=True)
    thread.start()
    ready.wait()
    counts["with a thread of Python's"] = now()
    over.set()
    thread.join()
    return counts


class Place(NamedTuple):
    """Where a thread waits.

    Attributes:
        counter: the program counter, an address in the code.
        pointer: the stack pointer, an address in the thread's stack.
    """

    counter: int
    pointer: int


_BYTES = 4321  # an odd number of bytes to read, by which a waiting thread is known


def waiting_places(threads: int, timeout: float = 30.0) -> list[Place]:
    """Let threads wait for the same pipe, and read two of the registers of each.

    Args:
        threads: how many.
        timeout: seconds until all must be waiting.

    Returns:
        The places, one for each thread.

    Raises:
        ValueError: if threads is less than 1.
        Unsupported: if the system does not show the call that a task waits in.
        TimeoutError: if they do not come to wait.
    """
    require_proc()
    require_sizes(threads=threads)
    if not os.path.exists("/proc/self/syscall"):
        raise Unsupported("/proc/self/syscall: this kernel does not show where a task waits")
    source, sink = os.pipe()
    reader = {"target": os.read, "args": (source, _BYTES), "daemon": True}
    group = [threading.Thread(**reader) for _ in range(threads)]
    started = []
    try:
        for thread in group:
            thread.start()
            started.append(thread)
        deadline = time.monotonic() + timeout
        # A stack goes back when its thread ends: all are looked at while all wait.
        return [_place(thread.native_id, source, deadline) for thread in group]
    finally:
        os.close(sink)  # all readers meet the end of the file
        for thread in started:
            thread.join()
        os.close(source)


def _place(thread: int, pipe: int, deadline: float) -> Place:
    path = Path(f"/proc/self/task/{thread}/syscall")
    while time.monotonic() < deadline:
        fields = path.read_text().split()
        if len(fields) == 9 and int(fields[1], 16) == pipe and int(fields[3], 16) == _BYTES:
            pointer, counter = int(fields[7], 16), int(fields[8], 16)
            return Place(counter, pointer)
        time.sleep(0.001)
    raise TimeoutError(f"thread {thread} does not wait for the pipe")
