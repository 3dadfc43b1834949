import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, OneHotCategorical

from gradbook.categorical import (
    all_one_hots,
    categorical,
    exact_gradient,
    exact_mean,
    relaxed,
    straight_through_gumbel,
    straight_through_softmax,
)
from gradbook.estimators import pathwise, summarize
from gradbook.expectation import central_difference
from gradbook.gumbel import concrete_log_prob, gumbel_noise, gumbel_softmax

F64 = torch.float64
NAN, INF = math.nan, math.inf
LOGITS = torch.tensor([[0.3, -0.7, 1.1], [0.0, 0.5, -0.4]], dtype=F64)
TABLE = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0], [1.0, 1.0, -4.0]], dtype=F64)
FAMILIES = {
    "categorical": categorical,
    "relaxed": relaxed(0.5),
    "straight-through Gumbel": straight_through_gumbel(0.5),
    "straight-through softmax": straight_through_softmax,
}


def f64(*values):
    return torch.tensor(values, dtype=F64)


def close(actual, expected, rtol=1e-12, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def gumbels(*shape, seed=0):
    return gumbel_noise(shape, torch.Generator().manual_seed(seed), F64)


def bilinear(y, logits):
    return y[0] @ TABLE @ y[1] + (y * logits).sum() * logits[0, 1]


# families


@pytest.mark.parametrize(
    "name", ["categorical", "straight-through Gumbel", "straight-through softmax"]
)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_one_hot_draws_are_the_argmax_of_the_perturbed_logits(name, dtype):
    logits, noise = LOGITS.to(dtype), gumbels(50, 2, 3).to(dtype)
    for row in noise:
        z = FAMILIES[name].sample(logits, row)
        assert z.dtype == dtype
        assert torch.equal(z, torch.nn.functional.one_hot((logits + row).argmax(-1), 3).to(dtype))


def test_relaxed_draws_are_gumbel_softmax_draws():
    noise = gumbels(2, 3)
    close(relaxed(0.7).sample(LOGITS, noise), ((LOGITS + noise) / 0.7).softmax(-1))


@pytest.mark.parametrize(
    "name", ["categorical", "straight-through Gumbel", "straight-through softmax"]
)
def test_the_log_mass_is_that_of_torch(name):
    law = Independent(OneHotCategorical(logits=LOGITS), 1)
    for z in all_one_hots(2, 3).double():
        close(FAMILIES[name].log_prob(z, LOGITS), law.log_prob(z))


def test_the_relaxed_log_density_is_summed_over_latents():
    y = relaxed(0.7).sample(LOGITS, gumbels(2, 3))
    close(relaxed(0.7).log_prob(y, LOGITS), concrete_log_prob(y, LOGITS, 0.7).sum())


def test_an_impossible_class_counts_nothing_unless_it_was_drawn():
    logits = f64(0.0, -INF, 0.0).requires_grad_()
    mass = categorical.log_prob(f64(1, 0, 0), logits)
    close(mass.detach(), torch.tensor(-math.log(2), dtype=F64))
    (score,) = torch.autograd.grad(mass, logits)
    close(score, f64(0.5, 0, -0.5))
    assert categorical.log_prob(f64(0, 1, 0), logits) == -INF


def test_straight_through_gumbel_differentiates_the_relaxed_draw():
    noise, weight = gumbels(2, 3), gumbels(2, 3, seed=1)
    hard, soft = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    (weight * straight_through_gumbel(0.7).sample(hard, noise)).sum().backward()
    (weight * gumbel_softmax(soft, 0.7, noise)).sum().backward()
    close(hard.grad, soft.grad)


def test_straight_through_softmax_differentiates_the_probabilities():
    noise, weight = gumbels(2, 3), gumbels(2, 3, seed=1)
    hard, soft = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    (weight * straight_through_softmax.sample(hard, noise)).sum().backward()
    (weight * soft.softmax(-1)).sum().backward()
    close(hard.grad, soft.grad)


@pytest.mark.parametrize("family", [relaxed, straight_through_gumbel])
@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN])
def test_a_temperature_that_is_not_positive_is_refused(family, temperature):
    with pytest.raises(ValueError, match="temperature: must be positive"):
        family(temperature).sample(LOGITS, gumbels(2, 3))


@pytest.mark.parametrize("name", FAMILIES)
def test_bad_logits_and_noise_are_refused(name):
    sample = FAMILIES[name].sample
    with pytest.raises(ValueError, match="logits: must"):
        sample(LOGITS + NAN, gumbels(2, 3))
    with pytest.raises(ValueError, match="noise: must"):
        sample(LOGITS, gumbels(2, 3) + NAN)
    with pytest.raises(ValueError, match="noise: must"):
        sample(LOGITS, gumbels(2, 4))


# biased estimators, against what their mean must be


