"""One step of a LoRA: torch's optimizers, averages over A by Monte Carlo, shares of A and B."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.peft import lora_steps as steps
from gradbook.peft import low_rank_targets as targets

M, N, RANK = 3, 5, 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def uniform(*shape, seed=0):
    drawn = torch.rand(shape, generator=generator(seed), dtype=torch.float64)
    return (2 * drawn - 1) * shape[-1] ** -0.5


def close(ours, theirs, tolerance=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def stepped(optimizer, A, B, scaling, x, g):
    """A and B after a step on the loss sum_i g_i . y_i, of inputs [b, n] and gradients [b, m]."""
    A, B = (p.clone().requires_grad_() for p in (A, B))
    made = optimizer([A, B])
    (scaling * (x @ A.T @ B.T) * g).sum().backward()
    made.step()
    return A.detach(), B.detach()


def gradient(rate):
    return lambda pair: torch.optim.SGD(pair, lr=rate)


def signs(rate_a, rate_b):
    def make(pair):
        groups = [{"params": [p], "lr": r} for p, r in zip(pair, (rate_a, rate_b), strict=True)]
        return torch.optim.Adam(groups, eps=1e-30)

    return make


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("scaling", [0.7, -2.0])
def test_changes_are_those_of_torchs_optimizers(batch, scaling):
    x, g, A, B = (
        normal(batch, N),
        normal(batch, M, seed=1),
        normal(RANK, N, seed=2),
        normal(M, RANK),
    )
    others, slope = normal(2, 7, N, seed=3), g.T @ x
    for optimizer, law in (
        (gradient(0.1), steps.gradient_change),
        (signs(0.1, 0.1), steps.sign_change),
    ):
        new_a, new_b = stepped(optimizer, A, 0 * B, scaling, x, g)
        assert torch.equal(new_a, A)
        theirs = scaling * others @ new_a.T @ new_b.T
        close(law(slope, A, scaling, 0.1, others), theirs)


def test_changes_at_one_input_are_the_formulas():
    x, g, A, other = normal(N), normal(M, seed=1), normal(RANK, N, seed=2), normal(N, seed=3)
    slope = torch.outer(g, x)
    kernel = (A @ x) @ (A @ other)
    close(steps.gradient_change(slope, A, 2.0, 0.1, other), -0.1 * 4 * kernel * g)
    own = -0.1 * 2 * (A @ x).abs().sum() * g.sign()
    close(steps.sign_change(slope, A, 2.0, 0.1, x), own)


def within(samples, expected):
    """Means over the first axis, to 4.5 standard errors."""
    errors = samples.std(0) / math.sqrt(len(samples))
    assert (errors > 0).all()
    assert ((samples.mean(0) - expected).abs() <= 4.5 * errors).all()


def changes(law, draw, slope, scaling, rate, x, n=8000):
    sample = torch.func.vmap(lambda A: law(slope, A, scaling, rate, x))
    return sample(draw(n, RANK, slope.shape[1]))


def normal_draws(n, rank, inputs):
    return 0.3 * normal(n, rank, inputs, seed=9)


@pytest.mark.parametrize("draw", [uniform, normal_draws])
def test_the_mean_step_of_gradients_is_that_of_any_law(draw):
    slope, x = normal(M, N), normal(N, seed=1)
    std = (3 * N) ** -0.5 if draw is uniform else 0.3
    found = changes(steps.gradient_change, draw, slope, 2.0, 0.1, x)
    within(found, steps.gradient_mean(slope, RANK, 2.0, 0.1, std) @ x)


def test_the_mean_step_at_an_input_is_the_rank_over_three_times_the_width():
    x, other, g = normal(N), normal(N, seed=1), normal(M, seed=2)
    mean = steps.gradient_mean(torch.outer(g, x), RANK, 2.0, 0.1, (3 * N) ** -0.5)
    close(mean @ other, -0.1 * 4 * RANK * (x @ other) / (3 * N) * g)


def test_the_mean_step_of_signs_and_the_mean_squares_are_those_of_normal_draws():
    slope, x = normal(M, N), normal(N, seed=1)
    covariance, setting = torch.outer(x, x), (RANK, -2.0, 0.1, 0.3)
    found = changes(steps.sign_change, normal_draws, slope, -2.0, 0.1, x)
    within(found, steps.sign_mean(slope, *setting) @ x)
    within(found.square(), steps.sign_square(slope, covariance, *setting))
    found = changes(steps.gradient_change, normal_draws, slope, -2.0, 0.1, x)
    within(found.square(), steps.gradient_square(slope, covariance, *setting))


def test_mean_squares_are_those_over_inputs():
    slope, x, setting = normal(M, N), normal(40, N, seed=1), (RANK, 2.0, 0.1, 0.3)
    for law in (steps.gradient_square, steps.sign_square):
        each = torch.stack([law(slope, torch.outer(row, row), *setting) for row in x])
        close(law(slope, x.T @ x / 40, *setting), each.mean(0))


def test_with_loras_uniform_law_the_normal_one_is_the_limit():
    """At 200 inputs the fourth moments differ by a share of about 1 / 200."""
    slope, x = normal(2, 200), normal(200, seed=1)
    covariance, setting = torch.outer(x, x), (RANK, 2.0, 0.1, 600**-0.5)
    for change, square in (
        (steps.gradient_change, steps.gradient_square),
        (steps.sign_change, steps.sign_square),
    ):
        found = changes(change, uniform, slope, 2.0, 0.1, x, 4000).square()
        expected = square(slope, covariance, *setting)
        errors = 4.5 * found.std(0) / math.sqrt(4000) + expected / 100
        assert ((found.mean(0) - expected).abs() <= errors).all()


def test_the_loss_after_a_step_is_exact_on_average():
    """The quadratic loss needs only the mean of the step and its mean square."""
    delta, root = normal(M, N), normal(N, N, seed=1)
    covariance = root @ root.T / N
    slope, zero = -delta @ covariance, torch.zeros(M, N, dtype=torch.float64)
    before = targets.loss(delta, zero, covariance)
    eye = torch.eye(N, dtype=torch.float64)
    laws = (
        (steps.gradient_change, steps.gradient_mean, steps.gradient_square),
        (steps.sign_change, steps.sign_mean, steps.sign_square),
    )
    for change, mean, square in laws:
        setting = (RANK, 0.8, 0.2, 0.3)
        moved = changes(change, normal_draws, slope, 0.8, 0.2, eye).mT
        missed = delta - moved
        found = ((missed @ covariance) * missed).sum((1, 2)) / 2
        aimed = (slope * mean(slope, *setting)).sum()
        within(found, before + aimed + square(slope, covariance, *setting).sum() / 2)


@settings(max_examples=20)
@given(st.integers(1, 64), st.floats(0.1, 4))
def test_means_grow_with_the_rank_and_the_scaling(rank, scaling):
    slope = normal(M, N)
    one = steps.gradient_mean(slope, 1, 1.0, 0.1, 0.3)
    close(steps.gradient_mean(slope, rank, scaling, 0.1, 0.3), scaling**2 * rank * one)
    one = steps.sign_mean(slope, 1, 1.0, 0.1, 0.3)
    close(steps.sign_mean(slope, rank, scaling, 0.1, 0.3), scaling * rank * one)


def test_a_zero_row_does_not_move():
    slope, eye = normal(M, N), torch.eye(N, dtype=torch.float64)
    slope[1] = 0
    mean = steps.sign_mean(slope, RANK, 1.0, 0.1, 0.3)
    square = steps.sign_square(slope, eye, RANK, 1.0, 0.1, 0.3)
    assert (mean[1] == 0).all()
    assert square[1] == 0
    assert (steps.sign_change(slope, normal(RANK, N), 1.0, 0.1, normal(N))[1] == 0).all()


def test_dimensions_count_the_directions_of_the_inputs():
    slope, eye = normal(M, N), torch.eye(N, dtype=torch.float64)
    close(steps.dimensions(slope, 3 * eye), torch.full((M,), float(N), dtype=torch.float64))
    x = normal(N, seed=1)
    close(steps.dimensions(torch.outer(normal(M), x), torch.outer(x, x)), torch.ones(M).double())
    subspace = torch.diag(torch.tensor([1, 1, 0, 0, 0]).double())
    inside = slope @ subspace
    close(steps.dimensions(inside, subspace), torch.full((M,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize(("spread", "expected"), [(True, 0.5), (False, 1.0)])
def test_fresh_outputs_grow_as_the_root_of_the_rank_where_inputs_spread(spread, expected):
    """From rank 1 to 64 with 10^6 dimensions, or with one."""
    slope = torch.ones(1, 2, dtype=torch.float64)
    apart = 10.0**6 - 1
    along, across = torch.ones(2, 2).double() / 2, torch.tensor([[1, -1], [-1, 1]]).double() / 2
    covariance = along + apart * across if spread else along
    sizes = [steps.sign_square(slope, covariance, r, 1.0, 1.0, 1.0).sqrt() for r in (64, 1024)]
    power = math.log(sizes[1] / sizes[0]) / math.log(16)
    assert power == pytest.approx(expected, abs=0.005)


def test_training_on_a_batch_moves_its_outputs_as_the_law_says():
    """Adam's first step in a training of several ranks, on its batch and on fresh inputs."""
    x, delta = normal(6, 128, seed=1), normal(64, 128) / 128**0.5
    seen, fresh = x.T @ x / 6, torch.eye(128, dtype=torch.float64)
    A, zero = uniform(64, 128, seed=2), torch.zeros(64, 128, dtype=torch.float64)
    make = signs(1e-3, 1e-3)
    found = targets.over_ranks(delta, seen, A, (1, 8, 64), lambda rank: 1 / rank, make, 1)
    for rank, fitted in zip((1, 8, 64), found, strict=True):
        product = fitted.B @ fitted.A / rank
        close(product.T, steps.sign_change(-delta @ seen, A[:rank], 1 / rank, 1e-3, fresh))
        for covariance in (seen, fresh):
            squares = 2 * targets.loss(zero, product, covariance)
            setting = (rank, 1 / rank, 1e-3, 384**-0.5)
            expected = steps.sign_square(-delta @ seen, covariance, *setting).sum()
            # One draw of A: the mean over its r rows is known to about sqrt(2 / (r d)), d >= 6.
            assert squares / expected == pytest.approx(1, abs=4.5 * (2 / (6 * rank)) ** 0.5)


