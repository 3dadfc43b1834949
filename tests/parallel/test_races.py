"""Threads that add to one counter: in a given order, by chance, and mended."""

import os
import threading
import time

import pytest

from gradbook.parallel import interleavings as il
from gradbook.parallel import races


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_real_threads_do_what_the_order_says(threads):
    assert races.replay(il.worst(threads, 30), threads) == 2
    assert races.replay(il.in_step(threads, 30), threads) == 30
    serial = [k for k in range(threads) for _ in range(60)]
    assert races.replay(serial, threads) == 30 * threads


def test_all_orders_of_two_threads():
    for order in (
        [0, 0, 1, 1],
        [0, 1, 0, 1],
        [0, 1, 1, 0],
        [1, 0, 0, 1],
        [1, 0, 1, 0],
        [1, 1, 0, 0],
    ):
        assert races.replay(order, 2) == il.follow([il.increments(1)] * 2, order)


@pytest.mark.parametrize("name", races.MENDED)
def test_mended_ways_lose_nothing(name):
    assert races.MENDED[name](4, 50) == 200
    assert races.MENDED[name](1, 3) == 3


def test_the_mended_ways_are_tried_where_an_update_would_be_lost(monkeypatch):
    """The pause is so long that threads without a lock all read before one writes."""
    monkeypatch.setattr(races, "_yield", lambda: time.sleep(0.1))
    assert races.unmended(4, 1) < 4
    for way in races.MENDED.values():
        assert way(4, 1) == 4


def test_an_update_can_be_lost_in_a_pause():
    counter = races.Counter()
    races.increment(counter, lambda: setattr(counter, "value", 7))
    assert counter.value == 1


def test_by_chance_no_more_is_lost_than_was_added():
    found = races.lost_as_it_happens(1000)
    assert len(found) == 3
    assert all(0 <= lost <= 1998 for lost in found.values())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from 3.12 on, with threads
@pytest.mark.parametrize("end", [lambda: os._exit(1), lambda: os.kill(os.getpid(), 9)])
def test_what_a_process_that_fails_has_not_added_is_not_lost(end, monkeypatch):
    fork = races.fork
    monkeypatch.setattr(races, "fork", lambda body: fork(end))
    with pytest.raises(RuntimeError, match="it ended with exit code"):
        races._by_processes(5, patience=0)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from 3.12 on, with threads
def test_both_processes_add():
    lost = [2000 - races._by_processes(1000) for _ in range(3)]
    assert all(0 <= x <= 1998 for x in lost)
    assert races._by_processes(1) in (1, 2)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-1, -4)])
def test_nonsense_is_refused(sizes):
    for way in (races.unmended, *races.MENDED.values()):
        with pytest.raises(ValueError, match="threads|times"):
            way(*sizes)
    with pytest.raises(ValueError, match="times"):
        races.lost_as_it_happens(-3)


def test_an_owner_that_gets_nothing_says_so(monkeypatch):
    class Empty:
        put = staticmethod(lambda message: None)

        def get(self, timeout):
            raise races.queue.Empty

    monkeypatch.setattr(races.queue, "SimpleQueue", Empty)
    with pytest.raises(TimeoutError, match="messages: none came"):
        races.with_an_owner(1, 1)


def test_errors_of_threads_come_out():
    def fails():
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        races.run_all([fails, lambda: None])


def test_nothing_waits_for_ever():
    over = threading.Event()
    with pytest.raises(TimeoutError, match="within 0.1 s"):
        races.run_all([over.wait], timeout=0.1)
    over.set()


def test_a_thread_that_is_late_does_not_stop_the_others_for_ever(monkeypatch):
    monkeypatch.setattr(races, "increment", lambda counter, pause: time.sleep(0.5))
    with pytest.raises(TimeoutError, match="for its turn"):
        races.replay([0, 1, 0, 1], 2, timeout=0.1)


@pytest.mark.parametrize("order", [[0, 0, 1], [0, 2, 0, 2], [-1, -1]])
def test_orders_that_cannot_be(order):
    with pytest.raises(ValueError, match="order"):
        races.replay(order, 2)
