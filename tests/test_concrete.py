import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.distributions import RelaxedOneHotCategorical
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical
from torch.func import grad, hessian, vmap

from gradbook.concrete import concrete_log_prob, exp_concrete_log_prob
from gradbook.concrete_laws import log_convex_temperature
from gradbook.gumbel import gumbel_log_softmax, gumbel_noise, gumbel_softmax

F32, F64 = torch.float32, torch.float64
INF = math.inf
RARE = 7e-6
TEMPERATURES = [0.2, 0.5, 1.0, 2.0]
LOG_PROBS = (concrete_log_prob, lambda y, o, t: exp_concrete_log_prob(y.log(), o, t))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def tensor(x, dtype=F64):
    return torch.tensor(x, dtype=dtype)


def some(*shape, seed=0):
    """Logits, and points of the simplex."""
    rows = torch.randn(2, *shape, generator=generator(seed), dtype=F64)
    return rows[0], rows[1].softmax(-1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_densities_are_torchs(temperature):
    logits, y = some(20, 5)
    peer = RelaxedOneHotCategorical(tensor(temperature), logits=logits)
    ours = concrete_log_prob(y, logits, temperature)
    torch.testing.assert_close(ours, peer.log_prob(y), rtol=1e-12, atol=1e-12)
    peer = ExpRelaxedCategorical(tensor(temperature), logits=logits)
    ours = exp_concrete_log_prob(y.log(), logits, temperature)
    torch.testing.assert_close(ours, peer.log_prob(y.log()), rtol=1e-12, atol=1e-12)


def cdf(t, logits, temperature):
    """P(log(y_i / y_k) <= t_i for all i < k): the last perturbed logit, with t = 0, wins."""
    return (logits - temperature * t).softmax(-1)[-1]


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_density_is_the_derivative_of_the_distribution_function(k, temperature):
    logits, y = some(10, k)

    def derivative(t, axes):
        """Differentiate once in every axis."""
        if axes == 0:
            return cdf(torch.cat((t, t.new_zeros(1))), logits[0], temperature)
        return grad(lambda x: derivative(x, axes - 1))(t)[axes - 1]

    log_y = y.log()
    ratios = log_y[:, :-1] - log_y[:, -1:]
    exact = vmap(lambda t: derivative(t, k - 1))(ratios)
    ours = exp_concrete_log_prob(log_y, logits[0], temperature).exp()
    torch.testing.assert_close(ours, exact, rtol=1e-11, atol=0)
    # dy_1 ... dy_{k-1} is the product of all shares times d t_1 ... d t_{k-1}.
    ours = concrete_log_prob(y, logits[0], temperature).exp()
    torch.testing.assert_close(ours, exact / y.prod(-1), rtol=1e-11, atol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [2, 3])
def test_the_density_integrates_to_one(k, temperature):
    # In t = log(y_i / y_k) it is smooth on the whole plane: the trapezoidal rule is exact.
    logits, step = some(k)[0], 0.25 / temperature
    axis = step * torch.arange(-160, 161, dtype=F64)
    t = torch.cartesian_prod(*[axis] * (k - 1)).reshape(-1, k - 1)
    log_y = torch.cat((t, torch.zeros_like(t[:, :1])), -1).log_softmax(-1)
    mass = exp_concrete_log_prob(log_y, logits, temperature).exp().sum() * step ** (k - 1)
    assert mass == pytest.approx(1, abs=1e-12)
    y = log_y.exp()
    mass = (concrete_log_prob(y, logits, temperature).exp() * y.prod(-1)).sum() * step ** (k - 1)
    assert mass == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_draws_fall_into_cells_as_often_as_the_distribution_function_says(temperature):
    logits, n = tensor([0.2, -0.3, 0.0]), 50_000
    log_y = gumbel_log_softmax(logits, temperature, gumbel_noise((n, 3), generator(1), F64))
    ratios = log_y[:, :2] - log_y[:, 2:]
    edges = tensor([-INF, -1.0, 0.0, 1.5, INF]) / temperature
    cells = torch.searchsorted(edges[1:-1].contiguous(), ratios.contiguous())
    counts = torch.bincount(4 * cells[:, 0] + cells[:, 1], minlength=16)
    a, b = torch.meshgrid(edges, edges, indexing="ij")
    t = torch.stack((a, b, torch.zeros_like(a)), -1)
    grid = vmap(vmap(lambda t: cdf(t, logits, temperature)))(t.clamp(-1e4, 1e4))
    expected = n * grid.diff(dim=0).diff(dim=1).flatten()
    assert expected.min() > 100
    assert scipy.stats.chisquare(counts.numpy(), expected.numpy()).pvalue > RARE


def test_two_classes_have_the_density_of_a_squeezed_logistic():
    s, p, tau = torch.linspace(0.01, 0.99, 99, dtype=F64), 0.3, 0.4
    logits = tensor([p, 1 - p]).log()
    ours = concrete_log_prob(torch.stack((s, 1 - s), -1), logits, tau).exp()
    u = tau * s.logit() - math.log(p / (1 - p))
    exact = tau * u.sigmoid() * (-u).sigmoid() / (s * (1 - s))
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("log_prob", LOG_PROBS)
def test_densities_differentiate_in_everything(log_prob):
    logits, y = some(3, 4)
    temperature = tensor([[0.4], [1.0], [2.5]])

    def of_free_points(o, t, x):
        return log_prob(x.softmax(-1), o, t)

    assert gradcheck(of_free_points, [x.requires_grad_() for x in (logits, temperature, y.log())])


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(-50, 50), st.permutations(range(4)), st.floats(0.1, 5))
def test_neither_a_constant_nor_an_order_changes_the_density(seed, constant, order, temperature):
    logits, y = some(3, 4, seed=seed)
    for log_prob in LOG_PROBS:
        moved = log_prob(y[:, order], logits[:, order] + constant, temperature)
        exact = log_prob(y, logits, temperature)
        torch.testing.assert_close(moved, exact, rtol=1e-10, atol=1e-10)


