"""Priors over codes at equal cost, on images of our own, and the experiment's parts."""

import inspect
import math

import pytest
import torch

from gradbook import discretized, pictures, priors, vae_training, vq_vae_training
from gradbook.experiments import code_priors as experiment
from gradbook.gumbel import gumbel_max


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tiny(monkeypatch, stand_in):
    """Stands in for Fashion-MNIST, and shortens the trainings."""
    stand_in(train=60, test=8)
    for name, value in {
        "CODES": 16,
        "STAGE_STEPS": 2,
        "GRIDS": 40,
        "CHANNELS": 6,
        "GATED_LAYERS": 2,
        "DIM": 8,
        "BLOCKS": 1,
        "HEADS": 2,
        "STEPS": 6,
        "BATCH": 8,
        "SHARES": (0, 0.5, 1),
        "SCALE_IMAGES": 10,
        "WHOLE": (4, 256),
        "DRAWN": 2,
        "SHOWN": 3,
        "SHORT_IMAGES": (40, 8),
        "SHORT_STAGE": 2,
        "SHORT_STEPS": 3,
    }.items():
        monkeypatch.setattr(experiment, name, value)
    # The default of a function was read before.
    monkeypatch.setattr(experiment.transformer, "__defaults__", (7, 16))


@pytest.fixture
def stage(tiny):
    train, test = vq_vae_training.grey("train"), vq_vae_training.grey("test")
    return experiment.first_stage(train, test, 0, 2), train, test


def test_a_tiny_run_has_all_its_parts(tiny):
    found = experiment.run(0)
    assert found["short"] == experiment.run_short(0)
    assert found["shares"] == [0, 0.5, 1]
    assert set(found["stage"]) == {"psnr", "used", "perplexity", "norm"}
    assert set(found["networks"]) == {"pixelcnn", "transformer", "pooled"}
    for network in found["networks"].values():
        assert len(network["curve"]) == 3
        assert all(math.isfinite(value) for value in network["curve"])
        assert network["seconds"] > 0
    assert set(found["bits"]) == {
        *("uniform", "frequencies", "positions"),
        *("pixelcnn", "transformer"),
    }
    assert found["bits"]["uniform"] == pytest.approx(4)
    assert found["pooled_bits"]["uniform"] == pytest.approx(4)
    for name in ("pixelcnn", "transformer"):
        assert found["bits"][name] == found["networks"][name]["curve"][-1]
    assert found["pooled_bits"]["transformer"] == found["networks"]["pooled"]["curve"][-1]
    assert set(found["images"]["total"]) == set(found["bits"])
    assert set(found["megaflops"]) == {"codes", "pooled", "whole"}
    names = {"pixelcnn", "transformer", "pooled", "whole", "without_cache"}
    assert set(found["seconds"]) == names
    assert min(found["seconds"].values()) > 0
    assert set(found["pictures"]) == {
        *("test", "reconstructions", "uniform", "positions", "pixelcnn", "transformer")
    }


def test_other_seeds_keep_no_pictures(tiny):
    found = experiment.run(1)
    assert "pictures" not in found
    assert found["short"] != experiment.run_short(0)


def test_trainings_cost_the_same(tiny):
    found = experiment.run(1)["networks"]
    costs = {
        "pixelcnn": priors.pixelcnn_flops(7, 7, 16, 6, 2),
        "transformer": priors.transformer_flops(7, 7, 16, 8, 1),
        "pooled": priors.transformer_flops(14, 14, 16, 8, 1),
    }
    assert found["transformer"]["steps"] == 6
    for name, cost in costs.items():
        assert found[name]["megaflops"] == cost / 1e6
        assert found[name]["steps"] == max(1, round(6 * costs["transformer"] / cost))
        spent = 3 * cost * 8 * found[name]["steps"] / 1e12
        assert found[name]["teraflops"] == pytest.approx(spent, rel=1e-12)


