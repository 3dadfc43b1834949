import math

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import distributions

from gradbook.estimators import Family, pathwise
from gradbook.implicit import (
    attach,
    beta_from_gammas,
    beta_log_prob,
    gamma_cdf,
    gamma_log_prob,
    mixture_cdf,
    mixture_log_prob,
    von_mises_cdf,
    von_mises_log_prob,
)
from gradbook.reparameterization import exponential, normal_cdf

F64 = torch.float64
LEVELS = (0.01, 0.1, 0.5, 0.9, 0.99)


def tensor(x):
    return torch.as_tensor(x, dtype=F64)


def path_gradient(z, cdf, log_prob, *theta):
    """dz/dtheta of every draw, one tensor for each parameter."""
    leaves = [t.clone().requires_grad_() for t in theta]
    return torch.autograd.grad(attach(z, cdf, log_prob, *leaves).sum(), leaves)


def path_jacobian(z, cdf, log_prob, *theta):
    """dz/dtheta where theta is shared by the draws: [n, *shape] for each parameter."""
    return torch.autograd.functional.jacobian(
        lambda *leaves: attach(z, cdf, log_prob, *leaves), theta
    )


# ----------------------------------------------------------------- the core


def test_value_is_kept_to_the_bit_and_z_is_cut_off():
    z = tensor([1e-30, 0.1, 3.0, 10.0]).requires_grad_()
    a = torch.full((4,), 2.5, dtype=F64, requires_grad=True)
    attached = attach(z, gamma_cdf, gamma_log_prob, a)
    assert torch.equal(attached, z)
    by_z, by_a = torch.autograd.grad(attached.sum(), (z, a), allow_unused=True)
    assert by_z is None
    assert (by_a > 0).all()


def normal_log_prob(z, loc, scale):
    return -(((z - loc) / scale) ** 2) / 2 - scale.log() - math.log(2 * math.pi) / 2


def test_implicit_normal_is_the_explicit_one():
    loc, scale = tensor(0.3), tensor(1.4)
    z = loc + scale * tensor([-4.0, -1.0, 0.0, 0.5, 3.0])
    by_loc, by_scale = path_jacobian(
        z, lambda z, m, s: normal_cdf((z - m) / s), normal_log_prob, loc, scale
    )
    torch.testing.assert_close(by_loc, torch.ones_like(z), rtol=1e-12, atol=0)
    torch.testing.assert_close(by_scale, (z - loc) / scale, rtol=1e-12, atol=1e-15)


def test_implicit_exponential_is_the_explicit_one():
    u, rate = tensor([1e-6, 0.3, 0.9]), tensor(2.0)
    z = exponential(rate, u)
    (by_rate,) = path_jacobian(
        z, lambda z, r: -torch.expm1(-r * z), lambda z, r: r.log() - r * z, rate
    )
    torch.testing.assert_close(by_rate, -z / rate, rtol=1e-12, atol=0)


def test_the_rest_of_the_computation_is_differentiated_at_z():
    z, a = tensor([0.7, 2.0]), tensor(1.5).requires_grad_()
    (whole,) = torch.autograd.grad((attach(z, gamma_cdf, gamma_log_prob, a) ** 3 * a).sum(), a)
    (path,) = path_jacobian(z, gamma_cdf, gamma_log_prob, a.detach())
    torch.testing.assert_close(whole, (3 * z**2 * path * 1.5 + z**3).sum(), rtol=1e-14, atol=0)


def test_an_attached_draw_is_a_sampler_for_the_pathwise_estimator():
    gamma = Family(lambda a, z: attach(z, gamma_cdf, gamma_log_prob, a), gamma_log_prob)
    z, a = tensor([0.2, 1.0, 5.0]), tensor(1.5)
    have = pathwise(lambda z, a: z**2, gamma, a, z)
    (path,) = path_jacobian(z, gamma_cdf, gamma_log_prob, a)
    torch.testing.assert_close(have, 2 * z * path, rtol=1e-13, atol=0)


