"""The experiment with four estimators, on images of our own, and its record."""

import math

import pytest
import torch

from gradbook import vae, vae_gradients, vae_losses
from gradbook.experiments import vae_estimators as experiment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tiny(monkeypatch, stand_in):
    """Stands in for Fashion-MNIST, and shortens the training."""
    stand_in(train=100, test=20)
    monkeypatch.setattr(experiment, "POINTS", (0, 1, 2))
    monkeypatch.setattr(experiment, "SHORT_POINTS", (2,))


def model():
    return vae.build(*experiment.CODE, generator(), width=4)


def images(n=4):
    return torch.rand(n, 28, 28, generator=generator(1)).round()


def test_a_tiny_run_has_all_its_parts(tiny):
    found = experiment.run(0)
    assert found["steps"] == [0, 1, 2]
    fits = found["fits"]
    assert {name: fit["passes"] for name, fit in fits.items()} == {
        "relaxed": 1,
        "straight_through": 1,
        "leave_one_out": 4,
        "moving_average": 1,
    }
    assert len({fit["curve"][0] for fit in fits.values()}) == 1
    assert len({fit["curve"][-1] for fit in fits.values()}) == 4
    assert all(fit["seconds"] > 0 and fit["kl"] > 0 for fit in fits.values())
    assert found["short"] == experiment.run_short(0)


def test_every_method_is_the_loss_that_its_name_says():
    built, batch = model(), images()
    drawn = vae_losses.noise(experiment.CODE, batch, generator(5))
    four = vae_losses.noise(experiment.CODE, batch, generator(5), 4)
    assert four.shape == (4, 4, 32, 10)
    late = vae_gradients.temperature_schedule(500)
    for name, step, loss in (
        ("relaxed", 500, vae_gradients.relaxed(built, batch, drawn, late)),
        ("relaxed", 2_999, vae_gradients.relaxed(built, batch, drawn, 0.1)),
        ("straight_through", 0, vae_gradients.straight_through(built, batch, drawn, 1.0)),
        ("leave_one_out", 0, vae_gradients.leave_one_out(built, batch, four)),
    ):
        ours = experiment.METHODS[name].make()(built, batch, step, generator(5))
        weight = built.encoder.logits.weight
        slopes = [torch.autograd.grad(value, weight)[0] for value in (ours, loss)]
        assert ours.item() == loss.item()
        assert torch.equal(*slopes)


def test_the_moving_average_knows_only_earlier_batches():
    built, method = model(), experiment.METHODS["moving_average"].make()
    expected, drawn = 784 * math.log(2), generator(5)
    weight, again = built.encoder.logits.weight, generator(5)
    for batch in (images(3), 1 - images(4), images(5)):
        loss = method(built, batch, 0, drawn)
        noise = vae_losses.noise(experiment.CODE, batch, again)
        exact = vae_gradients.score_function(built, batch, noise, expected)
        slopes = [torch.autograd.grad(value, weight)[0] for value in (loss, exact)]
        assert torch.equal(*slopes)
        expected = 0.9 * expected + 0.1 * loss.item()


def test_each_training_has_a_moving_average_of_its_own():
    make = experiment.METHODS["moving_average"].make
    first = make()
    first(model(), images(), 0, generator())
    assert first.average != make().average == pytest.approx(784 * math.log(2))
