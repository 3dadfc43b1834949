"""Children by ``fork``: one home for making them, asking for their end, and their results.

A child does one thing and ends, whatever that does; an error is printed, and told by its exit code,
so that what a child has not done is not taken for a result. To be used in a process with one
thread: the child has the calling thread only.
"""

import json
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any


def fork(body: Callable[[], object]) -> int:
    """Fork; the child does its body and ends, whatever the body does.

    Args:
        body: what the child does. If it raises, the child prints the error and ends with the exit
            code 1, else with 0.

    Returns:
        The child's number.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def reap(pid: int) -> float:
    """Wait for a child's end.

    Args:
        pid: its number.

    Returns:
        The seconds of the processor that it has used.

    Raises:
        RuntimeError: if it failed or was killed.
    """
    _, status, used = os.wait4(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"child {pid}: it ended with exit code {code}")
    return used.ru_utime + used.ru_stime


def kill(pid: int) -> None:
    """Kill a child that was not yet asked for its end, and wait until it is gone.

    Args:
        pid: its number; a zombie takes it without harm.
    """
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def in_child(body: Callable[[], Any]) -> Any:
    """Fork, compute in the child, and bring the result back through a pipe.

    Args:
        body: returns what JSON can hold.

    Returns:
        The result, as JSON brings it back.

    Raises:
        RuntimeError: if the body raises, or the child is killed.
    """
    source, sink = os.pipe()

    def send() -> None:
        os.close(source)
        with os.fdopen(sink, "w") as stream:
            json.dump(body(), stream)

    pid = fork(send)
    os.close(sink)
    with os.fdopen(source) as stream:
        text = stream.read()
    reap(pid)
    return json.loads(text)
