"""What ends a thread and what ends a process."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gradbook.parallel import crashes

CODES = {
    "an exception": 0,
    "an endless recursion": 0,
    "a request for too much memory": 0,
    "sys.exit": 0,
    "os._exit": 3,
    "a read from address 0": -signal.SIGSEGV,
}


@pytest.mark.parametrize("what", crashes.FAILURES)
def test_who_goes_on(what):
    found = crashes.crash(what)
    assert found.code == CODES[what]
    assert found.finished == (CODES[what] == 0)


def test_the_exception_is_told():
    assert crashes.crash("an exception").words == "ValueError: a mistake in a thread"


def test_a_lock_that_was_held_at_a_fork_is_held_for_ever_in_the_child():
    found = crashes.fork_while_locked(0.1)
    assert found.threads == (2, 1)
    assert found.got == (True, False)


def test_work_for_pools(monkeypatch):
    assert crashes.inverse(4) == 0.25
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        pool.submit(crashes.inverse, 0).result()
    sent = []
    monkeypatch.setattr(os, "kill", lambda *given: sent.append(given))
    crashes.die()
    assert sent == [(os.getpid(), signal.SIGKILL)]


def test_the_others_go_on_after_the_failure_and_not_before(monkeypatch):
    """A failure that never comes to its end leaves the second thread without work."""
    over = threading.Event()
    monkeypatch.setitem(crashes.FAILURES, "an exception", over.wait)
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    found = []
    thread = threading.Thread(target=lambda: found.append(crashes._crash("an exception")))
    thread.start()
    thread.join(0.3)
    assert not found
    over.set()
    thread.join(30)
    assert found == ["finished"]


@pytest.mark.parametrize("wait", [-1, float("nan"), 3601])
def test_a_wait_that_would_not_end_is_refused(wait):
    with pytest.raises(ValueError, match="wait: must be from 0"):
        crashes.fork_while_locked(wait)


def test_bad_input():
    with pytest.raises(ValueError, match="what: must be one of"):
        crashes.crash("rain")
