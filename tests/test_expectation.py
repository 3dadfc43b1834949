import itertools
import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.expectation import (
    central_difference,
    enumerated,
    gauss_hermite,
    monte_carlo,
    moving_support,
    strings,
)
from gradbook.noise import standard_normal, uniform

F64 = torch.float64
NAN, INF = math.nan, math.inf
LOCS = st.floats(-3, 3)
SCALES = st.floats(0.1, 3)


def f64(*values):
    return torch.tensor(values, dtype=F64)


def scalar(value, **options):
    return torch.tensor(value, dtype=F64, **options)


def close(actual, expected, rtol=1e-12, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


# strings


@pytest.mark.parametrize(("vocabulary", "length"), [(1, 1), (1, 4), (2, 1), (2, 6), (3, 4), (5, 2)])
def test_strings_are_the_cartesian_product_in_order(vocabulary, length):
    expected = list(itertools.product(range(vocabulary), repeat=length))
    assert strings(vocabulary, length).tolist() == [list(row) for row in expected]


def test_strings_are_integers():
    assert strings(2, 3).dtype == torch.int64


@pytest.mark.parametrize(("vocabulary", "length"), [(0, 2), (2, 0), (-1, 2)])
def test_strings_refuse_nothing_to_list(vocabulary, length):
    with pytest.raises(ValueError, match="vocabulary, length: must be at least 1"):
        strings(vocabulary, length)


# enumerated


def test_enumerated_is_the_sum_by_hand():
    probs = f64(0.5, 0.125, 0.375)
    close(enumerated(f64(1, -2, 4), probs.log()), scalar(0.5 - 0.25 + 1.5))


def test_enumerated_differentiates_in_both_arguments():
    values, probs = f64(1, -2, 4).requires_grad_(), f64(0.5, 0.125, 0.375)
    log_probs = probs.log().requires_grad_()
    by_value, by_log_prob = torch.autograd.grad(enumerated(values, log_probs), (values, log_probs))
    close(by_value, probs)
    close(by_log_prob, (probs * values).detach())


def test_a_point_that_cannot_occur_adds_nothing_and_has_finite_gradients():
    values, log_probs = f64(3, 7).requires_grad_(), f64(0, -INF).requires_grad_()
    mean = enumerated(values, log_probs)
    gradients = torch.autograd.grad(mean, (values, log_probs))
    close(mean.detach(), scalar(3))
    close(torch.stack(gradients), torch.stack((f64(1, 0), f64(3, 0))))


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_enumerated_entropy_is_that_of_torch_distributions(logits):
    choice = torch.distributions.Categorical(logits=f64(*logits))
    log_probs = choice.logits
    close(enumerated(-log_probs, log_probs), choice.entropy())


def test_enumerated_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r"values, log_probs: shapes differ, \(3,\) and \(1,\)"):
        enumerated(f64(1, 2, 3), f64(0))


@pytest.mark.parametrize("probs", [(0.5, 0.4), (0.5, 0.6), (NAN, 0.5), ()])
def test_enumerated_refuses_what_is_no_distribution(probs):
    log_probs = f64(*probs).log()
    with pytest.raises(ValueError, match="log_probs: probabilities sum to"):
        enumerated(torch.ones_like(log_probs), log_probs)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("sign", [-1, 1])
def test_enumerated_allows_the_root_of_the_precision(dtype, sign):
    slack = sign * math.sqrt(torch.finfo(dtype).eps)
    near, far = (torch.tensor([1 + k * slack], dtype=dtype).log() for k in (0.9, 1.1))
    one = torch.ones(1, dtype=dtype)
    assert enumerated(one, near).dtype == dtype
    with pytest.raises(ValueError, match="not 1"):
        enumerated(one, far)


# gauss_hermite


def moment(degree, loc, scale):
    """E z^degree for a normal z, by Stein's recursion."""
    before, now = 0.0, 1.0
    for k in range(degree):
        before, now = now, loc * now + k * scale**2 * before
    return now