@settings(max_examples=25)
@given(st.integers(0, 999), st.floats(0.1, 3))
def test_parts_of_a_step_of_signs_are_torchs_and_sum_to_the_change(seed, scaling):
    A, B = normal(RANK, N, seed=seed), normal(M, RANK, seed=seed + 1)
    x, g = normal(N, seed=seed + 2), normal(M, seed=seed + 3)
    new_a, new_b = stepped(signs(0.2, 0.3), A, B, scaling, x[None], g[None])
    parts = steps.sign_parts(A, B, scaling, x, g, (0.2, 0.3))
    close(parts.by_a, scaling * B @ (new_a - A) @ x)
    close(parts.by_b, scaling * (new_b - B) @ A @ x)
    close(parts.by_both, scaling * (new_b - B) @ (new_a - A) @ x)
    close(sum(parts), scaling * (new_b @ new_a - B @ A) @ x)
    first = scaling * x.abs().sum() * (B.T @ g).abs().sum()
    close(-g @ parts.by_a, 0.2 * first)
    close(-g @ parts.by_b, 0.3 * scaling * (A @ x).abs().sum() * g.abs().sum())


def test_at_the_balanced_ratio_both_parts_lower_the_loss_alike():
    A, B, x, g = normal(RANK, N), normal(M, RANK, seed=1), normal(N, seed=2), normal(M, seed=3)
    ratio = steps.balanced_ratio(A, B, x, g).item()
    parts = steps.sign_parts(A, B, 0.5, x, g, (0.1, 0.1 * ratio))
    close(g @ parts.by_a, g @ parts.by_b)
    assert g @ parts.by_a < 0
    assert steps.balanced_ratio(A, 0 * B, x, g) == 0


