"""The model of overlap against closed forms, all groupings and a clock that ticks."""

import math
from functools import partial
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.parallel.buckets import buckets
from gradbook.parallel.cost import COSTS
from gradbook.parallel.overlap import (
    Layer,
    Reduced,
    best_groups,
    best_limit,
    one_after_the_other,
    overlapped,
)

drawn = st.lists(st.builds(Layer, st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6)
rates = st.tuples(st.integers(0, 9), st.integers(0, 3))


def linear(start, slope):
    return lambda size: start + slope * size


def groupings(n):
    for k in range(n):
        for cuts in combinations(range(1, n), k):
            ends = (0, *cuts, n)
            yield [list(range(a, b)) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def ticking(layers, groups, seconds_of):
    """Second by second: one worker computes, another reduces."""
    queue, left, todo = [], None, [(i, layer.seconds) for i, layer in enumerate(layers)]
    last, clock = {group[-1]: group for group in groups}, 0
    done = 0
    while done < len(groups):
        while todo and todo[0][1] == 0:
            i, _ = todo.pop(0)
            if i in last:
                queue.append(seconds_of(sum(layers[j].bytes for j in last[i])))
        while left == 0 or (left is None and queue):
            if left == 0:
                done, left = done + 1, None
            if queue:
                left = queue.pop(0)
        if done == len(groups):
            break
        if todo:
            todo[0] = todo[0][0], todo[0][1] - 1
        if left is not None:
            left -= 1
        clock += 1
    return clock


def test_times_by_hand():
    layers = [Layer(2, 10), Layer(3, 10), Layer(1, 40)]
    found = overlapped(layers, [[0], [1], [2]], linear(1, 0.5))
    assert found == [Reduced(2, 2, 8), Reduced(5, 8, 14), Reduced(6, 14, 35)]
    found = overlapped(layers, [[0, 1], [2]], linear(1, 0.5))
    assert found == [Reduced(5, 5, 16), Reduced(6, 16, 37)]
    assert one_after_the_other(layers, [[0, 1], [2]], linear(1, 0.5)) == 6 + 11 + 21


@settings(max_examples=60)
@given(drawn, rates)
def test_a_ticking_clock_agrees(layers, cost):
    for groups in groupings(len(layers)):
        found = overlapped(layers, groups, linear(*cost))
        assert found[-1].ends == ticking(layers, groups, linear(*cost))
        assert found[-1].ends <= one_after_the_other(layers, groups, linear(*cost))
        assert found[-1].ends >= sum(layer.seconds for layer in layers)


@settings(max_examples=60)
@given(drawn, rates)
def test_best_groups_are_best_of_all(layers, cost):
    ends = [overlapped(layers, g, linear(*cost))[-1].ends for g in groupings(len(layers))]
    best = best_groups(layers, linear(*cost))
    assert overlapped(layers, best, linear(*cost))[-1].ends == min(ends)


@settings(max_examples=60)
@given(drawn, rates)
def test_best_limit_is_best_of_all(layers, cost):
    held = [layer.bytes for layer in layers]

    def end(limit):
        return overlapped(layers, buckets(held, limit), linear(*cost))[-1].ends

    limit = best_limit(layers, linear(*cost))
    least = min(end(one) for one in range(1, sum(held) + 2))
    assert end(limit) == least
    runs = {sum(held[i:j]) for i in range(len(held)) for j in range(i + 1, len(held) + 1)}
    assert limit in runs | {sum(held) + 1}
    assert all(end(one) > least for one in runs if 0 < one < limit)


@pytest.mark.parametrize("p", [2, 8])
@pytest.mark.parametrize("start", [1e-5, 1e-4, 3e-3])
def test_equal_layers_in_equal_buckets(p, start):
    """The closed form: the slower of the two works without a break, the other once at an end."""
    count, seconds, size = 24, 1e-3, 4_000_000
    layers = [Layer(seconds, size)] * count
    cost = partial(COSTS["ring"](p).seconds, alpha=start, beta=1e-10)
    for width in (1, 2, 3, 4, 6, 8, 12, 24):
        groups = buckets([size] * count, width * size)
        once = cost(width * size)
        right = max(count * seconds + once, width * seconds + len(groups) * once)
        assert math.isclose(overlapped(layers, groups, cost)[-1].ends, right, rel_tol=1e-12)
        apart = count * seconds + len(groups) * once
        assert math.isclose(one_after_the_other(layers, groups, cost), apart, rel_tol=1e-12)


@pytest.mark.parametrize("groups", [[], [[0]], [[1, 0]], [[0], [], [1]], [[0], [0, 1]]])
def test_groups_must_cut_the_layers(groups):
    for function in (overlapped, one_after_the_other):
        with pytest.raises(ValueError, match="^groups: must cut layers 0 to 1"):
            function([Layer(1, 1)] * 2, groups, linear(1, 1))


def test_bad_layers_are_refused():
    for function in (overlapped, one_after_the_other):
        with pytest.raises(ValueError, match="^layers: must be at least one, got none"):
            function([], [], linear(1, 1))
    for function in (best_groups, best_limit):
        with pytest.raises(ValueError, match="^layers: must be at least one, got none"):
            function([], linear(1, 1))
        with pytest.raises(ValueError, match="^seconds: must be at least 0"):
            function([Layer(-1, 1)], linear(1, 1))
        with pytest.raises(ValueError, match="^bytes: must be at least 0"):
            function([Layer(1, -1)], linear(1, 1))


def test_last_layers_without_bytes_may_join_the_bucket_before():
    layers = [Layer(0, 1), Layer(0, 0)]
    # Any limit of up to one byte would start a second all-reduce for nothing.
    assert best_limit(layers, linear(1, 0)) == 2
    assert best_groups(layers, linear(1, 0)) == [[0, 1]]
