"""Memory that processes share, and work for pools and loaders."""

import multiprocessing
import os
import threading
import time
from multiprocessing import shared_memory

import pytest
import torch
from torch.utils.data import DataLoader

from gradbook.parallel import crashes, sharing


@pytest.fixture
def spawn():
    return multiprocessing.get_context("spawn")


def test_a_child_sees_a_copy_of_an_array_and_the_tensor_itself(monkeypatch):
    names, kind = [], shared_memory.SharedMemory

    def recorded(*given, **named):
        memory = kind(*given, **named)
        names.append(memory.name)
        return memory

    monkeypatch.setattr(sharing.shared_memory, "SharedMemory", recorded)
    assert sharing.send_and_add() == sharing.Sent(0.0, 1.0, 1, False, True)
    with pytest.raises(FileNotFoundError):
        kind(names[0])


def test_processes_add_up_rows_that_they_share():
    rows = torch.arange(10, dtype=torch.float64, device="cpu").view(2, 5)
    assert torch.equal(sharing.sum_in_shared_memory(rows), rows.sum(0))
    assert not rows.is_shared()


def test_a_worker_sums_its_part_only():
    rows = torch.ones(3, 8, dtype=torch.float64, device="cpu")
    total = torch.zeros(8, dtype=torch.float64, device="cpu")
    sharing.sum_own_chunk(rows, total, 1)
    assert total.tolist() == [0, 0, 0, 3, 3, 3, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
@pytest.mark.parametrize("n", [7, 2, 0])
def test_parts_cover_everything_once(n, dtype):
    rows = torch.arange(3 * n, dtype=dtype, device="cpu").view(3, n)
    total = torch.full((n,), -1, dtype=dtype, device="cpu")
    for rank in range(3):
        sharing.sum_own_chunk(rows, total, rank)
    assert torch.equal(total, rows.sum(0, dtype=dtype))


def test_a_worker_that_fails_is_told(monkeypatch):
    monkeypatch.setattr(sharing, "sum_own_chunk", crashes.inverse)  # takes one argument
    rows = torch.ones(1, 3, dtype=torch.float64, device="cpu")
    with pytest.raises(RuntimeError, match=r"rows: the processes ended with exit codes \[1\]"):
        sharing.sum_in_shared_memory(rows)


def test_all_workers_have_one_deadline():
    """Eight that never end are waited for together, not one after the other."""
    given, made = [], []

    class Slow:
        exitcode, killed, closed = None, False, False

        def start(self):
            pass

        def join(self, timeout=None):
            if timeout is not None:
                given.append(timeout)
                time.sleep(timeout)

        def is_alive(self):
            return not self.killed

        def kill(self):
            self.killed = True

        def close(self):
            self.closed = True

    class Context:
        def Process(self, **_):
            made.append(Slow())
            return made[-1]

    with pytest.raises(TimeoutError, match="8 did not end within 0.3 s"):
        sharing.run_workers(Context(), print, [()] * 8, timeout=0.3)
    assert sum(given) <= 0.3
    assert all(process.killed and process.closed for process in made)


def test_workers_end(spawn):
    assert sharing.run_workers(spawn, os._exit, [(3,), (0,)]) == [3, 0]
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="1 did not end within 1 s"):
        sharing.run_workers(spawn, time.sleep, [(600,)], timeout=1)
    assert time.monotonic() - start < 60
    assert not multiprocessing.active_children()


def test_work_for_pools():
    assert sharing.who() == (os.getpid(), threading.get_native_id())
    assert sharing.bounded_sum(3, 7) == 3 + 4 + 5 + 6


def test_rows_say_who_has_loaded_them():
    assert sharing.Loaded(3)[2].tolist() == [2, -1, os.getpid()]
    loader = DataLoader(
        sharing.Loaded(3), 2, num_workers=1, multiprocessing_context="spawn", timeout=120
    )
    batches = torch.cat(list(loader))
    assert batches[:, :2].tolist() == [[0, 0], [1, 0], [2, 0]]
    assert os.getpid() not in batches[:, 2]


def test_bad_input():
    for i in (-1, 3):
        with pytest.raises(IndexError, match="i: must be from 0 to 2"):
            sharing.Loaded(3)[i]
    for shape in ((3,), (0, 3)):
        with pytest.raises(ValueError, match="rows"):
            sharing.sum_in_shared_memory(torch.zeros(shape, device="cpu"))
