"""Filters against enumeration, and grids drawn through them."""

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradbook.gumbel import gumbel_max
from gradbook.noise import gumbel_noise
from gradbook.priors import CausalTransformer, PixelCNN, grids
from gradbook.sampling import filtered_log_prob, nucleus, sample_grids, tempered, top_k

INF = math.inf
FILTERS = [
    partial(top_k, k=2),
    partial(nucleus, p=0.6),
    partial(tempered, temperature=0.5),
    lambda logits: top_k(tempered(logits, 2.0), 2),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def noise(*shape, seed=4):
    return gumbel_noise(shape, generator(seed), torch.float64, "cpu")


@pytest.fixture
def prior():
    """A transformer with strong weights, which needs no prefix."""
    return stirred(0)


def stirred(prefix):
    built = CausalTransformer(2, 2, 3, 8, 2, 2, generator(), prefix).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.5, generator=generator(1))
    return built


def every_grid():
    rows = list(itertools.product(range(3), repeat=4))
    return torch.tensor(rows).unflatten(1, (2, 2))


small_rows = st.lists(st.integers(-2, 2), min_size=1, max_size=8)


@given(small_rows, st.data())
def test_top_k_keeps_exactly_the_first_k_of_the_best(row, choice):
    """Rows of few values, most of them tied."""
    k = choice.draw(st.integers(1, len(row)))
    best = sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]
    expected = [float(x) if c in best else -INF for c, x in enumerate(row)]
    assert top_k(double(row), k).tolist() == [expected]


def test_top_k_keeps_the_classes_of_torch_in_any_shape():
    logits = normal(3, 4, 9)
    for k in (1, 4, 9):
        found = top_k(logits, k)
        values, classes = logits.topk(k)
        expected = torch.full_like(logits, -INF).scatter(-1, classes, values)
        assert torch.equal(found, expected)
    assert torch.equal(top_k(logits, 9), logits)


def test_a_class_that_is_impossible_stays_so():
    row = double(0.0, -INF, 1.0, -INF)
    for kept in (top_k(row, 3), nucleus(row, 1.0), tempered(row, 3.0)):
        assert (kept > -INF).tolist() == [True, False, True, False]


@given(st.floats(0.05, 20), st.integers(0, 2**20))
def test_a_temperature_is_a_power_of_the_probabilities(temperature, seed):
    logits = normal(5, seed=seed)
    power = logits.softmax(-1) ** (1 / temperature)
    found = tempered(logits, temperature)
    torch.testing.assert_close(found.softmax(-1), power / power.sum(), rtol=1e-9, atol=1e-12)
    assert found.max() == 0


def test_a_temperature_of_one_changes_no_probability_and_a_low_one_picks_the_best():
    logits = normal(4, 6)
    torch.testing.assert_close(tempered(logits, 1).softmax(-1), logits.softmax(-1))
    # Far from zero, float32 has no digits left unless the largest is taken off first.
    far = torch.tensor([3e4, 3e4 + 1], dtype=torch.float32)
    assert tempered(far, 0.5).tolist() == [-2, 0]
    assert (tempered(logits, 1e-3).softmax(-1).amax(-1) > 0.99).all()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.data())
def test_the_nucleus_is_the_fewest_best_that_reach_the_share(counts, choice):
    """Shares with one denominator; p lies between their sums, where rounding decides nothing."""
    total = sum(counts)
    p = (choice.draw(st.integers(0, total - 1)) + 0.5) / total
    order = sorted(range(len(counts)), key=lambda c: (-counts[c], c))
    size = next(
        n for n in range(1, len(counts) + 1) if sum(counts[c] for c in order[:n]) > p * total
    )
    logits = double(*counts).log() + 3
    expected = [x if c in order[:size] else -INF for c, x in enumerate(logits.tolist())]
    assert nucleus(logits, p).tolist() == expected


