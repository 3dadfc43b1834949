"""What a thread shares with its process, and what a child by ``fork`` shares with its parent.

``fork`` doubles a process: the child has all memory of its parent as it was, in pages that both
hold until one of them writes ("copy on write"). A thread is one more execution in the same memory.
"""

import mmap
import os
import signal
import tempfile
import threading
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gradbook.parallel import fresh
from gradbook.parallel.children import in_child
from gradbook.parallel.systems import require_fork, require_pages
from gradbook.transformer_sizes import require_sizes


class Seen(NamedTuple):
    """Whether a change is seen by the first thread of the process that started the changer.

    Attributes:
        thread: the change was made by another thread.
        child: the change was made by a child.
    """

    thread: bool
    child: bool


def seen() -> dict[str, Seen]:
    """Let a thread, and a child by fork, change the same things; look whether the changes are seen.

    Returns:
        By what was changed: who sees it.

    Raises:
        Unsupported: if the system has no ``fork``.
    """
    require_fork()
    return {what: Seen(*pair) for what, pair in fresh.call(_seen).items()}


def _in_thread(body: Callable[[], bool]) -> bool:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(body).result()


def _seen() -> dict[str, tuple[bool, bool]]:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as file:
        things = _things(folder, file.fileno())
        found = {what: _both(what, *ways) for what, ways in things.items()}
        os.chdir("/")  # out of the folder, so that it can go
        return found


def _both(what: str, write: Callable[[int], object], read: Callable[[], object]) -> tuple:
    """Let a thread, then a child, change something; tell who of them is seen to have done it."""
    pair = []
    for value, run in enumerate((_in_thread, in_child), start=1):

        def change(value: int = value) -> bool:
            mine = read()
            write(value)
            return read() != mine

        before = read()
        if not run(change):
            raise RuntimeError(f"{what}: it was not changed, so that nothing could be seen")
        pair.append(read() != before)
    return tuple(pair)


def _things(folder: str, file: int) -> dict[str, tuple[Callable, Callable]]:
    """Ways to change something to the value 1 or 2, and to read it."""
    box, local = [0], threading.local()
    local.value = 0
    shared = mmap.mmap(-1, 1)
    files = [os.dup(file) for _ in range(3)]
    for name in "12":
        Path(folder, name).mkdir()
    signals = {1: {signal.SIGUSR1}, 2: {signal.SIGUSR2}}

    def is_open(number: int) -> bool:
        try:
            os.fstat(number)
        except OSError:
            return False
        return True

    def block(value: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals[value])

    return {
        "an object in memory": (lambda v: box.__setitem__(0, v), lambda: box[0]),
        "the files that are open": (lambda v: os.close(files[v]), lambda: [*map(is_open, files)]),
        "the working directory": (lambda v: os.chdir(f"{folder}/{v}"), os.getcwd),
        "an environment variable": (
            lambda v: os.environ.__setitem__("GRADBOOK_SEEN", str(v)),
            lambda: os.environ.get("GRADBOOK_SEEN"),
        ),
        "the position in an open file": (
            lambda v: os.lseek(file, v, os.SEEK_SET),
            lambda: os.lseek(file, 0, os.SEEK_CUR),
        ),
        "memory mapped as shared": (lambda v: shared.__setitem__(0, v), lambda: shared[0]),
        "a thread-local value": (
            lambda v: setattr(local, "value", v),
            lambda: getattr(local, "value", None),
        ),
        "the signals that are blocked": (
            block,
            lambda: sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        ),
    }


class Copied(NamedTuple):
    """What writing to memory after a fork copies.

    Attributes:
        written: pages that the child had written to, at each look.
        private: pages that the child had to itself then.
    """

    written: list[int]
    private: list[int]


