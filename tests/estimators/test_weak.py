import math

import numpy as np
import pytest
import scipy.special
import torch

from gradbook.estimators import measure_valued_mean, measure_valued_scale
from gradbook.expectation import gauss_hermite
from gradbook.noise import standard_normal

F64 = torch.float64
ESTIMATORS = {measure_valued_mean: 2, measure_valued_scale: 3}
CASES = pytest.mark.parametrize(("estimator", "rows"), ESTIMATORS.items())


def f64(*values):
    return torch.tensor(values, dtype=F64)


def close(actual, expected, rtol=1e-11, atol=1e-11):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def exact(f, loc, scale):
    loc, scale = (t.clone().requires_grad_() for t in (loc, scale))
    return torch.autograd.grad(gauss_hermite(f, loc, scale), (loc, scale))


def quartic(z):
    return z**4 - 2 * z**3 + z


LOC, SCALE = torch.tensor(0.4, dtype=F64), torch.tensor(1.3, dtype=F64)


@pytest.mark.parametrize("f", [quartic, torch.sin, lambda z: (0.3 * z).exp()])
def test_quadrature_over_the_rayleigh_length_gives_the_slope_in_the_mean(f):
    # x = w^2 / 2 is exponential; the odd difference over sqrt(x) is smooth in x.
    x, weights = map(torch.from_numpy, scipy.special.roots_genlaguerre(40, 0.5))
    noise = torch.stack([(2 * x).sqrt(), torch.zeros_like(x)], 1)
    mean = weights / x.sqrt() @ measure_valued_mean(f, LOC, SCALE, noise)
    close(mean, exact(f, LOC, SCALE)[0])


@pytest.mark.parametrize("f", [quartic, torch.sin, lambda z: (0.3 * z).exp()])
def test_quadrature_over_the_maxwell_length_gives_the_slope_in_the_scale(f):
    m, normal = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(40))
    u, flat = map(torch.from_numpy, np.polynomial.legendre.leggauss(40))
    m, u = torch.cartesian_prod(m, (1 + u) / 2).unbind(-1)
    weights = torch.cartesian_prod(normal, flat / 2).prod(-1) * m**2 / math.sqrt(2 * math.pi)
    # The first of three normals is U M, and the length of the three is |M|.
    noise = torch.stack([u * m, m * (1 - u**2).sqrt(), torch.zeros_like(m)], 1)
    mean = weights @ measure_valued_scale(f, LOC, SCALE, noise)
    close(mean, exact(f, LOC, SCALE)[1])


def test_a_sample_is_the_difference_that_it_says():
    normals = f64(-3.0, 4.0)
    (sample,) = measure_valued_mean(quartic, LOC, SCALE, normals[None])
    ends = quartic(LOC + 5 * SCALE) - quartic(LOC - 5 * SCALE)
    close(sample, ends / (SCALE * math.sqrt(2 * math.pi)))
    (sample,) = measure_valued_scale(quartic, LOC, SCALE, f64(-2.0, 3.0, 6.0)[None])
    close(sample, (quartic(LOC - 7 * SCALE) - quartic(LOC - 2 * SCALE)) / SCALE)


def test_coordinates_are_moved_one_at_a_time():
    loc, scale = f64(0.4, -1.0, 0.2), f64(1.3, 0.5, 2.0)
    noise = standard_normal(4, 3, 3, seed=1).cpu()

    def f(z):
        return z[0] * z[1].square() + z.prod() + z[2].sin()

    def moved(end, i):
        z = loc + scale * noise[:, 0]
        z[:, i] = loc[i] + scale[i] * end[:, i]
        return torch.stack([f(row) for row in z])

    maxwell = noise.norm(dim=1) * noise[:, 0].sign()
    rayleigh = noise[:, :2].norm(dim=1)
    means = measure_valued_mean(f, loc, scale, noise[:, :2])
    scales = measure_valued_scale(f, loc, scale, noise)
    for i in range(3):
        difference = moved(rayleigh, i) - moved(-rayleigh, i)
        close(means[:, i], difference / (scale[i] * math.sqrt(2 * math.pi)))
        close(scales[:, i], (moved(maxwell, i) - moved(noise[:, 0], i)) / scale[i])


