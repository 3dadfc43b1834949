"""The sliding window: the published rule, a law that sums to 1, and the codes that matter."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradbook import sliding
from gradbook.noise import gumbel_noise
from gradbook.priors import CausalTransformer

SIZES = [(s, h, w) for s in (1, 2, 3, 4, 5) for h in range(s, s + 5) for w in range(s, s + 5)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def prior(side=2, codes=2, prefix=0, width=None):
    """A tiny transformer with strong float64 weights."""
    built = CausalTransformer(side, width or side, codes, 8, 2, 2, generator(), prefix).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.5, generator=generator(parameter.numel()))
    return built


def noise(*shape, seed=4):
    return gumbel_noise(shape, generator(seed), torch.float64, "cpu")


def integers(*shape, count=2, seed=0):
    return torch.randint(count, shape, generator=generator(seed))


def every_grid(height, width, count):
    rows = list(itertools.product(range(count), repeat=height * width))
    return torch.tensor(rows).unflatten(1, (height, width))


def told(where):
    """A different vector for each window."""
    return torch.tensor([[1.0, where.top, where.left, -1, 0, 1, 2, 3]], dtype=torch.float64)


def published(i, size):
    """The sampler's own words for windows of 16."""
    if i <= 8:
        return i
    return 16 - (size - i) if size - i < 8 else 8


@pytest.mark.parametrize("size", [16, 17, 23, 24, 25, 31, 32, 33, 48, 64])
def test_the_rule_for_windows_of_16_is_the_published_one(size):
    for i in range(size):
        first = sliding.window(i, 0, size, 16, 16)
        assert (first.local_i, first.top) == (published(i, size), i - published(i, size))
        second = sliding.window(0, i, 16, size, 16)
        assert (second.local_j, second.left) == (published(i, size), i - published(i, size))


@pytest.mark.parametrize(("side", "height", "width"), SIZES)
def test_every_target_lies_in_its_window_and_the_window_in_the_grid(side, height, width):
    for i, j in itertools.product(range(height), range(width)):
        top, left, local_i, local_j = sliding.window(i, j, height, width, side)
        assert 0 <= top <= height - side
        assert 0 <= left <= width - side
        assert (top + local_i, left + local_j) == (i, j)
        assert 0 <= local_i < side
        assert 0 <= local_j < side


