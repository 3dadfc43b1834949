"""All orders of steps: counted, their ends enumerated, and the worst one."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.parallel import interleavings as il


def orders(threads, steps):
    return set(itertools.permutations([k for k in range(threads) for _ in range(steps)]))


@pytest.mark.parametrize(("threads", "times"), [(2, 1), (2, 2), (3, 1)])
def test_ends_of_all_orders_one_by_one(threads, times):
    programs = [il.increments(times)] * threads
    counted, stuck = il.ends(programs)
    assert counted == Counter(il.follow(programs, order) for order in orders(threads, 2 * times))
    assert not stuck


@pytest.mark.parametrize(("threads", "times"), [(1, 4), (2, 4), (2, 7), (3, 2), (3, 3)])
def test_the_least_and_the_most(threads, times):
    counted, _ = il.ends([il.increments(times)] * threads)
    least = times if threads == 1 else min(2, times)
    assert min(counted) == least
    assert max(counted) == threads * times
    steps = 2 * times
    assert (
        sum(counted.values()) == math.factorial(threads * steps) // math.factorial(steps) ** threads
    )


@settings(max_examples=40)
@given(st.integers(2, 5), st.integers(2, 20))
def test_the_worst_order(threads, times):
    order = il.worst(threads, times)
    assert il.follow([il.increments(times)] * threads, order) == 2
    assert il.follow([il.increments(times)] * threads, il.in_step(threads, times)) == times


def test_a_lock_leaves_one_end():
    assert set(il.ends([il.locked(2)] * 3)[0]) == {6}
    assert il.ends([il.locked(3)] * 2) == (Counter({6: 20}), set())


def test_a_lock_each_is_no_lock():
    assert 1 in il.ends([il.locked(1, "a"), il.locked(1, "b")])[0]


def test_opposite_orders_can_be_stuck_and_one_order_cannot():
    counted, stuck = il.ends([il.nested("ab"), il.nested("ba")])
    assert set(counted) == {2}
    assert [x.owners for x in stuck] == [(("a", 0), ("b", 1))]
    assert il.ends([il.nested("ab"), il.nested("ab")]) == (Counter({2: 2}), set())
    assert il.ends([il.nested("ab"), il.nested("bc"), il.nested("ca")])[1]
    assert not il.ends([il.nested("ab"), il.nested("bc"), il.nested("ac")])[1]


def test_steps():
    programs = [il.locked(1), il.increments(1)]
    state = il.start(programs)
    state = il.step(programs, state, 0)
    assert state == il.State((1, 0), (0, 0), 0, (("a", 0),))
    state = il.step(programs, il.step(programs, state, 1), 1)
    assert (state.counter, state.places) == (1, (1, 2))
    assert il.step(programs, state, 1) is None


def test_bad_input():
    for order in ([-1, -1, 0, 0], [0, 0, 2, 2]):
        with pytest.raises(ValueError, match="order: threads count from 0 to 1"):
            il.follow([il.increments(1)] * 2, order)
    for make in (il.increments, il.locked, lambda times: il.in_step(2, times)):
        for times in (0, -1):
            with pytest.raises(ValueError, match="times"):
                make(times)
    with pytest.raises(ValueError, match="threads"):
        il.in_step(-1, 2)
    with pytest.raises(ValueError, match="thread 0 cannot go on at turn 2"):
        il.follow([il.increments(1)], [0, 0, 0])
    with pytest.raises(ValueError, match="ends before"):
        il.follow([il.increments(1)], [0])
    with pytest.raises(ValueError, match="thread 0 cannot go on at turn 1"):
        il.follow([il.locked(1)] * 2, [1, 0])
    with pytest.raises(ValueError, match="cannot release a"):
        il.ends([(("release", "a"),)])
    with pytest.raises(ValueError, match="cannot think"):
        il.ends([(("think", ""),)])
    for wrong in ((1, 3), (2, 1)):
        with pytest.raises(ValueError, match="threads, times"):
            il.worst(*wrong)
