"""log p(x) of test images by two routes, and samples."""

import pytest
import torch

from gradbook import normal_vae, normals
from gradbook import normal_vae_likelihood as likelihood
from gradbook import normal_vae_training as training


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model(latents=2, scale=2.0):
    built = training.started(latents, 0, pixels=6, hidden=5)
    with torch.no_grad():
        built.decoder.logits.weight *= scale
    return built


def images(n, seed=1):
    return torch.rand(n, 6, generator=generator(seed)).round()


def every_image():
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)


def test_weights_are_those_of_all_draws_at_once(monkeypatch):
    monkeypatch.setattr(likelihood, "CODES", 8)
    built, batch = model(), images(3)
    drawn = generator(4)
    noise = torch.cat([training.normals(n, 3, 2, generator=drawn) for n in (2, 2, 1)])
    expected = normal_vae.log_weights(built, batch, noise)
    found = likelihood.log_weights(built, batch, 5, seed=4)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    monkeypatch.setattr(likelihood, "CODES", 1)
    assert likelihood.log_weights(built, batch, 2, seed=4).shape == (2, 3)


def test_every_weight_serves_every_bound():
    rows = torch.randn(12, 3, generator=generator(), dtype=torch.float64)
    found = likelihood.bounds_by_draws(rows, (1, 3, 12))
    assert found.shape == (3, 3)
    torch.testing.assert_close(found[0], rows.mean(0))
    by_hand = torch.stack([rows[i : i + 3].exp().mean(0).log() for i in (0, 3, 6, 9)]).mean(0)
    torch.testing.assert_close(found[1], by_hand)
    torch.testing.assert_close(found[2], rows.exp().mean(0).log())
    assert (found.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("sizes", [(0,), (5,), (1, 24), (-3,)])
def test_sizes_must_divide_the_draws(sizes):
    with pytest.raises(ValueError, match="sizes: must divide 12 draws"):
        likelihood.bounds_by_draws(torch.zeros(12, 3), sizes)


def test_the_grid_integrates_a_standard_normal():
    points, log_probs = likelihood.grid(81, 6.0)
    probs = log_probs.double().exp()
    assert points.shape == (81**2, 2)
    assert probs.sum().item() == pytest.approx(1, abs=1e-5)
    z = points.double()
    moments = torch.einsum("s,si,sj->ij", probs, z, z)
    torch.testing.assert_close(moments, torch.eye(2, dtype=torch.float64), atol=1e-4, rtol=0)
    assert (probs @ z[:, 0].pow(4)).item() == pytest.approx(3, abs=1e-3)
    assert points.min() == -6
    assert points.max() == 6


def test_the_probabilities_of_all_images_add_up_to_one():
    codes, log_probs = likelihood.grid(61, 5.0)
    found = likelihood.marginal_log_likelihood(model(), every_image(), codes, log_probs)
    assert found.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_both_routes_to_the_probability_agree():
    built, batch = model(), images(5)
    exact = likelihood.marginal_log_likelihood(built, batch, *likelihood.grid(121, 6.0))
    weights = likelihood.log_weights(built, batch, 20_000, seed=2)
    value, stderr = normal_vae.log_prob_estimate(weights)
    assert ((value - exact).abs() <= 4.5 * stderr).all()
    assert (stderr < 0.02).all()


def test_a_list_of_codes_is_a_mixture(monkeypatch):
    monkeypatch.setattr(likelihood, "CODES", 2)
    built, batch = model(latents=3), images(4)
    codes = torch.randn(5, 3, generator=generator())
    probs = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])
    rows = torch.distributions.Bernoulli(logits=built.decoder(codes)[:, None]).log_prob(batch)
    expected = (rows.sum(-1).exp() * probs[:, None]).sum(0).log()
    found = likelihood.marginal_log_likelihood(built, batch, codes, probs.log())
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="codes: must be finite"):
        likelihood.marginal_log_likelihood(built, batch, codes / 0, probs.log())


def test_the_prior_of_an_autoencoder_has_the_moments_of_its_codes():
    built, batch = model(), images(50)
    codes = built.encoder(batch).mean
    found = likelihood.code_normal(built, batch)
    torch.testing.assert_close(found.mean, codes.mean(0))
    torch.testing.assert_close(found.factor @ found.factor.T, codes.T.cov(correction=0))
    assert found.factor[0, 1] == 0
    drawn = normals.sample(found, torch.zeros(1, 2))
    torch.testing.assert_close(drawn[0], found.mean)


def test_the_fitted_aggregate_has_the_moments_of_the_mixture():
    built, batch = model(), images(50)
    found = likelihood.aggregate_normal(built, batch)
    noise = torch.randn(4_000, 50, 2, generator=generator(3))
    codes = normal_vae.code(built.encoder(batch), noise).detach().flatten(0, 1).double()
    error = codes.std(0) / len(codes) ** 0.5
    assert ((codes.mean(0) - found.mean).abs() <= 4.5 * error).all()
    squares = torch.einsum("si,sj->sij", codes - found.mean, codes - found.mean)
    error = squares.std(0) / len(codes) ** 0.5
    covariance = found.factor @ found.factor.T
    assert ((squares.mean(0) - covariance).abs() <= 4.5 * error).all()


def test_samples_have_the_means_that_the_decoder_gives(monkeypatch):
    monkeypatch.setattr(likelihood, "CODES", 7)
    built = model()
    codes = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    drawn = likelihood.samples(built, codes.repeat(4_000, 1), generator(6))
    assert set(drawn.unique().tolist()) == {0, 1}
    probs = built.decoder(codes).sigmoid()
    stderr = (probs * (1 - probs) / 4_000).sqrt()
    means = drawn.unflatten(0, (-1, 2)).mean(0)
    assert ((means - probs).abs() <= 4.5 * stderr).all()
    assert drawn.shape == (8_000, 6)