def test_both_are_unbiased_for_a_coupled_polynomial(z_scores):
    # E z0^2 z1 = (m0^2 + s0^2) m1
    loc, scale = f64(0.4, -1.0), f64(1.3, 0.5)
    noise = standard_normal(100_000, 3, 2, seed=2).cpu()

    def f(z):
        return z[0] ** 2 * z[1]

    in_mean = f64(2 * 0.4 * -1.0, 0.4**2 + 1.3**2)
    in_scale = f64(2 * 1.3 * -1.0, 0.0)
    assert z_scores(measure_valued_mean(f, loc, scale, noise[:, :2]), in_mean) < 4.5
    # The second slope is zero, but its samples are not.
    samples = measure_valued_scale(f, loc, scale, noise)
    assert samples[:, 1].std() > 0.1
    assert z_scores(samples, in_scale) < 4.5


def test_both_are_unbiased_for_a_step(z_scores):
    noise = standard_normal(100_000, 3, seed=3).cpu()

    def step(z):
        return (z > 0).to(F64)

    density = math.exp(-((0.4 / 1.3) ** 2) / 2) / math.sqrt(2 * math.pi)
    mean = measure_valued_mean(step, LOC, SCALE, noise[:, :2])
    assert z_scores(mean, density / 1.3) < 4.5
    scale = measure_valued_scale(step, LOC, SCALE, noise)
    assert z_scores(scale, -density * 0.4 / 1.3**2) < 4.5


def test_coupling_beats_an_independent_normal_draw():
    noise = standard_normal(50_000, 3, seed=4).cpu()
    coupled = measure_valued_scale(quartic, LOC, SCALE, noise)
    maxwell = noise.norm(dim=1) * noise[:, 0].sign()
    other = standard_normal(50_000, seed=5).cpu()
    apart = (quartic(LOC + SCALE * maxwell) - quartic(LOC + SCALE * other)) / SCALE
    assert coupled.var() < apart.var()


@CASES
def test_no_draws_or_no_coordinates_give_no_gradients(estimator, rows):
    def f(z):
        return z.sum()

    for n, d in ((0, 3), (4, 0)):
        gradients = estimator(f, f64(*[0.0] * d), f64(*[1.0] * d), torch.ones(n, rows, d).double())
        assert (gradients.shape, gradients.dtype) == ((n, d), F64)
    assert estimator(f, LOC, SCALE, torch.ones(0, rows)).shape == (0,)


@CASES
def test_the_result_follows_the_type_and_has_no_graph(estimator, rows):
    loc, scale = (torch.ones(2, requires_grad=True) for _ in range(2))
    gradients = estimator(lambda z: z.sum(), loc, scale, torch.ones(5, rows, 2))
    assert gradients.dtype == torch.float32
    assert not gradients.requires_grad


@CASES
def test_bad_input_is_refused(estimator, rows):
    loc, scale, noise = torch.zeros(2), torch.ones(2), torch.ones(5, rows, 2)

    def f(z):
        return z.sum()

    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="scale: must be positive"):
            estimator(f, loc, torch.tensor([1.0, bad]), noise)
    with pytest.raises(ValueError, match="loc: must be finite"):
        estimator(f, loc + math.nan, scale, noise)
    with pytest.raises(ValueError, match=r"scale: has shape \(\), loc \(2,\)"):
        estimator(f, loc, torch.tensor(1.0), noise)
    with pytest.raises(ValueError, match="noise: must have shape"):
        estimator(f, loc, scale, noise[:, 1:])
    with pytest.raises(ValueError, match="noise: must be finite"):
        estimator(f, loc, scale, noise / 0)
    with pytest.raises(ValueError, match="f: must return a scalar"):
        estimator(lambda z: z, loc, scale, noise)
