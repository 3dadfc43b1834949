"""Targets of planted rank: the exact loss, its floor over a rank, trainings that reach it, subspaces."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gradbook.peft import low_rank_targets as targets

VALUES = (4.0, 3.0, 2.0, 1.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def spread(n, low=0.5, high=2.0, seed=7):
    """A covariance with these extreme eigenvalues."""
    vectors = torch.linalg.qr(normal(n, n, seed=seed))[0]
    return (vectors * torch.linspace(low, high, n, dtype=torch.float64)) @ vectors.T


def close(ours, theirs, tolerance=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("m", "n"), [(5, 5), (7, 4), (4, 9), (1, 3)])
def test_a_planted_matrix_has_its_singular_values(m, n):
    values = tensor(*VALUES)[: min(m, n)]
    delta = targets.planted(m, n, values, generator())
    found = np.linalg.svd(delta.numpy(), compute_uv=False)
    np.testing.assert_allclose(found[: len(values)], values.numpy(), rtol=1e-12)
    np.testing.assert_allclose(found[len(values) :], 0, atol=1e-14)
    assert delta.dtype == torch.float64
    assert not torch.equal(delta, targets.planted(m, n, values, generator(1)))


def test_planting_takes_type_and_draws_from_what_it_is_given():
    state = torch.get_rng_state()
    exact = targets.planted(6, 4, tensor(2, 1), generator())
    rounded = targets.planted(6, 4, tensor(2, 1).float(), generator())
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, exact.float())
    assert torch.equal(torch.get_rng_state(), state)
    assert (targets.planted(6, 4, tensor(0, 0), generator()) == 0).all()


def test_the_loss_is_the_mean_over_inputs():
    inputs, delta, product = normal(50, 4, seed=1), normal(3, 4), normal(3, 4, seed=2)
    covariance = inputs.T @ inputs / 50
    missed = inputs @ (delta - product).T
    close(targets.loss(delta, product, covariance), missed.square().sum(1).mean() / 2)


def test_the_slope_of_the_loss_is_its_formula():
    delta, covariance = normal(3, 4), spread(4)
    product = normal(3, 4, seed=2).requires_grad_()
    slope = torch.autograd.grad(targets.loss(delta, product, covariance), product)[0]
    close(slope, -(delta - product.detach()) @ covariance)


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 6), st.integers(0, 999))
def test_the_best_matrix_has_the_rank_and_the_floor_and_no_other_is_below(m, n, rank, seed):
    rank = min(rank, m, n)
    delta, covariance = normal(m, n, seed=seed), spread(n, seed=seed + 1)
    best = targets.best(delta, covariance, rank)
    least = targets.floor(delta, covariance, rank)
    assert torch.linalg.matrix_rank(best) <= rank
    close(targets.loss(delta, best, covariance), least, 1e-10)
    plain = targets.truncated_loss(delta, covariance, rank)
    assert plain >= least - 1e-12 * (1 + least)
    for other in range(20):
        left, right = normal(m, rank, seed=other), normal(rank, n, seed=other + 50)
        moved = targets.loss(delta, left @ right, covariance)
        assert moved >= least - 1e-12


def test_the_best_matrix_is_that_of_regression_of_reduced_rank():
    """Against the textbook's: least squares on data, projected on its fits' principal directions."""
    inputs, delta = normal(60, 5, seed=3), normal(4, 5)
    outputs = inputs @ delta.T
    full = np.linalg.lstsq(inputs.numpy(), outputs.numpy(), rcond=None)[0]
    axes = np.linalg.svd(inputs.numpy() @ full, full_matrices=False)[2][:2]
    theirs = torch.from_numpy((full @ axes.T @ axes).T)
    close(targets.best(delta, inputs.T @ inputs / 60, 2), theirs, 1e-10)


def test_with_equal_variances_the_truncation_is_the_best():
    delta = normal(5, 7)
    same = 3 * torch.eye(7, dtype=torch.float64)
    for rank in range(6):
        plain, least = targets.truncated_loss(delta, same, rank), targets.floor(delta, same, rank)
        close(plain, least, 1e-13)
    tail = torch.linalg.svdvals(delta)[2:].square().sum()
    close(targets.floor(delta, same, 2), 1.5 * tail)


@pytest.mark.parametrize("k", [2.0, 10.0, 100.0])
def test_nothing_bounds_what_the_truncation_loses(k):
    """It keeps the larger value, of which the inputs have little."""
    delta, covariance = torch.diag(tensor(1, 0.9)), torch.diag(tensor(1 / k, k))
    assert targets.truncated_loss(delta, covariance, 1).item() == pytest.approx(0.405 * k)
    assert targets.floor(delta, covariance, 1).item() == pytest.approx(0.5 / k)


def test_where_no_input_is_nothing_is_learnt():
    seen = normal(3, 6, seed=4)
    covariance, delta = seen.T @ seen, normal(5, 6)
    for rank in range(6):
        best = targets.best(delta, covariance, rank)
        assert torch.linalg.matrix_rank(best) == min(rank, 3)
        least = targets.floor(delta, covariance, rank)
        close(targets.loss(delta, best, covariance), least, 1e-10)
    unseen = torch.linalg.svd(seen)[2][3:]
    close(best @ unseen.T, torch.zeros(5, 3, dtype=torch.float64), 1e-10)
    nothing = torch.zeros(6, 6, dtype=torch.float64)
    assert (targets.best(delta, nothing, 2) == 0).all()
    assert targets.floor(delta, nothing, 2) == 0


def gradient(pair):
    return torch.optim.SGD(pair, lr=0.1)


def adam(pair):
    return torch.optim.Adam(pair, lr=0.02)


@pytest.mark.parametrize(("optimizer", "steps"), [(gradient, 150), (adam, 600)])
@pytest.mark.parametrize("rank", [2, 4, 8])
def test_training_reaches_the_floor_below_at_and_above_the_planted_rank(optimizer, steps, rank):
    delta = targets.planted(24, 32, tensor(*VALUES), generator())
    covariance = spread(32)
    A = (normal(rank, 32, seed=5) / (3 * 32) ** 0.5).requires_grad_()
    B = torch.zeros(24, rank, dtype=torch.float64)
    found = targets.fit(delta, covariance, A, B, 1.0, optimizer, steps)
    least = targets.floor(delta, covariance, rank)
    assert found.losses.shape == (steps + 1,)
    zero = torch.zeros(24, 32, dtype=torch.float64)
    close(found.losses[0], targets.loss(delta, zero, covariance))
    reached = targets.loss(delta, found.B @ found.A, covariance)
    assert torch.equal(found.losses[-1], reached)
    assert -1e-12 <= (reached - least) / found.losses[0] < 1e-6
    assert (B == 0).all()
    assert not found.A.requires_grad


def test_a_step_is_the_one_by_hand():
    delta, covariance = normal(3, 4), spread(4)
    A, B = normal(2, 4, seed=1), normal(3, 2, seed=2)
    found = targets.fit(delta, covariance, A, B, 0.5, gradient, 1)
    slope = -(delta - 0.5 * B @ A) @ covariance
    close(found.A, A - 0.1 * 0.5 * B.T @ slope)
    close(found.B, B - 0.1 * 0.5 * slope @ A.T)


def test_a_rate_that_is_too_large_is_seen_in_the_losses():
    delta, eye = normal(3, 4), torch.eye(4, dtype=torch.float64)
    A, B = normal(2, 4, seed=1), torch.zeros(3, 2, dtype=torch.float64)
    found = targets.fit(delta, eye, A, B, 1.0, lambda pair: torch.optim.SGD(pair, lr=100), 20)
    assert not found.losses[-1].isfinite()


def test_every_rank_starts_from_the_first_rows_of_one_draw():
    delta, covariance, A = normal(3, 4), spread(4), normal(3, 4, seed=1)
    found = targets.over_ranks(delta, covariance, A, [3, 1], lambda r: 2 / r, gradient, 4)
    for rank, fitted in zip([3, 1], found, strict=True):
        zeros = torch.zeros(3, rank, dtype=torch.float64)
        alone = targets.fit(delta, covariance, A[:rank], zeros, 2 / rank, gradient, 4)
        assert all(map(torch.equal, fitted, alone))
    assert targets.over_ranks(delta, covariance, A, [], lambda r: 1.0, gradient, 4) == []


def test_a_random_subspace_captures_its_share_of_the_dimensions():
    delta, d, n = targets.planted(6, 5, tensor(3, 1), generator()), 9, 1000
    source = generator(1)
    shares = [targets.captured(delta, d, source).item() for _ in range(n)]
    law = stats.beta(d / 2, (30 - d) / 2)
    assert law.mean() == pytest.approx(d / 30)
    assert stats.kstest(shares, law.cdf).pvalue > stats.norm.sf(4.5)
    assert abs(np.mean(shares) - d / 30) < 4.5 * law.std() / math.sqrt(n)


def test_all_dimensions_capture_all():
    delta = normal(3, 4)
    assert targets.captured(delta, 12, generator()).item() == pytest.approx(1, abs=1e-14)
    tiny = targets.captured(1e-200 * delta, 5, generator())
    close(tiny, targets.captured(delta, 5, generator()))
    assert targets.captured(delta.float(), 5, generator()).dtype == torch.float32


def test_rounding_may_make_a_covariance_asymmetric_and_no_more():
    delta, covariance = normal(3, 4), spread(4)
    for gap, accepted in ((1e-9, True), (1e-4, False)):
        moved = covariance.clone()
        moved[0, 1] += gap * covariance.abs().max()
        if accepted:
            assert targets.loss(delta, delta, moved) == 0
        else:
            with pytest.raises(ValueError, match="^covariance: must be symmetric"):
                targets.loss(delta, delta, moved)


def test_a_variance_of_rounding_counts_as_none():
    """Below n eps of the largest it is zero, and what it would see is not learnt; above it is."""
    eps, delta = torch.finfo(torch.float64).eps, normal(3, 4)
    for variance, learnt in ((3 * eps, False), (5 * eps, True)):
        best = targets.best(delta, torch.diag(tensor(1, 1, 1, variance)), 3)
        assert (best[:, 3].abs().max() > 0.1) == learnt


def test_a_planted_matrix_is_no_function_of_the_values():
    planted = targets.planted(6, 4, tensor(2, 1).requires_grad_(), generator())
    assert not planted.requires_grad


EYE, DELTA = torch.eye(4, dtype=torch.float64), normal(3, 4)
A, B = normal(2, 4), normal(3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: targets.planted(0, 4, tensor(1), generator()), "outputs: must"),
        (lambda: targets.planted(3, 4.0, tensor(1), generator()), "inputs: must"),
        (
            lambda: targets.planted(3, 4, tensor(1, 1, 1, 1), generator()),
            "values: must be at most 3",
        ),
        (lambda: targets.planted(3, 4, tensor(1, -1), generator()), "values: must be finite"),
        (lambda: targets.planted(3, 4, tensor(math.nan), generator()), "values: must be finite"),
        (
            lambda: targets.planted(3, 4, torch.ones(2, dtype=torch.int64), generator()),
            "values: must",
        ),
        (lambda: targets.planted(3, 4, tensor(1)[None], generator()), "values: must be a floating"),
        (lambda: targets.loss(DELTA[0], DELTA, EYE), "delta: must be a floating"),
        (lambda: targets.loss(DELTA * math.nan, DELTA, EYE), "delta: must be finite"),
        (lambda: targets.loss(DELTA, DELTA[:1], EYE), "product: must be"),
        (lambda: targets.loss(DELTA, DELTA.float(), EYE), "product: must be"),
        (lambda: targets.loss(DELTA, DELTA, EYE[:3, :3]), "covariance: must be"),
        (lambda: targets.loss(DELTA, DELTA, EYE.float()), "covariance: must be"),
        (lambda: targets.loss(DELTA, DELTA, EYE / 0), "covariance: must be finite"),
        (lambda: targets.loss(DELTA, DELTA, normal(4, 4)), "covariance: must be symmetric"),
        (lambda: targets.best(DELTA, -EYE, 1), "covariance: must have no negative"),
        (lambda: targets.best(DELTA, EYE, 4), "rank: must be from 0 to 3"),
        (lambda: targets.best(DELTA, EYE, True), "rank: must be from 0 to 3, got True"),
        (lambda: targets.best(DELTA, EYE, 1.0), "rank: must be from 0 to 3, got 1.0"),
        (lambda: targets.floor(DELTA, EYE, True), "rank: must be from 0 to 3, got True"),
        (lambda: targets.truncated_loss(DELTA, EYE, True), "rank: must be from 0 to 3, got True"),
        (lambda: targets.floor(DELTA, EYE, -1), "rank: must be from 0 to 3"),
        (lambda: targets.floor(DELTA, EYE, 1.0), "rank: must be from 0 to 3"),
        (lambda: targets.truncated_loss(DELTA, EYE, 4), "rank: must be from 0 to 3"),
        (lambda: targets.truncated_loss(DELTA, normal(4, 4), 1), "covariance: must be symmetric"),
        (lambda: targets.fit(DELTA, EYE, A[:, :3], B, 1.0, adam, 1), "A: must be"),
        (lambda: targets.fit(DELTA, EYE, A[0, 0], B, 1.0, adam, 1), "A: must be"),
        (lambda: targets.fit(DELTA, EYE, A, B[:, :1], 1.0, adam, 1), "B: must be"),
        (lambda: targets.fit(DELTA, EYE, A, B.float(), 1.0, adam, 1), "B: must be"),
        (lambda: targets.fit(DELTA, EYE, A, B * math.nan, 1.0, adam, 1), "B: must be finite"),
        (lambda: targets.fit(DELTA, EYE, A, B, 0.0, adam, 1), "scaling: must be positive"),
        (lambda: targets.fit(DELTA, EYE, A, B, math.inf, adam, 1), "scaling: must be finite"),
        (lambda: targets.fit(DELTA, EYE, A, B, 1.0, adam, 0), "steps: must"),
        (
            lambda: targets.over_ranks(DELTA, EYE, A, [3], float, adam, 1),
            "ranks: must be at most 2",
        ),
        (lambda: targets.over_ranks(DELTA, EYE, A, [0], float, adam, 1), "rank: must"),
        (lambda: targets.over_ranks(DELTA, EYE, A[0, 0], [1], float, adam, 1), "A: must be"),
        (lambda: targets.captured(DELTA, 13, generator()), "dimension: must be at most 12"),
        (lambda: targets.captured(DELTA, 0, generator()), "dimension: must"),
        (lambda: targets.captured(0 * DELTA, 2, generator()), "delta: must not be zero"),
        (lambda: targets.captured(DELTA[0], 2, generator()), "delta: must be a floating"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