@pytest.mark.parametrize("order", [1, 2, 3, 5, 8, 13])
@given(loc=LOCS, scale=SCALES)
@settings(max_examples=25, deadline=None)
def test_quadrature_is_exact_below_twice_the_order(order, loc, scale):
    for degree in range(2 * order):
        found = gauss_hermite(lambda z, k=degree: z**k, scalar(loc), scalar(scale), order)
        # Positive and negative nodes cancel: rounding is relative to a moment without signs.
        size = moment(degree, abs(loc) + scale, scale)
        close(found, scalar(moment(degree, loc, scale)), rtol=0, atol=1e-13 * size)


@pytest.mark.parametrize("order", range(1, 11))
@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (0.7, 1.0), (-0.4, 0.6)])
def test_at_twice_the_order_the_error_is_the_factorial(order, loc, scale):
    degree = 2 * order
    found = gauss_hermite(lambda z: z**degree, scalar(loc), scalar(scale), order)
    missing = moment(degree, loc, scale) - found
    close(missing, scalar(math.factorial(order) * scale**degree), rtol=1e-9, atol=0)


@given(loc=LOCS, scale=SCALES)
@settings(max_examples=40, deadline=None)
def test_quadrature_and_its_gradients_agree_with_the_characteristic_function(loc, scale):
    loc, scale = scalar(loc, requires_grad=True), scalar(scale, requires_grad=True)
    mean = gauss_hermite(torch.cos, loc, scale)
    slopes = torch.autograd.grad(mean, (loc, scale))
    decay = (-(scale**2) / 2).exp()
    close(mean, decay * loc.cos())
    # Bonnet: E f'. Price, with the chain rule from the variance: scale E f''.
    close(slopes[0], gauss_hermite(lambda z: -z.sin(), loc, scale))
    close(slopes[1], scale * gauss_hermite(lambda z: -z.cos(), loc, scale))
    close(slopes[0], -decay * loc.sin())
    close(slopes[1], -scale * decay * loc.cos())


def test_quadrature_keeps_batch_shapes():
    loc = torch.linspace(-1, 1, 6, dtype=F64).reshape(2, 3)
    scale = f64(0.5, 1, 2)
    close(gauss_hermite(torch.square, loc, scale), loc**2 + scale**2)
    empty = torch.empty(0, dtype=F64)
    assert gauss_hermite(torch.square, empty, empty).shape == (0,)


def test_quadrature_follows_the_precision_of_its_inputs():
    mean = gauss_hermite(torch.exp, torch.tensor(0.5), torch.tensor(1.0))
    assert mean.dtype == torch.float32
    close(mean, torch.tensor(math.e), rtol=1e-5, atol=0)


def test_quadrature_by_default_has_64_nodes():
    seen = []
    gauss_hermite(lambda z: seen.append(z.shape) or z, f64(0, 1), f64(1, 1))
    assert seen == [(2, 64)]


@pytest.mark.parametrize("scale", [0.0, -1.0, NAN])
def test_quadrature_refuses_a_scale_that_is_not_positive(scale):
    with pytest.raises(ValueError, match="scale: must be positive"):
        gauss_hermite(torch.cos, f64(0, 0), f64(1, scale))


def test_quadrature_refuses_no_nodes_and_integers():
    with pytest.raises(ValueError, match="order: must be at least 1, got 0"):
        gauss_hermite(torch.cos, scalar(0.0), scalar(1.0), 0)
    with pytest.raises(ValueError, match="loc: must be floating-point, got torch.int64"):
        gauss_hermite(torch.square, torch.tensor(0), scalar(1.0))


# central_difference


