"""The experiment on a latent that can be enumerated, on images of our own, and its record."""

import math

import pytest
import torch

from gradbook import vae, vae_gradients, vae_losses
from gradbook.experiments import small_latent_vae as experiment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tiny(monkeypatch, stand_in):
    """Stands in for Fashion-MNIST, and shortens the training."""
    stand_in(train=100, test=20)
    for name, value in {
        "POINTS": (0, 1, 2),
        "SHORT_POINTS": (2,),
        "REPLICATES": 20,
        "SHORT_REPLICATES": 20,
        "PROBES": 3,
    }.items():
        monkeypatch.setattr(experiment, name, value)


def model():
    return vae.build(*experiment.CODE, generator(), width=4)


def images(n=4):
    return torch.rand(n, 28, 28, generator=generator(1)).round()


def test_a_tiny_run_has_all_its_parts(tiny):
    found = experiment.run(0)
    assert found["steps"] == [0, 1, 2]
    assert set(found["curves"]) == set(experiment.METHODS)
    assert len({curve[0] for curve in found["curves"].values()}) == 1
    assert len({curve[-1] for curve in found["curves"].values()}) == 6
    assert set(found["gradients"]) == {"start", "exact"}
    assert found["short"] == experiment.run_short(0)
    assert all(math.isfinite(value) for value in found["short"].values())


def test_every_method_is_the_loss_that_its_name_says():
    built, batch = model(), images()
    drawn = vae_losses.noise(experiment.CODE, batch, generator(5))
    pair = vae_losses.noise(experiment.CODE, batch, generator(5), 2)
    expected = {
        "exact": vae_gradients.exact(built, batch),
        "relaxed_annealed": vae_gradients.relaxed(built, batch, drawn, math.sqrt(0.1)),
        "relaxed_1": vae_gradients.relaxed(built, batch, drawn, 1.0),
        "relaxed_0.1": vae_gradients.relaxed(built, batch, drawn, 0.1),
        "straight_through_1": vae_gradients.straight_through(built, batch, drawn, 1.0),
        "leave_one_out_2": vae_gradients.leave_one_out(built, batch, pair),
    }
    assert set(expected) == set(experiment.METHODS)
    weight = built.encoder.logits.weight
    for name, loss in expected.items():
        ours = experiment.METHODS[name](built, batch, experiment.STEPS // 2, generator(5))
        slopes = [torch.autograd.grad(value, weight)[0] for value in (ours, loss)]
        assert ours.item() == loss.item()
        assert torch.equal(*slopes)


def test_the_temperature_falls_from_one_to_a_tenth():
    assert experiment.annealed(0) == 1
    assert experiment.annealed(experiment.STEPS) == pytest.approx(0.1, rel=1e-12)


def test_compare_is_without_bias_where_the_estimator_is():
    """Of ten seeds, the estimates of a zero or known squared bias scatter about it."""
    built, batch = model(), images()
    with torch.no_grad():
        built.encoder.logits.weight *= 10
    found = [experiment.compare(built, batch, seed, 20) for seed in range(10)]
    truth = vae_gradients.logit_gradients(vae_gradients.exact, built, batch)
    norm = truth.square().sum((-2, -1)).mean().item()
    assert all(one["norm_squared"] == pytest.approx(norm, rel=1e-5) for one in found)
    for name in ("score_function", "leave_one_out_2"):
        rows = torch.tensor([one[name]["bias_squared"] for one in found], dtype=torch.float64)
        assert rows.mean().abs() <= 4.5 * rows.std() / math.sqrt(10)


def test_compare_measures_the_variance_of_one_draw():
    built, batch = model(), images()
    found = experiment.compare(built, batch, 3, 400)
    drawn = vae_losses.noise(experiment.CODE, batch.repeat(400, 1, 1), generator(77))
    rows = vae_gradients.logit_gradients(
        lambda m, x: vae_gradients.relaxed(m, x, drawn, 1.0), built, batch.repeat(400, 1, 1)
    )
    expected = rows.unflatten(0, (400, -1)).var(0).sum((-2, -1)).mean().item()
    assert found["relaxed_1"]["variance"] == pytest.approx(expected, rel=0.3)
