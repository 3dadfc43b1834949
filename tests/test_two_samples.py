"""Two samples: the unbiased discrepancy against its exact mean, and the distance on the line."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from gradbook import two_samples


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def by_hand(x, y, bandwidth):
    """The estimate as it is written, one pair at a time."""

    def kernel(a, b):
        return math.exp(-(a - b).square().sum().item() / (2 * bandwidth**2))

    n, m = len(x), len(y)
    within_x = sum(kernel(a, b) for a, b in itertools.permutations(x, 2)) / (n * (n - 1))
    within_y = sum(kernel(a, b) for a, b in itertools.permutations(y, 2)) / (m * (m - 1))
    return within_x + within_y - 2 / (n * m) * sum(kernel(a, b) for a in x for b in y)


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 4.0])
def test_mmd_is_the_sum_over_pairs(bandwidth):
    x, y = draws(4, 3), draws(6, 3, seed=1) + 0.5
    ours = two_samples.mmd_squared(x, y, bandwidth).item()
    assert ours == pytest.approx(by_hand(x, y, bandwidth), rel=1e-12, abs=1e-14)


def test_mmd_is_unbiased():
    mean1, mean2 = number([0.2, 0.0]), number([-1.3, 1.0])
    x = mean1 + draws(20_000, 3, 2)
    y = mean2 + math.sqrt(0.5) * draws(20_000, 4, 2, seed=1)
    exact = two_samples.normal_mmd_squared(mean1, number(1.0), mean2, number(0.5), 0.8)
    estimates = two_samples.mmd_squared(x, y, 0.8)
    stderr = estimates.std().item() / math.sqrt(len(estimates))
    assert abs(estimates.mean().item() - exact.item()) <= 4.5 * stderr
    assert exact.item() > 50 * stderr  # so that a wrong mean would show


def test_mmd_of_one_law_has_mean_zero():
    estimates = two_samples.mmd_squared(draws(20_000, 3, 1), draws(20_000, 3, 1, seed=1), 1.0)
    stderr = estimates.std().item() / math.sqrt(len(estimates))
    assert abs(estimates.mean().item()) <= 4.5 * stderr
    assert (estimates < 0).double().mean() > 0.3


def test_mmd_is_symmetric_and_does_not_move_with_the_origin():
    x, y = draws(5, 2), draws(7, 2, seed=1)
    ours = two_samples.mmd_squared(x, y, 0.7)
    torch.testing.assert_close(two_samples.mmd_squared(y, x, 0.7), ours, rtol=1e-12, atol=0)
    far = two_samples.mmd_squared(x + 1e5, y + 1e5, 0.7)
    torch.testing.assert_close(far, ours, rtol=1e-7, atol=0)


def test_mmd_has_the_unit_of_the_bandwidth():
    x, y = draws(5, 2), draws(7, 2, seed=1)
    ours = two_samples.mmd_squared(x, y, 0.7)
    scaled = two_samples.mmd_squared(10 * x, 10 * y, number(7.0))
    torch.testing.assert_close(scaled, ours, rtol=1e-12, atol=0)


def test_mmd_is_differentiable_also_where_draws_meet():
    x, y = draws(3, 2).requires_grad_(), draws(4, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: two_samples.mmd_squared(x, y, 0.9), (x, y))
    same = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(two_samples.mmd_squared(same, y.detach(), 0.9), same)
    assert slope.isfinite().all()
    assert (slope != 0).all()


def test_normal_mmd_is_the_integral_of_the_kernel():
    """On the line, where each expectation is an integral over the difference of two draws."""
    (m1, v1), (m2, v2), bandwidth = (0.3, 0.7), (-1.1, 2.5), 0.9

    def mean_kernel(mean, variance):
        density = stats.norm(mean, math.sqrt(variance)).pdf
        kernel = lambda z: density(z) * math.exp(-0.5 * (z / bandwidth) ** 2)  # noqa: E731
        return integrate.quad(kernel, -15, 15, epsabs=1e-13)[0]

    exact = mean_kernel(0, 2 * v1) + mean_kernel(0, 2 * v2) - 2 * mean_kernel(m1 - m2, v1 + v2)
    normals = number([m1]), number(v1), number([m2]), number(v2)
    ours = two_samples.normal_mmd_squared(*normals, bandwidth).item()
    assert ours == pytest.approx(exact, rel=1e-10)


def test_normal_mmd_of_coordinates_is_the_product_of_their_kernels():
    """Each expectation of a product kernel is the product of those of the coordinates."""
    mean1, mean2, v1, v2 = draws(3), draws(3, seed=1), number(0.4), number(1.7)
    square = 0.6**2

    def mean_kernel(mean, variance):
        total = square + variance
        one = (square / total).sqrt() * (-mean.square() / (2 * total)).exp()
        return one.prod()

    zero = torch.zeros(3, dtype=torch.float64)
    exact = mean_kernel(zero, 2 * v1) + mean_kernel(zero, 2 * v2)
    exact = exact - 2 * mean_kernel(mean1 - mean2, v1 + v2)
    ours = two_samples.normal_mmd_squared(mean1, v1, mean2, v2, 0.6)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=0)


def test_normal_mmd_is_zero_between_equals_and_takes_batches():
    means, variances = draws(5, 3), draws(5, seed=1).exp()
    same = two_samples.normal_mmd_squared(means, variances, means, variances, 1.3)
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-15)
    table = two_samples.normal_mmd_squared(means, variances, means[0], variances[0], 1.3)
    alone = two_samples.normal_mmd_squared(means[3], variances[3], means[0], variances[0], 1.3)
    assert table.shape == (5,)
    torch.testing.assert_close(table[3], alone, rtol=1e-12, atol=0)
    assert (table[1:] > 0).all()


@given(st.integers(1, 5), st.integers(0, 1000))
def test_wasserstein_is_the_cheapest_matching(n, seed):
    x, y = draws(n, seed=seed), draws(n, seed=seed + 1) * 2 + 1
    costs = [(x - y[list(order)]).abs().mean().item() for order in itertools.permutations(range(n))]
    assert two_samples.wasserstein_line(x, y).item() == pytest.approx(min(costs), rel=1e-12)


def test_wasserstein_is_scipys_and_takes_batches():
    x, y = draws(3, 50), draws(3, 50, seed=1).exp()
    pairs = zip(x.numpy(), y.numpy(), strict=True)
    exact = [stats.wasserstein_distance(a, b) for a, b in pairs]
    ours = two_samples.wasserstein_line(x, y)
    torch.testing.assert_close(ours, number(exact), rtol=1e-12, atol=0)


def test_wasserstein_of_a_shift_is_the_shift_and_so_is_its_gradient():
    x = draws(9)
    shift = number(2.5).requires_grad_()
    distance = two_samples.wasserstein_line(x, x.flip(0) + shift)
    assert distance.item() == pytest.approx(2.5, rel=1e-12)
    (slope,) = torch.autograd.grad(distance, shift)
    assert slope.item() == pytest.approx(1, rel=1e-12)


def test_an_empty_batch_has_empty_distances():
    none = torch.zeros(0, 4, 2, dtype=torch.float64)
    assert two_samples.mmd_squared(none, none, 1.0).shape == (0,)
    assert two_samples.wasserstein_line(none, none).shape == (0, 4)


X, V = draws(3, 2), number(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_samples.mmd_squared(X[:1], X, 1.0), "x: must be at least two"),
        (lambda: two_samples.mmd_squared(X, X[:1], 1.0), "y: must be at least two"),
        (lambda: two_samples.mmd_squared(X[0], X, 1.0), "x: must be at least two"),
        (lambda: two_samples.mmd_squared(X, X[:, :1], 1.0), "y: must have 2 columns"),
        (lambda: two_samples.mmd_squared(draws(2, 3, 1), draws(3, 3, 1), 1.0), "y: does not"),
        (lambda: two_samples.mmd_squared(X * math.nan, X, 1.0), "x: must be finite"),
        (lambda: two_samples.mmd_squared(X, X * math.inf, 1.0), "y: must be finite"),
        (lambda: two_samples.mmd_squared(X, X, 0.0), "bandwidth: must be positive"),
        (lambda: two_samples.mmd_squared(X, X, math.inf), "bandwidth: must be positive"),
        (lambda: two_samples.mmd_squared(X, X, torch.ones(3)), "bandwidth: must be a scalar"),
        (lambda: two_samples.normal_mmd_squared(X[0], V, X[0, :1], V, 1.0), "mean2: must have"),
        (lambda: two_samples.normal_mmd_squared(V, V, V, V, 1.0), "mean2: must have"),
        (lambda: two_samples.normal_mmd_squared(X, V, draws(4, 2), V, 1.0), "mean2: does not"),
        (lambda: two_samples.normal_mmd_squared(X / 0, V, X, V, 1.0), "mean1: must be finite"),
        (lambda: two_samples.normal_mmd_squared(X, 0 * V, X, V, 1.0), "variance1: "),
        (lambda: two_samples.normal_mmd_squared(X, V, X, -V, 1.0), "variance2: "),
        (lambda: two_samples.normal_mmd_squared(X, V, X, V, -1.0), "bandwidth: "),
        (lambda: two_samples.wasserstein_line(X[:0, 0], X[:0, 0]), "x: must have at least one"),
        (lambda: two_samples.wasserstein_line(V, V), "x: must have at least one"),
        (lambda: two_samples.wasserstein_line(X[0], X[:, 0]), "y: must have 2 draws"),
        (lambda: two_samples.wasserstein_line(draws(2, 3), draws(4, 3)), "y: does not"),
        (lambda: two_samples.wasserstein_line(X[0] * math.nan, X[0]), "x: must be finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