def quadratic(theta):
    weights = torch.arange(1.0, theta.numel() + 1, dtype=theta.dtype).reshape(theta.shape)
    return (weights * theta**2).sum() + theta.sum() ** 2


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (0,)])
@pytest.mark.parametrize("step", [None, 0.5])
def test_central_difference_is_exact_on_quadratics_and_keeps_the_shape(shape, step):
    theta = standard_normal(*shape, seed=1).cpu()
    weights = torch.arange(1.0, theta.numel() + 1, dtype=F64).reshape(shape)
    expected = 2 * weights * theta + 2 * theta.sum()
    close(central_difference(quadratic, theta, step), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "theta", [standard_normal(3, 2, seed=2).cpu().T, scalar(0.3).expand(2, 3)], ids=["T", "expand"]
)
def test_central_difference_takes_any_strides(theta):
    expected = central_difference(quadratic, theta.clone(memory_format=torch.contiguous_format))
    close(central_difference(quadratic, theta), expected)


def test_central_difference_needs_no_graph():
    theta = f64(1, 2).requires_grad_()
    gradient = central_difference(lambda t: (t * theta).sum(), theta)
    assert not gradient.requires_grad
    close(gradient, theta.detach(), rtol=1e-9)


@pytest.mark.parametrize("step", [0.5, 0.1, 0.01])
def test_truncation_is_that_of_the_hyperbolic_sine(step):
    slope = central_difference(torch.exp, scalar(0.0), step)
    close(slope, scalar(math.sinh(step) / step), rtol=1e-13, atol=0)


