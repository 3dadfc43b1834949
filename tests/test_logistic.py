import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from gradbook import data, logistic


def problem(n=40, d=2, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    design = logistic.with_intercept(torch.randn(n, d - 1, generator=generator, dtype=dtype))
    truth = torch.linspace(-1, 1, d, dtype=dtype)
    uniform = torch.rand(n, generator=generator, dtype=dtype)
    return design, (uniform < torch.sigmoid(design @ truth)).long()


def grid(design, labels, half_width=9.0, points=361):
    """Brute force over two coefficients: the points, and their log joint."""
    axis = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
    at = torch.cartesian_prod(axis, axis)
    height = torch.cat([logistic.log_joint(part, design, labels) for part in at.split(50_000)])
    return at, height, 2 * math.log(axis[1] - axis[0])


def test_log_joint_is_the_sum_of_torchs_own_log_probabilities():
    design, labels = problem(d=4)
    b = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    likelihood = torch.distributions.Bernoulli(logits=b @ design.T).log_prob(labels.double())
    prior = torch.distributions.Normal(0 * b, 1.7 * torch.ones_like(b)).log_prob(b)
    exact = likelihood.sum(-1) + prior.sum(-1)
    ours = logistic.log_joint(b, design, labels, prior_scale=1.7)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


def test_log_joint_does_not_overflow_where_a_probability_underflows():
    design = torch.tensor([[1.0]], dtype=torch.float64)
    far = torch.tensor([-2000.0], dtype=torch.float64)
    value = logistic.log_joint(far, design, torch.tensor([1]))
    exact = -2000.0 - 0.5 * 2000.0**2 - 0.5 * math.log(2 * math.pi)
    assert value.item() == pytest.approx(exact, rel=1e-14)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.3, 5.0))
def test_gradient_is_the_closed_form(seed, prior_scale):
    design, labels = problem(n=15, d=3, seed=seed)
    b = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gradient = torch.func.grad(logistic.log_joint)(b, design, labels, prior_scale)
    exact = design.T @ (labels - torch.sigmoid(design @ b)) - b / prior_scale**2
    torch.testing.assert_close(gradient, exact, rtol=1e-10, atol=1e-11)


def test_precision_is_minus_the_hessian():
    design, labels = problem(d=4)
    b = torch.tensor([0.3, -0.2, 1.0, 2.0], dtype=torch.float64)
    hessian = torch.func.hessian(logistic.log_joint)(b, design, labels, 0.8)
    torch.testing.assert_close(logistic.precision(b, design, 0.8), -hessian, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_laplace_is_stationary_and_inverts_the_precision(dtype):
    design, labels = problem(d=4, dtype=dtype)
    mode, factor = logistic.laplace(design, labels, prior_scale=2.0)
    assert mode.dtype == dtype
    slope = torch.func.grad(logistic.log_joint)(mode, design, labels, 2.0)
    atol = 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=atol)
    identity = factor @ factor.T @ logistic.precision(mode, design, 2.0)
    torch.testing.assert_close(identity, torch.eye(4, dtype=dtype), rtol=0, atol=atol)
    assert torch.equal(factor, factor.tril())


def test_laplace_of_the_breast_cancer_posterior_is_stationary():
    table = data.breast_cancer()
    design = logistic.with_intercept(table.features)
    mode, _ = logistic.laplace(design, table.labels)
    slope = design.T @ (table.labels - torch.sigmoid(design @ mode)) - mode
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-11)


def test_laplace_mode_is_the_highest_point_of_a_grid():
    design, labels = problem()
    mode, _ = logistic.laplace(design, labels)
    at, height, _ = grid(design, labels)
    assert (mode - at[height.argmax()]).abs().max() <= 9.0 / 180 + 1e-9
    assert logistic.log_joint(mode, design, labels) >= height.max()


def test_laplace_evidence_approaches_the_quadrature_as_one_over_n():
    """The error of Laplace's log evidence is O(1/n): 16 times the data divide it by 8 or more."""
    errors = []
    for n in (80, 1280):
        design, labels = problem(n=n, seed=3)
        mode, factor = logistic.laplace(design, labels)
        _, height, log_cell = grid(design, labels, half_width=5.0, points=201)
        exact = height.logsumexp(0) + log_cell
        height_at_mode = logistic.log_joint(mode, design, labels)
        ours = height_at_mode + math.log(2 * math.pi) + factor.diagonal().log().sum()
        errors.append((ours - exact).abs().item())
    assert 1e-3 < errors[0] < 0.05
    assert errors[1] <= errors[0] / 8


def test_no_data_leave_the_prior():
    design, labels = torch.empty(0, 3, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    mode, factor = logistic.laplace(design, labels, prior_scale=1.5)
    torch.testing.assert_close(mode, torch.zeros(3).double(), rtol=0, atol=0)
    torch.testing.assert_close(factor, 1.5 * torch.eye(3).double(), rtol=1e-14, atol=0)


def test_a_plane_separates_the_breast_cancer_labels():
    """Why the posterior needs its prior: some b classifies all 569 rows with a margin."""
    table = data.breast_cancer()
    signed = (2 * table.labels[:, None] - 1) * logistic.with_intercept(table.features)
    limits = {"A_ub": -signed.numpy(), "b_ub": -np.ones(569), "bounds": (None, None)}
    found = linprog(np.zeros(31), **limits, method="highs")
    assert found.status == 0
    assert (signed @ torch.from_numpy(found.x)).min() >= 1 - 1e-6


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"design": torch.full((40, 2), math.nan).double()}, "design"),
        ({"design": torch.ones(40).double()}, "design"),
        ({"labels": torch.zeros(39)}, "labels"),
        ({"labels": torch.full((40,), 2)}, "labels"),
        ({"coefficients": torch.zeros(3).double()}, "coefficients"),
        ({"prior_scale": 0.0}, "prior_scale"),
        ({"prior_scale": math.nan}, "prior_scale"),
    ],
)
def test_bad_input_is_named(change, name):
    design, labels = problem()
    given = {"coefficients": torch.zeros(2).double(), "design": design, "labels": labels}
    with pytest.raises(ValueError, match=f"^{name}: "):
        logistic.log_joint(**{**given, **change})


def test_intercept_needs_a_matrix():
    with pytest.raises(ValueError, match="^features: "):
        logistic.with_intercept(torch.ones(3))
