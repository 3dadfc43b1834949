import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions
from torch.func import grad, vmap

from gradbook.reparameterization import (
    cauchy,
    exponential,
    full_covariance,
    location_scale,
    log_normal,
    logistic,
    normal_cdf,
    sinh_arcsinh,
    truncated_normal,
)

F64 = torch.float64
LOC, SCALE = torch.tensor(0.6, dtype=F64), torch.tensor(1.7, dtype=F64)
UNIFORM = torch.tensor([1e-300, 1e-9, 0.02, 0.3, 0.5, 0.7, 0.99, 1 - 1e-12], dtype=F64)
NOISE = torch.tensor([-5.0, -1.3, -0.2, 0.0, 0.4, 2.2, 6.0], dtype=F64)
INF = math.inf


def tensor(x):
    return torch.tensor(x, dtype=F64)


def gradients(path, *theta):
    """d(sum of draws)/d(theta) draw by draw: [n] for every scalar parameter."""
    return torch.autograd.functional.jacobian(path, theta)


def test_normal_cdf_is_exact_in_both_tails():
    x = torch.linspace(-37, 37, 149, dtype=F64)
    with mpmath.workdps(30):
        exact = [float(mpmath.ncdf(v)) for v in x.tolist()]
    np.testing.assert_allclose(normal_cdf(x), exact, rtol=1e-12)
    slope = vmap(grad(normal_cdf))(x)
    np.testing.assert_allclose(slope, scipy.stats.norm.pdf(x), rtol=1e-12)


def test_location_scale_and_its_gradient():
    z = location_scale(LOC, SCALE, NOISE)
    torch.testing.assert_close(z, 0.6 + 1.7 * NOISE, rtol=1e-15, atol=1e-15)
    by_loc, by_scale = gradients(lambda m, s: location_scale(m, s, NOISE), LOC, SCALE)
    assert torch.equal(by_loc, torch.ones_like(NOISE))
    assert torch.equal(by_scale, NOISE)


def random_tril(d, seed):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(d, d, generator=generator, dtype=F64)
    return raw.tril(-1) + torch.diag(raw.diagonal().exp())


@given(st.integers(1, 6), st.integers(0, 10_000))
def test_full_covariance_has_its_moments_exactly(d, seed):
    tril = random_tril(d, seed)
    loc = torch.arange(d, dtype=F64)
    # 2 d points with mean 0 and covariance I.
    points = math.sqrt(d) * torch.cat([torch.eye(d, dtype=F64), -torch.eye(d, dtype=F64)])
    z = full_covariance(loc, tril, points)
    torch.testing.assert_close(z.mean(0), loc, rtol=1e-12, atol=1e-12)
    cov = (z - loc).T @ (z - loc) / len(z)
    torch.testing.assert_close(cov, tril @ tril.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        cov, distributions.MultivariateNormal(loc, scale_tril=tril).covariance_matrix
    )


def test_full_covariance_takes_any_batch_of_noise():
    tril, loc = random_tril(3, 0), torch.ones(3, dtype=F64)
    noise = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    z = full_covariance(loc, tril, noise)
    torch.testing.assert_close(z[2, 3], loc + tril @ noise[2, 3], rtol=1e-13, atol=1e-13)
    assert full_covariance(loc, tril, noise[:0]).shape == (0, 5, 3)
    assert torch.equal(full_covariance(loc, tril, noise[2, 3]), z[2, 3])


