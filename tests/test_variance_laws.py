import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook.estimators import Family, pathwise, score_function
from gradbook.variance_laws import (
    cosine_crossing,
    cosine_gradient,
    cosine_path,
    cosine_score,
    quadratic_path,
    quadratic_score,
)

F64 = torch.float64
NODES, WEIGHTS = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(100))
WEIGHTS = WEIGHTS / WEIGHTS.sum()
NORMAL = Family(lambda mean, e: mean + e, lambda z, mean: -((z - mean) ** 2) / 2)
LAWS = (cosine_gradient, cosine_path, cosine_score)

means = st.floats(-3, 3)
# cos(2 k z) with k above 5 turns too often for 100 nodes.
wave_numbers = st.floats(-5, 5)


def scalar(x):
    return torch.tensor(x, dtype=F64)


def moments(estimator, f, mean):
    """Mean and variance of one sample, by quadrature over the noise."""
    samples = estimator(lambda z, t: f(z), NORMAL, scalar(mean), NODES)
    average = WEIGHTS @ samples
    return average, WEIGHTS @ (samples - average) ** 2


@given(means)
def test_quadratic_laws_match_quadrature(mean):
    average, variance = moments(score_function, torch.square, mean)
    torch.testing.assert_close(average, scalar(2 * mean), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(quadratic_score(scalar(mean)), variance, rtol=1e-11, atol=0)
    average, variance = moments(pathwise, torch.square, mean)
    torch.testing.assert_close(average, scalar(2 * mean), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(quadratic_path(scalar(mean)), variance, rtol=1e-12, atol=0)


@given(wave_numbers, means)
def test_cosine_laws_match_quadrature(k, mean):
    gradient = cosine_gradient(scalar(k), scalar(mean))
    for estimator, law in ((score_function, cosine_score), (pathwise, cosine_path)):
        average, variance = moments(estimator, lambda z: torch.cos(k * z), mean)
        torch.testing.assert_close(gradient, average, rtol=0, atol=1e-12)
        torch.testing.assert_close(law(scalar(k), scalar(mean)), variance, rtol=0, atol=1e-11)


def test_quadratic_score_at_whole_means():
    assert quadratic_score(torch.tensor([0.0, 1.0, 2.0], dtype=F64)).tolist() == [15, 30, 87]


def test_cosine_laws_at_mean_0_4():
    k = torch.tensor([0.3, 1.0, 3.0, 10.0], dtype=F64)
    np.testing.assert_allclose(cosine_score(k, scalar(0.4)), [0.758, 0.303, 0.499, 0.5], atol=5e-4)
    np.testing.assert_allclose(cosine_path(k, scalar(0.4)), [0.0073, 0.397, 4.5, 50], rtol=7e-3)


def test_fast_waves_reach_the_limits():
    k = torch.tensor([20.0, 100.0], dtype=F64)
    assert cosine_score(k, scalar(0.4)).tolist() == [0.5, 0.5]
    assert cosine_path(k, scalar(0.4)).tolist() == [200.0, 5000.0]


def test_laws_broadcast_and_keep_dtype_and_empty_batches():
    k, mean = torch.rand(3, 1), torch.rand(4)
    assert all(law(k, mean).shape == (3, 4) for law in LAWS)
    assert all(law(k, mean).dtype == torch.float32 for law in LAWS)
    assert all(law(torch.zeros(0), torch.tensor(1.0)).shape == (0,) for law in LAWS)
    assert quadratic_path(mean).shape == quadratic_score(mean).shape == (4,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_laws_refuse_what_is_not_finite(bad):
    for law in (quadratic_score, quadratic_path):
        with pytest.raises(ValueError, match="mean: must be finite"):
            law(scalar(bad))
    for law in LAWS:
        with pytest.raises(ValueError, match="k: must be finite"):
            law(scalar(bad), scalar(0.0))
        with pytest.raises(ValueError, match="mean: must be finite"):
            law(scalar(1.0), scalar(bad))


@given(st.floats(-2, 2))
def test_the_variances_tie_at_the_crossing_and_nowhere_else(mean):
    crossing = cosine_crossing(mean)
    k = torch.cat([torch.linspace(0.01, 6, 4000, dtype=F64), scalar([crossing])])
    excess = cosine_score(k, scalar(mean)) - cosine_path(k, scalar(mean))
    assert abs(excess[-1]) < 1e-13
    below, above = k[:-1] < crossing - 1e-9, k[:-1] > crossing + 1e-9
    assert (excess[:-1][below] > 0).all()
    assert (excess[:-1][above] < 0).all()


@given(st.floats(-1, 1))
def test_the_bracket_holds_for_every_phase(c):
    s = torch.cat([torch.linspace(1e-6, 0.64, 2000), torch.linspace(1.44, 40, 2000)]).to(F64)
    excess = 1 - s - c * (3 * s - 1) * torch.exp(-2 * s)
    assert torch.equal(excess > 0, s <= 0.64 + 1e-7)


def test_where_the_crossing_lies():
    assert cosine_crossing(0.0) == pytest.approx(0.85115, abs=5e-6)
    assert cosine_crossing(0.4) == pytest.approx(0.88659, abs=5e-6)
    assert cosine_crossing(-0.4) == cosine_crossing(0.4)


def test_beyond_mean_2_there_can_be_three_crossings():
    k = torch.linspace(0.8, 1.2, 4001, dtype=F64)
    excess = cosine_score(k, scalar(3.93)) - cosine_path(k, scalar(3.93))
    assert (excess[1:].sign() != excess[:-1].sign()).sum() == 3


@pytest.mark.parametrize("bad", [2.01, -3.0, float("nan"), float("inf")])
def test_the_crossing_refuses_a_mean_where_it_may_not_be_unique(bad):
    with pytest.raises(ValueError, match=r"mean: must be in \[-2, 2\]"):
        cosine_crossing(bad)
