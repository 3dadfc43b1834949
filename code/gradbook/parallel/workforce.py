"""Start one process per rank, give them commands, and end them all, whatever happens.

Processes are not forked from the caller: a process with PyTorch in it has threads, of which a fork
copies only one, together with the locks that the others hold. On Linux they come from a server that
is started fresh and imports PyTorch once (`forkserver`; it ends with the program), elsewhere each
starts fresh (`spawn`). Both import the caller's main module, so that a script needs the usual
``if __name__ == "__main__"``; a notebook needs nothing.
"""

import contextlib
import multiprocessing
import os
import pickle
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from gradbook.parallel.failures import (
    GRACE,
    RAISED,
    CollectiveError,
    Report,
    cause,
    exit_words,
    settled,
)
from gradbook.parallel.shared_memory import Segment
from gradbook.parallel.sockets import mesh
from gradbook.parallel.views import soon
from gradbook.parallel.workers import Transport, World, serve

START = 120.0  # seconds that new processes have to import PyTorch
Command = tuple[Callable[..., Any], tuple]


def start_method() -> str:
    """Choose how processes start: from a server on Linux, fresh elsewhere."""
    return "forkserver" if sys.platform.startswith("linux") else "spawn"


def cores() -> int:
    """Count the processor's cores that this program may use."""
    # Only some systems can tell; in a container they are often fewer than there are.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workforce:
    """Processes, one per rank, that do what they are told until one of them fails.

    Args:
        world_size: p.
        transport: how chunks travel.
        timeout: seconds that one collective may take.

    Attributes:
        world_size: p.
        ended: whether all processes have been ended.

    Raises:
        CollectiveError: if a process does not start.
    """

    def __init__(self, world_size: int, transport: Transport, timeout: float):
        self.world_size, self.ended = world_size, False
        self._processes: list[multiprocessing.Process] = []
        self._pipes: list[connection.Connection] = []
        # A name that nobody can guess; a rank that wants the folder makes it.
        self._meeting = Path(tempfile.gettempdir(), f"gradbook-{secrets.token_hex(8)}")
        self._memory = Segment.create(8, world_size)
        self._steps = [self._memory.view(r, 1, torch.int64).numpy() for r in range(world_size)]
        try:
            self._start(transport, timeout)
            self._gather(range(world_size), START)
        except BaseException:
            self.end()
            raise
        finally:
            self._memory.unlink()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes' numbers, by rank."""
        return tuple(process.pid for process in self._processes)

    def ask(self, commands: Mapping[int, Command], limit: float) -> dict[int, Any]:
        """Have some ranks call a function each.

        Args:
            commands: function and arguments, by rank.
            limit: seconds that they may take.

        Returns:
            What they returned, by rank.

        Raises:
            CollectiveError: if a rank failed, asked or not, or takes too long. All processes have
                then been ended.
            RuntimeError: if they had been before.
        """
        if self.ended:
            raise RuntimeError("group: is closed; a failure closes it, too")
        for steps in self._steps:
            steps[0] = -1
        # Nothing is sent before everything is known to be fit for it.
        packed = {rank: pickle.dumps(command) for rank, command in commands.items()}
        try:
            for rank, data in packed.items():
                with contextlib.suppress(OSError):  # it has died: its pipe says so below
                    self._pipes[rank].send_bytes(data)
            return self._gather(packed.keys(), limit)
        except BaseException:
            self.end()
            raise

    def close(self) -> None:
        """Let the processes end by themselves, then `end` them."""
        for pipe in self._pipes:
            pipe.close()  # what a worker waits for
        deadline = soon(GRACE)
        for process in self._processes:
            process.join(max(deadline - time.monotonic(), 0))
        self.end()

    def end(self) -> None:
        """End all processes at once; nothing happens if that is done.

        What interrupts it leaves the rest to the next call.
        """
        if self.ended:
            return
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for process in self._processes:
            process.close()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes, self._steps = [], [], []
        self._memory.close()
        shutil.rmtree(self._meeting, ignore_errors=True)
        self.ended = True

    def _start(self, transport: Transport, timeout: float) -> None:
        method = start_method()
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([serve.__module__])
        threads = max(cores() // self.world_size, 1)
        sockets, size = mesh(self.world_size), self.world_size
        common = transport, timeout, threads, self._memory.name, str(self._meeting)
        try:
            for rank in range(size):
                ours, theirs = context.Pipe()
                self._pipes.append(ours)
                arguments = World(rank, size, *common), sockets[rank], theirs
                process = context.Process(target=serve, args=arguments, daemon=True)
                with theirs:
                    process.start()
                self._processes.append(process)
        finally:
            # A worker's death shows only if nobody else holds its ends.
            for end in (end for mine in sockets for end in mine.values()):
                end.close()

    def _gather(self, asked: Collection[int], limit: float) -> dict[int, Any]:
        missing, answers, deadline = set(asked), {}, soon(limit)
        silent = set(range(self.world_size))
        reports: dict[int, Report] = {}
        gone: dict[int, str] = {}
        while missing:
            pipes = {pipe: r for r, pipe in enumerate(self._pipes) if r not in reports}
            ready = connection.wait(list(pipes), max(deadline - time.monotonic(), 0))
            for rank in (pipes[pipe] for pipe in ready):
                answer = self._receive(rank)
                missing.discard(rank)
                silent.discard(rank)
                if answer is None:
                    gone[rank] = self._exit_words(rank)
                elif isinstance(answer, Report):
                    reports[rank] = answer
                    deadline = min(deadline, soon(GRACE))
                else:
                    answers[rank] = answer[0]
            raised = any(one.kind == RAISED for one in reports.values())
            if not ready or gone or raised or settled(reports, silent):
                break
        steps = [int(step[0]) for step in self._steps]
        if gone or reports:
            raise cause(reports, gone, silent, steps)
        if missing:
            rank = min(missing, key=lambda one: (steps[one], one))
            why = f"did not answer within {limit:g} seconds"
            raise CollectiveError(rank, max(steps[rank], 0), why)
        return answers

    def _receive(self, rank: int) -> Any:
        try:
            return pickle.loads(self._pipes[rank].recv_bytes())
        except (EOFError, OSError):
            return None

    def _exit_words(self, rank: int) -> str:
        process = self._processes[rank]
        process.join(GRACE)
        return exit_words(process.exitcode)