def test_float32_densities_survive_large_logits_and_tiny_shares():
    logits, noise = tensor([1e4, 1e4 - 8, 1e4 - 16], F32), gumbel_noise((50, 3), generator(0), F32)
    log_y = gumbel_log_softmax(logits, 1e-30, noise)
    assert log_y.min() < -1e30
    ours = exp_concrete_log_prob(log_y, logits, 1e-30)
    exact = exp_concrete_log_prob(log_y.double(), logits.double(), 1e-30)
    assert ours.dtype == F32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("log_prob", LOG_PROBS)
def test_an_impossible_class_has_no_share_and_no_nan(log_prob):
    logits = tensor([0.0, -INF, 1.0]).requires_grad_()
    value = log_prob(tensor([0.2, 0.3, 0.5]), logits, 0.5)
    assert value == -INF
    assert torch.autograd.grad(value, logits)[0].isfinite().all()


def curvature(log_density, y):
    """Smallest eigenvalues of the Hessian in all coordinates of y but the last."""

    def free(x):
        return log_density(torch.cat((x, 1 - x.sum(-1, keepdim=True)), -1))

    return torch.linalg.eigvalsh(vmap(hessian(free))(y[:, :-1])).amin(-1)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_density_is_log_convex_up_to_the_bound_and_not_beyond(k):
    logits, y = some(200, k)
    bound = log_convex_temperature(k)
    least = curvature(lambda x: concrete_log_prob(x, logits[0], bound), y)
    assert least.min() > -1e-9
    assert curvature(lambda x: concrete_log_prob(x, logits[0], 0.98 * bound), y).min() > 0
    # Beyond it fails for every logit vector, near a face.
    face = torch.cat((tensor([1e-40]), torch.full((k - 1,), 1 / (k - 1), dtype=F64)))
    hot = curvature(lambda x: concrete_log_prob(x, logits[1], 1.1 * bound), face[None])
    assert hot < -1e9


