"""The article's VAE and the autoencoders, on images of our own, and the experiment's parts."""

import math

import pytest
import torch

from gradbook import normal_vae, two_samples, vae_training
from gradbook import normal_vae_likelihood as likelihood
from gradbook import normal_vae_training as training
from gradbook.experiments import fashion_vae as experiment
from gradbook.normals import Normal


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tiny(monkeypatch, stand_in):
    """Stands in for Fashion-MNIST, and shortens the training."""
    stand_in(train=120, test=20)
    for name, value in {
        "EPOCHS": (0, 1 / 600, 3 / 600),
        "LATENTS": (2, 3),
        "DRAWS": (1, 2, 6),
        "GRID_SIDE": 20,
        "FEW_IMAGES": 5,
        "SPLIT_IMAGES": 8,
        "SPLIT_DRAWS": 4,
        "SAMPLES": 10,
        "SHORT_STEPS": 2,
    }.items():
        monkeypatch.setattr(experiment, name, value)


@pytest.fixture
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def images(n=12, pixels=6):
    return torch.rand(n, pixels, generator=generator(1)).round()


def model(latents=2):
    return training.started(latents, 0, pixels=6, hidden=5)


def test_a_tiny_run_has_all_its_parts(tiny):
    found = experiment.run(0)
    assert found["epochs"] == [0, 1 / 600, 3 / 600]
    columns = {
        "vae": {"elbo", "reconstruction", "kl", "sigma", "size"},
        "autoencoder": {"reconstruction", "squared_error", "size"},
    }
    for name in ("vae", "autoencoder"):
        assert set(found[name]) == {"2", "3"}
        for latents, fit in found[name].items():
            curve = fit["curve"]
            assert set(curve) == columns[name]
            assert all(len(column) == 3 for column in curve.values())
            assert [len(row) for row in curve["size"]] == [int(latents)] * 3
            assert ("quadrature" in fit) == (latents == "2")
            assert ("weights" in fit) == ("split" in fit) == (name == "vae")
            assert fit["seconds"] > 0
            assert set(fit["mmd"]) == {"standard", "fitted"}
            assert all(math.isfinite(value) for value in fit["mmd"].values())
            assert fit["mmd"]["standard"] != fit["mmd"]["fitted"]
    last = found["autoencoder"]["2"]
    assert last["at_mean"]["reconstruction"] == last["curve"]["reconstruction"][-1]
    assert found["short"] == experiment.run_short(0)


def test_both_methods_start_from_the_same_weights(tiny):
    found = experiment.run(0)
    for latents in ("2", "3"):
        curves = [found[name][latents]["curve"]["size"] for name in ("vae", "autoencoder")]
        assert curves[0][0] == curves[1][0]
        assert curves[0][-1] != curves[1][-1]


def test_every_method_is_the_loss_that_its_name_says(on_the_cpu):
    built, batch = model(), images()
    noise = training.normals(12, 2, generator=generator(5))
    elbo = normal_vae.elbo(built, batch, noise).mean().item()
    back = training.reconstruction(built, batch).log_likelihood
    expected = {"vae": -elbo, "autoencoder": -back}
    assert set(expected) == set(experiment.METHODS)
    for name, method in experiment.METHODS.items():
        assert method.loss(built, batch, 0, generator(5)).item() == pytest.approx(
            expected[name], rel=1e-5
        )


def test_progress_tells_the_noise_from_the_signal(on_the_cpu):
    built, batch = model(), images()
    found = experiment.progress(built, batch, 3)
    mean, log_variance = built.encoder(batch)
    assert found["sigma"] == pytest.approx(log_variance.exp().sqrt().mean(0).tolist(), rel=1e-5)
    assert found["size"] == pytest.approx(mean.abs().mean(0).tolist(), rel=1e-5)
    bound = training.bound(built, batch, 3)
    assert (found["elbo"], found["reconstruction"]) == (bound.elbo, bound.reconstruction)
    assert found["kl"] == bound.kl


def test_each_method_fits_its_own_codes(on_the_cpu):
    built, batch = model(3), images(40)
    assert torch.equal(experiment.standard(3).mean, torch.zeros(3))
    assert torch.equal(experiment.standard(3).factor, torch.eye(3))
    for name, fitted in (
        ("vae", likelihood.aggregate_normal(built, batch)),
        ("autoencoder", likelihood.code_normal(built, batch)),
    ):
        found = experiment.METHODS[name].fitted(built, batch)
        assert torch.equal(found.mean, fitted.mean)
        assert torch.equal(found.factor, fitted.factor)


def test_samples_of_the_right_law_have_no_discrepancy(on_the_cpu, monkeypatch):
    monkeypatch.setattr(experiment, "SAMPLES", 1_000)
    monkeypatch.setattr(experiment, "BANDWIDTH", 1.5)
    built = model()
    with torch.no_grad():
        built.decoder.logits.weight *= 5
    standard = experiment.standard(2)
    codes = torch.randn(1_000, 2, generator=generator(8))
    test = likelihood.samples(built, codes, generator(9))
    values = [experiment.sampled_mmd(built, standard, test, seed) for seed in range(20)]
    values = torch.tensor(values)
    own = two_samples.mmd_squared(test[:500], test[500:], 1.5).abs().item()
    assert values.abs().max() < 4.5 * max(values.std().item(), own)
    moved = Normal(torch.tensor([3.0, -3.0]), torch.eye(2))
    assert experiment.sampled_mmd(built, moved, test, 0) > 10 * values.abs().max()


def test_quadrature_and_importance_sampling_agree(on_the_cpu, monkeypatch):
    monkeypatch.setattr(experiment, "DRAWS", (1, 10, 20_000))
    built, batch = model(), images()
    standard = experiment.standard(2)
    exact = experiment.quadrature(built, standard, batch)
    assert exact["log_likelihood"] == pytest.approx(exact["half"], abs=1e-4)
    found = experiment.by_draws(built, batch, 0)
    assert found["draws"] == [1, 10, 20_000]
    assert abs(found["bound"][-1] - exact["log_likelihood"]) <= 4.5 * found["error"]
    assert found["error"] < 0.02
    assert found["bound"] == sorted(found["bound"])
    assert found["gap"] == pytest.approx(found["bound"][-1] - found["bound"][0], rel=1e-6)
    weights = likelihood.log_weights(built, batch, 20_000, 40_000)
    spread = (weights.mean(0).std() / math.sqrt(12)).item()
    assert found["stderr"][0] == pytest.approx(spread, rel=1e-4)


def test_a_prior_elsewhere_changes_the_probability(on_the_cpu):
    built, batch = model(), images()
    with torch.no_grad():
        built.decoder.logits.weight *= 5
    prior = Normal(torch.tensor([1.0, -2.0]), torch.tensor([[0.5, 0.0], [0.3, 2.0]]))
    found = experiment.quadrature(built, prior, batch)["log_likelihood"]
    noise = training.normals(100_000, 2, generator=generator(1)) @ prior.factor.T + prior.mean
    rows = normal_vae.log_likelihood(built.decoder(noise)[:, None], batch)
    value, stderr = normal_vae.log_prob_estimate(rows.detach())
    assert abs(value.mean().item() - found) <= 4.5 * stderr.mean().item()


def test_the_data_are_those_of_the_other_experiments():
    assert experiment.data_digest() == vae_training.data_digest()
