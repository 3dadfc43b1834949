"""What an operating system must offer before a process can be looked at from within it.

Linux has all of it, if nothing was taken away. macOS has ``fork``, but no ``/proc`` and no choice
of cores; Windows has none of the three, but starts processes anew ("spawn") as the others do.
"""

import os
import platform
import signal
import socket
from contextlib import closing


class Unsupported(RuntimeError):
    """The operating system does not offer what an experiment needs."""


def require_proc() -> None:
    """Raise unless the system lists the tasks of a process under ``/proc``.

    Raises:
        Unsupported: if there is no ``/proc/self/task``.
    """
    if not os.path.isdir("/proc/self/task"):
        raise Unsupported(f"/proc/self/task: only Linux has it, this is {platform.system()}")


def require_pages() -> None:
    """Raise unless the system tells which pages of memory a process has to itself.

    Raises:
        Unsupported: if there is no ``/proc/self/smaps`` or ``/proc/self/smaps_rollup``.
    """
    require_proc()
    for path in ("/proc/self/smaps", "/proc/self/smaps_rollup"):
        if not os.path.exists(path):
            raise Unsupported(f"{path}: this kernel does not have it; Linux 4.14 and later can")


def require_fork() -> None:
    """Raise unless a process can be doubled by ``fork``, and asked how its child has ended.

    Raises:
        Unsupported: if Python has no ``os.fork`` here, or the signal SIGCHLD is ignored.
    """
    if not hasattr(os, "fork"):
        raise Unsupported(f"os.fork: {platform.system()} does not have it; use spawn there")
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        raise Unsupported("SIGCHLD: it is ignored here, so that no child's exit code is kept")


def require_cores() -> None:
    """Raise unless a process can choose the cores that it runs on.

    Raises:
        Unsupported: if Python has no ``os.sched_setaffinity`` here.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise Unsupported(f"os.sched_setaffinity: {platform.system()} does not have it")


def require_loopback() -> None:
    """Raise unless two sockets of this machine can be connected by TCP.

    Raises:
        Unsupported: if nothing can listen at 127.0.0.1, or be reached there.
    """
    try:
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            socket.create_connection(server.getsockname(), timeout=10).close()
    except OSError as error:
        raise Unsupported(f"127.0.0.1: no connection by TCP within this machine: {error}") from None


def require_all() -> None:
    """Raise unless the system offers all that this module asks for.

    Raises:
        Unsupported: names the first thing that is missing.
    """
    for check in (require_proc, require_pages, require_fork, require_cores, require_loopback):
        check()
