"""Noise, losses and test measures of a VAE with a normal latent, on images of our own."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from gradbook import normal_vae, vae_training
from gradbook import normal_vae_training as training


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model(latents=2, seed=0):
    return training.started(latents, seed, pixels=6, hidden=5)


def images(n, seed=1):
    return torch.rand(n, 6, generator=generator(seed)).round()


def test_flat_images_are_the_binary_images_row_by_row(stand_in):
    stand_in(train=30, test=20)
    flat = training.flat_images("test", 7)
    assert flat.shape == (7, 784)
    assert torch.equal(flat.reshape(7, 28, 28), vae_training.binary_images("test", 7))
    assert training.flat_images("train").shape == (30, 784)


def test_noise_is_drawn_on_the_cpu_in_float32_whatever_the_defaults():
    expected = training.normals(4, 2, generator=generator())
    with torch.device("meta"):
        drawn = training.normals(4, 2, generator=generator())
    assert torch.equal(drawn, expected)
    assert torch.equal(expected, torch.randn(4, 2, generator=generator()))
    assert expected.dtype == torch.float32


def test_a_started_model_is_the_built_one():
    expected = normal_vae.build(6, 2, 5, generator(3))
    for a, b in zip(model(seed=3).parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
    article = training.started(2, 0)
    assert article.encoder.hidden.weight.shape == (256, 784)


def test_the_terms_are_those_of_the_bound():
    built, batch = model(), images(8)
    found = training.terms(built, batch, generator(5))
    noise = training.normals(8, 2, generator=generator(5))
    elbo = normal_vae.elbo(built, batch, noise)
    torch.testing.assert_close(found.log_likelihood - found.kl.sum(1), elbo)
    mean, log_variance = built.encoder(batch)
    exact = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(found.kl, exact)


def test_the_terms_take_another_likelihood():
    built, batch = model(), images(8)
    plain = training.terms(built, batch, generator(5))
    other = training.terms(built, batch, generator(5), lambda output, x: output[:, 0] + x[:, 0])
    noise = training.normals(8, 2, generator=generator(5))
    logits = built.decoder(normal_vae.code(built.encoder(batch), noise))
    torch.testing.assert_close(other.log_likelihood, logits[:, 0] + batch[:, 0])
    assert torch.equal(other.kl, plain.kl)


def test_descend_gives_the_objective_both_terms_and_the_step():
    built, batch = model(), images(4)
    found = training.terms(built, batch, generator(5))
    loss = training.descend(lambda log_p, kl, step: step * kl.sum() - log_p.mean())
    expected = 3 * found.kl.sum() - found.log_likelihood.mean()
    assert loss(built, batch, 3, generator(5)).item() == pytest.approx(expected.item(), rel=1e-6)
    fixed = training.descend(lambda a, b, step: (a, b, step), lambda m, x, g: (x[0], x[1]))
    assert fixed(built, batch, 7, generator())[2] == 7


def test_the_autoencoder_has_neither_noise_nor_divergence():
    built, batch, drawn = model(), images(4), generator(5)
    loss = training.autoencoder(built, batch, 0, drawn)
    logits = built.decoder(built.encoder(batch).mean)
    exact = torch.distributions.Bernoulli(logits=logits).log_prob(batch).sum(1).mean()
    assert loss.item() == pytest.approx(-exact.item(), rel=1e-5)
    assert torch.equal(drawn.get_state(), generator(5).get_state())
    loss.backward()
    assert built.encoder.log_variance.weight.grad is None
    assert built.encoder.mean.weight.grad.abs().sum() > 0


def test_the_bound_is_a_mean_over_all_images(monkeypatch):
    monkeypatch.setattr(training, "CHUNK", 4)
    built, batch = model(), images(10)
    drawn = generator(3)
    noise = torch.cat([training.normals(n, 2, generator=drawn) for n in (4, 4, 2)])
    found = training.bound(built, batch, seed=3)
    expected = normal_vae.elbo(built, batch, noise).mean().item()
    assert found.elbo == pytest.approx(expected, rel=1e-5)
    kl = normal_vae.kl(built.encoder(batch)).mean(0).tolist()
    assert found.kl == pytest.approx(kl, rel=1e-5)
    own = training.bound(built, batch, 3, lambda m, x, g: training.Terms(x[:, 0], x[:, :2]))
    assert own.reconstruction == pytest.approx(batch[:, 0].mean().item(), rel=1e-6)
    assert own.kl == pytest.approx(batch[:, :2].mean(0).tolist(), rel=1e-6)


def test_posteriors_come_in_the_order_of_the_images(monkeypatch):
    monkeypatch.setattr(training, "CHUNK", 3)
    built, batch = model(), images(7)
    for ours, theirs in zip(training.posteriors(built, batch), built.encoder(batch), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert not ours.requires_grad


def test_reconstruction_is_measured_at_the_mean_code(monkeypatch):
    monkeypatch.setattr(training, "CHUNK", 3)
    built, batch = model(), images(7)
    logits = built.decoder(built.encoder(batch).mean)
    found = training.reconstruction(built, batch)
    expected = normal_vae.log_likelihood(logits, batch).mean().item()
    assert found.log_likelihood == pytest.approx(expected, rel=1e-5)
    error = torch.nn.functional.mse_loss(logits.sigmoid(), batch).item()
    assert found.squared_error == pytest.approx(error, rel=1e-5)


def test_the_split_adds_up_to_the_mean_divergence():
    built, batch = model(), images(20)
    with torch.no_grad():
        built.encoder.mean.weight *= 3
    found = training.split(built, batch, 400, seed=0)
    kl = normal_vae.kl(built.encoder(batch)).sum(1).mean().item()
    assert found["mean_kl"] == pytest.approx(kl, rel=1e-5)
    error = (found["information_stderr"] ** 2 + found["marginal_kl_stderr"] ** 2) ** 0.5
    assert abs(found["information"] + found["marginal_kl"] - kl) <= 4.5 * error
    assert found == training.split(built, batch, 400, seed=0)
    assert found["information"] != training.split(built, batch, 400, seed=1)["information"]


def test_training_lowers_the_loss():
    built, batch = model(), images(40)
    loss = training.descend(lambda log_p, kl, step: (kl.sum(1) - log_p).mean())
    curve = vae_training.fit(
        built, loss, batch, 0, (0, 300), lambda m: training.bound(m, batch, 1).elbo, 10, 0.01
    )
    assert curve.values[1] > curve.values[0] + 0.3
