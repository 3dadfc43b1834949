"""Two trees: their shape, the turns at their ports, and the steps of the pipeline."""

import pytest

from gradbook.parallel import double_trees, schedules
from gradbook.parallel.schedules import COPY


def log2(p):
    """Rounded up."""
    return (p - 1).bit_length()


@pytest.mark.parametrize("p", range(1, 40))
def test_the_two_trees_reach_all_and_share_the_work(p):
    trees = double_trees.parents(p)
    children = [[0] * p, [0] * p]
    for tree, up in enumerate(trees):
        assert len(up) == p - 1
        for rank in up:
            ancestors = [rank]
            while ancestors[-1] in up:
                ancestors.append(up[ancestors[-1]])
                assert len(ancestors) <= log2(p) + 1
        for parent in up.values():
            children[tree][parent] += 1
    inner_in_both = [r for r in range(p) if children[0][r] and children[1][r]]
    assert inner_in_both == ([0] if p % 2 and p > 1 else [])
    assert max(a + b for a, b in zip(*children, strict=True)) <= 2
    assert all(
        children[tree][(set(range(p)) - set(up)).pop()] <= 1 for tree, up in enumerate(trees)
    )


def test_the_trees_of_eight_are_those_of_nccl():
    first = {4: 0, 2: 4, 6: 4, 1: 2, 3: 2, 5: 6, 7: 6}
    assert double_trees.parents(8) == (first, {7 - i: 7 - j for i, j in first.items()})
    first = {4: 0, 2: 4, 1: 2, 3: 2}
    assert double_trees.parents(5) == (first, {(i + 1) % 5: (j + 1) % 5 for i, j in first.items()})


@pytest.mark.parametrize("segments", [1, 2, 5])
@pytest.mark.parametrize("p", range(1, 34))
def test_no_rank_of_the_double_tree_sends_or_receives_twice_in_a_step(p, segments):
    schedule = schedules.double_tree(p, segments)
    schedules.require_valid(schedule)
    assert schedule.chunks == 2 * segments
    for together in schedules.steps(schedule):
        assert len({t.source for t in together}) == len(together)
        assert len({t.destination for t in together}) == len(together)
    up = double_trees.parents(p)
    copies = {(t.source, t.destination, t.chunk) for t in schedule.transfers if t.op == COPY}
    assert copies == {(j, i, c) for c in range(2 * segments) for i, j in up[c % 2].items()}


@pytest.mark.parametrize("p", range(3, 34))
def test_a_chunk_more_costs_the_double_tree_two_steps_each_way(p):
    counts = [len(schedules.steps(schedules.double_tree(p, m))) for m in (1, 2, 3, 10)]
    assert [c - counts[0] for c in counts] == [0, 4, 8, 36]
    assert counts[0] <= 4 * log2(p)


def test_a_double_tree_of_two_ranks_takes_a_step_per_chunk_each_way():
    assert [len(schedules.steps(schedules.double_tree(2, m))) for m in (1, 2, 7)] == [2, 4, 14]


@pytest.mark.parametrize("segments", [0, -1, 1.0, True])
def test_a_double_tree_needs_a_chunk(segments):
    with pytest.raises(ValueError, match="segments"):
        schedules.double_tree(4, segments)
