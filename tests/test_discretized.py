"""Grey levels under a discretized logistic law, against sums, scipy and a fine grid of scales."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import logistic

from gradbook import discretized
from gradbook.discretized import fitted_scale, log_prob

REALS = st.floats(-0.5, 1.5)
LOG_SCALES = st.floats(-12.0, 3.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def drawn(n=400, count=256, scale=0.03):
    u = torch.rand(n, generator=generator(2), dtype=torch.float64)
    mean = torch.rand(n, generator=generator(3), dtype=torch.float64)
    levels = ((mean + scale * u.logit()) * (count - 1)).round().clamp(0, count - 1)
    return levels.long(), mean


@given(REALS, LOG_SCALES, st.sampled_from([2, 3, 16, 256]))
def test_the_probabilities_of_all_levels_sum_to_1(mean, log_scale, count):
    levels = torch.arange(count)
    log_p = log_prob(levels, double(mean), math.exp(log_scale), count)
    assert log_p.logsumexp(0).item() == pytest.approx(0, abs=1e-12)
    assert (log_p <= 0).all()


@pytest.mark.parametrize("scale", [0.02, 0.3, 5.0])
@pytest.mark.parametrize("count", [2, 5, 256])
def test_a_level_has_the_mass_between_its_ends(scale, count):
    mean, levels = 0.37, torch.arange(count)
    ends = (torch.arange(count + 1, dtype=torch.float64) - 0.5) / (count - 1)
    ends[0], ends[-1] = -math.inf, math.inf
    cdf = torch.from_numpy(logistic.cdf(ends.numpy(), mean, scale))
    torch.testing.assert_close(
        log_prob(levels, double(mean), scale, count).exp(), cdf.diff(), rtol=1e-10, atol=1e-14
    )


def test_a_tiny_scale_underflows_nothing():
    # Far from the mean the mass is exp(-distance / scale), and a difference of sigmoids is 0.
    scale, levels = 1e-5, torch.tensor([0, 100, 128, 255])
    found = log_prob(levels, double(0.5), scale)
    ends = double(0.5 / 255, 100.5 / 255, 127.5 / 255, 254.5 / 255)
    far = -(ends - 0.5).abs() / scale
    # The mean is the edge of level 128: half of the mass is beyond it.
    far[2] = -math.log(2)
    torch.testing.assert_close(found, far, rtol=1e-12, atol=0)
    single = log_prob(levels, torch.tensor(0.5), scale)
    torch.testing.assert_close(single.double(), far, rtol=1e-3, atol=1e-6)


def test_a_huge_scale_leaves_half_to_each_edge_and_the_density_to_the_rest():
    scale = 1e8
    found = log_prob(torch.tensor([0, 77, 255]), double(0.2), scale)
    expected = double(math.log(0.5), math.log(1 / (255 * 4 * scale)), math.log(0.5))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("scale", [1e-3, 0.05, 2.0])
def test_gradients_are_those_of_finite_differences(scale):
    levels = torch.tensor([0, 3, 4, 7])
    mean = double(0.1, 0.4, 0.6, 0.9).requires_grad_()
    spread = double(scale).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m, s: log_prob(levels, m, s, 8), (mean, spread), eps=1e-7, atol=1e-4, rtol=1e-5
    )


def test_gradients_are_finite_at_every_level_and_scale():
    for scale in (1e-6, 1e-3, 1.0, 1e3):
        mean = torch.full((256,), 0.3, requires_grad=True)
        spread = torch.tensor(scale, requires_grad=True)
        log_prob(torch.arange(256), mean, spread).sum().backward()
        assert mean.grad.isfinite().all()
        assert spread.grad.isfinite().all()


def test_scales_broadcast():
    levels, mean = drawn(6)
    scales = double(0.01, 0.1)[:, None]
    found = log_prob(levels, mean, scales)
    assert found.shape == (2, 6)
    for row, scale in zip(found, (0.01, 0.1), strict=True):
        torch.testing.assert_close(row, log_prob(levels, mean, scale))


def test_every_integer_type_will_do():
    levels, mean = drawn(6)
    for dtype in (torch.uint8, torch.int16, torch.int64):
        torch.testing.assert_close(
            log_prob(levels.to(dtype), mean, 0.1), log_prob(levels, mean, 0.1)
        )


@pytest.mark.parametrize("count", [2, 16, 256])
def test_the_fitted_scale_is_the_best_of_a_fine_grid(count):
    levels, mean = drawn(count=count, scale=0.3 if count == 2 else 0.05)
    best = fitted_scale(levels, mean, count)
    grid = torch.exp(torch.linspace(math.log(1e-3), math.log(10), 4001).double())
    heights = log_prob(levels, mean, grid[:, None], count).sum(1)
    peak = heights.argmax()
    assert grid[peak - 1] < best < grid[peak + 1]
    assert log_prob(levels, mean, best, count).sum() >= heights.max()


def test_the_slope_at_the_fitted_scale_is_zero():
    levels, mean = drawn()
    spread = double(fitted_scale(levels, mean)).requires_grad_()
    log_prob(levels, mean, spread).sum().backward()
    # Per level and unit of the logarithm of the scale.
    assert (spread.grad * spread).item() / 400 == pytest.approx(0, abs=1e-6)


def test_the_fit_finds_the_scale_that_drew_the_levels():
    levels, mean = drawn(20_000, scale=0.07)
    # The standard error of log scale is about 0.8 / sqrt(n).
    assert math.log(fitted_scale(levels, mean) / 0.07) == pytest.approx(0, abs=0.03)


@given(st.floats(-3.0, -1.0), st.floats(0.0, 4.0), st.integers(0, 2**31))
def test_the_height_has_a_single_peak(low, width, seed):
    levels = torch.randint(0, 16, (7,), generator=generator(seed))
    mean = torch.rand(7, generator=generator(seed + 1), dtype=torch.float64)
    inverse = torch.linspace(math.exp(low), math.exp(low + width), 9, dtype=torch.float64)
    heights = log_prob(levels, mean, 1 / inverse[:, None], 16).sum(1)
    assert (heights.diff().diff() <= 1e-9 * heights.abs().max()).all()


def test_where_no_scale_is_best_the_fit_ends_at_the_range():
    levels = torch.tensor([0, 10, 255])
    assert fitted_scale(levels, levels.double() / 255) == pytest.approx(discretized.LEAST)
    assert fitted_scale(torch.tensor([0, 255]), double(1.0, 0.0)) == pytest.approx(discretized.MOST)


def test_the_fit_is_the_same_in_single_precision_and_needs_no_gradient():
    levels, mean = drawn()
    single = mean.float().requires_grad_()
    assert fitted_scale(levels, single) == fitted_scale(levels, single.detach().double())
    assert single.grad is None


def test_no_levels_have_no_probabilities():
    none = torch.empty(0, dtype=torch.int64)
    assert log_prob(none, torch.empty(0), 0.1).shape == (0,)


LEVELS, MEAN = torch.tensor([0, 3]), torch.tensor([0.1, 0.2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_prob(LEVELS, MEAN, 0.1, 1), "count: must be at least 2"),
        (lambda: log_prob(LEVELS, MEAN, 0.1, 3), "levels: must be from 0 to 2"),
        (lambda: log_prob(LEVELS - 1, MEAN, 0.1), "levels: must be from 0 to 255"),
        (lambda: log_prob(LEVELS.float(), MEAN, 0.1), "levels: must be integers"),
        (lambda: log_prob(LEVELS > 0, MEAN, 0.1), "levels: must be integers"),
        (lambda: log_prob(LEVELS, LEVELS, 0.1), "mean: must be floating"),
        (lambda: log_prob(LEVELS, MEAN / 0, 0.1), "mean: must be finite"),
        (lambda: log_prob(LEVELS, MEAN, 0.0), "scale: must be positive"),
        (lambda: log_prob(LEVELS, MEAN, math.nan), "scale: must be positive"),
        (lambda: log_prob(LEVELS, MEAN, math.inf), "scale: must be positive"),
        (lambda: log_prob(LEVELS, MEAN, torch.ones(3)), "scale: "),
        (lambda: log_prob(LEVELS, torch.zeros(3), 0.1), "levels: "),
        (lambda: fitted_scale(LEVELS[:0], MEAN[:0]), "levels: must not be empty"),
        (lambda: fitted_scale(LEVELS, MEAN, 3), "levels: must be from 0 to 2"),
        (lambda: fitted_scale(LEVELS, MEAN / 0), "mean: must be finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