def test_the_nucleus_at_its_ends():
    equal = torch.zeros(4, dtype=torch.float64)
    # The share is reached exactly: no class more.
    assert (nucleus(equal, 0.5) > -INF).tolist() == [True, True, False, False]
    assert (nucleus(equal, 1e-300) > -INF).tolist() == [True, False, False, False]
    # A share that a sum from the best on rounds away.
    for dtype, least in ((torch.float64, -700.0), (torch.float32, -80.0), (torch.float32, -200.0)):
        assert torch.equal(
            nucleus(torch.tensor([least, 0.0], dtype=dtype), 1),
            torch.tensor([least, 0.0], dtype=dtype),
        )


def test_shares_of_float32_logits_are_summed_in_float64():
    """A tail of 2000 classes, whose share p cuts in the middle of a step."""
    logits = torch.cat([torch.zeros(1), torch.linspace(-12, -14, 2000)]).float()
    shares = logits.double().softmax(-1)
    for size in (1, 700, 1999):
        p = 1 - (shares[size:].sum() + shares[size + 1 :].sum()).item() / 2
        assert (nucleus(logits, p) > -INF).sum() == size + 1
        # A millionth of a step from the border.
        for side, expected in ((1e-6, size), (-1e-6, size + 1)):
            p = 1 - (shares[size:].sum() + side * shares[size]).item()
            assert (nucleus(logits, p) > -INF).sum() == expected


@pytest.mark.parametrize("filter", FILTERS)
def test_filters_keep_the_ratios_or_powers_and_every_row_alone(filter):
    logits = normal(20, 5)
    together = filter(logits)
    for row, found in zip(logits, together, strict=True):
        assert torch.equal(filter(row), found)
    assert together.dtype == logits.dtype
    assert filter(logits.float()).dtype == torch.float32
    assert filter(logits[:0]).shape == (0, 5)


@pytest.mark.parametrize("filter", FILTERS)
def test_gumbel_noise_draws_from_the_filtered_law(filter):
    logits, draws = normal(5, seed=3), 60_000
    seen = gumbel_max(filter(logits), noise(draws, 5)).bincount(minlength=5).double()
    expected = draws * filter(logits).softmax(-1)
    assert (seen[expected == 0] == 0).all()
    seen, expected = seen[expected > 0], expected[expected > 0]
    statistic = ((seen - expected).square() / expected).sum().item()
    assert len(seen) > 1
    assert stats.chi2.sf(statistic, len(seen) - 1) > stats.norm.sf(4.5)


@pytest.mark.parametrize("filter", FILTERS)
def test_filtered_laws_of_grids_sum_to_one(prior, filter):
    """All 81 grids, against a product of filtered and normalized probabilities, code by code."""
    every = every_grid()
    logits = prior.logits(every).detach()
    found = filtered_log_prob(logits, every, filter)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-12)
    shares = filter(logits).softmax(-1)
    expected = torch.stack(
        [
            shares[n, 0, 0, a] * shares[n, 0, 1, b] * shares[n, 1, 0, c] * shares[n, 1, 1, d]
            for n, (a, b, c, d) in enumerate(every.flatten(1).tolist())
        ]
    )
    torch.testing.assert_close(found.exp(), expected, rtol=1e-10, atol=0)


def test_a_grid_that_cannot_be_drawn_has_probability_zero(prior):
    every = every_grid()
    logits = prior.logits(every).detach()
    assert (filtered_log_prob(logits, every, partial(top_k, k=2)) == -INF).sum() == 81 - 16
    best = filtered_log_prob(logits, every, partial(top_k, k=1))
    assert best.exp().tolist().count(1.0) == 1
    assert torch.equal(
        every[best.argmax()], sample_grids(prior, 1, noise(1, 2, 2, 3), partial(top_k, k=1))[0]
    )


def test_without_a_filter_nothing_changes(prior):
    every, g = every_grid(), noise(30, 2, 2, 3)
    logits = prior.logits(every)
    found = filtered_log_prob(logits, every, lambda logits: logits)
    torch.testing.assert_close(found, grids.log_prob(logits, every))
    assert torch.equal(sample_grids(prior, 30, g, lambda logits: logits), prior.sample(30, g))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("prefix", [0, 2])
