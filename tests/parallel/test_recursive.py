"""Exchanges of pairs: folding in and out, halves, and the last owner of a chunk."""

import pytest

from gradbook.parallel import recursive, schedules
from gradbook.parallel.schedules import COPY, REDUCE


def test_recursive_doubling_of_three_folds_the_last_rank_in_and_out():
    expected = [
        (0, 2, 0, 0, REDUCE),
        (1, 0, 1, 0, REDUCE),
        (1, 1, 0, 0, REDUCE),
        (2, 0, 2, 0, COPY),
    ]
    assert schedules.recursive_doubling(3).transfers == tuple(expected)


def test_halving_gives_away_half_and_rank_i_ends_with_chunk_i():
    schedule = schedules.halving_doubling(8)
    for step, kept in enumerate((4, 2, 1)):
        here = [t for t in schedule.transfers if t.step == step]
        assert {(t.source ^ t.destination, t.op) for t in here} == {(kept, REDUCE)}
        assert {t.chunk // kept for t in here if t.source == 5} == {(5 ^ kept) // kept}
        assert len(here) == 8 * kept
    halved = schedule._replace(transfers=tuple(t for t in schedule.transfers if t.op == REDUCE))
    held = schedules.contributions(halved)
    assert all((held[i][c] == frozenset(range(8))) == (i == c) for i in range(8) for c in range(8))
    doubled = [
        (3 - 1 - (t.step - 3), t.destination, t.source, t.chunk, REDUCE)
        for t in schedule.transfers
        if t.op == COPY
    ]
    assert set(doubled) == set(halved.transfers)


def test_powers_of_two():
    assert [recursive.power(p) for p in range(1, 10)] == [1, 2, 2, 4, 4, 4, 4, 8, 8]
    assert [recursive.powers(q) for q in (1, 2, 8)] == [[], [1], [1, 2, 4]]
    with pytest.raises(ValueError, match="world_size"):
        recursive.power(0)
