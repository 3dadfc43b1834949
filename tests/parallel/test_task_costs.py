"""What tasks cost: quartiles, work, memory."""

import time

import pytest

from gradbook.parallel import task_costs


def test_quartiles():
    assert task_costs.spread([4.0, 1.0, 2.0, 5.0, 3.0]) == (2.0, 3.0, 4.0)
    assert task_costs.spread([1.0, 2.0]) == (1.25, 1.5, 1.75)
    with pytest.raises(ValueError, match="values: must be at least two"):
        task_costs.spread([1.0])


@pytest.mark.parametrize("kind", ["thread", "fork", "spawn"])
def test_something_is_made_as_often_as_asked(kind):
    for low, median, high in task_costs.creation(kind, 2):
        assert 0 < low <= median <= high


def test_an_interpreter_is_several_times_as_much_work_as_a_thread():
    work = {kind: task_costs.creation(kind, 5).work.median for kind in ("thread", "spawn")}
    assert work["spawn"] > 5 * work["thread"]


def test_every_making_is_timed(monkeypatch):
    def make():
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    monkeypatch.setitem(task_costs.CREATIONS, "something", (make, 1))
    start = time.process_time()
    seconds, works = task_costs._creation("something", 4)
    used = time.process_time() - start
    assert len(seconds) == len(works) == 4
    # Each is the work of one; the first making is not among them.
    assert all(work >= 0.018 for work in works)
    assert sum(works) <= used - 0.018


def test_a_fork_that_doubles_much_memory_is_more_work():
    """Its tables are doubled: 65 536 entries; beside them a small process has next to none."""
    small, large = (task_costs.creation(kind, 5).work.median for kind in ("fork", "fork, 256 MiB"))
    assert large > small


def test_work_is_that_of_a_process_and_of_its_children():
    """A new interpreter works for milliseconds, which are its own; to wait for it is no work."""
    before, own = task_costs._work(), time.process_time()
    task_costs._make_spawned()
    assert task_costs._work() - before > time.process_time() - own + 0.005
    before = task_costs._work()
    time.sleep(0.5)
    assert task_costs._work() - before < 0.25


def test_a_large_process_is_made_large():
    assert task_costs.CREATIONS["fork, 256 MiB"][1] == 256 * 2**20
    assert task_costs.CREATIONS["fork"][1] == task_costs.mmap.PAGESIZE
    assert task_costs._filled(3 * 4096)[:] == b"\1" * 3 * 4096


def test_memory_of_one_more():
    found = task_costs.memory(8)
    assert 1 <= found["thread"] < found["spawn"] / 4
    assert 1 <= found["fork"] < found["spawn"]


def test_bad_input():
    with pytest.raises(ValueError, match="threads"):
        task_costs.memory(0)
    with pytest.raises(ValueError, match="kind"):
        task_costs.creation("fibre")
    with pytest.raises(ValueError, match="repeats"):
        task_costs.creation("thread", 1)
