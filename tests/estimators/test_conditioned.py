import math

import pytest
import torch
from torch.func import grad

from gradbook.categorical import categorical, exact_gradient
from gradbook.estimators import rebar, relax, score_function
from gradbook.gumbel import conditional_gumbels, gumbel_max, one_hot

F64 = torch.float64
NAN, INF = math.nan, math.inf


def close(actual, expected, rtol=1e-12, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def smooth(z, logits):
    """A control that is neither f, nor blind to a shift of z, nor free of the logits."""
    return (z.sin() * logits.softmax(-1)).sum() + 0.3 * z.square().sum()


def cut(logits, index, noise):
    """The known mistake: the conditional draw carries no gradient."""
    return conditional_gumbels(logits.detach(), index, noise)


def relaxed_f(f, temperature):
    return lambda z, logits: f((z / temperature).softmax(-1), logits)


def test_a_sample_is_the_formula_by_autograd(problem, gumbels):
    f, logits = problem
    noise, again = gumbels(4, logits, 0), gumbels(4, logits, 1)
    found = relax(f, smooth, logits, noise, again)
    for row, g, v in zip(found, noise, again, strict=True):
        theta = logits.clone().requires_grad_()
        index = gumbel_max(logits, g)
        b = one_hot(index, logits.shape[-1], F64)
        weight = f(b, logits) - smooth(conditional_gumbels(logits, index, v), logits)
        (score,) = torch.autograd.grad((b * theta.log_softmax(-1)).sum(), theta)
        centred = theta - logits.amax(-1, keepdim=True)
        rest = smooth(centred + g, theta) - smooth(conditional_gumbels(theta, index, v), theta)
        (slope,) = torch.autograd.grad(rest + f(b, theta), theta, materialize_grads=True)
        close(row, weight * score + slope)


def test_no_control_is_the_score_function(problem, gumbels):
    f, logits = problem
    noise, again = gumbels(4, logits, 0), gumbels(4, logits, 1)
    scores = score_function(f, categorical, logits, noise)
    close(relax(f, lambda z, _: 0 * z.sum(), logits, noise, again), scores)
    close(rebar(f, logits, noise, again, 0.5, 0.0), scores)


def test_rebar_is_relax_with_f_of_the_softmax(mixed, gumbels):
    noise, again = gumbels(4, mixed.logits, 0), gumbels(4, mixed.logits, 1)
    found = rebar(*mixed, noise, again, 0.5, 2.0)

    def control(z, logits):
        return 2.0 * mixed.f((2.0 * z).softmax(-1), logits)

    close(found, relax(mixed.f, control, mixed.logits, noise, again))
    plain = rebar(*mixed, noise, again, 0.5)
    close(plain, relax(mixed.f, relaxed_f(mixed.f, 0.5), mixed.logits, noise, again))


def test_relax_is_unbiased(problem, gumbels, z_scores):
    noise, again = (gumbels(100_000, problem.logits, seed) for seed in (31, 32))
    gradients = relax(problem.f, smooth, problem.logits, noise, again)
    assert z_scores(gradients, exact_gradient(*problem)) < 4.5


@pytest.mark.parametrize(("temperature", "scale"), [(0.5, 1.0), (1.0, 1.5), (0.1, 0.5)])
def test_rebar_is_unbiased(problem, temperature, scale, gumbels, z_scores):
    noise, again = (gumbels(60_000, problem.logits, seed) for seed in (33, 34))
    gradients = rebar(*problem, noise, again, temperature, scale)
    assert z_scores(gradients, exact_gradient(*problem)) < 4.5


def test_a_conditional_draw_without_gradient_is_caught(problem, gumbels, z_scores):
    f, logits = problem
    noise, again = (gumbels(200_000, logits, seed) for seed in (35, 36))
    wrong = relax(f, relaxed_f(f, 0.5), logits, noise, again, cut)
    right = relax(f, relaxed_f(f, 0.5), logits, noise, again)
    exact = exact_gradient(*problem)
    assert z_scores(right, exact) < 4.5
    assert z_scores(wrong, exact) > 10


def test_rebar_of_the_coins_has_the_known_variance(coins, gumbels):
    """In one logit per coin; the score function's is .474."""
    noise, again = (gumbels(100_000, coins.logits, seed) for seed in (37, 38))
    gradients = rebar(*coins, noise, again, 0.7, 1.5)[..., 1]
    assert float(gradients.var(0).sum()) == pytest.approx(0.177, abs=0.005)


def test_the_control_can_be_trained_through_the_estimate(mixed, gumbels):
    """The gradient of the mean square in the control's parameter, against differences."""
    noise, again = (gumbels(50, mixed.logits, seed) for seed in (39, 40))

    def mean_square(scale):
        return rebar(*mixed, noise, again, 0.7, scale).square().mean()

    scale = torch.tensor(0.8, dtype=F64)
    step = 1e-4
    difference = (mean_square(scale + step) - mean_square(scale - step)) / (2 * step)
    close(grad(mean_square)(scale), difference, rtol=1e-8)
    leaf = scale.clone().requires_grad_()
    (slope,) = torch.autograd.grad(mean_square(leaf), leaf)
    close(slope, difference, rtol=1e-8)


def test_an_impossible_class_changes_nothing(gumbels):
    logits = torch.tensor([[0.3, -INF, 0.8], [0.0, 0.1, -0.5]], dtype=F64)

    def f(y, _):
        return (y[0] * torch.tensor([1.0, 5.0, -2.0])).sum() * y[1, 0] + y[0, 0]

    noise, again = (gumbels(60_000, logits, seed) for seed in (41, 42))
    gradients = rebar(f, logits, noise, again, 0.7)
    assert (gradients[:, 0, 1] == 0).all()
    possible = logits.isfinite()
    exact = exact_gradient(f, logits)[possible]
    stderr = gradients[:, possible].std(0) / math.sqrt(len(gradients))
    assert ((gradients[:, possible].mean(0) - exact).abs() < 4.5 * stderr).all()


def test_a_shift_of_the_logits_changes_nothing(mixed, gumbels):
    noise, again = gumbels(4, mixed.logits, 0), gumbels(4, mixed.logits, 1)

    def f(y, _):
        return mixed.f(y, mixed.logits)

    def control(z, _):
        return z.sin().sum()

    found = relax(f, control, mixed.logits + 8, noise, again)
    close(found, relax(f, control, mixed.logits, noise, again))


def test_no_draws_give_no_gradients_and_results_no_graph(mixed, gumbels):
    logits = mixed.logits.clone().requires_grad_()
    empty, noise = torch.zeros(0, 2, 3, dtype=F64), gumbels(2, logits, 0)
    assert rebar(mixed.f, logits, empty, empty, 1.0).shape == (0, 2, 3)
    assert not rebar(mixed.f, logits, noise, noise, 1.0).requires_grad


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, INF, 0, torch.tensor(-1.0)])
def test_a_temperature_that_is_not_positive_is_refused(temperature, mixed, gumbels):
    noise = gumbels(2, mixed.logits, 0)
    with pytest.raises(ValueError, match="temperature: must be positive"):
        rebar(*mixed, noise, noise, temperature)


