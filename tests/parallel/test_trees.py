"""All-reduce through a root, one by one and on a binomial tree."""

from gradbook.parallel import schedules, trees
from gradbook.parallel.schedules import COPY, REDUCE


def test_a_root_talks_to_one_rank_at_a_time():
    moves = [(t.source, t.destination, t.op) for t in schedules.root(4).transfers]
    assert moves == [(i, 0, REDUCE) for i in (1, 2, 3)] + [(0, i, COPY) for i in (1, 2, 3)]
    assert [t.step for t in schedules.root(4).transfers] == list(range(6))


def test_a_binomial_tree_of_six_joins_neighbours_first():
    up = [(0, 1, 0), (0, 3, 2), (0, 5, 4), (1, 2, 0), (2, 4, 0)]
    down = [(3, 0, 4), (4, 0, 2), (5, 0, 1), (5, 2, 3), (5, 4, 5)]
    expected = [(*t, 0, REDUCE) for t in up] + [(*t, 0, COPY) for t in down]
    assert set(schedules.binomial(6).transfers) == set(expected)


def test_a_reduction_is_the_broadcast_undone():
    spread = [[(0, 2, 5, COPY)], [(0, 1, 5, COPY), (2, 3, 5, COPY)]]
    undone = [[(1, 0, 5, REDUCE), (3, 2, 5, REDUCE)], [(2, 0, 5, REDUCE)]]
    assert trees.backwards(spread) == undone
