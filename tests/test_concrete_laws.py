import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap

from gradbook.concrete_laws import (
    binary_mean,
    binary_slope,
    log_convex_temperature,
    mean_bias_limit,
    relaxed_mean,
    slope_variance_limit,
    small_slope_probability,
)
from gradbook.gumbel import gumbel_noise, gumbel_softmax

F32, F64 = torch.float32, torch.float64
INF = math.inf
# Of p and temperature alike.
OF_A_COIN = (relaxed_mean, binary_slope, lambda p, t: small_slope_probability(p, t, 0.1))
LIMITS = (slope_variance_limit, mean_bias_limit)


def tensor(x, dtype=F64):
    return torch.tensor(x, dtype=dtype)


def logistic_mean(f, p, tau):
    """E[f(u)] with u = (x + L) / tau, by adaptive quadrature over u."""
    x = mpmath.log(p) - mpmath.log(1 - mpmath.mpf(p))
    spots = [
        c + s * w for c, w in ((0, 1), (x / tau, 1 / mpmath.mpf(tau))) for s in (-30, -5, 0, 5, 30)
    ]

    def integrand(u):
        return f(u) * tau / (2 + 2 * mpmath.cosh(tau * u - x))

    return mpmath.quad(integrand, [-mpmath.inf, *sorted(spots), mpmath.inf])


def bell(u):
    return 1 / (2 + 2 * mpmath.cosh(u))


@pytest.mark.parametrize("tau", [0.001, 0.1, 0.9, 1.2, 10.0])
@pytest.mark.parametrize("p", [0.3, 1e-6, 0.99])
def test_quadratures_are_exact(p, tau):
    with mpmath.workdps(20):
        mean = logistic_mean(lambda u: 1 / (1 + mpmath.exp(-u)), p, tau)
        slope = logistic_mean(lambda u: bell(u) / tau, p, tau)
        square = logistic_mean(lambda u: (bell(u) / tau - slope) ** 2, p, tau)
    assert relaxed_mean(tensor(p), tau).item() == pytest.approx(float(mean), rel=1e-13)
    ours = binary_slope(tensor(p), tau)
    assert ours.mean.item() == pytest.approx(float(slope), rel=1e-13)
    assert ours.variance.item() == pytest.approx(float(square), rel=1e-12)


@pytest.mark.parametrize(
    ("tau", "mean", "variance"),
    [(1.0, 0.15520, 0.006024), (0.1, 0.20910, 0.30569), (0.01, 0.20999, 3.4558)],
)
def test_slopes_of_the_coin_with_chance_three_tenths(tau, mean, variance):
    ours = binary_slope(tensor(0.3), tau)
    assert ours.mean.item() == pytest.approx(mean, abs=5e-6)
    assert ours.variance.item() == pytest.approx(variance, rel=1e-4)


@pytest.mark.parametrize(
    "odds", [1e-300, 0.03, 0.8, 0.79999, 1 - 1e-9, 1.0, 1 + 1e-15, 1.2, 1.19999, 9.0, 1e8, 1e300]
)
def test_the_mean_at_temperature_1_is_its_closed_form(odds):
    with mpmath.workdps(400):
        a = mpmath.mpf(odds)
        exact = a * (a - 1 - mpmath.log(a)) / (a - 1) ** 2 if odds != 1 else mpmath.mpf(1) / 2
    assert binary_mean(tensor(odds)).item() == pytest.approx(float(exact), rel=1e-14)


def test_the_mean_at_odds_9():
    assert binary_mean(tensor(9.0)).item() == pytest.approx(0.81602, abs=5e-6)


@settings(max_examples=30)
@given(st.floats(1e-6, 1 - 1e-6))
def test_the_closed_form_and_the_quadrature_agree_at_temperature_1(p):
    p = tensor(p)
    ours, exact = relaxed_mean(p, 1.0), binary_mean(p / (1 - p))
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=0)