def test_a_temperature_is_one_number_for_a_row(mixed, gumbels):
    noise, again = gumbels(3, mixed.logits, 0), gumbels(3, mixed.logits, 1)
    with pytest.raises(ValueError, match="temperature: must be a number or have a last axis of 1"):
        rebar(*mixed, noise, again, torch.tensor([0.1, 0.5, 2.0]))
    rows = torch.tensor([[0.4], [0.4]], dtype=F64)
    close(rebar(*mixed, noise, again, rows), rebar(*mixed, noise, again, 0.4))


def test_a_temperature_near_the_smallest_number_is_the_limit(four_classes):
    """In float32; 2e-38 times the largest number is 6.8, and these draws are far above it."""
    f, logits = four_classes.f, four_classes.logits.float()
    noise = torch.tensor([[9.0, 1.0, 2.0, 0.0], [0.0, 1.0, 9.0, 8.0]])
    again = noise.flip(-1)

    def single(y, _):
        return f(y.double(), None).float()

    found = rebar(single, logits, noise, again, 2e-38)
    # Both relaxed rows are the drawn one: nothing is left of f, nor any slope.
    close(found, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="temperature: must be positive"):
        rebar(single, logits, noise, again, 1e-45)


def test_bad_input_is_refused(mixed, gumbels):
    f, logits = mixed
    noise = gumbels(3, logits, 0)
    with pytest.raises(ValueError, match="conditional_noise: must have shape"):
        relax(f, smooth, logits, noise, noise[..., :2])
    with pytest.raises(ValueError, match="noise: must have shape .* with one n"):
        relax(f, smooth, logits, noise, noise[:2])
    with pytest.raises(ValueError, match="conditional_noise: must be finite"):
        relax(f, smooth, logits, noise, noise + NAN)
    with pytest.raises(ValueError, match="logits: must"):
        relax(f, smooth, logits + NAN, noise, noise)
    with pytest.raises(ValueError, match="f: must return a scalar"):
        relax(lambda y, _: y[0], smooth, logits, noise, noise)
    with pytest.raises(ValueError, match="control: must return a scalar"):
        relax(f, lambda z, _: z[0], logits, noise, noise)