@pytest.mark.parametrize("z", [math.nan, math.inf])
def test_attach_refuses_draws_that_are_not_finite(z):
    with pytest.raises(ValueError, match="z: must be finite"):
        attach(tensor([1.0, z]), gamma_cdf, gamma_log_prob, tensor(2.0))


def test_attach_refuses_draws_without_density():
    with pytest.raises(ValueError, match="z: has no density here"):
        attach(tensor([1.0, 800.0]), gamma_cdf, gamma_log_prob, tensor(2.0))


# -------------------------------------------------------------------- gamma

CONCENTRATIONS = (0.05, 0.3, 1.0, 2.5, 8.0, 30.0, 100.0)


def gamma_quantiles():
    a = tensor(CONCENTRATIONS).repeat_interleave(len(LEVELS))
    q = tensor(LEVELS).repeat(len(CONCENTRATIONS))
    return torch.from_numpy(scipy.special.gammaincinv(a.numpy(), q.numpy())), a


def exact_gamma_path(z, a):
    """-(dF/da) / p by a difference in 50 digits, with an error near 1e-30."""
    with mpmath.workdps(50):
        z, a = mpmath.mpf(z), mpmath.mpf(a)
        h = a * mpmath.mpf(10) ** -16

        def cdf(a):
            return mpmath.gammainc(a, 0, z, regularized=True)

        density = mpmath.exp((a - 1) * mpmath.log(z) - z - mpmath.loggamma(a))
        return float((cdf(a - h) - cdf(a + h)) / (2 * h) / density)


@given(st.floats(0.05, 300), st.floats(1e-9, 1 - 1e-6))
def test_gamma_cdf_is_scipys(a, level):
    z = scipy.special.gammaincinv(a, level)
    have = gamma_cdf(tensor(z), tensor(a))
    assert have == pytest.approx(scipy.special.gammainc(a, z), rel=5e-13)


def test_gamma_cdf_in_closed_form_and_far_out():
    z = tensor([1e-8, 0.5, 3.0, 30.0])
    torch.testing.assert_close(gamma_cdf(z, tensor(1.0)), -torch.expm1(-z), rtol=1e-14, atol=0)
    erf = torch.erf(z.sqrt())
    torch.testing.assert_close(gamma_cdf(z, tensor(0.5)), erf, rtol=1e-14, atol=0)
    assert gamma_cdf(tensor(900.0), tensor(0.5)) == pytest.approx(1, abs=1e-11)
    assert gamma_cdf(tensor(1000.0), tensor(1000.0)) == pytest.approx(
        scipy.special.gammainc(1000, 1000), rel=1e-12
    )


def test_gamma_log_prob_is_torchs():
    z, a = gamma_quantiles()
    want = distributions.Gamma(a, torch.ones_like(a)).log_prob(z)
    torch.testing.assert_close(gamma_log_prob(z, a), want, rtol=1e-12, atol=1e-12)


def test_gamma_path_in_high_precision():
    z, a = gamma_quantiles()
    (have,) = path_gradient(z, gamma_cdf, gamma_log_prob, a)
    want = [exact_gamma_path(*pair) for pair in zip(z.tolist(), a.tolist(), strict=True)]
    np.testing.assert_allclose(have, want, rtol=1e-12)


def test_gamma_path_is_the_slope_of_the_quantile():
    z, a = gamma_quantiles()
    (have,) = path_gradient(z, gamma_cdf, gamma_log_prob, a)
    a = a.numpy()
    level, h = scipy.special.gammainc(a, z.numpy()), 1e-4 * a
    quantile = scipy.special.gammaincinv
    # Richardson: two central differences leave an error of order h^4.
    slopes = [
        (quantile(a + s * h, level) - quantile(a - s * h, level)) / (2 * s * h) for s in (1, 2)
    ]
    np.testing.assert_allclose(have, (4 * slopes[0] - slopes[1]) / 3, rtol=1e-8)