def copied_pages(pages: int, written: list[int]) -> Copied:
    """Fork with pages that are all filled, and let the child write to some.

    Args:
        pages: of memory, filled before the fork.
        written: how many of them the child has written to at each look, in rising order.

    Returns:
        The pages that were the child's own, counted by the system.

    Raises:
        ValueError: if pages is less than 1, there is no look, or the numbers do not rise from at
            least 0 to at most pages.
        Unsupported: if the system has no ``fork``, or does not tell whose pages are.
    """
    require_sizes(pages=pages, looks=len(written))
    require_fork()
    require_pages()
    if sorted(written) != list(written) or any(not 0 <= n <= pages for n in written):
        raise ValueError(f"written: must rise from 0 to at most {pages}, got {written}")
    return Copied(list(written), fresh.call(_copied_pages, pages=pages, written=written))


def _copied_pages(pages: int, written: list[int]) -> list[int]:
    region, first = _guarded(pages)
    for page in range(pages):
        region[(1 + page) * mmap.PAGESIZE] = 1

    def child() -> list[int]:
        counts, done = [], 0
        for goal in written:
            for page in range(done, goal):
                region[(1 + page) * mmap.PAGESIZE] = 2
            done = goal
            counts.append(private_pages(Path("/proc/self/smaps").read_text(), first))
        return counts

    return in_child(child)


def _guarded(pages: int) -> tuple[mmap.mmap, int]:
    """Map pages between two that no one may touch, so that neighbours are not listed with them.

    Returns:
        The mapping, of two pages more, and the address of its second page.
    """
    import ctypes

    size = (pages + 2) * mmap.PAGESIZE
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError, AttributeError):  # a kernel without huge pages
        # They would be copied, or split, as a whole.
        region.madvise(mmap.MADV_NOHUGEPAGE)
    view = ctypes.c_char.from_buffer(region)
    address = ctypes.addressof(view)
    del view
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for place in (address, address + size - mmap.PAGESIZE):
        if protect(ctypes.c_void_p(place), ctypes.c_size_t(mmap.PAGESIZE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    return region, address + mmap.PAGESIZE


def private_pages(text: str, address: int, page: int = mmap.PAGESIZE) -> int:
    """Count the pages of one mapping that were written to and that no other process holds.

    Args:
        text: of a ``smaps`` file: for each mapping a line "first-last …", then lines "key: n kB".
        address: in the mapping.
        page: bytes of a page.

    Returns:
        The mapping's ``Private_Dirty``, in pages; what was swapped out is not in it.

    Raises:
        ValueError: if no mapping holds the address, or its ``Private_Dirty`` is not told.
    """
    inside = False
    for line in text.splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):
            first, last = (int(x, 16) for x in key.split("-"))
            inside = first <= address < last
        elif inside and key == "Private_Dirty:":
            return int(rest[0]) * 1024 // page
    raise ValueError(f"address: {address:#x} is in no mapping")


def pages_copied_by_reading(numbers: int) -> dict[str, int]:
    """Read all numbers of a list, and of an array, in a child, and count the pages that copies.

    Python counts the references to each object in the object itself, so reading one writes to it.

    Args:
        numbers: how many floats each holds.

    Returns:
        By container: by how many pages the child's own memory grew.

    Raises:
        ValueError: if numbers is less than 1.
        Unsupported: if the system has no ``fork``, or does not tell whose pages are.
    """
    require_sizes(numbers=numbers)
    require_fork()
    require_pages()
    return fresh.call(_pages_copied_by_reading, numbers=numbers)


def _pages_copied_by_reading(numbers: int) -> dict[str, int]:
    containers = {"list": list(map(float, range(numbers))), "array": array("d", range(numbers))}

    def read(values: Any) -> int:
        before = own_pages()
        for _ in values:
            pass
        return own_pages() - before

    return {name: in_child(lambda v=v: read(v)) for name, v in containers.items()}


def own_pages() -> int:
    """Count the pages that this process has written to and that no other process holds.

    Returns:
        Its ``Private_Dirty`` memory, in pages.

    Raises:
        RuntimeError: if the system does not say.
    """
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024 // mmap.PAGESIZE
    raise RuntimeError("smaps_rollup has no Private_Dirty")