def test_the_budgets_of_the_record_agree_within_a_tenth():
    """At the full sizes, with nothing trained; the networks have about as many weights."""
    costs = experiment.sequence_costs()
    gated = priors.pixelcnn_flops(7, 7, 128, experiment.CHANNELS, experiment.GATED_LAYERS)
    budget = experiment.STEPS * costs["codes"]
    for cost in (gated, costs["pooled"]):
        assert priors.steps_for(budget, cost, 1) * cost == pytest.approx(budget, rel=0.1)
    for model in (experiment.pixelcnn(0), experiment.transformer(0)):
        weights = sum(parameter.numel() for parameter in model.parameters())
        assert weights == pytest.approx(120_000, rel=0.1)


def test_costs_are_those_of_the_same_transformer():
    found = experiment.sequence_costs()
    assert found == {
        "codes": priors.transformer_flops(7, 7, 128, 64, 2),
        "pooled": priors.transformer_flops(14, 14, 16, 64, 2),
        "whole": priors.transformer_flops(28, 28, 256, 64, 2),
    }


def test_a_transformer_has_the_size_asked_for(tiny):
    model = experiment.transformer(3, 14, 5)
    assert (model.height, model.width, model.codes) == (14, 14, 5)
    default = inspect.signature(experiment.transformer).bind(3)
    default.apply_defaults()
    assert default.args == (3, 7, 16)


def test_the_stage_keeps_the_codes_of_its_images(stage):
    found, train, test = stage
    assert torch.equal(found.train, found.model.codes(train[:40]))
    assert torch.equal(found.test, found.model.codes(test))
    assert found.model.quantizer.codes == 16


def test_codes_start_at_different_vectors_of_the_data(tiny):
    vectors = torch.randn(30, 4, generator=generator())
    codebook = experiment.restarted(vectors, generator(1)).codebook
    found = (codebook[:, None] == vectors).all(-1)
    assert found.sum(1).tolist() == [1] * 16
    assert found.sum(0).max() == 1


def test_bits_of_an_image_are_those_of_levels_and_codes(stage):
    found, train, test = stage
    bits = {"one": 1.0, "two": 2.0}
    result = experiment.image_bits(found, train, test, bits)
    # Ten images are for the scale.
    images, means = train[:10], found.model.decode(found.train[:10]).detach()
    scale = discretized.fitted_scale((255 * images).round().long(), means)
    assert result["scale"] == pytest.approx(scale, rel=1e-6)
    means = found.model.decode(found.test).detach()
    log_prob = discretized.log_prob((255 * test).round().long(), means, scale)
    levels = -log_prob.mean().item() / math.log(2)
    assert result["bits"] == pytest.approx(levels, rel=1e-5)
    for name, value in bits.items():
        assert result["total"][name] == pytest.approx(levels + 49 * value / 784, rel=1e-5)


def test_pictures_are_the_decoded_codes(stage):
    found, _, test = stage
    models = {"pixelcnn": experiment.pixelcnn(0), "transformer": experiment.transformer(0)}
    sheets = experiment.sheets(found, models, test, 0)
    noise = priors.grid_noise(models["transformer"], 3, 40_000)
    table = priors.position_frequencies(found.train, 16, 1.0)
    codes = {
        "reconstructions": found.test[:3],
        "uniform": gumbel_max(torch.zeros_like(noise), noise),
        "positions": gumbel_max(table.log(), noise),
        "pixelcnn": models["pixelcnn"].sample(3, noise),
        "transformer": models["transformer"].sample(3, noise),
    }
    for name, grids in codes.items():
        expected = pictures.to_levels(found.model.decode(grids).detach())
        assert torch.equal(pictures.decode(sheets[name]), expected)
    assert torch.equal(pictures.decode(sheets["test"]), pictures.to_levels(test[:3]))


def test_the_data_are_those_of_the_other_experiments():
    assert experiment.data_digest() == vae_training.data_digest()