def test_the_closed_form_differentiates_through_even_odds():
    odds = tensor([0.2, 0.9, 1.0, 1.1, 5.0])
    # With x = log(odds), the slope in x is that of the quadrature.
    exact = binary_slope(odds / (1 + odds), 1.0).mean
    torch.testing.assert_close(vmap(grad(binary_mean))(odds) * odds, exact, rtol=1e-12, atol=0)


@settings(max_examples=30)
@given(st.floats(0.001, 0.999), st.floats(0.001, 20))
def test_names_of_the_two_classes_do_not_matter(p, tau):
    p = tensor(p)
    torch.testing.assert_close(
        relaxed_mean(1 - p, tau), 1 - relaxed_mean(p, tau), rtol=0, atol=1e-14
    )
    for ours, exact in zip(binary_slope(1 - p, tau), binary_slope(p, tau), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=0)


@settings(max_examples=30)
@given(st.floats(0.01, 0.99), st.floats(0.001, 20))
def test_the_mean_slope_is_the_slope_of_the_mean(p, tau):
    p = tensor(p)
    ours = grad(relaxed_mean)(p, tau) * p * (1 - p)
    torch.testing.assert_close(ours, binary_slope(p, tau).mean, rtol=1e-11, atol=0)


def test_the_laws_are_those_of_gumbel_softmax():
    n, p, tau = 200_000, 0.3, 0.4
    noise = gumbel_noise((n, 2), torch.Generator().manual_seed(0), F64)
    logits = tensor([p, 1 - p]).log()
    unit = tensor([1.0, 0.0])
    y, slope = (
        torch.func.jvp(lambda o: gumbel_softmax(o, tau, noise), (logits,), (unit,))[i][:, 0]
        for i in (0, 1)
    )
    exact = binary_slope(tensor(p), tau)
    centred = (slope - exact.mean) ** 2
    for sample, law in (
        (y, relaxed_mean(tensor(p), tau)),
        (slope, exact.mean),
        (centred, exact.variance),
        ((slope < 0.2).double(), small_slope_probability(tensor(p), tau, 0.2)),
    ):
        assert abs(sample.mean() - law) < 4.5 * sample.std() / math.sqrt(n)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.9, 0.01])
def test_temperature_times_variance_has_its_limit(p):
    p = tensor(p)
    limit = slope_variance_limit(p)
    assert limit == p * (1 - p) / 6
    for tau in (1e-2, 1e-3, 1e-4):
        dropped = (tau * binary_slope(p, tau).variance - limit).item() / tau
        # First the squared mean; then tau times at most half the integral of u^2 sigmoid'(u)^2.
        squared_mean = (p * (1 - p)).item() ** 2
        assert dropped == pytest.approx(-squared_mean, rel=0, abs=0.11 * tau * 6 * limit.item())


@pytest.mark.parametrize("p", [0.3, 0.9, 0.01])
def test_the_bias_of_the_mean_has_its_limit(p):
    for tau in (1e-1, 1e-2, 1e-3):
        ours = (relaxed_mean(tensor(p), tau) - p) / tau**2
        # The next term is of order tau**2; float64 leaves 1e-16 / tau**2.
        close = pytest.approx(
            mean_bias_limit(tensor(p)).item(), rel=20 * tau**2, abs=1e-15 / tau**2
        )
        assert ours.item() == close
    assert mean_bias_limit(tensor(0.5)) == 0


def test_high_temperatures_forget_the_chance():
    for tau in (1e2, 1e4):
        x = math.log(3 / 7)
        ours = relaxed_mean(tensor(0.3), tau).item() - 0.5
        assert ours == pytest.approx(x / (4 * tau), rel=10 / tau**2)
        assert binary_slope(tensor(0.3), tau).mean.item() == pytest.approx(
            0.25 / tau, rel=5 / tau**2
        )


@pytest.mark.parametrize(("tau", "share"), [(1.0, 0.003), (0.1, 0.63), (0.01, 0.95)])
def test_most_slopes_are_nearly_zero_at_low_temperatures(tau, share):
    ours = small_slope_probability(tensor(0.3), tau, 1e-3).item()
    assert ours == pytest.approx(share, rel=0.1 if tau == 1 else 0.006)


