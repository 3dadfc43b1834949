"""Scores of AdaLoRA's triplets: averages in closed form, the combination, and the choice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook.peft import triplets


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def zeros(*shape):
    return triplets.Average(*torch.zeros((2, *shape), dtype=torch.float64))


def test_sensitivity_is_the_first_order_change_of_a_loss():
    weight = doubles(2.0, -3.0, 0.5).requires_grad_()
    slope = doubles(1.0, 4.0, -2.0)
    (weight * slope).sum().backward()
    ours = triplets.sensitivity(weight, weight.grad)
    # The loss is linear, so that the first order is all of it.
    removed = (weight * slope).detach().abs().tolist()
    assert ours.tolist() == removed == [2, 12, 1]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_sensitivity_of_half_precision_does_not_vanish(kind):
    weight, gradient = torch.tensor([2e-4]).to(kind), torch.tensor([2e-5]).to(kind)
    ours = triplets.sensitivity(weight, gradient)
    assert ours.dtype == torch.float32
    assert 3e-9 < ours.item() < 5e-9


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0.1, 10), st.integers(1, 60))
def test_a_constant_sensitivity_has_averages_in_closed_form(beta1, beta2, now, steps):
    average = zeros(1)
    for _ in range(steps):
        average = triplets.smoothed(average, doubles(now), beta1, beta2)
    assert average.sensitivity.item() == pytest.approx(now * (1 - beta1**steps), rel=1e-9)
    terms = [beta2 ** (steps - k) * beta1**k for k in range(1, steps + 1)]
    # Distances are differences of numbers of size `now`, known to about 1e-16 of it.
    expected = now * (1 - beta2) * sum(terms)
    assert average.uncertainty.item() == pytest.approx(expected, rel=1e-6, abs=1e-13 * now)
    product = triplets.importance(average).item()
    assert product == average.sensitivity.item() * average.uncertainty.item()


def test_with_equal_rates_the_importance_of_what_stays_the_same_fades():
    average, found = zeros(1), []
    for t in range(1, 101):
        average = triplets.smoothed(average, doubles(1.0), 0.85, 0.85)
        expected = (1 - 0.85**t) * 0.15 * t * 0.85**t
        found.append(triplets.importance(average).item())
        assert found[-1] == pytest.approx(expected, rel=1e-6)
    assert found.index(max(found)) + 1 == 9
    assert found[99] < 1e-5 * max(found)


def test_the_distance_is_from_the_new_average():
    start = triplets.Average(doubles(2.0), doubles(1.0))
    ours = triplets.smoothed(start, doubles(6.0), 0.75, 0.5)
    assert ours.sensitivity.item() == 3.0
    assert ours.uncertainty.item() == 0.5 * 1.0 + 0.5 * 3.0
    assert start.sensitivity.item() == 2.0
    assert triplets.importance(ours).item() == 6.0


def test_a_triplets_score_is_e_and_the_means_of_its_column_and_row():
    p = doubles([1.0, 10.0], [3.0, 20.0], [5.0, 30.0])
    q = doubles([2.0, 4.0], [6.0, 8.0])
    assert triplets.triplet_scores(p, doubles(0.5, 0.25), q).tolist() == [6.5, 27.25]


SCORES = st.lists(st.integers(0, 5), min_size=1, max_size=12)


@given(SCORES, st.data())
def test_exactly_so_many_are_kept_and_of_equal_ones_the_first(scores, data):
    count = data.draw(st.integers(0, len(scores)))
    ours = triplets.kept(doubles(*map(float, scores)), count)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert ours.dtype == torch.bool
    assert ours.nonzero().flatten().tolist() == sorted(order[:count])


def test_equal_scores_are_not_all_dropped():
    assert triplets.kept(torch.zeros(6), 4).tolist() == [True] * 4 + [False] * 2
    assert triplets.kept(torch.zeros(0), 0).shape == (0,)


def test_the_callers_default_device_does_not_matter():
    scores = doubles(1.0, 2.0)
    with torch.device("meta"):
        assert triplets.kept(scores, 1).tolist() == [False, True]


NAN, INFINITE = float("nan"), float("inf")
BAD = [
    (lambda: triplets.sensitivity(torch.ones(2), torch.ones(1)), "gradient: "),
    (lambda: triplets.smoothed(zeros(2), torch.ones(1), 0.5, 0.5), "now: "),
    (
        lambda: triplets.smoothed(
            triplets.Average(torch.zeros(2), torch.zeros(1)), torch.ones(2), 0.5, 0.5
        ),
        "uncertainty: must be \\[2\\]",
    ),
    (lambda: triplets.smoothed(zeros(1), torch.ones(1), 0.0, 0.5), "beta1: "),
    (lambda: triplets.smoothed(zeros(1), torch.ones(1), 0.5, 1.0), "beta2: "),
    (lambda: triplets.smoothed(zeros(1), torch.ones(1), NAN, 0.5), "beta1: "),
    (lambda: triplets.triplet_scores(torch.ones(3, 2), torch.ones(2, 1), torch.ones(2, 4)), "e: "),
    (lambda: triplets.triplet_scores(torch.ones(2, 3), torch.ones(2), torch.ones(2, 4)), "e: "),
    (lambda: triplets.triplet_scores(torch.ones(3, 2), torch.ones(2), torch.ones(4, 2)), "e: "),
    (lambda: triplets.triplet_scores(torch.ones(1), torch.ones(1), torch.ones(1)), "e: "),
    (lambda: triplets.kept(torch.ones(2, 1), 1), "scores: "),
    (lambda: triplets.kept(torch.tensor([1.0, NAN]), 1), "scores: must be finite"),
    (lambda: triplets.kept(torch.tensor([1.0, INFINITE]), 1), "scores: must be finite"),
    (lambda: triplets.kept(torch.ones(2), 3), "count: "),
    (lambda: triplets.kept(torch.ones(2), -1), "count: "),
    (lambda: triplets.kept(torch.ones(2), 1.0), "count: "),
    (lambda: triplets.kept(torch.ones(2), True), "count: "),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