def test_drawn_grids_are_what_the_noise_picks_from_filtered_logits(filter, prefix):
    built, g = stirred(prefix), noise(60, 2, 2, 3)
    vectors = (normal(60, prefix, 8),) if prefix else ()
    drawn = sample_grids(built, 60, g, filter, *vectors)
    logits = built.logits(drawn, *vectors).detach()
    assert torch.equal(drawn, gumbel_max(filter(logits), g))
    assert not torch.equal(drawn, built.sample(60, g, *vectors))


def test_the_filter_is_gone_after_the_call(prior):
    g, every = noise(20, 2, 2, 3), every_grid()
    before = prior.sample(20, g), prior.log_prob(every)
    sample_grids(prior, 20, g, partial(top_k, k=1))
    with pytest.raises(ValueError, match=r"^k: must be from 1 to 3, got 4"):
        sample_grids(prior, 20, g, partial(top_k, k=4))
    assert torch.equal(before[0], prior.sample(20, g))
    assert torch.equal(before[1], prior.log_prob(every))


def test_an_empty_batch_gives_an_empty_result(prior):
    none = torch.empty(0, 2, 2, dtype=torch.int64)
    best = partial(top_k, k=1)
    assert filtered_log_prob(prior.logits(none), none, best).shape == (0,)
    assert sample_grids(prior, 0, torch.empty(0, 2, 2, 3), best).shape == (0, 2, 2)


ROW, CODES = double(0.0, 1.0, 2.0), torch.zeros(2, 2, 2, dtype=torch.int64)
LOGITS = torch.zeros(2, 2, 2, 3)
BAD = [
    (lambda: top_k(ROW, 0), "k: must be from 1 to 3, got 0"),
    (lambda: top_k(ROW, 4), "k: must be from 1 to 3"),
    (lambda: nucleus(ROW, 0), "p: must be above 0 and at most 1, got 0"),
    (lambda: nucleus(ROW, 1.01), "p: must be"),
    (lambda: nucleus(ROW, math.nan), "p: must be"),
    (lambda: tempered(ROW, 0), "temperature: must be positive"),
    (lambda: tempered(ROW, -1), "temperature: must be positive"),
    (lambda: tempered(ROW, math.nan), "temperature: must be positive"),
    *(
        (lambda f=f, bad=bad: f(double(0.0, bad, 1.0)), "logits: must have no NaN")
        for f in FILTERS
        for bad in (math.nan, INF)
    ),
    *((lambda f=f: f(double(-INF, -INF)), "logits: must") for f in FILTERS),
    *((lambda f=f: f(torch.zeros(2, 0)), "logits: must have at least") for f in FILTERS),
    (lambda: filtered_log_prob(LOGITS[0], CODES, FILTERS[0]), "logits: must be \\[B, h, w, K\\]"),
    (lambda: filtered_log_prob(LOGITS, CODES[:1], FILTERS[0]), "codes: must be 2 grids, are 1"),
    (lambda: filtered_log_prob(LOGITS, CODES + 3, FILTERS[0]), "codes: must be from 0 to 2"),
    (lambda: filtered_log_prob(LOGITS, CODES.int(), FILTERS[0]), "codes: must be int64"),
    (
        lambda: filtered_log_prob(LOGITS, CODES, lambda logits: logits - INF),
        "logits: must have no NaN",
    ),
    (
        lambda: sample_grids(stirred(0), 3, noise(2, 2, 2, 3), FILTERS[0]),
        "noise: must be \\(3, 2, 2, 3\\)",
    ),
    (lambda: sample_grids(stirred(1), 2, noise(2, 2, 2, 3), FILTERS[0]), "prefix: must be"),
    (
        lambda: sample_grids(
            PixelCNN(2, 2, 3, 4, 2, generator()), 1, noise(1, 2, 2, 3), FILTERS[0]
        ),
        "prior: must have a linear layer",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