def test_torchs_gamma_path_is_an_approximation_to_three_digits():
    z, a = gamma_quantiles()
    (exact,) = path_gradient(z, gamma_cdf, gamma_log_prob, a)
    torch.testing.assert_close(torch._standard_gamma_grad(a, z), exact, rtol=1e-3, atol=0)


def test_torchs_gamma_rsample_has_our_gradient():
    a = tensor([0.4, 3.0, 20.0]).requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z = distributions.Gamma(a, torch.ones_like(a)).rsample()
    (theirs,) = torch.autograd.grad(z.sum(), a)
    (ours,) = path_gradient(z.detach(), gamma_cdf, gamma_log_prob, a.detach())
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=0)


def test_gamma_path_moves_an_expectation_as_it_should():
    a = 12.0
    nodes, weights = scipy.special.roots_genlaguerre(100, a - 1)
    kept = weights > 1e-300
    z, p = torch.from_numpy(nodes[kept]), torch.from_numpy(weights[kept] / weights.sum())
    kept = p > 1e-30
    z, p = z[kept], p[kept]
    (path,) = path_jacobian(z, gamma_cdf, gamma_log_prob, tensor(a))
    # E[z] = a and E[z^2] = a (a + 1)
    assert (p * path).sum() == pytest.approx(1, rel=1e-9)
    assert (p * 2 * z * path).sum() == pytest.approx(2 * a + 1, rel=1e-9)


@pytest.mark.parametrize("a", [0.05, 1.0, 10.0, 100.0])
def test_gamma_path_loses_digits_in_the_upper_tail_as_documented(a):
    z = scipy.special.gammainccinv(a, 1e-10)
    (have,) = path_gradient(tensor([z]), gamma_cdf, gamma_log_prob, tensor([a]))
    density = gamma_log_prob(tensor(z), tensor(a)).exp()
    assert abs(have - exact_gamma_path(z, a)) * density < 1e-14


# --------------------------------------------------------------------- beta

BETAS = ((2.0, 3.0), (10.0, 1.5), (30.0, 20.0))


@pytest.mark.parametrize(("alpha", "beta"), BETAS)
def test_beta_log_prob_is_torchs(alpha, beta):
    z = tensor([1e-6, 0.2, 0.5, 0.9])
    want = distributions.Beta(tensor(alpha), tensor(beta)).log_prob(z)
    have = beta_log_prob(z, tensor(alpha), tensor(beta))
    torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-12)


def beta_path_by_gammas(z, alpha, beta):
    """The mean of d(x / (x + y))/d(alpha, beta) over x + y, which is independent of z."""
    nodes, weights = scipy.special.roots_genlaguerre(120, alpha + beta - 1)
    kept = weights / weights.sum() > 1e-30
    total, p = torch.from_numpy(nodes[kept]), torch.from_numpy(weights[kept] / weights.sum())
    theta = tensor(alpha).requires_grad_(), tensor(beta).requires_grad_()
    x = attach(total * z, gamma_cdf, gamma_log_prob, theta[0])
    y = attach(total * (1 - z), gamma_cdf, gamma_log_prob, theta[1])
    ratio = beta_from_gammas(x, y)
    torch.testing.assert_close(ratio, torch.full_like(ratio, z), rtol=1e-14, atol=0)
    return torch.stack(torch.autograd.grad((p * ratio).sum(), theta))


@pytest.mark.parametrize(("alpha", "beta"), BETAS)
@pytest.mark.parametrize("level", LEVELS)
def test_beta_from_gammas_moves_at_the_mean_as_the_quantile_does(alpha, beta, level):
    quantile = scipy.special.betaincinv
    h = 1e-4
    want = [
        (quantile(alpha + h, beta, level) - quantile(alpha - h, beta, level)) / (2 * h),
        (quantile(alpha, beta + h, level) - quantile(alpha, beta - h, level)) / (2 * h),
    ]
    have = beta_path_by_gammas(quantile(alpha, beta, level), alpha, beta)
    np.testing.assert_allclose(have, want, rtol=1e-6)


