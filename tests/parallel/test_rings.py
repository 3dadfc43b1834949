"""Rings: who sends which chunk when, and where the halves meet."""

import pytest

from gradbook.parallel import rings, schedules
from gradbook.parallel.schedules import COPY, REDUCE, Schedule, Transfer


def test_a_ring_of_three_is_the_table_of_the_paper():
    scatter = [(0, 1, 0), (1, 2, 1), (2, 0, 2)], [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    gather = [(0, 1, 1), (1, 2, 2), (2, 0, 0)], [(0, 1, 0), (1, 2, 1), (2, 0, 2)]
    expected = [Transfer(s, *row, REDUCE) for s in (0, 1) for row in scatter[s]]
    expected += [Transfer(2 + s, *row, COPY) for s in (0, 1) for row in gather[s]]
    assert schedules.ring(3) == Schedule("ring", 3, 3, tuple(expected))


@pytest.mark.parametrize("p", range(1, 17))
def test_a_ring_is_its_two_halves_one_after_the_other(p):
    first, second = schedules.reduce_scatter(p), schedules.all_gather(p)
    later = [t._replace(step=t.step + p - 1) for t in second.transfers]
    assert schedules.ring(p).transfers == (*first.transfers, *later)
    assert {t.op for t in first.transfers} <= {REDUCE}
    assert {t.op for t in second.transfers} <= {COPY}


@pytest.mark.parametrize("p", range(1, 17))
def test_rank_i_ends_the_reduce_scatter_with_chunk_i_plus_1_and_gathering_starts_there(p):
    everyone = frozenset(range(p))
    held = schedules.contributions(schedules.reduce_scatter(p))
    full = [[c for c in range(p) if held[i][c] == everyone] for i in range(p)]
    assert full == [[(i + 1) % p] for i in range(p)]
    gathered = schedules.contributions(schedules.all_gather(p), held)
    assert gathered == [[everyone] * p] * p


@pytest.mark.parametrize("p", range(2, 17))
def test_rings_send_to_one_neighbour_or_to_both(p):
    up, down, both = rings.ring(p), rings.ring_reversed(p), rings.ring_both(p)
    assert {(t.destination - t.source) % p for t in up.transfers} == {1}
    assert {(t.destination - t.source) % p for t in down.transfers} == {p - 1}
    mirrored = {
        (t.step, -t.source % p, -t.destination % p, -t.chunk % p, t.op) for t in up.transfers
    }
    assert set(down.transfers) == mirrored
    lower = [t for t in both.transfers if t.chunk < p]
    upper = [t._replace(chunk=t.chunk - p) for t in both.transfers if t.chunk >= p]
    assert (tuple(lower), tuple(upper)) == (up.transfers, down.transfers)
    assert both.chunks == 2 * p
