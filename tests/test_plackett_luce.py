import itertools
import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.func import grad, vmap

from gradbook.gumbel import gumbel_max, gumbel_noise
from gradbook.plackett_luce import gumbel_top_k, plackett_luce_log_prob

F32, F64 = torch.float32, torch.float64
INF = math.inf
RARE = 7e-6
LOGITS = torch.tensor([0.3, -0.7, 1.1, 0.0], dtype=F64)


def noise(*shape, seed=0, dtype=F64):
    return gumbel_noise(shape, torch.Generator().manual_seed(seed), dtype)


def orders(classes, k):
    every = list(itertools.permutations(range(classes), k))
    return torch.tensor(every, dtype=torch.int64).reshape(-1 if k else 1, k)


def by_hand(order, p):
    """Draw one after the other, each time from what is left."""
    probability, left = 1.0, 1.0
    for i in order:
        probability *= p[i] / left
        left -= p[i]
    return probability


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_the_law_is_that_of_one_draw_after_the_other_and_sums_to_one(k):
    every, p = orders(4, k), LOGITS.softmax(-1).tolist()
    ours = plackett_luce_log_prob(every, LOGITS).exp()
    exact = torch.tensor([by_hand(order, p) for order in every.tolist()], dtype=F64)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=0)
    assert ours.sum() == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_top_k_draws_that_law(k, dtype):
    n, every = 100_000, orders(4, k)
    drawn = gumbel_top_k(LOGITS.to(dtype), noise(n, 4, seed=k, dtype=dtype), k)
    base = 4 ** torch.arange(k)
    counts = torch.bincount(drawn @ base, minlength=4**k)[every @ base]
    assert counts.sum() == n
    expected = n * plackett_luce_log_prob(every, LOGITS).exp()
    assert scipy.stats.chisquare(counts.numpy(), expected.numpy()).pvalue > RARE


def test_top_k_is_the_front_of_the_sorted_scores_and_top_1_is_gumbel_max():
    g = noise(50, 4)
    order = (LOGITS + g).argsort(-1, descending=True)
    for k in range(5):
        assert torch.equal(gumbel_top_k(LOGITS, g, k), order[:, :k])
    assert torch.equal(gumbel_top_k(LOGITS, g, 1)[:, 0], gumbel_max(LOGITS, g))


def test_impossible_classes_are_not_drawn():
    logits = torch.tensor([0.0, -INF, 1.0], dtype=F64)
    drawn = gumbel_top_k(logits, noise(500, 3), 2)
    assert (drawn != 1).all()
    possible = plackett_luce_log_prob(torch.tensor([0, 2]), logits)
    assert possible == plackett_luce_log_prob(torch.tensor([0, 1]), logits[[0, 2]])
    with pytest.raises(ValueError, match="k: a row has fewer than 3 possible classes"):
        gumbel_top_k(logits, noise(500, 3), 3)


@pytest.mark.parametrize("order", [[1], [0, 1], [1, 0], [0, 2, 1], [0, 2, 1, 3]])
def test_an_order_with_an_impossible_class_has_probability_zero_and_no_nan(order):
    logits = torch.tensor([0.0, -INF, 1.0, -INF], dtype=F64).requires_grad_()
    value = plackett_luce_log_prob(torch.tensor(order), logits)
    assert value == -INF
    assert torch.autograd.grad(value, logits)[0].isfinite().all()


def test_the_law_differentiates_in_the_logits():
    every = orders(4, 3)
    assert gradcheck(lambda o: plackett_luce_log_prob(every, o), LOGITS.clone().requires_grad_())
    ours = vmap(grad(lambda o, i: plackett_luce_log_prob(i, o)), in_dims=(None, 0))(LOGITS, every)
    probability = plackett_luce_log_prob(every, LOGITS).exp()
    torch.testing.assert_close(probability @ ours, torch.zeros(4, dtype=F64), rtol=0, atol=1e-14)


@settings(max_examples=30)
@given(st.floats(-1e4, 1e4), st.permutations(range(4)), st.integers(0, 4))
def test_neither_a_constant_nor_names_of_classes_matter(constant, names, k):
    every, names = orders(4, k), torch.tensor(names)
    renamed = torch.empty(4, dtype=F64)
    renamed[names] = LOGITS
    torch.testing.assert_close(
        plackett_luce_log_prob(names[every], renamed + constant),
        plackett_luce_log_prob(every, LOGITS),
        rtol=0,
        atol=1e-10,
    )


def test_a_nearly_certain_order_keeps_its_digits():
    """The chance of what is left is summed again, not subtracted from 1."""
    logits = torch.tensor([0.0, -50.0, -100.0], dtype=F64)
    ours = plackett_luce_log_prob(torch.tensor([0, 2]), logits)
    assert ours == pytest.approx(-50 - 2 * math.exp(-50), rel=1e-15)


def test_batches_broadcast_and_may_be_empty():
    logits = torch.stack((LOGITS, -LOGITS))
    drawn = gumbel_top_k(logits, noise(5, 2, 4), 3)
    assert drawn.shape == (5, 2, 3)
    law = plackett_luce_log_prob(drawn, logits)
    assert law.shape == (5, 2)
    assert law[3, 1] == plackett_luce_log_prob(drawn[3, 1], -LOGITS)
    assert plackett_luce_log_prob(drawn[:, 0, None], logits).shape == (5, 2)
    assert gumbel_top_k(logits, noise(0, 2, 4), 3).shape == (0, 2, 3)
    assert plackett_luce_log_prob(drawn[:0], logits).shape == (0, 2)
    assert plackett_luce_log_prob(drawn[..., :0], logits).tolist() == [[0, 0]] * 5


@pytest.mark.parametrize("k", [-1, 5])
def test_k_must_be_from_0_to_the_number_of_classes(k):
    with pytest.raises(ValueError, match=f"k: must be from 0 to 4, got {k}"):
        gumbel_top_k(LOGITS, noise(4), k)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([1, 2, 1], "indices: a class is drawn twice"),
        ([0, 4], "indices: must be from 0 to 3"),
        ([-1], "indices: must be from 0 to 3"),
        ([0.0, 1.0], "indices: must be integers"),
        ([True, False], "indices: must be integers"),
        (2, "indices: needs a last axis"),
        ([[0, 1]] * 3, "indices: does not broadcast with logits"),
    ],
)
def test_orders_that_are_refused(indices, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        plackett_luce_log_prob(torch.tensor(indices), torch.stack((LOGITS, LOGITS)))


@pytest.mark.parametrize("value", [math.nan, INF])
def test_logits_and_noise_that_are_refused(value):
    bad = torch.tensor([0.0, 1.0, value, 0.0], dtype=F64)
    with pytest.raises(ValueError, match="^logits: must have no NaN"):
        plackett_luce_log_prob(torch.tensor([0]), bad)
    with pytest.raises(ValueError, match="^logits: must have no NaN"):
        gumbel_top_k(bad, noise(4), 2)
    with pytest.raises(ValueError, match="^noise: must not have a NaN"):
        gumbel_top_k(LOGITS, bad, 2)
    with pytest.raises(ValueError, match="^noise: must have 4 classes"):
        gumbel_top_k(LOGITS, noise(3), 2)