@pytest.mark.parametrize(
    ("path", "theta", "reference"),
    [
        (exponential, (SCALE,), scipy.stats.expon(scale=1 / 1.7)),
        (logistic, (LOC, SCALE), scipy.stats.logistic(0.6, 1.7)),
        (cauchy, (LOC, SCALE), scipy.stats.cauchy(0.6, 1.7)),
    ],
)
def test_inverse_cdfs_are_scipys(path, theta, reference):
    u = UNIFORM[1:]
    np.testing.assert_allclose(path(*theta, u), reference.ppf(u), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(reference.cdf(path(*theta, u)), u, rtol=1e-9)


def test_inverse_cdfs_keep_the_lower_tail():
    u = tensor(1e-300)
    assert exponential(tensor(2.0), u) == pytest.approx(5e-301, rel=1e-15)
    assert logistic(tensor(0.0), tensor(1.0), u) == pytest.approx(-300 * math.log(10), rel=1e-15)
    assert cauchy(tensor(0.0), tensor(1.0), u) == pytest.approx(-1e300 / math.pi, rel=1e-15)


def test_inverse_cdfs_differentiate_in_closed_form():
    u = UNIFORM[2:-1]
    (by_rate,) = gradients(lambda rate: exponential(rate, u), SCALE)
    torch.testing.assert_close(by_rate, -exponential(SCALE, u) / SCALE, rtol=1e-14, atol=0)
    for path in (logistic, cauchy):
        by_loc, by_scale = gradients(lambda m, s, path=path: path(m, s, u), LOC, SCALE)
        assert torch.equal(by_loc, torch.ones_like(u))
        standard = (path(LOC, SCALE, u) - LOC) / SCALE
        torch.testing.assert_close(by_scale, standard, rtol=1e-13, atol=1e-15)


INTERVALS = [
    (-1.0, 2.0),
    (-0.5, -0.25),
    (5.0, 6.0),
    (-30.0, -29.5),
    (35.0, 36.0),
    (-6.0, 5.0),
    (-8.0, 30.0),
    (1.0, 1.0 + 1e-6),
    (-INF, INF),
    (-INF, -7.0),
    (20.0, INF),
]
QUANTILES = [1e-6, 0.01, 0.5, 0.99, 1 - 1e-6]


def normal_mass(a, b):
    """The standard normal probability of [a, b], from the tail in which it does not cancel."""
    if a > 0:
        a, b = -b, -a
    root = mpmath.sqrt(2)
    return (mpmath.erfc(-b / root) - mpmath.erfc(-a / root)) / 2


@pytest.mark.parametrize(("a", "b"), INTERVALS)
def test_truncated_normal_inverts_its_cdf_in_high_precision(a, b):
    loc, scale = 0.25, 2.0
    low, high = tensor(loc + scale * a), tensor(loc + scale * b)
    z = truncated_normal(tensor(loc), tensor(scale), low, high, tensor(QUANTILES))
    assert ((z > low - 1e-13) & (z < high + 1e-13)).all()
    with mpmath.workdps(60):
        for quantile, draw in zip(QUANTILES, z.tolist(), strict=True):
            x = (mpmath.mpf(draw) - loc) / scale
            below = normal_mass(mpmath.mpf(a), x)
            # One Newton step: how far the exact quantile is from the draw.
            miss = (quantile * normal_mass(mpmath.mpf(a), mpmath.mpf(b)) - below) / mpmath.npdf(x)
            assert abs(miss) < 2e-12


def test_truncated_normal_is_scipys():
    u = UNIFORM[2:]
    z = truncated_normal(LOC, SCALE, tensor(-1.0), tensor(3.0), u)
    a, b = (-1.0 - 0.6) / 1.7, (3.0 - 0.6) / 1.7
    np.testing.assert_allclose(z, scipy.stats.truncnorm(a, b, 0.6, 1.7).ppf(u), rtol=1e-12)


@pytest.mark.parametrize(("a", "b"), INTERVALS[:-3] + [(10.0, 12.0), (-INF, 1.5), (3.0, INF)])
def test_truncated_normal_differentiates_in_closed_form(a, b):
    low, high = LOC + SCALE * a, LOC + SCALE * b
    u = tensor([0.01, 0.5, 0.99])

    def path(*theta):
        return truncated_normal(*theta, u)

    z = path(LOC, SCALE, low, high)
    by_loc, by_scale, by_low, by_high = gradients(path, LOC, SCALE, low, high)
    x = (z - LOC) / SCALE

    def share(weight, bound):
        """The effect of a bound: weight * density(bound) / density(x)."""
        if math.isinf(bound):
            return torch.zeros_like(x)
        return weight * torch.exp((x**2 - bound**2) / 2)

    of_low, of_high = share(1 - u, a), share(u, b)
    ends = [0.0 if math.isinf(bound) else bound for bound in (a, b)]
    tolerance = {"rtol": 1e-8, "atol": 1e-9}
    torch.testing.assert_close(by_low, of_low, **tolerance)
    torch.testing.assert_close(by_high, of_high, **tolerance)
    torch.testing.assert_close(by_loc, 1 - of_low - of_high, **tolerance)
    of_scale = x - of_low * ends[0] - of_high * ends[1]
    torch.testing.assert_close(by_scale, of_scale, **tolerance)


@pytest.mark.parametrize(("a", "b"), [(39.0, 40.0), (-45.0, -40.0), (39.0, INF)])
def test_truncated_normal_refuses_an_interval_without_mass(a, b):
    with pytest.raises(ValueError, match="low, high: carry no mass"):
        truncated_normal(tensor(0.0), tensor(1.0), tensor(a), tensor(b), tensor(0.5))


def test_log_normal_is_torchs():
    z = log_normal(LOC, SCALE, NOISE)
    expected = distributions.LogNormal(LOC, SCALE)
    torch.testing.assert_close(expected.cdf(z), torch.special.ndtr(NOISE), rtol=1e-12, atol=0)
    by_loc, by_scale = gradients(lambda m, s: log_normal(m, s, NOISE), LOC, SCALE)
    torch.testing.assert_close(by_loc, z, rtol=1e-14, atol=0)
    torch.testing.assert_close(by_scale, z * NOISE, rtol=1e-14, atol=0)


def test_sinh_arcsinh_at_rest_is_location_scale():
    z = sinh_arcsinh(LOC, SCALE, tensor(0.0), tensor(1.0), NOISE)
    torch.testing.assert_close(z, location_scale(LOC, SCALE, NOISE), rtol=1e-14, atol=1e-14)


@given(st.floats(-2, 2), st.floats(0.3, 3))
def test_sinh_arcsinh_is_undone_by_the_inverse_of_jones_and_pewsey(skewness, tailweight):
    z = sinh_arcsinh(LOC, SCALE, tensor(skewness), tensor(tailweight), NOISE)
    back = torch.sinh(torch.asinh((z - LOC) / SCALE) / tailweight - skewness)
    torch.testing.assert_close(back, NOISE, rtol=1e-9, atol=1e-9)


def test_sinh_arcsinh_skews_to_the_right_and_thickens_both_tails():
    one, zero = tensor(1.0), tensor(0.0)
    skewed = sinh_arcsinh(zero, one, tensor(0.5), one, NOISE)
    assert (skewed > NOISE).all()
    heavy = sinh_arcsinh(zero, one, zero, tensor(1.5), tensor([-3.0, 3.0]))
    assert heavy[0] < -3
    assert heavy[1] > 3


UNIFORM_PATHS = [
    lambda u: exponential(SCALE, u),
    lambda u: logistic(LOC, SCALE, u),
    lambda u: cauchy(LOC, SCALE, u),
    lambda u: truncated_normal(LOC, SCALE, LOC, LOC + 1, u),
]
SCALED_PATHS = [
    lambda s: location_scale(LOC, s, NOISE),
    lambda s: exponential(s, UNIFORM),
    lambda s: logistic(LOC, s, UNIFORM),
    lambda s: cauchy(LOC, s, UNIFORM),
    lambda s: truncated_normal(LOC, s, LOC, LOC + 1, UNIFORM),
    lambda s: log_normal(LOC, s, NOISE),
    lambda s: sinh_arcsinh(LOC, s, LOC, SCALE, NOISE),
    lambda s: sinh_arcsinh(LOC, SCALE, LOC, s, NOISE),
]
LOCATED_PATHS = [
    lambda m: location_scale(m, SCALE, NOISE),
    lambda m: full_covariance(m[None], torch.eye(1, dtype=F64), NOISE[:, None]),
    lambda m: logistic(m, SCALE, UNIFORM),
    lambda m: cauchy(m, SCALE, UNIFORM),
    lambda m: truncated_normal(m, SCALE, LOC, LOC + 1, UNIFORM),
    lambda m: log_normal(m, SCALE, NOISE),
    lambda m: sinh_arcsinh(m, SCALE, LOC, SCALE, NOISE),
    lambda m: sinh_arcsinh(LOC, SCALE, m, SCALE, NOISE),
]
NOISY_PATHS = [
    lambda e: location_scale(LOC, SCALE, e),
    lambda e: full_covariance(LOC[None], torch.eye(1, dtype=F64), e[None]),
    lambda e: log_normal(LOC, SCALE, e),
    lambda e: sinh_arcsinh(LOC, SCALE, LOC, SCALE, e),
]


@pytest.mark.parametrize("path", UNIFORM_PATHS)
@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_uniforms_outside_the_open_interval_are_refused(path, bad):
    with pytest.raises(ValueError, match=r"uniform: must be in \(0, 1\)"):
        path(tensor([0.5, bad]))


@pytest.mark.parametrize("path", SCALED_PATHS)
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, INF])
def test_scales_must_be_positive(path, bad):
    with pytest.raises(ValueError, match="(scale|rate|tailweight): must be positive"):
        path(tensor(bad))


