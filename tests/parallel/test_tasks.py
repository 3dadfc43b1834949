"""Tasks: the system's list against Python's, status files, registers of waiting threads."""

import gc
import os
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from gradbook.parallel import systems, tasks

STATUS = """Name:\tGC Thread#0
Umask:\t0022
State:\tS (sleeping)
Tgid:\t7
Pid:\t9
voluntary_ctxt_switches:\t20
nonvoluntary_ctxt_switches:\t3
"""


def test_a_status_is_read():
    assert tasks.parse_task(STATUS) == tasks.Task(9, "GC Thread#0", "S", 20, 3)


@pytest.mark.parametrize("key", ["Name", "State", "Pid", "voluntary_ctxt_switches"])
def test_a_status_without_a_line_is_refused(key):
    lines = [x for x in STATUS.splitlines() if not x.startswith(key + ":")]
    with pytest.raises(ValueError, match=f"text: a status has a line {key}"):
        tasks.parse_task("\n".join(lines))


def test_the_system_lists_a_thread_and_so_does_python():
    ready, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (ready.set(), over.wait()), name="one more")
    thread.start()
    ready.wait()
    try:
        listed = {x.id: x for x in tasks.tasks()}
        assert tasks.python_threads()[thread.native_id] == "one more"
        assert set(tasks.python_threads()) <= set(listed)
        assert listed[thread.native_id].state in "RS"
        assert list(listed) == sorted(listed)
        assert tasks.task(os.getpid()).id == os.getpid()
        assert tasks.task(os.getpid(), thread.native_id).id == thread.native_id
    finally:
        over.set()
        thread.join()
    assert thread.native_id not in tasks.python_threads()
    # Python has done with it a moment before the system has.
    deadline = time.monotonic() + 30
    while thread.native_id in {x.id for x in tasks.tasks()} and time.monotonic() < deadline:
        time.sleep(0.001)
    with pytest.raises(ProcessLookupError, match=f"task {thread.native_id}"):
        tasks.task(os.getpid(), thread.native_id)


def test_a_process_that_is_not_there():
    with pytest.raises(ProcessLookupError):
        tasks.tasks(2**22 + 1)


def test_torch_brings_threads_that_python_does_not_list():
    counts = list(tasks.count_around_torch(3).values())
    (python, system), *_ = counts
    assert (python, system) == (1, 1)
    assert [p for p, _ in counts] == [1, 1, 1, 2]
    assert counts[2][1] >= counts[1][1] + 2
    assert counts[3][1] == counts[2][1] + 1


def test_threads_that_wait_stand_at_one_place_of_the_code_on_stacks_of_their_own():
    places = tasks.waiting_places(4)
    assert len({x.counter for x in places}) == 1
    pointers = sorted(x.pointer for x in places)
    assert all(above - below >= 1 << 16 for below, above in pairwise(pointers))


def test_no_thread_or_pipe_is_left():
    gc.collect()  # what earlier tests opened may be closed at any time
    files = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    tasks.waiting_places(2)
    with pytest.raises(TimeoutError):
        tasks.waiting_places(1, timeout=0)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) <= files


def test_a_name_that_is_cut_within_a_letter_is_read():
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        name = "äöüäöüäö".encode()[:15]
        Path(f"/proc/self/task/{thread.native_id}/comm").write_bytes(name)
        found = tasks.task(os.getpid(), thread.native_id).name
        assert found == name.decode(errors="replace")
        assert "\ufffd" in found
    finally:
        over.set()
        thread.join()


def test_bad_input(monkeypatch):
    for ask in (tasks.count_around_torch, tasks.waiting_places):
        for threads in (0, -1):
            with pytest.raises(ValueError, match="threads"):
                ask(threads)
    for ask in (tasks.task, tasks.tasks):
        with pytest.raises(ValueError, match="process: must be a positive integer, got 0"):
            ask(0)
    with pytest.raises(ValueError, match="thread: must be"):
        tasks.task(os.getpid(), 0)
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    with pytest.raises(systems.Unsupported, match="syscall"):
        tasks.waiting_places(1)
