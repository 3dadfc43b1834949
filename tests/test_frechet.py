"""The Fréchet distance: closed forms, scipy's square root, and transport plans."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats

from gradbook import frechet


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def law(d, seed=0):
    root = normal(d, d, seed=seed)
    return frechet.Moments(normal(d, seed=seed + 1), root @ root.T)


def rotation(d, seed=0):
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


def distance(one, two):
    return frechet.frechet_distance(*one, *two)


def draws(one, n, seed=0):
    return one.mean + normal(n, len(one.mean), seed=seed) @ torch.linalg.cholesky(one.covariance).T


@settings(max_examples=20)
@given(d=st.integers(1, 5), extra=st.integers(1, 9), seed=st.integers(0, 99))
def test_moments_are_numpys(d, extra, seed):
    features = normal(d + extra, d, seed=seed) + 5
    mean, covariance = frechet.moments(features)
    np.testing.assert_allclose(mean, features.numpy().mean(0), rtol=1e-12)
    expected = np.cov(features.numpy(), rowvar=False).reshape(d, d)
    np.testing.assert_allclose(covariance, expected, rtol=1e-9, atol=1e-12)


def test_moments_are_computed_in_float64_without_gradients():
    features = (normal(50, 3) + 1000).float().requires_grad_()
    found, expected = frechet.moments(features), frechet.moments(features.detach().double())
    for one, two in zip(found, expected, strict=True):
        assert (one.dtype, one.requires_grad) == (torch.float64, False)
        assert torch.equal(one, two)


@settings(max_examples=30)
@given(d=st.integers(1, 6), seed=st.integers(0, 999))
def test_distance_is_that_of_scipys_square_root(d, seed):
    one, two = law(d, seed), law(d, seed + 10)
    ours = distance(one, two).item()
    root = linalg.sqrtm(one.covariance.numpy() @ two.covariance.numpy()).real
    spread = np.trace(one.covariance.numpy() + two.covariance.numpy() - 2 * root)
    expected = (one.mean - two.mean).square().sum().item() + spread
    assert ours == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(max_examples=30)
@given(d=st.integers(1, 6), seed=st.integers(0, 999))
def test_commuting_covariances_have_a_closed_form(d, seed):
    """Sum of squared differences of means and, along the common axes, of standard deviations."""
    axes, spreads = rotation(d, seed), normal(2, d, seed=seed + 1).abs()
    means = normal(2, d, seed=seed + 2)
    one, two = (
        frechet.Moments(m, axes * s.square() @ axes.T) for m, s in zip(means, spreads, strict=True)
    )
    expected = (means[0] - means[1]).square().sum() + (spreads[0] - spreads[1]).square().sum()
    torch.testing.assert_close(distance(one, two), expected, rtol=1e-8, atol=1e-8)


def test_distance_is_the_least_cost_of_transport():
    """The map x -> m2 + A (x - m1) carries one law to the other, and no coupling is cheaper."""
    one, two = law(3), law(3, 10)
    root = linalg.sqrtm(one.covariance.numpy()).real
    inverse = np.linalg.inv(root)
    middle = linalg.sqrtm(root @ two.covariance.numpy() @ root).real
    carry = torch.from_numpy(inverse @ middle @ inverse)
    torch.testing.assert_close(carry @ one.covariance @ carry.T, two.covariance)
    rest = carry - torch.eye(3).double()
    cost = (rest @ one.covariance @ rest.T).trace() + (two.mean - one.mean).square().sum()
    torch.testing.assert_close(distance(one, two), cost, rtol=1e-8, atol=1e-8)
    # Other couplings: two factors of the covariances, turned against each other.
    factors = [torch.linalg.cholesky(each.covariance) for each in (one, two)]
    for seed in range(20):
        apart = factors[0] - factors[1] @ rotation(3, seed)
        other = apart.square().sum() + (two.mean - one.mean).square().sum()
        assert other > cost


@settings(max_examples=30)
@given(d=st.integers(1, 6), seed=st.integers(0, 999))
def test_distance_is_symmetric_zero_at_equality_and_turns_with_the_axes(d, seed):
    one, two, turn = law(d, seed), law(d, seed + 10), rotation(d, seed)
    there = distance(one, two)
    scale = one.covariance.trace() + two.covariance.trace()
    torch.testing.assert_close(distance(two, one), there, rtol=1e-7, atol=1e-7)
    assert 0 <= distance(one, one) < 1e-7 * scale
    turned = [frechet.Moments(turn @ m, turn @ c @ turn.T) for m, c in (one, two)]
    torch.testing.assert_close(distance(*turned), there, rtol=1e-6, atol=1e-6)


def test_a_singular_covariance_is_a_law_too():
    """A point mass: the squared distance of the means, and the other's whole variance."""
    point, other = frechet.Moments(torch.zeros(3).double(), torch.zeros(3, 3).double()), law(3)
    expected = other.mean.square().sum() + other.covariance.trace()
    for found in (distance(point, other), distance(other, point)):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    assert distance(point, point) == 0


@pytest.mark.parametrize("d", [2, 4, 7])
@pytest.mark.parametrize("seed", range(8))
def test_laws_on_two_lines_have_a_closed_form(d, seed):
    """Their covariances have eigenvalues that rounding makes negative."""
    v, w = normal(2, d, seed=seed)
    zero = torch.zeros(d).double()
    found = distance(*(frechet.Moments(zero, torch.outer(x, x)) for x in (v, w)))
    expected = v @ v + w @ w - 2 * (v @ w).abs()
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("place", "message"), [((0, 1), "must be symmetric"), ((2, 2), "has a negative eigenvalue")]
)
def test_rounding_in_float32_is_let_through_and_ten_times_it_is_not(place, message):
    covariance = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]]).double()
    covariance[place] = -0.5e-5
    assert frechet.frechet_distance(M, C, M, covariance) > 0
    covariance[place] = -5e-5
    with pytest.raises(ValueError, match=f"^c2: {message}"):
        frechet.frechet_distance(M, C, M, covariance)


