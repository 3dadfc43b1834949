"""The article's experiment on images of our own, and its record."""

import base64
import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gradbook import vae, vae_gradients
from gradbook.experiments import categorical_vae as experiment


@pytest.fixture
def tiny(monkeypatch, stand_in):
    """Stands in for Fashion-MNIST, and shortens the training."""
    stand_in(train=200, test=40)
    for name, value in {
        "EPOCHS": 2,
        "EPOCH_STEPS": 2,
        "SHORT_STEPS": 2,
        "KL_EPOCHS": (1, 2),
        "KL_IMAGES": 20,
        "KL_DRAWS": 4,
    }.items():
        monkeypatch.setattr(experiment, name, value)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=12):
    return torch.rand(n, 28, 28, generator=generator())


def model(latents=32, classes=10):
    return vae.build(latents, classes, generator(), width=4)


def encoder_of(logits):
    """A model whose encoder tells the image by its first pixel."""
    return SimpleNamespace(encoder=lambda x: logits[x[:, 0, 0].long()])


def numbered(n):
    return torch.arange(n)[:, None, None].expand(n, 28, 28).float()


def test_a_tiny_run_has_all_its_parts_and_only_the_first_seed_has_pictures(tiny):
    first, second = experiment.run(0), experiment.run(1)
    assert set(first) == {"short", "epochs", "divergences", "latents", "pictures"}
    assert set(second) == set(first) - {"pictures"}
    assert {len(column) for column in first["epochs"].values()} == {2}
    expected = [vae_gradients.temperature_schedule(step) for step in (2, 4)]
    assert first["epochs"]["temperature"] == expected
    assert first["divergences"]["epoch"] == [1, 2]
    assert first["short"] == experiment.run_short(0) != second["short"]


def test_a_short_run_is_the_beginning_of_a_long_one():
    one, other = (experiment.Training(3, images(200)) for _ in range(2))
    one.advance(3)
    other.advance(1)
    other.advance(2)
    assert one.steps == other.steps == 3
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_optimizer_is_what_keras_calls_rmsprop():
    training = experiment.Training(0, images(200))
    before = training.model.decoder.conv2.bias.detach().clone()
    training.advance(1)
    slope = training.model.decoder.conv2.bias.grad
    step = 1e-3 * slope / ((0.1 * slope.square()).sqrt() + 1e-7)
    torch.testing.assert_close(training.model.decoder.conv2.bias.detach(), before - step)


def test_training_returns_the_mean_of_its_losses(monkeypatch):
    training = experiment.Training(0, images(200))
    losses, tau = [], []

    def recorded(model, batch, noise, temperature):
        loss = real(model, batch, noise, temperature)
        losses.append(loss.item())
        tau.append(temperature)
        return loss

    real = vae_gradients.relaxed
    monkeypatch.setattr(vae_gradients, "relaxed", recorded)
    assert training.advance(3) == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert tau == [vae_gradients.temperature_schedule(step) for step in range(3)]


def test_test_losses_are_those_of_the_modules_on_the_same_noise(monkeypatch):
    monkeypatch.setattr(experiment, "CHUNK", 5)
    built, batch, drawn = model(), images(), generator(1_002)
    noise = torch.cat(
        [experiment.vae_training.gumbels(n, 32, 10, generator=drawn).cpu() for n in (5, 5, 2)]
    )
    found = experiment.test_losses(built, batch, 0.3, seed=2)
    assert found == {
        "relaxed": pytest.approx(vae_gradients.relaxed(built, batch, noise, 0.3).item(), rel=1e-5),
        "hard": pytest.approx(-vae.sampled_elbo(built, batch, noise).mean().item(), rel=1e-5),
        "kl": pytest.approx(vae.categorical_kl(built.encoder(batch)).mean().item(), rel=1e-4),
    }


def test_the_relaxed_divergence_is_a_mean_over_draws_with_its_error():
    logits = torch.randn(3, 2, 2, generator=generator(), dtype=torch.float64)
    found = [
        experiment.divergences(encoder_of(logits), numbered(3), 0.5, seed) for seed in range(40)
    ]
    exact = vae.categorical_kl(logits).mean().item()
    assert found[0]["categorical"] == pytest.approx(exact, rel=1e-12)
    means = torch.tensor([one["relaxed"] for one in found], dtype=torch.float64)
    errors = torch.tensor([one["stderr"] for one in found], dtype=torch.float64)
    # 40 seeds tell a standard deviation to one part in nine.
    assert 0.6 < means.std() / errors.square().mean().sqrt() < 1.5


def test_a_latent_that_names_the_image_has_the_information_of_its_classes():
    naming = 200 * torch.eye(4)
    constant = 200 * torch.eye(4)[[1, 1, 1, 1]]
    useless = torch.zeros(4, 4)
    logits = torch.stack([naming, constant, useless], 1)
    found = experiment.usage(encoder_of(logits), numbered(4))
    full = math.log(4)
    assert found["kl"] == pytest.approx([full, full, 0], abs=1e-9)
    assert found["information"] == pytest.approx([full, 0, 0], abs=1e-9)
    assert found["in_use"] == 1


def test_pictures_are_grey_png_files():
    found = experiment.pictures(model(), images(), seed=0)
    sizes = {"samples": (15 * 28, 15 * 28), "reconstructions": (8 * 28, 2 * 28)}
    for name, size in sizes.items():
        picture = Image.open(io.BytesIO(base64.b64decode(found[name])))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", size)


def test_tiles_lie_in_rows_and_columns():
    tiles = torch.linspace(0, 1, 6).reshape(2, 3, 1, 1).expand(2, 3, 2, 4)
    file = io.BytesIO(base64.b64decode(experiment._png(tiles)))
    page = torch.tensor(np.array(Image.open(file)))
    greys = [[0, 49, 99], [156, 206, 255]]
    expected = (
        torch.tensor(greys, dtype=torch.uint8).repeat_interleave(2, 0).repeat_interleave(4, 1)
    )
    assert torch.equal(page, expected)
