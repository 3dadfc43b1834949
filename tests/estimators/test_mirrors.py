import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook.categorical import categorical, exact_gradient
from gradbook.estimators import antithetic, mirror_gumbel, pathwise, score_function
from gradbook.noise import uniform

F64 = torch.float64


def close(actual, expected, rtol=1e-12, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def test_each_pair_is_the_mean_of_two_single_estimates(mixed, gumbels):
    f, logits = mixed
    noise = gumbels(6, logits, 0)
    pairs = antithetic(score_function, mirror_gumbel, f, categorical, logits, noise)
    one = score_function(f, categorical, logits, noise)
    other = score_function(f, categorical, logits, mirror_gumbel(noise))
    close(pairs, (one + other) / 2)
    assert (one != other).any()


def test_mirrored_normals_are_exact_where_f_is_linear_or_even(normal):
    theta = normal.theta(3)
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=F64)

    def even(z, t):
        return (z - t["loc"]).square().sum().detach()

    linear = antithetic(pathwise, torch.neg, lambda z, t: 2 * z.sum(), normal.family, theta, noise)
    close(linear["loc"], torch.full((5, 3), 2.0, dtype=F64))
    close(linear["log_scale"], torch.zeros(5, 3, dtype=F64))
    scores = antithetic(score_function, torch.neg, even, normal.family, theta, noise)
    # The gradient of f itself, -2 (z - loc), is odd as well.
    close(scores["loc"], torch.zeros(5, 3, dtype=F64))


def test_pairs_are_unbiased(problem, gumbels, z_scores):
    noise = gumbels(40_000, problem.logits, 13)
    pairs = antithetic(score_function, mirror_gumbel, *_arguments(problem), noise)
    assert z_scores(pairs, exact_gradient(*problem)) < 4.5


def test_pairs_of_the_four_classes_beat_two_independent_draws(four_classes, gumbels):
    noise = gumbels(40_000, four_classes.logits, 14)
    pairs = antithetic(score_function, mirror_gumbel, *_arguments(four_classes), noise)
    singles = score_function(*_arguments(four_classes), noise)
    assert pairs.var(0).sum() < 0.6 * singles.var(0).sum() / 2


def _arguments(problem):
    return problem.f, categorical, problem.logits


def test_a_mirror_keeps_the_shape(four_classes, gumbels):
    noise = gumbels(3, four_classes.logits, 0)
    with pytest.raises(ValueError, match=r"mirror: changes the shape from \(3, 4\) to \(2, 4\)"):
        antithetic(score_function, lambda x: x[:2], *_arguments(four_classes), noise)


def test_the_mirror_turns_u_into_one_minus_u():
    u = uniform(10_000, seed=3).cpu()
    close(mirror_gumbel(-(-u.log()).log()), -(-(-u).log1p()).log(), rtol=1e-9, atol=1e-12)


def test_the_median_is_its_own_image():
    median = torch.tensor(-math.log(math.log(2)), dtype=F64)
    close(mirror_gumbel(median), median)


@given(st.floats(-3.7, 36.8))
def test_the_mirror_of_the_mirror_is_the_noise(value):
    noise = torch.tensor(value, dtype=F64)
    close(mirror_gumbel(mirror_gumbel(noise)), noise, rtol=1e-10, atol=1e-10)


@given(st.floats(-2.85, 16.6))
def test_the_mirror_keeps_the_digits_of_float32(value):
    exact = mirror_gumbel(torch.tensor(value, dtype=torch.float32).double())
    found = mirror_gumbel(torch.tensor(value, dtype=torch.float32))
    assert found.dtype == torch.float32
    close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_the_mirror_is_finite_as_far_as_it_says():
    noise = torch.tensor([-6.6, -6.62], dtype=F64)
    assert mirror_gumbel(noise).isfinite().tolist() == [True, False]
    far = torch.tensor([100.0, 700.0], dtype=F64)
    close(mirror_gumbel(far), -far.log(), rtol=1e-12)


def test_the_gradient_of_the_mirror_is_finite_on_both_sides():
    noise = torch.tensor([-3.0, 0.3, 0.4, 30.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(mirror_gumbel, noise)
    assert mirror_gumbel(torch.zeros(0)).shape == (0,)
