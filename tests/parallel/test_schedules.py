"""Schedules: what each algorithm sends when, and that every one is an all-reduce."""

import pytest

from gradbook.parallel import schedules
from gradbook.parallel.schedules import ALGORITHMS

POWERS = (1, 2, 4, 8, 16)


def log2(p):
    """Rounded up."""
    return (p - 1).bit_length()


@pytest.mark.parametrize("p", [*range(1, 18), 23, 31, 32, 33])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_an_all_reduce_of_its_name_for_every_size(name, p):
    schedule = ALGORITHMS[name](p)
    schedules.require_valid(schedule)
    assert schedule.name == name
    assert schedule.world_size == p
    assert [t.step for t in schedule.transfers] == sorted(t.step for t in schedule.transfers)
    assert (p == 1) == (schedule.transfers == ())


@pytest.mark.parametrize("name", [*ALGORITHMS, "reduce_scatter", "all_gather"])
@pytest.mark.parametrize("size", [0, -1, 2.0, True, "2"])
def test_a_world_has_a_positive_number_of_ranks(name, size):
    with pytest.raises(ValueError, match="world_size"):
        getattr(schedules, name)(size)


@pytest.mark.parametrize("p", range(1, 34))
def test_the_number_of_steps_and_chunks_is_that_of_the_books(p):
    q = 1 << (p.bit_length() - 1)
    extra = 2 * (p != q)
    expected = {
        "ring": (2 * (p - 1), p),
        "ring_reversed": (2 * (p - 1), p),
        "ring_both": (2 * (p - 1), 2 * p),
        "root": (2 * (p - 1), 1),
        "binomial": (2 * log2(p), 1),
        "recursive_doubling": (log2(q) + extra, 1),
        "halving_doubling": (2 * log2(q) + extra, q),
    }
    for name, (steps, chunks) in expected.items():
        schedule = ALGORITHMS[name](p)
        assert (len(schedules.steps(schedule)), schedule.chunks) == (steps, chunks), name
