"""Probabilistic PCA: its optimum, its likelihood and its posterior, against scikit-learn and torch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import distributions

from gradbook import ppca
from gradbook.ppca import Ppca

SIZE, LATENTS = 6, 2


def normals(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def data(n=50, size=SIZE, seed=0):
    x = normals(n, size, seed=seed) @ normals(size, size, seed=seed + 1)
    return x - x.mean(0)


def covariance(seed=0, size=SIZE):
    return data(size=size, seed=seed).T.cov(correction=0)


def model(seed=2):
    return Ppca(normals(SIZE, LATENTS, seed=seed), torch.tensor(0.3, dtype=torch.float64))


def diagonal(*variances):
    """Data whose principal axes are the coordinates, turned by a rotation."""
    turn = torch.linalg.qr(normals(len(variances), len(variances), seed=7)).Q
    return turn @ torch.diag(torch.tensor(variances, dtype=torch.float64)) @ turn.T


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_optimum_is_scikit_learns(k):
    x = data()
    theirs = PCA(k, svd_solver="full").fit(x.numpy())
    # scikit-learn divides by n - 1, and scores what it was given.
    ours = ppca.maximum_likelihood(x.T.cov(), k)
    assert ours.noise_variance.item() == pytest.approx(theirs.noise_variance_, rel=1e-10)
    marginal = ours.weight @ ours.weight.T + ours.noise_variance * torch.eye(SIZE).double()
    torch.testing.assert_close(marginal, torch.from_numpy(theirs.get_covariance()))
    score = ppca.log_likelihood(ours, x.T.cov(correction=0)).item()
    assert score == pytest.approx(theirs.score(x.numpy()), rel=1e-10)


def test_columns_are_orthogonal_and_fall_in_length():
    weight, noise_variance = ppca.maximum_likelihood(diagonal(1, 7, 2, 4), 2)
    exact = torch.diag(torch.tensor([7 - 1.5, 4 - 1.5])).double()
    torch.testing.assert_close(weight.T @ weight, exact)
    assert noise_variance.item() == pytest.approx(1.5)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_no_other_model_is_likelier(seed):
    given_data = covariance()
    best = ppca.maximum_likelihood(given_data, LATENTS)
    step = 0.1 * normals(SIZE * LATENTS + 1, seed=seed)
    weight = best.weight + step[1:].reshape(SIZE, LATENTS)
    other = Ppca(weight, best.noise_variance * step[0].exp())
    assert ppca.log_likelihood(other, given_data) < ppca.log_likelihood(best, given_data)


def test_the_likelihood_is_the_mean_of_torchs_densities():
    x, given_model = data(), model()
    zeros, noise = torch.zeros(SIZE).double(), given_model.noise_variance.expand(SIZE)
    theirs = distributions.LowRankMultivariateNormal(zeros, given_model.weight, noise)
    ours = ppca.log_likelihood(given_model, x.T.cov(correction=0))
    torch.testing.assert_close(ours, theirs.log_prob(x).mean(), rtol=1e-12, atol=1e-12)


def test_a_rotation_of_the_latent_changes_no_likelihood():
    weight, noise_variance = model()
    turn = torch.linalg.qr(normals(LATENTS, LATENTS)).Q
    turned = ppca.log_likelihood(Ppca(weight @ turn, noise_variance), covariance())
    torch.testing.assert_close(turned, ppca.log_likelihood(model(), covariance()))


def test_the_posterior_is_that_of_the_joint_normal():
    x, (weight, noise_variance) = data(4), model()
    marginal = weight @ weight.T + noise_variance * torch.eye(SIZE).double()
    gain = weight.T @ torch.linalg.inv(marginal)
    mean, spread = ppca.posterior(model(), x)
    torch.testing.assert_close(mean, x @ gain.T, rtol=1e-10, atol=1e-10)
    exact = torch.eye(LATENTS) - gain @ weight
    torch.testing.assert_close(spread, exact, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.linalg.inv(spread), ppca.precision(model()))
    torch.testing.assert_close(ppca.projection(model()), gain, rtol=1e-10, atol=1e-10)


def test_bayes_rule_holds_at_every_code():
    """log p(x) = log p(z) + log p(x | z) - log p(z | x), whatever z."""
    x, z, (weight, noise_variance) = data(4), normals(4, LATENTS, seed=5), model()
    mean, spread = ppca.posterior(model(), x)
    standard = distributions.Normal(torch.zeros(()).double(), 1.0)
    joint = standard.log_prob(z).sum(1) + distributions.Normal(
        z @ weight.T, noise_variance.sqrt()
    ).log_prob(x).sum(1)
    found = joint - distributions.MultivariateNormal(mean, spread).log_prob(z)
    zeros = torch.zeros(SIZE).double()
    marginal = weight @ weight.T + noise_variance * torch.eye(SIZE).double()
    exact = distributions.MultivariateNormal(zeros, marginal).log_prob(x)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("noise_variance", "unused"), [(0.5, 0), (1.5, 1), (2.5, 2), (4.5, 3), (9.0, 3)]
)
def test_axes_below_the_noise_collapse(noise_variance, unused):
    given_data = diagonal(4, 2, 1, 0.1)
    assert ppca.collapsed(given_data, noise_variance, 3) == unused
    weight = ppca.best_weight(given_data, noise_variance, 3)
    lengths = weight.square().sum(0)
    exact = (torch.tensor([4.0, 2.0, 1.0]).double() - noise_variance).clamp(min=0)
    torch.testing.assert_close(lengths, exact)


def test_an_axis_at_the_noise_itself_collapses():
    # A diagonal matrix has its eigenvalues without rounding.
    given_data = torch.diag(torch.tensor([4.0, 2.0, 1.0])).double()
    assert ppca.collapsed(given_data, 2.0, 3) == 2
    assert ppca.collapsed(given_data, 2.0, 1) == 0


@pytest.mark.parametrize("noise_variance", [0.5, 1.5, 5.0])
def test_the_best_weight_is_a_maximum_for_its_noise(noise_variance):
    given_data, s = diagonal(4, 2, 1, 0.1), torch.tensor(noise_variance).double()
    best = ppca.best_weight(given_data, s, 2)
    top = ppca.log_likelihood(Ppca(best, s), given_data)
    for seed in range(20):
        other = best + 0.1 * normals(4, 2, seed=seed)
        assert ppca.log_likelihood(Ppca(other, s), given_data) < top


def test_the_noise_of_the_optimum_uses_every_axis():
    given_data = covariance()
    best = ppca.maximum_likelihood(given_data, 3)
    assert ppca.collapsed(given_data, best.noise_variance, 3) == 0
    assert torch.equal(ppca.best_weight(given_data, best.noise_variance, 3), best.weight)


def test_principal_axes_rebuild_the_covariance():
    values, directions = ppca.principal(covariance(), 2)
    assert (values.diff() < 0).all()
    torch.testing.assert_close(directions @ torch.diag(values) @ directions.T, covariance())


def test_float32_stays_float32():
    best = ppca.maximum_likelihood(covariance().float(), 2)
    mean, spread = ppca.posterior(best, data(3).float())
    assert {t.dtype for t in (*best, mean, spread)} == {torch.float32}


def test_no_data_have_no_posterior():
    assert ppca.posterior(model(), data(5)[:0])[0].shape == (0, LATENTS)


def skewed():
    given_data = covariance()
    given_data[0, 1] += 1e-3
    return given_data


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ppca.maximum_likelihood(covariance()[:3], 2), "^covariance: must be square"),
        (lambda: ppca.maximum_likelihood(covariance() / 0, 2), "^covariance: must be finite"),
        (lambda: ppca.maximum_likelihood(skewed(), 2), "^covariance: must be symmetric"),
        (lambda: ppca.maximum_likelihood(diagonal(2, 1, -0.1), 1), "^covariance: .* negative"),
        (lambda: ppca.maximum_likelihood(diagonal(2, 1, 0, 0), 2), "^covariance: must leave"),
        (lambda: ppca.maximum_likelihood(covariance(), 0), "^k: must be from 1 to 6"),
        (lambda: ppca.maximum_likelihood(covariance(), 6), "^k: must be less than"),
        (lambda: ppca.best_weight(covariance(), 1.0, 7), "^k: must be from 1 to 6"),
        (lambda: ppca.best_weight(covariance(), 0.0, 2), "^noise_variance: must be positive"),
        (lambda: ppca.collapsed(covariance(), -1.0, 2), "^noise_variance: must be positive"),
        (lambda: ppca.log_likelihood(model(), covariance(size=5)), "^weight: must be .5, k"),
        (lambda: ppca.log_likelihood(model(), skewed()), "^covariance: must be symmetric"),
        (
            lambda: ppca.log_likelihood(Ppca(model().weight, -model()[1]), covariance()),
            "^noise_variance: must be positive",
        ),
        (lambda: ppca.precision(Ppca(model().weight[0], model()[1])), "^weight: must be .D, k"),
        (lambda: ppca.projection(Ppca(model().weight / 0, model()[1])), "^weight: must be finite"),
        (lambda: ppca.posterior(model(), data(size=5)), "^x: must be .n, 6"),
        (lambda: ppca.posterior(model(), data() * math.nan), "^x: must be finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
