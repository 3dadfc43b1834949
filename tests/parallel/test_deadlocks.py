"""Deadlocks: made, seen from outside, refused, and avoided."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbook.parallel import deadlocks as dl

OPPOSITE = {"P": "ab", "Q": "ba"}
RING = {"P": "ab", "Q": "bc", "R": "ca"}


def test_who_waits_for_whom():
    assert dl.wait_for({"a": "P", "b": "Q"}, {"P": "b", "Q": "a", "R": "a", "S": "c"}) == {
        "P": "Q",
        "Q": "P",
        "R": "P",
    }


def test_circles():
    assert dl.cycle({}) == []
    assert dl.cycle({"P": "Q", "Q": "R"}) == []
    assert dl.cycle({"A": "P", "P": "Q", "Q": "P"}) == ["P", "Q"]
    assert dl.cycle({"A": "P", "P": "Q", "Q": "R", "R": "P"}) == ["P", "Q", "R"]


@given(st.permutations("PQRSTU"), st.integers(2, 6))
def test_a_circle_is_found_among_others(names, length):
    circle, others = names[:length], names[length:]
    graph = {x: circle[(i + 1) % length] for i, x in enumerate(circle)}
    graph |= dict.fromkeys(others, circle[0])
    found = dl.cycle(graph)
    assert set(found) == set(circle)
    assert all(graph[x] == y for x, y in zip(found, found[1:] + found[:1], strict=True))
    del graph[circle[0]]
    assert dl.cycle(graph) == []


@pytest.mark.parametrize("orders", [OPPOSITE, RING])
def test_a_deadlock_is_made_and_seen_from_outside(orders):
    locks, found = dl.Locks("abc"), []
    thread = threading.Thread(target=lambda: found.extend(dl.watch(locks, 30)))
    thread.start()
    assert dl.meet(locks, orders, 1.0, 30) == sorted(orders)
    thread.join()
    assert sorted(found) == sorted(orders)
    assert (locks.holders, locks.wanted) == ({}, {})


def test_a_thread_that_is_late_is_waited_for(monkeypatch):
    """Q takes its first lock later than the second one would be waited for."""
    locks, acquire = dl.Locks("ab"), dl.Locks.acquire

    def slow(self, thread, lock, timeout):
        if (thread, lock) == ("Q", "b"):
            time.sleep(1.0)
        return acquire(self, thread, lock, timeout)

    monkeypatch.setattr(dl.Locks, "acquire", slow)
    assert dl.meet(locks, OPPOSITE, 0.5, 30) == ["P", "Q"]


@pytest.mark.parametrize("orders", [OPPOSITE, RING])
def test_watched_locks_refuse_the_last_wait(orders):
    locks = dl.WatchedLocks("abc")
    with pytest.raises(dl.Deadlock, match=r"(.) waits for .*\1$"):
        dl.meet(locks, orders, 2.0, 30)
    assert (locks.holders, locks.wanted) == ({}, {})


def test_the_others_go_on_when_one_is_refused():
    locks = dl.WatchedLocks("ab")
    assert locks.acquire("P", "a", 0)
    assert locks.acquire("Q", "b", 0)
    got = []
    thread = threading.Thread(target=lambda: got.append(locks.acquire("P", "b", 30)))
    thread.start()
    while not locks.graph():
        time.sleep(0.001)
    with pytest.raises(dl.Deadlock, match="P waits for Q waits for P"):
        locks.acquire("Q", "a", 30)
    locks.release("Q", "b")
    thread.join()
    assert got == [True]
    assert locks.holders == {"a": "P", "b": "P"}


@pytest.mark.parametrize("kind", [dl.Locks, dl.WatchedLocks])
def test_one_order_for_all_is_safe(kind):
    assert dl.meet(kind("ab"), {"P": "ab", "Q": "ab"}, 10, 0.2) == []
    assert dl.meet(kind("abc"), {"P": "ab", "Q": "bc", "R": "ac"}, 10, 0.2) == []


def test_nothing_is_seen_where_nothing_is():
    assert dl.watch(dl.Locks("a"), 0.01) == []


def test_bad_input():
    locks = dl.Locks("a")
    with pytest.raises(ValueError, match="lock: must be one of"):
        locks.acquire("P", "b", 0)
    with pytest.raises(RuntimeError, match="P does not hold a"):
        locks.release("P", "a")
    assert locks.acquire("P", "a", 0)
    assert not locks.acquire("Q", "a", 0)
    with pytest.raises(RuntimeError, match="Q does not hold a"):
        locks.release("Q", "a")
