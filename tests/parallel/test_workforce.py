"""Processes that do what they are told, until one of them fails."""

import os
from contextlib import contextmanager
from multiprocessing import shared_memory
from operator import attrgetter

import pytest
import torch

from gradbook.parallel import workforce
from gradbook.parallel.failures import CollectiveError, Stalled
from gradbook.parallel.schedules import COPY, REDUCE, Schedule, Transfer
from gradbook.parallel.sockets import Sockets
from gradbook.parallel.workers import take_part
from gradbook.parallel.workforce import Workforce, cores


@contextmanager
def a_workforce(size, timeout=30.0):
    workers = Workforce(size, Sockets(), timeout)
    try:
        yield workers
    finally:
        workers.end()


def test_ranks_answer_until_they_are_ended():
    with a_workforce(2) as workers:
        with pytest.raises(FileNotFoundError):
            shared_memory.SharedMemory(workers._memory.name)
        assert workers.ask({1: (attrgetter("rank"), ())}, 30.0) == {1: 1}
        assert len(workers.pids) == 2
        workers.close()
        workers.end()
        assert workers.ended
        assert workers.pids == ()
        with pytest.raises(RuntimeError, match="^group: is closed"):
            workers.ask({0: (attrgetter("rank"), ())}, 30.0)


def test_the_folder_is_made_when_a_rank_asks_for_it_and_goes_with_the_processes():
    with a_workforce(2) as workers:
        folder = workers.ask({0: (attrgetter("_meeting"), ())}, 30.0)[0]
        assert not os.path.exists(folder)
        asked = attrgetter("meeting"), ()
        assert workers.ask({0: asked, 1: asked}, 30.0) == {0: folder, 1: folder}
        assert os.path.isdir(folder)
    assert not os.path.exists(folder)


def test_an_error_ends_all(functions):
    with a_workforce(2) as workers:
        with pytest.raises(CollectiveError, match="^rank 1, step 0: AttributeError"):
            workers.ask({1: (attrgetter("nonsense"), ())}, 30.0)
        assert workers.ended
    with a_workforce(2) as workers:
        with pytest.raises(CollectiveError, match="^rank 0, step 0: did not answer within 0.2"):
            workers.ask({0: (functions.sleep, ())}, 0.2)
        assert workers.ended


def test_an_end_that_is_interrupted_can_be_taken_up_again(monkeypatch):
    with a_workforce(2) as workers:
        pids = workers.pids

        def interrupted(self):
            raise KeyboardInterrupt

        monkeypatch.setattr(type(workers._processes[0]), "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            workers.end()
        monkeypatch.undo()
        assert not workers.ended
        workers.end()
        assert workers.ended
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def test_of_silent_ranks_the_one_that_is_furthest_behind_is_named():
    # Rank 0 stops in step 1, after it has sent; rank 1 in step 0, before it has received.
    moves = Transfer(0, 0, 1, 0, REDUCE), Transfer(1, 1, 0, 0, COPY)
    schedule = Schedule("there and back", 2, 1, moves)

    def part(fault):
        return take_part, (schedule, "sum", (0,), torch.float32, fault)

    parts = {0: part(Stalled(0, 1, 600.0)), 1: part(Stalled(1, 0, 600.0))}
    with (
        a_workforce(2, timeout=60.0) as workers,
        pytest.raises(CollectiveError, match="^rank 1, step 0: did not answer within 5 seconds"),
    ):
        workers.ask(parts, 5.0)


def test_a_rank_that_has_answered_is_not_to_blame(functions):
    # Ranks 1 and 2 wait for each other, rank 3 says nothing, and rank 0 is done.
    others = functions.blaming, ([None, 2, 1, 3],)
    with (
        a_workforce(4) as workers,
        pytest.raises(CollectiveError, match="^rank 3, step 0: did not come in time"),
    ):
        workers.ask(dict.fromkeys(range(4), others), 60.0)


def test_cores_are_those_that_the_program_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


def test_no_process_is_forked_from_a_program_with_threads(monkeypatch):
    for platform, method in (("linux", "forkserver"), ("darwin", "spawn"), ("win32", "spawn")):
        monkeypatch.setattr(workforce.sys, "platform", platform)
        assert workforce.start_method() == method