@pytest.mark.parametrize(("side", "height", "width"), SIZES)
def test_what_is_earlier_in_a_window_is_earlier_in_the_grid(side, height, width):
    for i, j in itertools.product(range(height), range(width)):
        top, left, local_i, local_j = sliding.window(i, j, height, width, side)
        target = local_i * side + local_j
        seen = [(top + t // side, left + t % side) for t in range(target)]
        assert all(place < (i, j) for place in seen)
        assert sliding.codes_in_view(i, j, height, width, side) == len(seen)


def test_136_codes_are_in_view_inside():
    views = torch.tensor(
        [[sliding.codes_in_view(i, j, 40, 48, 16) for j in range(48)] for i in range(40)]
    )
    assert (views[8:33, 8:41] == 136).all()
    assert (views[:8] < 136).all()
    assert views[0, 0] == 0
    assert views[39, 47] == views.max() == 255


@pytest.mark.parametrize(("side", "height", "width"), [(2, 2, 4), (2, 4, 2), (2, 3, 3), (3, 3, 3)])
def test_probabilities_of_large_grids_sum_to_one(side, height, width):
    log_probs = sliding.log_probs_large(prior(side), every_grid(height, width, 2)).sum((1, 2))
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_probs.std() > 0.1


def test_probabilities_with_coordinates_sum_to_one_and_are_others():
    built, every = prior(prefix=1), every_grid(2, 4, 2)
    log_probs = sliding.log_probs_large(built, every, told)
    assert log_probs.sum((1, 2)).exp().sum().item() == pytest.approx(1, abs=1e-12)

    def elsewhere(where):
        return told(where._replace(left=where.left + 1))

    assert not torch.allclose(log_probs, sliding.log_probs_large(built, every, elsewhere))


def test_a_grid_as_large_as_the_window_has_the_priors_own_law():
    built, codes = prior(3, 4), integers(20, 3, 3, count=4)
    own = built.log_prob(codes)
    torch.testing.assert_close(sliding.log_probs_large(built, codes).sum((1, 2)), own)
    g = noise(20, 3, 3, 4)
    assert torch.equal(sliding.sample_large(built, 3, 3, g), built.sample(20, g))


def test_each_conditional_is_that_of_the_window_by_hand():
    built, codes = prior(3, 4), integers(5, 5, 6, count=4)
    found = sliding.log_probs_large(built, codes)
    for i, j, top, left in [(0, 0, 0, 0), (2, 3, 1, 2), (4, 5, 2, 3), (1, 5, 0, 3)]:
        law = built.logits(codes[:, top : top + 3, left : left + 3]).log_softmax(-1)
        expected = law[torch.arange(5), i - top, j - left, codes[:, i, j]]
        torch.testing.assert_close(found[:, i, j], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prefix", [0, 1])
def test_codes_that_are_not_earlier_in_the_window_change_no_bit(prefix):
    built, codes = prior(3, 4, prefix), integers(4, 5, count=4)
    where_told = told if prefix else lambda where: None
    same = codes.expand(20, 4, 5)
    # The n-th grid has another code at the n-th place.
    other = (same + torch.eye(20, dtype=torch.int64).view(20, 4, 5)) % 4
    for i, j in itertools.product(range(4), range(5)):
        where = sliding.window(i, j, 4, 5, 3)
        top, left, local_i, local_j = where
        logits, again = (
            sliding.conditional_logits(built, grids, where, where_told(where))
            for grids in (same, other)
        )
        seen = torch.zeros(4, 5, dtype=torch.bool)
        for t in range(3 * local_i + local_j):
            seen[top + t // 3, left + t % 3] = True
        assert torch.equal((again != logits).any(1), seen.flatten())


def test_unwritten_codes_may_hold_anything():
    """The sampler from another start draws the same codes, bit for bit."""
    built, g = prior(3, 4), noise(6, 4, 5, 4)
    codes = integers(6, 4, 5, count=4, seed=9)
    for i, j in itertools.product(range(4), range(5)):
        where = sliding.window(i, j, 4, 5, 3)
        logits = sliding.conditional_logits(built, codes, where)
        codes[:, i, j] = (logits + g[:, i, j]).argmax(-1)
    assert torch.equal(sliding.sample_large(built, 4, 5, g), codes)
    assert len(codes.unique()) == 4


def test_sampled_grids_have_the_law():
    built, draws = prior(prefix=1), 10_000
    drawn = sliding.sample_large(built, 2, 3, noise(draws, 2, 3, 2), told).flatten(1)
    seen = (drawn * 2 ** torch.arange(5, -1, -1)).sum(1).bincount(minlength=64).double()
    log_probs = sliding.log_probs_large(built, every_grid(2, 3, 2), told).sum((1, 2))
    expected = draws * log_probs.detach().exp()
    rare = expected < 5
    seen, expected = (torch.cat([a[~rare], a[rare].sum()[None]]) for a in (seen, expected))
    seen, expected = seen[expected > 0], expected[expected > 0]
    assert len(seen) >= 12
    statistic = ((seen - expected).square() / expected).sum().item()
    assert stats.chi2.sf(statistic, len(seen) - 1) > stats.norm.sf(4.5)


def test_sampling_keeps_no_graph_and_log_probabilities_have_gradients():
    built = prior(prefix=1)
    assert not sliding.sample_large(built, 2, 3, noise(1, 2, 3, 2), told).requires_grad
    sliding.log_probs_large(built, integers(4, 2, 3), told).sum().backward()
    assert all((p.grad != 0).any() for p in built.parameters())


def test_no_grids_are_legal():
    built = prior()
    assert sliding.sample_large(built, 3, 4, noise(0, 3, 4, 2)).shape == (0, 3, 4)
    assert sliding.log_probs_large(built, integers(0, 3, 4)).shape == (0, 3, 4)
    none = torch.zeros(0, dtype=torch.int64)
    assert sliding.places(none, none, 3, 4, 2).shape == (0, 2)
    assert sliding.CoordinatePrefix(8, generator())(torch.zeros(0, 2)).shape == (0, 1, 8)


def test_places_by_hand():
    tops, lefts = torch.tensor([0, 1, 4]), torch.tensor([2, 0, 1])
    found = sliding.places(tops, lefts, 7, 5, 3)
    assert found.tolist() == [[0, 1], [0.25, 0], [1, 0.5]]
    # An axis that the window fills has its middle alone.
    found = sliding.places(tops, torch.zeros(3, dtype=torch.int64), 7, 3, 3)
    assert found[:, 1].tolist() == [0.5, 0.5, 0.5]


@given(st.integers(1, 6), st.integers(0, 9), st.integers(0, 9), st.data())
def test_places_turn_with_the_grid(side, down, across, data):
    top, left = data.draw(st.integers(0, down)), data.draw(st.integers(0, across))
    size = (side + down, side + across, side)
    one = sliding.places(torch.tensor([top]), torch.tensor([left]), *size)
    other = sliding.places(torch.tensor([down - top]), torch.tensor([across - left]), *size)
    torch.testing.assert_close(one + other, torch.ones(1, 2), rtol=0, atol=1e-6)


def test_a_prefix_is_a_linear_map_of_waves():
    prefix = sliding.CoordinatePrefix(5, generator()).double()
    where = torch.rand(7, 2, generator=generator(1), dtype=torch.float64)
    weight, bias = prefix.linear.weight, prefix.linear.bias
    rows = []
    for row, column in where.tolist():
        waves = []
        for x in (row, column):
            turns = [math.pi * x, 2 * math.pi * x, 4 * math.pi * x, 8 * math.pi * x]
            waves += [*map(math.sin, turns), *map(math.cos, turns)]
        rows.append(weight @ torch.tensor(waves, dtype=torch.float64) + bias)
    torch.testing.assert_close(prefix(where)[:, 0], torch.stack(rows), rtol=1e-12, atol=1e-12)
    assert prefix(where).shape == (7, prefix.vectors, 5)


def test_all_places_differ_and_rows_are_not_columns():
    prefix = sliding.CoordinatePrefix(16, generator())
    where = torch.cartesian_prod(torch.linspace(0, 1, 12), torch.linspace(0, 1, 12))
    apart = torch.cdist(prefix(where)[:, 0], prefix(where)[:, 0]) + torch.eye(144)
    assert apart.min() > 0.01


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_a_prefix_is_float32_of_its_generator_whatever_the_default(default):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        first, second = (sliding.CoordinatePrefix(4, generator()) for _ in range(2))
        found = first(torch.tensor([[0.2, 0.7]]))
        assert sliding.places(torch.tensor([1]), torch.tensor([0]), 3, 3, 2).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32
    assert torch.equal(first.linear.weight, second.linear.weight)


def bad_inputs():
    built, g, codes = prior(), noise(1, 3, 4, 2), integers(1, 3, 4)
    one, two = torch.tensor([1]), torch.tensor([1, 1])
    where = sliding.window(0, 0, 3, 4, 2)
    prefix, vectors = sliding.CoordinatePrefix(4, generator()), torch.zeros(1, 1, 8)
    return [
        ("height", lambda: sliding.window(0, 0, 3, 8, 4)),
        ("width", lambda: sliding.window(0, 0, 8, 3, 4)),
        ("side", lambda: sliding.window(0, 0, 8, 8, 0)),
        ("i", lambda: sliding.window(8, 0, 8, 9, 4)),
        ("i", lambda: sliding.codes_in_view(-1, 0, 8, 9, 4)),
        ("j", lambda: sliding.window(0, 9, 8, 9, 4)),
        ("j", lambda: sliding.window(0, -1, 8, 9, 4)),
        ("prior", lambda: sliding.sample_large(prior(2, width=3), 3, 4, g)),
        ("prior", lambda: sliding.log_probs_large(prior(2, width=3), codes)),
        ("height", lambda: sliding.sample_large(built, 1, 4, noise(1, 1, 4, 2))),
        ("noise", lambda: sliding.sample_large(built, 3, 4, noise(1, 3, 5, 2))),
        ("noise", lambda: sliding.sample_large(built, 3, 4, torch.tensor(0.0))),
        ("noise", lambda: sliding.sample_large(built, 3, 4, g * math.nan)),
        ("prefix", lambda: sliding.sample_large(built, 3, 4, g, told)),
        ("prefix", lambda: sliding.conditional_logits(prior(prefix=1), codes, where, vectors)),
        ("prefix", lambda: sliding.log_probs_large(prior(prefix=1), codes)),
        ("codes", lambda: sliding.log_probs_large(built, codes[0])),
        ("codes", lambda: sliding.log_probs_large(built, codes + 1)),
        ("codes", lambda: sliding.log_probs_large(built, codes.int())),
        ("width", lambda: sliding.log_probs_large(built, codes[:, :, :1])),
        ("tops", lambda: sliding.places(one.float(), one, 3, 4, 2)),
        ("tops", lambda: sliding.places(one + 1, one, 3, 4, 2)),
        ("lefts", lambda: sliding.places(one, one - 2, 3, 4, 2)),
        ("lefts", lambda: sliding.places(one, two, 3, 4, 2)),
        ("width", lambda: sliding.places(one, one, 3, 1, 2)),
        ("dim", lambda: sliding.CoordinatePrefix(0, generator())),
        ("places", lambda: prefix(torch.zeros(3))),
        ("places", lambda: prefix(torch.zeros(3, 3))),
        ("places", lambda: prefix(torch.full((3, 2), 1.1))),
        ("places", lambda: prefix(torch.full((3, 2), math.nan))),
    ]


@pytest.mark.parametrize("case", range(len(bad_inputs())))
def test_bad_input_is_refused(case):
    name, call = bad_inputs()[case]
    with pytest.raises(ValueError, match=f"^{name}: "):
        call()


def test_logits_that_are_not_finite_are_refused():
    built = prior()
    with torch.no_grad():
        built.head.bias[0] = math.inf
    with pytest.raises(ValueError, match="^logits: "):
        sliding.log_probs_large(built, integers(1, 3, 4))