@pytest.mark.parametrize("rank", [2, 16])
@pytest.mark.parametrize("n", [64, 1024])
def test_after_steps_of_signs_the_balanced_ratio_is_proportional_to_the_width(rank, n):
    ratios = []
    for seed in range(100):
        A, x, g = uniform(rank, n, seed=seed), normal(n, seed=seed + 1000), normal(M, seed=seed)
        B = -0.01 * torch.outer(g.sign(), (A @ x).sign())
        ratio = steps.balanced_ratio(A, B, x, g)
        close(ratio, 0.01 * rank * x.abs().sum() / (A @ x).abs().sum())
        ratios.append(1 / ratio)
    ratios = torch.stack(ratios)
    # x, n normal numbers, has E |x|_2 / |x|_1 off its limit by a share of about 1 / n.
    error = 4.5 * ratios.std() / 10 + ratios.mean() / n
    assert abs(ratios.mean() - 1 / (math.sqrt(3) * n * 0.01)) < error


SLOPE, A, B = normal(M, N), normal(RANK, N), normal(M, RANK)
X, G, EYE = normal(N), normal(M), torch.eye(N, dtype=torch.float64)
STEP = (1.0, 0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: steps.gradient_change(SLOPE[0], A, *STEP, X), "slope: must be a floating"),
        (lambda: steps.gradient_change(SLOPE / 0, A, *STEP, X), "slope: must be finite"),
        (lambda: steps.gradient_change(SLOPE, A[:, :2], *STEP, X), "A: must be"),
        (lambda: steps.gradient_change(SLOPE, A[0], *STEP, X), "A: must be"),
        (lambda: steps.sign_change(SLOPE, A, *STEP, X[:1]), "x: must be"),
        (lambda: steps.sign_change(SLOPE, A, *STEP, X.float()), "x: must be"),
        (lambda: steps.sign_change(SLOPE, A, *STEP, X * math.nan), "x: must be finite"),
        (lambda: steps.sign_change(SLOPE, A, math.inf, 0.1, X), "scaling: must be finite"),
        (lambda: steps.sign_change(SLOPE, A, 1.0, math.nan, X), "rate: must be finite"),
        (lambda: steps.gradient_mean(SLOPE, 0, *STEP, 0.3), "rank: must"),
        (lambda: steps.sign_mean(SLOPE, 2.0, *STEP, 0.3), "rank: must"),
        (lambda: steps.sign_mean(SLOPE, 2, *STEP, math.nan), "std: must be finite"),
        (lambda: steps.sign_mean(SLOPE, 2, *STEP, -0.3), "std: must not be negative"),
        (lambda: steps.gradient_square(SLOPE, EYE, 2, *STEP, -0.3), "std: must not be negative"),
        (
            lambda: steps.gradient_square(SLOPE, normal(N, N), 2, *STEP, 0.3),
            "covariance: must be symmetric",
        ),
        (
            lambda: steps.sign_square(SLOPE, normal(N, N), 2, *STEP, 0.3),
            "covariance: must be symmetric",
        ),
        (lambda: steps.dimensions(SLOPE, normal(N, N)), "covariance: must be symmetric"),
        (lambda: steps.gradient_square(SLOPE, EYE[:1], 2, *STEP, 0.3), "covariance: must be"),
        (lambda: steps.sign_square(SLOPE, EYE.float(), 2, *STEP, 0.3), "covariance: must be"),
        (lambda: steps.dimensions(SLOPE, EYE[0]), "covariance: must be"),
        (lambda: steps.sign_parts(A, B, 0.0, X, G, STEP), "scaling: must be positive"),
        (lambda: steps.sign_parts(A, B, 1.0, X, G, (0.1, math.nan)), "rate_b: must be finite"),
        (lambda: steps.sign_parts(A, B, 1.0, X[:1], G, STEP), "A: must be"),
        (lambda: steps.sign_parts(A, B.T, 1.0, X, G, STEP), "B: must be"),
        (lambda: steps.balanced_ratio(A, B, X, G[0]), "g: must be"),
        (lambda: steps.balanced_ratio(A, B, X, G[None]), "g: must be"),
        (lambda: steps.balanced_ratio(A, B, X, G.float()), "g: must be"),
        (lambda: steps.balanced_ratio(A, B * math.nan, X, G), "B: must be finite"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
