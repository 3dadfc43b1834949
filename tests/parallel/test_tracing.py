"""Proof by trace: broken schedules are found, and the order of a sum is written out."""

import random

import pytest

from gradbook.parallel import schedules, tracing
from gradbook.parallel.schedules import ALGORITHMS, COPY, REDUCE, Schedule, Transfer

SOME = [(name, p) for name in ALGORITHMS for p in (2, 3, 5, 8)]


def leaves(expression):
    if isinstance(expression, int):
        return [expression]
    return [leaf for side in expression for leaf in leaves(side)]


def canonical(expression):
    if isinstance(expression, int):
        return str(expression)
    return "(" + "+".join(sorted(canonical(side) for side in expression)) + ")"


@pytest.mark.parametrize(("name", "p"), SOME)
def test_without_any_one_transfer_it_is_no_all_reduce(name, p):
    schedule = ALGORITHMS[name](p)
    places = range(len(schedule.transfers))
    for left_out in random.Random(0).sample(places, min(20, len(places))):
        rest = [t for i, t in enumerate(schedule.transfers) if i != left_out]
        renumber = {step: i for i, step in enumerate(sorted({t.step for t in rest}))}
        rest = tuple(t._replace(step=renumber[t.step]) for t in rest)
        with pytest.raises(ValueError, match="ends without|counts|another order"):
            schedules.require_valid(schedule._replace(transfers=rest))


@pytest.mark.parametrize(("name", "p"), SOME)
def test_a_repeated_reduce_is_counted_twice(name, p):
    schedule = ALGORITHMS[name](p)
    last = max(t.step for t in schedule.transfers)
    again = Transfer(last + 1, 1, 0, 0, REDUCE)
    with pytest.raises(ValueError, match=rf"counts \[0, 1.* twice.*step={last + 1}"):
        schedules.require_valid(schedule._replace(transfers=(*schedule.transfers, again)))


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"rank 0 ends without \[1, 2\] in chunk 0"):
        schedules.require_valid(schedules.all_gather(3)._replace(transfers=()))
    ring = schedules.ring(3)
    unfinished = ring._replace(transfers=tuple(t for t in ring.transfers if t.step < 3))
    with pytest.raises(ValueError, match=r"rank 0 ends without \[1\] in chunk 2"):
        schedules.require_valid(unfinished)
    with pytest.raises(ValueError, match="op"):
        schedules.require_valid(Schedule("mine", 2, 1, (Transfer(0, 0, 1, 0, "add"),)))


def test_ranks_that_add_in_another_order_are_refused():
    # Rank i gets i - 1, then the pair of i + 2: complete, but (0 + 3) + (2 + 1) is not (1 + 0) + (3 + 2).
    near = [Transfer(0, i, (i + 1) % 4, 0, REDUCE) for i in range(4)]
    far = [Transfer(1, i, (i + 2) % 4, 0, REDUCE) for i in range(4)]
    schedule = Schedule("mine", 4, 1, (*near, *far))
    assert tracing.contributions(schedule) == [[frozenset(range(4))]] * 4
    right = "^transfers: rank 1 combines chunk {} in another order than rank 0"
    with pytest.raises(ValueError, match=right.format(0)):
        schedules.require_valid(schedule)
    # And in the second of two chunks, when the first goes through a tree.
    tree = schedules.recursive_doubling(4).transfers
    moved = tuple(t._replace(chunk=1) for t in schedule.transfers)
    both = sorted((*tree, *moved), key=lambda t: t.step)
    with pytest.raises(ValueError, match=right.format(1)):
        schedules.require_valid(Schedule("mine", 4, 2, tuple(both)))


@pytest.mark.parametrize(("name", "p"), SOME)
def test_the_order_is_the_same_at_all_ranks_and_holds_every_rank_once(name, p):
    schedule = ALGORITHMS[name](p)
    orders = tracing.order(schedule)
    assert all(sorted(leaves(e)) == list(range(p)) for row in orders for e in row)
    texts = [[canonical(e) for e in row] for row in orders]
    assert all(row == texts[0] for row in texts)
    numbers = [number for row in tracing.roundings(schedule) for number in row]
    texts = [text for row in texts for text in row]
    # One number per order: equal where the orders are, and nowhere else.
    assert len(set(numbers)) == len(set(texts)) == len(set(zip(numbers, texts, strict=True)))


def test_a_ring_adds_each_chunk_from_its_own_rank_on():
    assert tracing.order(schedules.ring(3))[1] == [(2, (1, 0)), (0, (2, 1)), (1, (0, 2))]
    assert tracing.order(schedules.recursive_doubling(4))[2] == [((2, 3), (0, 1))]
    assert tracing.order(schedules.root(4))[3] == [(((0, 1), 2), 3)]


def test_a_step_reads_what_was_there_before_it():
    swap = [Transfer(0, 0, 1, 0, COPY), Transfer(0, 1, 0, 0, COPY)]
    held = [["a"], ["b"]]
    tracing.carry_out(swap, held, None)
    assert held == [["b"], ["a"]]
    exchange = [t._replace(op=REDUCE) for t in swap]
    tracing.carry_out(exchange, held, lambda own, received: f"({own}{received})")
    assert held == [["(ba)"], ["(ab)"]]


def test_what_was_held_before_is_left_as_it_was():
    schedule = schedules.ring(3)
    start = tracing.own(schedule)
    schedules.contributions(schedule, start)
    assert start == [[frozenset([i])] * 3 for i in range(3)]


@pytest.mark.parametrize("start", [[], [[frozenset()] * 3] * 2, [[frozenset()] * 2] * 3])
def test_what_was_held_before_must_be_there_for_every_rank_and_chunk(start):
    with pytest.raises(ValueError, match="^start: must be 3 rows of 3"):
        tracing.contributions(schedules.ring(3), start)


def test_the_journey_of_a_chunk_goes_once_around_and_once_again():
    route = [(t.source, t.destination) for t in tracing.journey(schedules.ring(4), 2)]
    assert route == [(2, 3), (3, 0), (0, 1), (1, 2), (2, 3), (3, 0)]
    for chunk in (-1, 4):
        with pytest.raises(ValueError, match="chunk"):
            tracing.journey(schedules.ring(4), chunk)


@pytest.mark.parametrize("read", [tracing.order, tracing.roundings, tracing.contributions])
def test_no_trace_of_a_schedule_that_cannot_be_carried_out(read):
    with pytest.raises(ValueError, match="two ranks"):
        read(Schedule("mine", 2, 1, (Transfer(0, 1, 1, 0, COPY),)))


@pytest.mark.parametrize("p", range(2, 17))
def test_a_binomial_tree_rounds_as_the_exchange_does_for_powers_of_two_only(p):
    tree, exchange = (
        canonical(tracing.order(make(p))[0][0])
        for make in (schedules.binomial, schedules.recursive_doubling)
    )
    assert (tree == exchange) == (p & (p - 1) == 0)