def test_at_the_bound_two_even_classes_are_uniform():
    s = torch.linspace(0.01, 0.99, 99, dtype=F64)
    flat = concrete_log_prob(torch.stack((s, 1 - s), -1), torch.zeros(2, dtype=F64), 1.0)
    torch.testing.assert_close(flat, torch.zeros(99, dtype=F64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("log_prob", LOG_PROBS)
def test_batches_broadcast_and_may_be_empty(log_prob):
    logits, y = some(2, 3)
    y = y.expand(5, 2, 3).contiguous()
    assert log_prob(y, logits, 0.5).shape == (5, 2)
    sweep = tensor([0.5, 2.0]).reshape(2, 1, 1, 1)
    swept = log_prob(y, logits, sweep)
    assert swept.shape == (2, 5, 2)
    for t, row in zip([0.5, 2.0], swept, strict=True):
        torch.testing.assert_close(row, log_prob(y, logits, t), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(row, log_prob(y, logits, tensor(t)), rtol=1e-13, atol=1e-13)
    assert log_prob(y[:0], logits, 0.5).shape == (0, 2)
    assert log_prob(tensor([[1.0]]), tensor([3.0]), 0.5).tolist() == [0]


def test_shares_that_underflow_have_a_logarithm():
    logits, noise = some(4)[0], gumbel_noise((20, 4), generator(0), F64)
    with pytest.raises(ValueError, match="y: must be positive; for shares that underflow"):
        concrete_log_prob(gumbel_softmax(logits, 1e-4, noise), logits, 1e-4)
    log_y = gumbel_log_softmax(logits, 1e-4, noise)
    assert exp_concrete_log_prob(log_y, logits, 1e-4).isfinite().all()


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan])
def test_points_off_the_open_simplex_are_refused(value):
    logits, y = some(2, 3)
    y[1, 2] = value
    with pytest.raises(ValueError, match="^y: must be positive"):
        concrete_log_prob(y, logits, 1.0)


def test_rows_that_do_not_sum_to_one_are_refused():
    logits, y = some(2, 3)
    with pytest.raises(ValueError, match="^y: rows must sum to 1"):
        concrete_log_prob(y * 1.001, logits, 1.0)
    with pytest.raises(ValueError, match="^log_y: exponentials of a row must sum to 1"):
        exp_concrete_log_prob(y.log() + 0.001, logits, 1.0)
    for bad in (-INF, math.nan):
        log_y = y.log()
        log_y[0, 0] = bad
        with pytest.raises(ValueError, match="^log_y: must be finite"):
            exp_concrete_log_prob(log_y, logits, 1.0)


@pytest.mark.parametrize("log_prob", LOG_PROBS)
def test_what_else_is_refused(log_prob):
    logits, y = some(2, 3)
    for bad in (0.0, -1.0, math.nan, INF, tensor([[1.0], [0.0]])):
        with pytest.raises(ValueError, match="^temperature: must be positive"):
            log_prob(y, logits, bad)
    with pytest.raises(ValueError, match="^temperature: must be a number"):
        log_prob(y, logits, torch.ones(2, dtype=F64))
    with pytest.raises(ValueError, match="^temperature: does not broadcast"):
        log_prob(y, logits, torch.ones(5, 1, dtype=F64))
    with pytest.raises(ValueError, match="y: must have 4 classes"):
        log_prob(y, torch.zeros(4, dtype=F64), 1.0)
    with pytest.raises(ValueError, match="y: does not broadcast with logits"):
        log_prob(y, torch.zeros(5, 3, dtype=F64), 1.0)
    with pytest.raises(ValueError, match="y: must have 3 classes"):
        log_prob(tensor(1.0), logits, 1.0)
    for value in (math.nan, INF):
        with pytest.raises(ValueError, match="^logits: must have no NaN"):
            log_prob(y, torch.full((3,), value, dtype=F64), 1.0)