def test_the_error_falls_with_the_square_of_the_step():
    coarse, fine = (
        float(central_difference(torch.sin, scalar(0.4), step)) - math.cos(0.4)
        for step in (2e-2, 1e-2)
    )
    assert math.log2(coarse / fine) == pytest.approx(2, abs=1e-4)
    assert fine / 1e-4 == pytest.approx(-math.cos(0.4) / 6, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_default_step_is_the_cube_root_of_the_precision(dtype):
    seen = []
    central_difference(lambda t: seen.append(float(t)) or t, torch.zeros((), dtype=dtype))
    root = torch.finfo(dtype).eps ** (1 / 3)
    assert seen == pytest.approx([root, -root], rel=1e-6)


@pytest.mark.parametrize("step", [0.0, -1e-3, NAN])
def test_central_difference_refuses_a_step_that_is_not_positive(step):
    with pytest.raises(ValueError, match="step: must be positive"):
        central_difference(torch.sin, scalar(1.0), step)


def test_central_difference_refuses_integers():
    with pytest.raises(ValueError, match="theta: must be floating-point, got torch.int64"):
        central_difference(quadratic, torch.tensor([3]), 0.5)


# monte_carlo


@pytest.mark.parametrize("shape", [(2,), (7,), (5, 3), (4, 2, 3), (3, 0)])
def test_monte_carlo_is_the_mean_and_scipys_standard_error(shape):
    values = standard_normal(*shape, seed=3).cpu()
    estimate = monte_carlo(values)
    close(estimate.mean, values.sum(0) / shape[0])
    expected = torch.as_tensor(scipy.stats.sem(values.numpy()), dtype=F64)
    close(estimate.stderr, expected)


def test_the_standard_error_of_fair_coins_by_hand():
    estimate = monte_carlo(f64(0, 1).repeat(50))
    close(estimate.mean, scalar(0.5))
    close(estimate.stderr, scalar(0.5 / math.sqrt(99)))


def test_an_estimate_lies_within_its_standard_errors_of_the_closed_form():
    z = 0.3 + 1.2 * standard_normal(100_000, 1, seed=4)
    mean, stderr = monte_carlo(torch.cat((z**2, z.cos()), 1).cpu())
    exact = f64(0.3**2 + 1.2**2, math.exp(-(1.2**2) / 2) * math.cos(0.3))
    assert ((mean - exact).abs() <= 4.5 * stderr).all()


@pytest.mark.parametrize("count", [0, 1])
def test_monte_carlo_refuses_fewer_than_two_draws(count):
    with pytest.raises(ValueError, match=f"values: need at least two draws, got {count}"):
        monte_carlo(torch.ones(count, 3, dtype=F64))


# moving_support


@given(st.floats(0.2, 2))
@settings(max_examples=40, deadline=None)
def test_both_limits_move_and_the_integrand_depends_on_theta(value):
    theta = scalar(value)
    a, b = -theta, 1 + theta**2
    parts = moving_support(lambda z, t: t * z**2, lambda t: -t, lambda t: 1 + t**2, theta)
    close(parts.interior, (b**3 - a**3) / 3)
    close(parts.boundary, theta * b**2 * (2 * theta) - theta * a**2 * -1)


@given(st.floats(0.3, 2))
@settings(max_examples=40, deadline=None)
def test_the_parts_add_up_to_the_derivative_of_the_closed_form(value):
    theta = scalar(value, requires_grad=True)
    whole = ((theta * (1 + theta)).sin() - (theta * theta / 2).sin()) / theta
    (expected,) = torch.autograd.grad(whole, theta)
    parts = moving_support(lambda z, t: (t * z).cos(), lambda t: t / 2, lambda t: 1 + t, theta)
    close(parts.interior + parts.boundary, expected)


def test_the_uniform_of_the_chapter():
    theta = scalar(2.0)
    parts = moving_support(lambda z, t: z**2 / t, lambda t: 0 * t, lambda t: t, theta)
    close(parts.interior, -theta / 3)
    close(parts.boundary, theta)


def test_an_integrand_free_of_theta_has_no_interior():
    theta = scalar(0.8)
    parts = moving_support(lambda z, t: z.exp(), lambda t: -t, lambda t: 2 * t, theta)
    close(parts.interior, scalar(0.0), atol=0)
    close(parts.boundary, 2 * (2 * theta).exp() + (-theta).exp())


def test_an_integrand_with_a_graph_of_its_own_has_no_interior():
    weight = scalar(3.0, requires_grad=True)
    parts = moving_support(lambda z, t: weight * z, lambda t: -t, lambda t: 2 * t, scalar(1.0))
    close(parts.interior, scalar(0.0), atol=0)
    close(parts.boundary, scalar(3.0 * 2 * 2 + 3.0 * -1))


def test_fixed_limits_have_no_boundary():
    fixed = lambda value: lambda t: torch.full_like(t, value)  # noqa: E731
    parts = moving_support(lambda z, t: t * z, fixed(0.0), fixed(2.0), scalar(1.5))
    close(parts.interior, scalar(2.0))
    close(parts.boundary, scalar(0.0), atol=0)


def test_the_order_is_the_number_of_nodes():
    shapes = []

    def cubic(z, t):
        shapes.append(tuple(z.shape))
        return t * z**3

    parts = moving_support(cubic, lambda t: 0 * t, lambda t: t, scalar(2.0), order=2)
    assert (2,) in shapes
    close(parts.interior, scalar(4.0))  # two nodes are exact to degree three
    shapes.clear()
    moving_support(cubic, lambda t: 0 * t, lambda t: t, scalar(2.0))
    assert (64,) in shapes


def test_moving_support_refuses_theta_with_axes():
    with pytest.raises(ValueError, match=r"theta: must be a scalar, got shape \(1,\)"):
        moving_support(lambda z, t: z, lambda t: 0 * t, lambda t: t, f64(1))


@pytest.mark.parametrize("value", [0.0, -1.0, NAN])
def test_moving_support_refuses_limits_out_of_order(value):
    with pytest.raises(ValueError, match="low, high: not in order"):
        moving_support(lambda z, t: z, lambda t: 0 * t, lambda t: t, scalar(value))


def test_uniform_draws_integrate_the_unit_square():
    mean, stderr = monte_carlo(uniform(200_000, 2, seed=5).prod(1).cpu())
    assert abs(mean - 0.25) <= 4.5 * stderr