@pytest.mark.parametrize("path", LOCATED_PATHS + NOISY_PATHS)
@pytest.mark.parametrize("bad", [math.nan, INF])
def test_locations_and_noise_must_be_finite(path, bad):
    with pytest.raises(ValueError, match="(loc|skewness|noise): must be finite"):
        path(tensor(bad))


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)])
def test_truncated_normal_needs_an_interval(low, high):
    with pytest.raises(ValueError, match="low: must be below high"):
        truncated_normal(LOC, SCALE, tensor(low), tensor(high), tensor(0.5))


@pytest.mark.parametrize(
    ("tril", "message"),
    [
        ([[1.0, 0.1], [0.0, 1.0]], "lower triangular"),
        ([[1.0, 0.0], [0.5, 0.0]], "positive diagonal"),
        ([[-1.0, 0.0], [0.5, 1.0]], "positive diagonal"),
        ([[1.0, 0.0], [math.nan, 1.0]], "finite"),
        ([[1.0]], r"must be \[d, d\]"),
        ([1.0, 1.0], r"must be \[d, d\]"),
    ],
)
def test_scale_tril_must_be_a_cholesky_factor(tril, message):
    with pytest.raises(ValueError, match=f"scale_tril: .*{message}"):
        full_covariance(torch.zeros(2, dtype=F64), tensor(tril), torch.zeros(5, 2, dtype=F64))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)])