@pytest.mark.parametrize(("alpha", "beta"), BETAS)
def test_torchs_beta_rsample_has_our_gradient(alpha, beta):
    theta = tensor(alpha).requires_grad_(), tensor(beta).requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        z = distributions.Beta(*theta).rsample()
    theirs = torch.stack(torch.autograd.grad(z, theta))
    ours = beta_path_by_gammas(z.item(), alpha, beta)
    torch.testing.assert_close(theirs, ours, rtol=2e-3, atol=0)


# ------------------------------------------------------------------ mixture

LOGITS, LOCS, SCALES = tensor([0.2, -1.0, 0.5]), tensor([-2.0, 0.3, 1.5]), tensor([0.5, 1.2, 0.8])
MIXTURE = (LOGITS, LOCS, SCALES)


def torch_mixture():
    return distributions.MixtureSameFamily(
        distributions.Categorical(logits=LOGITS), distributions.Normal(LOCS, SCALES)
    )


def test_mixture_cdf_and_density_are_torchs():
    z = torch.linspace(-5, 6, 23, dtype=F64)
    mixture = torch_mixture()
    torch.testing.assert_close(mixture_cdf(z, *MIXTURE), mixture.cdf(z), rtol=1e-9, atol=0)
    torch.testing.assert_close(
        mixture_log_prob(z, *MIXTURE), mixture.log_prob(z), rtol=1e-12, atol=0
    )


def mixture_quantile(level, logits, locs, scales):
    weights = scipy.special.softmax(logits)

    def excess(z):
        return weights @ scipy.stats.norm.cdf(z, locs, scales) - level

    return brentq(excess, -50, 50, xtol=1e-14, rtol=1e-14)


def test_mixture_path_is_the_slope_of_the_quantile():
    theta = [t.numpy() for t in MIXTURE]
    z = tensor([mixture_quantile(level, *theta) for level in LEVELS])
    have = path_jacobian(z, mixture_cdf, mixture_log_prob, *MIXTURE)
    h = 1e-4
    for which, jacobian in enumerate(have):
        for k in range(3):
            shift = [np.zeros(3) for _ in theta]
            shift[which][k] = h
            up, down = (
                np.array(
                    [
                        mixture_quantile(q, *(t + s * d for t, d in zip(theta, shift, strict=True)))
                        for q in LEVELS
                    ]
                )
                for s in (1, -1)
            )
            np.testing.assert_allclose(jacobian[:, k], (up - down) / (2 * h), rtol=2e-6, atol=1e-9)


def test_mixture_path_moves_the_mean_as_it_should():
    z = torch.linspace(-9, 9, 1201, dtype=F64)
    p = mixture_log_prob(z, *MIXTURE).exp() * (z[1] - z[0])
    kept = p > 1e-12
    by_logits, by_locs, by_scales = path_jacobian(z[kept], mixture_cdf, mixture_log_prob, *MIXTURE)
    # E[z] = w . m: the trapezoid rule is exact to rounding for such a smooth bump.
    weights = LOGITS.softmax(0)
    exact = weights * (LOCS - weights @ LOCS), weights, torch.zeros(3, dtype=F64)
    for have, want in zip((by_logits, by_locs, by_scales), exact, strict=True):
        torch.testing.assert_close(p[kept] @ have, want, rtol=0, atol=1e-9)


def test_a_single_component_is_a_normal():
    loc, scale = tensor([0.4]), tensor([2.0])
    z = tensor([-3.0, 0.0, 5.0])
    by_logits, by_loc, by_scale = path_jacobian(
        z, mixture_cdf, mixture_log_prob, tensor([3.0]), loc, scale
    )
    torch.testing.assert_close(by_logits, torch.zeros(3, 1, dtype=F64))
    torch.testing.assert_close(by_loc, torch.ones(3, 1, dtype=F64))
    torch.testing.assert_close(by_scale, ((z - loc) / scale)[:, None])


# ---------------------------------------------------------------- von Mises