@settings(max_examples=30)
@given(st.floats(0.01, 0.99), st.floats(0.01, 10), st.floats(0.001, 0.999))
def test_the_share_of_small_slopes_inverts_the_slope(p, tau, fraction):
    """The slope at the two ends of the interval is the bound itself."""
    bound = fraction / (4 * tau)
    with mpmath.workdps(40):
        root = mpmath.sqrt(1 - 4 * mpmath.mpf(bound) * tau)
        end = tau * mpmath.log((1 + root) / (1 - root))
        x = mpmath.log(mpmath.mpf(p) / (1 - mpmath.mpf(p)))
        assert abs(bell(end / tau) / tau - bound) < 1e-15
        exact = 1 - (1 / (1 + mpmath.exp(x - end)) - 1 / (1 + mpmath.exp(x + end)))
    ours = small_slope_probability(tensor(p), tau, bound).item()
    assert ours == pytest.approx(float(exact), rel=1e-9)


def test_no_slope_exceeds_a_quarter_of_the_inverse_temperature():
    p = tensor(0.3)
    assert small_slope_probability(p, 0.5, 0.5) == 1
    assert small_slope_probability(p, 0.5, 7.0) == 1
    assert 0.999 < small_slope_probability(p, 0.5, 0.5 - 1e-9) < 1
    tiny = small_slope_probability(p, 0.5, 1e-12).item()
    # Both ends in the exponential tails: the share is about (odds + 1 / odds) (bound tau)**tau.
    assert tiny == pytest.approx((3 / 7 + 7 / 3) * 5e-13**0.5, rel=1e-5)


@pytest.mark.parametrize(("k", "exact"), [(2, 1), (3, 1 / 2), (5, 1 / 4)])
def test_the_log_convex_temperature(k, exact):
    assert log_convex_temperature(k) == exact


@pytest.mark.parametrize("k", [1, 0, -3, math.nan])
def test_one_class_has_no_log_convex_temperature(k):
    with pytest.raises(ValueError, match="^k: must be at least 2"):
        log_convex_temperature(k)


def test_laws_broadcast_and_keep_type_and_empty_batches():
    p, tau = torch.rand(3, 1) * 0.8 + 0.1, torch.rand(4) + 0.5
    for law in OF_A_COIN:
        values = law(p, tau)
        for value in values if isinstance(values, tuple) else (values,):
            assert (value.shape, value.dtype) == ((3, 4), F32)
        row = law(p[1, 0].double(), float(tau[2]))
        for value, one in zip(
            *((x if isinstance(x, tuple) else (x,)) for x in (values, row)), strict=True
        ):
            torch.testing.assert_close(value[1, 2].double(), one, rtol=1e-6, atol=0)
        empty = law(p[:0], tau)
        assert (empty[0] if isinstance(empty, tuple) else empty).shape == (0, 4)
    for limit in LIMITS:
        assert limit(p[:0]).shape == (0, 1)
        assert limit(p).dtype == F32
    assert binary_mean(torch.ones(0, 2)).shape == (0, 2)
    assert small_slope_probability(p, tau, torch.tensor([[[0.1]], [[0.2]]])).shape == (2, 3, 4)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.1, math.nan, INF])
def test_chances_that_are_refused(bad):
    for law in OF_A_COIN:
        with pytest.raises(ValueError, match=r"^p: must be in \(0, 1\)"):
            law(tensor([0.5, bad]), 1.0)
    for limit in LIMITS:
        with pytest.raises(ValueError, match=r"^p: must be in \(0, 1\)"):
            limit(tensor([0.5, bad]))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, INF])
def test_what_must_be_positive(bad):
    for law in OF_A_COIN:
        for temperature in (bad, tensor([1.0, bad])):
            with pytest.raises(ValueError, match="^temperature: must be positive"):
                law(tensor(0.5), temperature)
    with pytest.raises(ValueError, match="^bound: must be positive"):
        small_slope_probability(tensor(0.5), 1.0, bad)
    with pytest.raises(ValueError, match="^odds: must be positive"):
        binary_mean(tensor([1.0, bad]))
