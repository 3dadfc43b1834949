"""What runs beside a long call, and how many cores two threads of Python use."""

import sys
import time

import pytest

from gradbook.parallel import gil
from gradbook.parallel.systems import Unsupported

LOCKED = pytest.mark.skipif(not gil.enabled(), reason="this interpreter has no lock")


@LOCKED
def test_a_call_that_keeps_the_lock_stops_the_others_and_torch_does_not():
    tries = [gil.long_calls(0.3) for _ in range(3)]
    share = {name: [x[name].pause / x[name].seconds for x in tries] for name in tries[0]}
    assert max(share["sum of a range"]) >= 0.5
    for name in ("a product of matrices in torch", "a sleep"):
        assert max(x[name].ticks for x in tries) >= 5
        assert min(share[name]) <= 0.5
    assert all(x.seconds >= 0.3 for found in tries for x in found.values())


def test_ticks_are_counted_within_the_call_only():
    nothing = gil.ticks_during(lambda: None, 0.05)
    assert nothing.ticks <= 1
    assert nothing.pause <= nothing.seconds
    found = gil.ticks_during(lambda: time.sleep(0.2), 0.02)
    assert 1 <= found.ticks <= found.seconds / 0.02 + 1
    assert found.seconds >= 0.2
    assert found.seconds / (found.ticks + 1) <= found.pause < found.seconds


def test_an_error_ends_the_ticking():
    import threading

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        gil.ticks_during(lambda: 1 / 0)
    assert threading.active_count() == before


@LOCKED
def test_two_threads_of_python_use_one_core():
    found = gil.cores_used(0.2)
    assert len(found) == 3
    assert 0 < found.pop("Python, two threads") < 1.3
    assert all(0 < cores < 2.3 for cores in found.values())


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_bad_input(seconds):
    with pytest.raises(ValueError, match="seconds: must be positive"):
        gil.long_calls(seconds)
    with pytest.raises(ValueError, match="seconds: must be positive"):
        gil.cores_used(seconds)


def test_an_interpreter_without_the_lock_is_told(monkeypatch):
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    with pytest.raises(Unsupported, match="without the global interpreter lock"):
        gil.require_lock()
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True)
    gil.require_lock()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from 3.12 on, with threads
def test_a_process_that_fails_is_told():
    with pytest.raises(RuntimeError, match="exit code 1"):
        gil._busy_processes(lambda end: 1 / 0, 0.01)