def von_mises_mp(turn, kappa):
    """F and p at an angle from loc, by adaptive quadrature in high precision."""
    norm = 2 * mpmath.pi * mpmath.besseli(0, kappa) * mpmath.exp(-kappa)

    def density(t):
        return mpmath.exp(kappa * (mpmath.cos(t) - 1)) / norm

    pieces = mpmath.linspace(0, turn, 8)
    return mpmath.mpf(1) / 2 + mpmath.quad(density, pieces), density(turn)


@pytest.mark.parametrize("kappa", [0.01, 1.0, 4.0, 40.0])
def test_von_mises_cdf_and_density_are_scipys(kappa):
    loc = 0.7
    z = loc + np.linspace(-3.14, 3.14, 21)
    reference = scipy.stats.vonmises(kappa, loc)
    arguments = torch.from_numpy(z), tensor(loc), tensor(kappa)
    np.testing.assert_allclose(von_mises_cdf(*arguments), reference.cdf(z), atol=1e-11)
    np.testing.assert_allclose(von_mises_log_prob(*arguments), reference.logpdf(z), rtol=1e-11)


@pytest.mark.parametrize("kappa", [0.1, 2.0, 50.0, 300.0])
def test_von_mises_cdf_in_high_precision(kappa):
    turns = [-3.0, -1.0, -0.05, 0.0, 0.3, 2.0, 3.1]
    have = von_mises_cdf(tensor(turns), tensor(0.0), tensor(kappa))
    with mpmath.workdps(30):
        want = [float(von_mises_mp(mpmath.mpf(t), mpmath.mpf(kappa))[0]) for t in turns]
    np.testing.assert_allclose(have, want, atol=1e-13)


def von_mises_quantile_mp(level, kappa, start):
    """Two Newton steps: from a start that is off by 1e-8, they leave nothing in 25 digits."""
    turn = mpmath.mpf(start)
    for _ in range(2):
        cdf, density = von_mises_mp(turn, kappa)
        turn -= (cdf - level) / density
    return turn


@pytest.mark.parametrize("kappa", [0.5, 4.0, 60.0])
def test_von_mises_path_is_the_slope_of_the_quantile(kappa):
    loc = 0.7
    turns = scipy.stats.vonmises.ppf([0.02, 0.3, 0.97], kappa)
    slopes = []
    with mpmath.workdps(25):
        h = mpmath.mpf(10) ** -8
        for turn in turns.tolist():
            level, _ = von_mises_mp(mpmath.mpf(turn), mpmath.mpf(kappa))
            up, down = (von_mises_quantile_mp(level, kappa + s * h, turn) for s in (1, -1))
            slopes.append(float((up - down) / (2 * h)))
    by_loc, by_kappa = path_jacobian(
        tensor(loc + turns), von_mises_cdf, von_mises_log_prob, tensor(loc), tensor(kappa)
    )
    np.testing.assert_allclose(by_loc, 1, rtol=1e-12)
    np.testing.assert_allclose(by_kappa, slopes, rtol=1e-9)


def test_von_mises_takes_an_angle_in_any_turn():
    loc, kappa = tensor(2.5), tensor(1.3)
    z = tensor([3.0, 0.1, -0.5])
    for turns in (-2, 1):
        moved = z + turns * 2 * math.pi
        torch.testing.assert_close(von_mises_cdf(moved, loc, kappa), von_mises_cdf(z, loc, kappa))
    wrapped = von_mises_cdf(tensor(-math.pi + 0.01), loc, kappa)
    assert wrapped == pytest.approx(scipy.stats.vonmises.cdf(math.pi + 0.01, 1.3, 2.5), abs=1e-12)


def fixed_cut_cdf(z, loc, kappa):
    """Another CDF of the same angles: the circle is cut at -pi instead of opposite to loc."""
    return von_mises_cdf(z, loc, kappa) - von_mises_cdf(tensor(-math.pi), loc, kappa)


