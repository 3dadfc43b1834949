"""Every state of a task is brought about and seen."""

import time

import pytest

from gradbook.parallel import states
from gradbook.parallel.children import fork, kill
from gradbook.parallel.systems import Unsupported


def test_every_state_is_seen():
    assert states.observed() == {letter: letter for letter in states.STATES}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from 3.12 on, with threads
def test_a_state_that_does_not_come_is_not_waited_for_for_ever():
    start = time.monotonic()
    pid = fork(lambda: time.sleep(60))
    try:
        assert states._seen(pid, "Z", 0.3) == "S"
    finally:
        kill(pid)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_bad_input(timeout):
    with pytest.raises(ValueError, match="timeout: must be at least 0"):
        states.observed(timeout)


def test_without_fork_it_says_so(monkeypatch):
    monkeypatch.delattr("os.fork")
    with pytest.raises(Unsupported, match="fork"):
        states.observed()
