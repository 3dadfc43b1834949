"""The fewest messages, by exhaustive search and against the ring."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbook.parallel import lower_bound, schedules
from gradbook.parallel.traffic import chunk_sizes, traffic

SEARCHES = {
    "all_reduce": lower_bound.all_reduce_messages,
    "reduce_scatter": lower_bound.reduce_scatter_messages,
    "all_gather": lower_bound.all_gather_messages,
}


@pytest.mark.parametrize("tell", [lower_bound.gossip, lower_bound.numbers])
@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_two_messages_for_every_further_rank(p, tell):
    found = {name: search(p, tell) for name, search in SEARCHES.items()}
    assert found == {"all_reduce": 2 * (p - 1), "reduce_scatter": p - 1, "all_gather": p - 1}


def test_five_ranks_need_eight_messages():
    assert lower_bound.all_reduce_messages(5) == 8


@pytest.mark.parametrize("p", range(1, 6))
def test_every_chunk_of_a_ring_takes_the_fewest_messages(p):
    counts = [0] * p
    for t in schedules.ring(p).transfers:
        counts[t.chunk] += 1
    assert counts == [2 * (p - 1)] * p


def test_what_one_message_can_do():
    # Ranks 0, 1, 2 hold {0}, {0, 1}, {2}: bits 0-2, 3-5 and 6-8.
    state = np.array([0b100_011_001])
    assert lower_bound.gossip(state, 3, 0, 1).tolist() == [0b100_011_001]
    assert lower_bound.gossip(state, 3, 1, 2).tolist() == [0b111_011_001]
    assert lower_bound.numbers(state, 3, 1, 2).tolist() == [0b011_011_001, 0b111_011_001]
    assert lower_bound.numbers(state, 3, 0, 1).tolist() == [0b100_001_001]


@pytest.mark.parametrize("search", SEARCHES.values())
@pytest.mark.parametrize("p", [0, 6, 2.0, True])
def test_the_search_takes_one_to_five_ranks(search, p):
    with pytest.raises(ValueError, match="world_size"):
        search(p)


def limited(tell):
    """Raise instead of going on for ever."""
    calls = []

    def telling(states, p, source, to):
        calls.append((source, to))
        assert len(calls) <= 300, "the search does not end"
        return tell(states, p, source, to)

    return telling, calls


def test_a_message_that_tells_nothing_ends_the_search():
    tell, calls = limited(lambda states, p, source, to: states)
    with pytest.raises(RuntimeError, match="no message leads any further"):
        lower_bound.all_reduce_messages(3, tell)
    # Once for every pair: the start was seen.
    assert len(calls) == 6


def test_no_state_is_gone_on_from_twice():
    # Bit 0 of the receiver is turned: 8 states, among them each other's neighbours, 3 turns deep.
    tell, calls = limited(lambda states, p, source, to: states ^ (1 << to * p))
    with pytest.raises(RuntimeError, match="no message leads any further"):
        lower_bound.all_reduce_messages(3, tell)
    assert len(calls) == 4 * 6


@given(st.integers(1, 20), st.integers(0, 200))
def test_the_busiest_rank_of_a_ring_sends_at_most_one_element_more_than_it_must(p, n):
    schedule = schedules.ring(p)
    busiest = max(traffic(schedule, chunk_sizes(schedule, n)).sent)
    least = lower_bound.least_elements(p, n)
    assert least == math.ceil(2 * (p - 1) * n / p)
    assert busiest - least == (p / 2 <= n % p <= p - 2)


@pytest.mark.parametrize("n", [-1, 1.0, True])
def test_elements_are_whole(n):
    with pytest.raises(ValueError, match="n: must be"):
        lower_bound.least_elements(3, n)
    with pytest.raises(ValueError, match="world_size"):
        lower_bound.least_traffic(0)