def difference_of_gumbels(logit, half_width=45.0, points=90_001):
    """Nodes for two classes: noise (L, 0) with L logistic, and the weights of a trapezium rule.

    The rule converges faster than any power for a smooth integrand that falls off at both ends.
    """
    nodes = torch.linspace(-half_width, half_width, points, dtype=F64)
    density = torch.sigmoid(nodes) * torch.sigmoid(-nodes)
    weights = density * (nodes[1] - nodes[0])
    return torch.stack([nodes, torch.zeros_like(nodes)], -1), weights, f64(logit, 0)


@pytest.mark.parametrize("logit", [-1.5, 0.4, 2.0])
def test_gumbel_softmax_differentiates_the_mean_of_the_relaxed_draw(logit):
    noise, weights, logits = difference_of_gumbels(logit)
    gradients = pathwise(lambda y, _: y[0], relaxed(1.0), logits, noise)

    def mean(a):  # E y at temperature 1 and odds a
        return a * (a - 1 - a.log()) / (a - 1) ** 2

    odds = torch.tensor(math.exp(logit), dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(mean(odds), odds)
    close((weights @ gradients)[0], odds.detach() * slope, rtol=1e-9)
    bias = weights @ gradients - exact_gradient(lambda y, _: y[0], logits)
    assert abs(bias[0]) > 0.005


@pytest.mark.parametrize(
    ("temperature", "mean", "variance"), [(1.0, 0.15520, 0.006024), (0.1, 0.20910, 0.30569)]
)
def test_the_slope_of_the_relaxed_coin_has_the_known_moments(temperature, mean, variance):
    noise, weights, logits = difference_of_gumbels(math.log(0.3 / 0.7))
    slope = pathwise(lambda y, _: y[0], relaxed(temperature), logits, noise)[:, 0]
    found = weights @ slope
    assert found == pytest.approx(mean, abs=5e-6)
    assert weights @ slope**2 - found**2 == pytest.approx(variance, rel=2e-4)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_straight_through_gumbel_has_the_bias_of_its_integral(temperature):
    noise, weights, logits = difference_of_gumbels(0.4005)  # between two nodes
    gradients = pathwise(
        lambda y, _: y[0] ** 3 - y[0], straight_through_gumbel(temperature), logits, noise
    )
    # f' is 2 where class 0 is drawn, at L > -logit, and -1 elsewhere; f is 0 at both: E f = 0.
    slope = (logits[0] + noise[:, 0]) / temperature
    slope = torch.sigmoid(slope) * torch.sigmoid(-slope) / temperature
    drawn = noise[:, 0] > -logits[0]
    expected = (weights * slope * torch.where(drawn, 2.0, -1.0)).sum()
    close((weights @ gradients)[0], expected)
    close(exact_gradient(lambda y, _: y[0] ** 3 - y[0], logits), f64(0, 0))
    assert expected > 0.05


def test_straight_through_gumbel_is_gumbel_softmax_where_f_is_linear():
    noise, slope = gumbels(6, 3), f64(1, -2, 5)
    soft, hard = (
        pathwise(lambda y, _: y @ slope, family(0.5), LOGITS[0], noise)
        for family in (relaxed, straight_through_gumbel)
    )
    close(soft, hard)


def test_straight_through_softmax_has_the_bias_of_its_sum():
    logits, slope = LOGITS[0], f64(1, -2, 5)

    def f(y, _):
        return (y @ slope) ** 2

    probs, eye = logits.softmax(-1), torch.eye(3, dtype=F64)
    gradients = pathwise(f, straight_through_softmax, logits, 50 * eye)
    # Row c of the slopes of f is 2 slope_c slope; the Jacobian of the softmax is diag p - p p'.
    jacobian = probs.diag() - torch.outer(probs, probs)
    expected = 2 * (probs @ slope) * (jacobian @ slope)
    close(probs @ gradients, expected)
    close(exact_gradient(f, logits), jacobian @ slope**2)
    assert (probs @ gradients - jacobian @ slope**2).abs().max() > 1


def test_straight_through_softmax_is_exact_where_f_is_linear():
    slope = f64(1, -2, 5)
    gradients = pathwise(lambda y, _: y @ slope, straight_through_softmax, LOGITS[0], gumbels(4, 3))
    close(gradients, exact_gradient(lambda y, _: y @ slope, LOGITS[0]).expand(4, 3))


@pytest.mark.parametrize(
    ("name", "mean", "variance"),
    [
        ("relaxed", (-0.003, -0.510, -0.301, 0.813), 1.28),
        ("straight-through Gumbel", (-0.012, -0.518, -0.300, 0.829), 1.91),
    ],
)
def test_the_means_and_variances_of_the_known_table(name, mean, variance):
    """Temperature 1/2, from a million draws: the table's last digit and our standard error."""
    logits, target = f64(0.1, 0.2, 0.3, 0.4).log(), f64(0.2, 0.1, 0.6, 0.1)
    slope = f64(1, -2, 0.5, 3)

    def f(y, _):
        return (y - target).square().sum() + y @ slope

    summary = summarize(pathwise(f, FAMILIES[name], logits, gumbels(200_000, 4, seed=3)))
    assert ((summary.mean - f64(*mean)).abs() < 0.0005 + 4.5 * summary.stderr * 1.2**0.5).all()
    assert float(summary.variance.sum()) == pytest.approx(variance, rel=0.02)


# enumeration


@pytest.mark.parametrize(("latents", "classes"), [(1, 1), (1, 4), (2, 3), (4, 2)])
def test_all_one_hots_are_every_configuration_once(latents, classes):
    rows = all_one_hots(latents, classes)
    assert rows.shape == (classes**latents, latents, classes)
    assert ((rows == 0) | (rows == 1)).all()
    assert (rows.sum(-1) == 1).all()
    index = rows.argmax(-1).tolist()
    assert index == sorted(index)
    assert len({tuple(row) for row in index}) == classes**latents


def test_all_one_hots_need_something_to_list():
    with pytest.raises(ValueError, match="must be at least 1"):
        all_one_hots(0, 3)


def test_what_is_too_much_to_list_is_refused():
    assert all_one_hots(16, 2).shape == (2**16, 16, 2)
    for latents, classes in ((17, 2), (32, 10), (1, 2**16 + 1)):
        with pytest.raises(ValueError, match=r"^latents: .* too many"):
            all_one_hots(latents, classes)
    with pytest.raises(ValueError, match=r"^latents: 4\^30 configurations are too many"):
        exact_mean(lambda y, _: y.sum(), torch.zeros(30, 4))


def test_the_exact_mean_is_the_bilinear_form_of_the_probabilities():
    a, b = LOGITS.softmax(-1)
    direct = (LOGITS.softmax(-1) * LOGITS).sum() * LOGITS[0, 1]
    close(exact_mean(bilinear, LOGITS), a @ TABLE @ b + direct)


def test_the_exact_gradient_is_that_of_the_bilinear_form():
    leaf = LOGITS.clone().requires_grad_()
    a, b = leaf.softmax(-1)
    value = a @ TABLE @ b + (leaf.softmax(-1) * leaf).sum() * leaf[0, 1]
    (want,) = torch.autograd.grad(value, leaf)
    found = exact_gradient(bilinear, leaf)
    close(found, want)
    assert not found.requires_grad
    differences = central_difference(lambda t: exact_mean(bilinear, t), LOGITS)
    close(found, differences, rtol=1e-8, atol=1e-8)


@given(st.lists(st.floats(-6, 6), min_size=1, max_size=5))
def test_one_latent_needs_no_axis_of_latents(logits):
    logits = f64(*logits)
    law = Categorical(logits=logits)
    entropy = exact_mean(lambda y, t: -(y * t.log_softmax(-1)).sum(), logits)
    close(entropy, law.entropy())
    close(exact_mean(lambda y, _: y[0, 0], logits[None]), law.probs[0])


def test_latents_may_have_several_axes():
    logits = LOGITS.reshape(1, 2, 3)
    close(exact_mean(lambda y, t: bilinear(y[0], t[0]), logits), exact_mean(bilinear, LOGITS))
    found = exact_gradient(lambda y, t: bilinear(y[0], t[0]), logits)
    close(found, exact_gradient(bilinear, LOGITS)[None])


def test_known_gradients():
    target, slope = f64(0.2, 0.1, 0.6, 0.1), f64(1, -2, 0.5, 3)
    found = exact_gradient(
        lambda y, _: (y - target).square().sum() + y @ slope, f64(0.1, 0.2, 0.3, 0.4).log()
    )
    close(found, f64(0.0070, -0.5460, -0.3690, 0.9080))
    probs, wanted = f64(0.2, 0.5, 0.8), torch.linspace(0.2, 0.9, 3, dtype=F64)
    coins = torch.stack([torch.zeros(3, dtype=F64), probs.logit()], -1)
    found = exact_gradient(lambda y, _: (y[:, 1] - wanted).square().sum(), coins)
    close(found[:, 1], f64(0.0960, -0.0250, -0.1280))
    close(found[:, 0], -found[:, 1])


def test_an_impossible_class_has_no_gradient():
    logits = f64(0.3, -INF, 0.8)
    found = exact_gradient(lambda y, _: y @ f64(1, 7, -2), logits)
    kept = [0, 2]
    close(found[kept], exact_gradient(lambda y, _: y @ f64(1, -2), logits[kept]))
    assert found[1] == 0


def test_enumeration_follows_the_type_of_the_logits():
    logits = LOGITS.float()
    assert exact_mean(lambda y, _: y.sum(), logits).dtype == torch.float32
    assert exact_gradient(lambda y, _: y[0, 0], logits).dtype == torch.float32


@pytest.mark.parametrize("function", [exact_mean, exact_gradient])
def test_bad_logits_are_refused(function):
    for bad in (f64(0, NAN), f64(0, INF), f64(-INF, -INF)):
        with pytest.raises(ValueError, match="logits: every row needs a possible class"):
            function(lambda y, _: y.sum(), bad)
    for bad in (torch.tensor(0.0), torch.zeros(0), torch.zeros(2, 0), torch.zeros(0, 2)):
        with pytest.raises(ValueError, match="logits: must be"):
            function(lambda y, _: y.sum(), bad)
