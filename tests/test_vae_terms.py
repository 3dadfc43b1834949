"""Losses of a VAE from its two terms, the normal likelihood and the active units."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions

from gradbook import vae_terms


def normals(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def terms(n=5, d=3):
    """Log-likelihoods [n] and divergences [n, d], which are never negative."""
    return normals(n) - 4, normals(n, d, seed=1).square()


def test_the_loss_is_minus_the_mean_bound():
    likelihood, kl = terms()
    by_hand = -sum(likelihood[i] - sum(kl[i]) for i in range(5)) / 5
    torch.testing.assert_close(vae_terms.elbo_loss(likelihood, kl), by_hand)


@given(beta=st.floats(0, 10))
def test_beta_weighs_the_divergence_alone(beta):
    likelihood, kl = terms()
    by_hand = beta * kl.sum(1).mean() - likelihood.mean()
    torch.testing.assert_close(vae_terms.beta_loss(likelihood, kl, beta), by_hand)


def test_beta_one_is_the_bound():
    assert torch.equal(vae_terms.beta_loss(*terms(), 1.0), vae_terms.elbo_loss(*terms()))


def test_free_bits_count_each_coordinate_at_least_at_its_budget():
    likelihood = torch.tensor([-1.0, -3.0]).double()
    kl = torch.tensor([[0.1, 2.0, 0.9], [0.2, 0.0, 0.1]]).double()
    # Means over the batch: 0.15, 1, 0.5. The middle one has an image below the budget.
    found = vae_terms.free_bits_loss(likelihood, kl, 0.7)
    assert found.item() == pytest.approx(2 + 0.7 + 1 + 0.7, rel=1e-12)


def test_below_the_budget_the_divergence_has_no_gradient():
    likelihood, kl = terms()
    kl[:, 0] *= 1e-3
    kl.requires_grad_()
    (slope,) = torch.autograd.grad(vae_terms.free_bits_loss(likelihood, kl, 0.01), kl)
    exact = torch.full((5, 3), 0.2).double()
    exact[:, 0] = 0
    torch.testing.assert_close(slope, exact)


def test_no_free_bits_are_the_bound():
    torch.testing.assert_close(
        vae_terms.free_bits_loss(*terms(), 0.0), vae_terms.elbo_loss(*terms())
    )


def test_the_weight_warms_up_linearly_and_stays_at_one():
    weights = [vae_terms.warm_up(step, 4) for step in range(7)]
    assert weights == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("shape", [(), (6,), (4, 6), (4, 1), (3, 4, 6)])
def test_gaussian_log_likelihood_is_torchs(shape):
    mean, x = normals(3, 4, 6), normals(4, 6, seed=1)
    variance = normals(*shape, seed=2).exp()
    exact = distributions.Normal(mean, variance.sqrt()).log_prob(x).sum(-1)
    ours = vae_terms.gaussian_log_likelihood(mean, x, variance)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


def test_a_plain_number_is_a_variance():
    mean, x = normals(4, 6).float(), normals(4, 6, seed=1).float()
    exact = distributions.Normal(mean, 2.0).log_prob(x).sum(-1)
    found = vae_terms.gaussian_log_likelihood(mean, x, 4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact)


def test_the_best_variance_is_the_maximum_of_the_likelihood():
    mean, x = normals(4, 6), normals(4, 6, seed=1)
    best = vae_terms.best_variance(mean, x)
    log_variance = best.log().requires_grad_()
    total = vae_terms.gaussian_log_likelihood(mean, x, log_variance.exp()).sum()
    (slope,) = torch.autograd.grad(total, log_variance)
    assert abs(slope.item()) < 1e-12
    for factor in (0.9, 1.1):
        other = vae_terms.gaussian_log_likelihood(mean, x, factor * best).sum()
        assert other < total


def test_the_best_variance_makes_the_likelihood_a_logarithm_of_the_error():
    mean, x = normals(4, 6), normals(4, 6, seed=1)
    best = vae_terms.best_variance(mean, x)
    found = vae_terms.gaussian_log_likelihood(mean, x, best).mean().item()
    assert found == pytest.approx(-3 * math.log(2 * math.pi * math.e * best.item()), rel=1e-12)


def test_active_units_are_those_whose_means_move():
    """Means that are +-c have the variance c^2 exactly, whatever their centre."""
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    means = torch.stack([0.099 * signs, 0.101 * signs + 5, 0 * signs + 5, signs], 1)
    assert vae_terms.active_units(means).tolist() == [False, True, False, True]
    assert vae_terms.active_units(means, 0.011).tolist() == [False, False, False, True]
    # At the threshold itself a unit is not active yet.
    halves = torch.stack([0.5 * signs, signs], 1)
    assert vae_terms.active_units(halves, 0.25).tolist() == [False, True]


def test_one_image_has_no_active_units():
    assert vae_terms.active_units(normals(1, 3)).tolist() == [False] * 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vae_terms.elbo_loss(*terms(0)), "^log_likelihood: must be .n"),
        (lambda: vae_terms.elbo_loss(normals(5, 1), normals(5, 3)), "^log_likelihood: must be .n"),
        (lambda: vae_terms.elbo_loss(normals(5), normals(5)), "^kl: must be"),
        (lambda: vae_terms.elbo_loss(normals(5), normals(1, 3)), "^kl: must be .5"),
        (lambda: vae_terms.elbo_loss(normals(5) / 0, normals(5, 3)), "^log_likelihood: .* finite"),
        (lambda: vae_terms.elbo_loss(normals(5), normals(5, 3) / 0), "^kl: must be finite"),
        (lambda: vae_terms.beta_loss(*terms(), -0.1), "^beta: must be finite and not"),
        (lambda: vae_terms.beta_loss(*terms(), math.inf), "^beta: must be finite and not"),
        (lambda: vae_terms.beta_loss(normals(5), normals(4, 3), 1.0), "^kl: must be"),
        (lambda: vae_terms.free_bits_loss(*terms(), -0.1), "^free: must be finite and not"),
        (lambda: vae_terms.free_bits_loss(*terms(), math.nan), "^free: must be finite and not"),
        (lambda: vae_terms.free_bits_loss(normals(5), normals(4, 3), 0.1), "^kl: must be"),
        (lambda: vae_terms.warm_up(-1, 4), "^step: must be"),
        (lambda: vae_terms.warm_up(1, 0), "^steps: must be positive"),
        (
            lambda: vae_terms.gaussian_log_likelihood(normals(4, 6), normals(4, 6), 0.0),
            "^variance: must be positive",
        ),
        (
            lambda: vae_terms.gaussian_log_likelihood(
                normals(4, 6), normals(4, 6), normals(3, 1, 1).exp()
            ),
            "^variance: must broadcast",
        ),
        (
            lambda: vae_terms.gaussian_log_likelihood(
                normals(4, 6), normals(4, 6), normals(4).exp()
            ),
            "^variance: does not broadcast",
        ),
        (
            lambda: vae_terms.gaussian_log_likelihood(normals(4, 6), normals(1, 6), 1.0),
            "^x: must be .n, pixels",
        ),
        (
            lambda: vae_terms.gaussian_log_likelihood(normals(4, 6) / 0, normals(4, 6), 1.0),
            "^mean: must be finite",
        ),
        (lambda: vae_terms.best_variance(normals(0, 6), normals(0, 6)), "^x: must have"),
        (lambda: vae_terms.best_variance(normals(4, 6), normals(4, 5)), "^x: must be"),
        (lambda: vae_terms.best_variance(normals(4, 6), normals(4, 6) / 0), "^x: must be finite"),
        (lambda: vae_terms.active_units(normals(0, 3)), "^means: must be .n, d"),
        (lambda: vae_terms.active_units(normals(3)), "^means: must be .n, d"),
        (lambda: vae_terms.active_units(normals(2, 3) / 0), "^means: must be finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