def test_samples_converge_to_the_distance_of_their_laws():
    one, two = law(3), law(3, 10)
    exact = distance(one, two)
    errors = []
    for n in (100, 100_000):
        found = distance(
            *(frechet.moments(draws(each, n, seed)) for seed, each in enumerate((one, two)))
        )
        errors.append((found - exact).abs().item())
    assert errors[1] < 0.02 * exact
    assert errors[1] < errors[0]


@settings(max_examples=20)
@given(dim_in=st.integers(1, 12), seed=st.integers(0, 99), data=st.data())
def test_projection_has_orthonormal_columns(dim_in, seed, data):
    dim_out = data.draw(st.integers(1, dim_in))
    columns = frechet.projection(dim_in, dim_out, generator(seed)).cpu()
    assert columns.shape == (dim_in, dim_out)
    assert columns.dtype == torch.float64
    eye = torch.eye(dim_out).double()
    torch.testing.assert_close(columns.T @ columns, eye, rtol=0, atol=1e-12)
    assert torch.equal(columns, frechet.projection(dim_in, dim_out, generator(seed)).cpu())


def test_projections_are_uniform():
    """A column of three dimensions has uniform coordinates, by Archimedes."""
    drawn = generator()
    columns = torch.stack([frechet.projection(3, 3, drawn) for _ in range(2000)])
    for i in range(3):
        for j in range(3):
            coordinate = columns[:, i, j].cpu().numpy()
            assert stats.kstest(coordinate, stats.uniform(-1, 2).cdf).pvalue > stats.norm.sf(4.5)


def test_a_projection_of_all_dimensions_changes_no_distance():
    one, two, turn = normal(40, 5), normal(30, 5, seed=1) + 1, frechet.projection(5, 5, generator())
    turn = turn.cpu()
    plain = distance(frechet.moments(one), frechet.moments(two))
    turned = distance(frechet.moments(one @ turn), frechet.moments(two @ turn))
    torch.testing.assert_close(turned, plain, rtol=1e-8, atol=1e-8)


def pooled(images):
    """Twelve numbers of an image."""
    return images.tanh().flatten(1)


def test_images_are_compared_by_their_projected_features(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    monkeypatch.setattr(frechet, "CHUNK", 7)
    x, y = normal(20, 3, 2, 2).float(), 2 * normal(31, 3, 2, 2, seed=1).float()
    subspace = frechet.projection(12, 3, generator())
    rows = [pooled(images).double() @ subspace for images in (x, y)]
    torch.testing.assert_close(frechet.projected(x, pooled, subspace), rows[0])
    expected = distance(*map(frechet.moments, rows))
    found = frechet.frechet_of_images(x, y, pooled, subspace)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert found > 0.01
    assert frechet.frechet_of_images(x, x, pooled, subspace) < 1e-9


def test_no_gradient_is_kept_of_images():
    images = normal(4, 3, 2, 2).requires_grad_()
    assert not frechet.projected(images, pooled, normal(12, 3)).requires_grad


def test_no_images_have_no_features():
    none = torch.empty(0, 3, 2, 2).double()
    assert frechet.projected(none, pooled, normal(12, 3)).shape == (0, 3)


M, C = law(3)
SKEWED = C + torch.tensor([[0, 1.0, 0], [0, 0, 0], [0, 0, 0]])
BAD = [
    (lambda: frechet.moments(normal(3, 3)), "features: a covariance of 3 rows in 3 dimensions"),
    (lambda: frechet.moments(normal(0, 3)), "features: a covariance of 0 rows"),
    (lambda: frechet.moments(normal(5)), "features: must be floating"),
    (lambda: frechet.moments(normal(5, 0)), "features: must be floating"),
    (lambda: frechet.moments(normal(5, 3).long()), "features: must be floating"),
    (lambda: frechet.moments(normal(5, 3) / 0), "features: must be finite"),
    (lambda: frechet.frechet_distance(M[:2], C, M, C), "c1: must have 2 rows"),
    (lambda: frechet.frechet_distance(M, C, M, C[:2, :2]), "c2: must have 3 rows"),
    (lambda: frechet.frechet_distance(M, C, M[:2], C[:2, :2]), "m2: must have the shape of m1"),
    (lambda: frechet.frechet_distance(M[None], C, M, C), "m1: must be \\["),
    (lambda: frechet.frechet_distance(M, C[:2], M, C), "c1: must be \\["),
    (lambda: frechet.frechet_distance(M, C, M / 0, C), "m2: must be finite"),
    (lambda: frechet.frechet_distance(M, C, M, C / 0), "c2: must be finite"),
    (lambda: frechet.frechet_distance(M, SKEWED, M, C), "c1: must be symmetric"),
    (lambda: frechet.frechet_distance(M, C, M, -C), "c2: has a negative eigenvalue"),
    (lambda: frechet.projection(0, 1, generator()), "dim_in: "),
    (lambda: frechet.projection(3, 0, generator()), "dim_out: must be from 1 to 3"),
    (lambda: frechet.projection(3, 4, generator()), "dim_out: must be from 1 to 3"),
    (lambda: frechet.projected(normal(4, 3, 2, 2), pooled, normal(11, 3)), "subspace: is \\["),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