@pytest.mark.parametrize("cdf", [von_mises_cdf, fixed_cut_cdf])
def test_von_mises_path_moves_an_expectation_whatever_the_cut(cdf):
    loc, kappa = tensor(0.6), tensor(1.8)
    z = torch.linspace(-math.pi, math.pi, 401, dtype=F64)[:-1]
    p = von_mises_log_prob(z, loc, kappa).exp() * (z[1] - z[0])
    by_loc, by_kappa = path_jacobian(z, cdf, von_mises_log_prob, loc, kappa)
    # E[sin z] = A(kappa) sin(loc) with A = I1 / I0
    a = scipy.special.i1(1.8) / scipy.special.i0(1.8)
    slope = 1 - a / 1.8 - a**2
    assert p @ (z.cos() * by_loc) == pytest.approx(a * math.cos(0.6), abs=1e-12)
    assert p @ (z.cos() * by_kappa) == pytest.approx(slope * math.sin(0.6), abs=1e-12)


# -------------------------------------------------- torch, and what is refused


def test_torch_has_no_path_for_von_mises_and_mixtures():
    assert not distributions.VonMises.has_rsample
    assert not distributions.MixtureSameFamily.has_rsample
    with pytest.raises(NotImplementedError):
        distributions.VonMises(tensor(0.0), tensor(1.0)).rsample()
    with pytest.raises(NotImplementedError):
        torch_mixture().rsample()


@pytest.mark.parametrize("function", [gamma_cdf, gamma_log_prob])
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_gamma_arguments_must_be_positive(function, bad):
    with pytest.raises(ValueError, match="z: must be positive"):
        function(tensor([1.0, bad]), tensor(1.0))
    with pytest.raises(ValueError, match="concentration: must be positive"):
        function(tensor(1.0), tensor(bad))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_beta_arguments_are_checked(bad):
    one, half = tensor(1.0), tensor(0.5)
    for name, arguments in (("x", (tensor(bad), one)), ("y", (one, tensor(bad)))):
        with pytest.raises(ValueError, match=f"{name}: must be positive"):
            beta_from_gammas(*arguments)
    with pytest.raises(ValueError, match="alpha: must be positive"):
        beta_log_prob(half, tensor(bad), one)
    with pytest.raises(ValueError, match="beta: must be positive"):
        beta_log_prob(half, one, tensor(bad))
    for z in (tensor(bad), one):
        with pytest.raises(ValueError, match=r"z: must be in \(0, 1\)"):
            beta_log_prob(z, one, one)


@pytest.mark.parametrize("function", [mixture_cdf, mixture_log_prob])
def test_mixture_arguments_are_checked(function):
    nan = tensor([0.0, math.nan, 0.0])
    z = tensor([0.0])
    for scale in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="scales: must be positive"):
            function(z, LOGITS, LOCS, tensor([1.0, scale, 1.0]))
    for name, theta in (("logits", (nan, LOCS, SCALES)), ("locs", (LOGITS, nan, SCALES))):
        with pytest.raises(ValueError, match=f"{name}: must be finite"):
            function(z, *theta)
    with pytest.raises(ValueError, match="z: must be finite"):
        function(nan, *MIXTURE)


@pytest.mark.parametrize("function", [von_mises_cdf, von_mises_log_prob])
def test_von_mises_arguments_are_checked(function):
    one = tensor(1.0)
    for kappa in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="concentration: must be positive"):
            function(one, one, tensor(kappa))
    with pytest.raises(ValueError, match="z: must be finite"):
        function(tensor(math.nan), one, one)
    with pytest.raises(ValueError, match="loc: must be finite"):
        function(one, tensor(math.inf), one)


def test_empty_batches_give_empty_results():
    none, one = torch.zeros(0, dtype=F64), tensor(1.0)
    assert gamma_cdf(none, one).shape == (0,)
    assert attach(none, gamma_cdf, gamma_log_prob, one).shape == (0,)
    assert mixture_cdf(none, *MIXTURE).shape == (0,)
    assert von_mises_cdf(none, one, one).shape == (0,)
    assert beta_from_gammas(none, none).shape == (0,)
