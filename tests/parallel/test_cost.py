"""Closed forms of cost against the traffic that schedules make, crossovers, segments, bandwidth."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.parallel import bandwidth, cost, schedules, traffic
from gradbook.parallel.schedules import ALGORITHMS

RATES = {"alpha": 5e-6, "beta": 1e-11, "gamma": 3e-12}


def measured(schedule, size):
    """Steps and traffic of a tensor of so many bytes, counted."""
    sizes = traffic.chunk_sizes(schedule, size)
    loads = traffic.loads(schedule, sizes)
    sent = max(traffic.traffic(schedule, sizes).sent)
    return len(loads), sent, sum(load.port for load in loads), sum(load.reduced for load in loads)


def spent(form, size):
    return form.steps, *(size * part for part in form[1:])


@pytest.mark.parametrize("p", range(1, 34))
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_closed_forms_are_what_the_schedules_move(name, p):
    schedule = ALGORITHMS[name](p)
    size = 3 * schedule.chunks
    assert measured(schedule, size) == spent(cost.COSTS[name](p), size)
    clock = traffic.clock(schedule, traffic.chunk_sizes(schedule, size), **RATES)
    seconds = cost.COSTS[name](p).seconds(size, **RATES)
    # Rounding of a few hundred additions.
    assert (clock[-1] if clock else 0.0) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("segments", [1, 2, 3, 16])
@pytest.mark.parametrize("p", range(1, 34))
def test_the_closed_form_of_two_trees_for_every_number_of_segments(p, segments):
    schedule = schedules.double_tree(p, segments)
    size = 2 * segments
    assert measured(schedule, size) == spent(cost.double_tree(p, segments), size)


@settings(max_examples=60)
@given(st.sampled_from(sorted(ALGORITHMS)), st.integers(1, 12), st.integers(0, 200))
def test_with_uneven_chunks_the_clock_stays_between_the_even_sizes(name, p, size):
    schedule = ALGORITHMS[name](p)
    _, *moved = measured(schedule, size)
    _, *below = spent(cost.COSTS[name](p), size // schedule.chunks * schedule.chunks)
    _, *above = spent(cost.COSTS[name](p), -(-size // schedule.chunks) * schedule.chunks)
    assert all(a <= b <= c for a, b, c in zip(below, moved, above, strict=True))


def test_the_table_for_eight_ranks():
    table = {name: form(8)[:] for name, form in cost.COSTS.items() if name != "double_tree"}
    ring = (14, Fraction(7, 4), Fraction(7, 4), Fraction(7, 8))
    assert table == {
        "ring": ring,
        "ring_reversed": ring,
        "ring_both": ring,
        "root": (14, 7, 14, 7),
        "binomial": (6, 3, 6, 3),
        "recursive_doubling": (3, 3, 3, 3),
        "halving_doubling": (6, Fraction(7, 4), Fraction(7, 4), Fraction(7, 8)),
    }
    assert cost.recursive_doubling(6) == (4, 3, 4, 3)
    assert cost.halving_doubling(6) == (6, Fraction(5, 2), Fraction(7, 2), Fraction(7, 4))
    assert cost.double_tree(8, 100) == (406, 2, Fraction(203, 100), Fraction(203, 200))


@pytest.mark.parametrize("p", range(2, 34))
def test_no_algorithm_sends_less_than_the_bound_and_the_ring_sends_just_that(p):
    bound = bandwidth.bus_factor(p)
    assert all(form(p).sent >= bound and form(p).port >= bound for form in cost.COSTS.values())
    reached = {name for name, form in cost.COSTS.items() if form(p).port == bound}
    power = {"halving_doubling"} if p & (p - 1) == 0 else set()
    also = {"recursive_doubling", "double_tree"} if p == 2 else set()
    assert reached == {"ring", "ring_reversed", "ring_both"} | power | also


def test_a_ring_beats_the_exchange_above_a_few_megabytes():
    larger = cost.crossover(cost.ring(8), cost.recursive_doubling(8), 5e-6, 1e-11)
    assert larger == pytest.approx(8.8 * 5e-6 / 1e-11, rel=1e-12)
    for p in (4, 8, 16, 32):
        levels = math.log2(p)
        form = (2 * (p - 1) - levels) / (levels - 2 * (p - 1) / p)
        assert cost.crossover(cost.ring(p), cost.recursive_doubling(p), 1, 1) == pytest.approx(
            form, rel=1e-12
        )


@given(
    st.sampled_from(sorted(cost.COSTS)),
    st.sampled_from(sorted(cost.COSTS)),
    st.integers(1, 20),
    st.booleans(),
)
def test_above_the_crossover_the_first_is_the_faster_and_below_it_is_not(one, other, p, combining):
    first, second = cost.COSTS[one](p), cost.COSTS[other](p)
    rates = RATES if combining else {"alpha": 5e-6, "beta": 1e-11}
    size = cost.crossover(first, second, **rates)
    assert size >= 0
    if size == math.inf:
        # However large the tensor, it is no faster; the slack is rounding.
        assert first.seconds(1e18, **rates) >= second.seconds(1e18, **rates) * (1 - 1e-12)
        return
    assert (
        first.seconds(2 * size + 1e6, **rates) < second.seconds(2 * size + 1e6, **rates)
        or first == second
    )
    if size > 0:
        assert first.seconds(size / 2, **rates) > second.seconds(size / 2, **rates)


def test_crossovers_at_the_edge():
    fast, slow = cost.Cost(2, 1, 1, 1), cost.Cost(4, 1, 1, 1)
    assert cost.crossover(fast, slow, 1, 1) == 0
    assert cost.crossover(slow, fast, 1, 1) == math.inf
    assert cost.crossover(fast, fast, 1, 1) == math.inf
    assert cost.crossover(cost.Cost(4, 1, 1, 3), cost.Cost(2, 1, 2, 1), 1, 5, 1) == pytest.approx(
        2 / 3
    )
    with pytest.raises(ValueError, match="beta"):
        cost.crossover(fast, slow, 1, -1)


@pytest.mark.parametrize("p", [2, 3, 4, 8, 13, 16])
@pytest.mark.parametrize("size", [0, 1e3, 1e5, 1e7])
def test_the_best_number_of_segments_is_the_best_of_all(p, size):
    rates = {"alpha": 5e-6, "beta": 1e-9, "gamma": 1e-10}
    best = cost.best_segments(p, size, **rates)
    times = {m: cost.double_tree(p, m).seconds(size, **rates) for m in range(1, 400)}
    assert times[best] == min(times.values())


def test_long_tensors_are_cut_into_many_segments():
    # a = 2 (H - 2), b = 4 with H = 5: sqrt(6 * 1e9 / (2 * 4 * 1000)) = 866.03.
    assert cost.best_segments(8, 1e9, 1000, 1) == 866
    assert cost.best_segments(8, 1e9, 1000, 0.5, 1) == 866


@pytest.mark.parametrize("make", [*set(cost.COSTS.values()), bandwidth.bus_factor])
def test_sizes_and_rates_are_checked(make):
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="world_size"):
            make(size)


def test_other_numbers_are_checked():
    with pytest.raises(ValueError, match="segments"):
        cost.double_tree(4, 0)
    for rate in ("size", "alpha", "beta", "gamma"):
        for bad in (-1.0, math.nan, math.inf):
            given_rates = {"size": 1.0, "alpha": 1.0, "beta": 1.0, "gamma": 1.0, rate: bad}
            with pytest.raises(ValueError, match=rate):
                cost.ring(4).seconds(**given_rates)
            with pytest.raises(ValueError, match=rate):
                cost.best_segments(4, **given_rates)
    with pytest.raises(ValueError, match="world_size: must be at least 2"):
        cost.best_segments(1, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="alpha: must be above 0"):
        cost.best_segments(2, 1.0, 0.0, 1.0)