def test_full_covariance_needs_a_loc_that_fits(shape):
    with pytest.raises(ValueError, match="loc: must have the last dimension of noise"):
        full_covariance(torch.zeros(shape), torch.eye(2), torch.zeros(5, 2))


@pytest.mark.parametrize("path", UNIFORM_PATHS)
def test_paths_work_under_vmap_and_take_an_empty_batch(path):
    u = UNIFORM[2:-1]
    torch.testing.assert_close(vmap(path)(u), path(u), rtol=1e-14, atol=0)
    assert path(u[:0]).shape == (0,)


def test_paths_differentiate_per_sample():
    def square(scale, noise):
        return location_scale(LOC, scale, noise) ** 2

    per_sample = vmap(grad(square), in_dims=(None, 0))(SCALE, NOISE)
    torch.testing.assert_close(per_sample, 2 * (LOC + SCALE * NOISE) * NOISE)


def test_paths_keep_the_precision_of_their_inputs():
    loc, scale, u = torch.tensor(0.5), torch.tensor(2.0), torch.tensor([0.1, 0.9])
    draws = [
        location_scale(loc, scale, u),
        exponential(scale, u),
        logistic(loc, scale, u),
        cauchy(loc, scale, u),
        truncated_normal(loc, scale, loc, loc + 1, u),
        log_normal(loc, scale, u),
        sinh_arcsinh(loc, scale, loc, scale, u),
    ]
    assert {z.dtype for z in draws} == {torch.float32}
