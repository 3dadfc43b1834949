"""Sliding windows over aligned images, on images of our own, and the experiment's parts."""

import math

import pytest
import torch

from gradbook import pictures, priors, sliding, vae_training, vq_vae_training
from gradbook import window_priors as windowed
from gradbook.experiments import aligned_windows as experiment
from gradbook.experiments import code_priors

TINY = experiment.Scale(2, (8, 1, 2), 3, 5, 6)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tiny(monkeypatch, stand_in):
    """Stands in for Fashion-MNIST, and shortens the trainings."""
    stand_in(train=40, test=8)
    monkeypatch.setattr(code_priors, "CODES", 16)
    for name, value in {
        "CODES": 16,
        "TEST_IMAGES": 8,
        "SHOWN": 3,
        "SHORT": TINY,
        "SHORT_IMAGES": (36, 4),
    }.items():
        monkeypatch.setattr(experiment, name, value)


@pytest.fixture
def model(monkeypatch):
    """A prior with strong weights, which what it is told moves far."""
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    built = windowed.placed(4, 16, (8, 1, 2), 0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.5, generator=generator(parameter.numel()))
    return built


def test_a_tiny_run_has_all_its_parts_and_only_the_first_seed_has_pictures(tiny):
    first, second = experiment.run(0, TINY), experiment.run(1, TINY)
    parts = {"short", "bits", "tables", "maps", "profile", "seconds"}
    assert set(second) == parts
    assert set(first) == parts | {"pictures"}
    assert set(first["bits"]) == {"blind", "placed", "turned", "whole"}
    assert all(0 < bits < 8 for bits in first["bits"].values())
    assert first["tables"]["uniform"] == pytest.approx(4)
    for kind in ("blind", "placed"):
        bits = torch.tensor(first["maps"][kind], dtype=torch.float64)
        assert bits.shape == (7, 7)
        assert bits.mean().item() == pytest.approx(first["bits"][kind], rel=1e-12)
    assert set(first["profile"]) == {"test", "blind", "placed"}
    assert set(first["seconds"]) == {"blind", "placed", "whole"}
    assert min(first["seconds"].values()) > 0
    assert first["short"] == experiment.run_short(0) != second["short"]
    assert set(first["short"]) == {"blind", "placed", "turned"}
    for text in first["pictures"].values():
        assert pictures.decode(text).shape == (3, 28, 28)


def test_the_default_scale_is_the_records():
    assert experiment.run.__defaults__ == (experiment.SMALL,)
    assert tuple(range(3)) == experiment.SEEDS
    assert experiment.SIDE < 7
    small, full = experiment.SMALL, experiment.FULL
    assert full.steps > small.steps
    assert full.sizes > small.sizes


def test_the_whole_prior_is_measured_on_whole_grids(tiny):
    found = experiment.run(1, TINY)["bits"]["whole"]
    train, test = vq_vae_training.grey("train"), vq_vae_training.grey("test")
    stage = code_priors.first_stage(train, test, 1, 2)
    whole = windowed.blind(7, 16, (8, 1, 2), 30_001)
    windowed.fit(whole, [stage.train], 1, 3, experiment.RATE, 5)
    expected = priors.bits_per_code(whole.transformer, stage.test)
    assert found == pytest.approx(expected, rel=1e-6)


def test_both_priors_are_trained_from_their_seed(tiny):
    codes = torch.randint(16, (20, 7, 7), generator=generator())
    models, seconds = experiment.trained(codes, 4, TINY)
    assert set(models) == set(seconds) == {"blind", "placed"}
    for kind, make in (("blind", windowed.blind), ("placed", windowed.placed)):
        own = make(4, 16, (8, 1, 2), 30_004)
        windowed.fit(own, [codes], 4, 3, experiment.RATE, 5)
        for one, two in zip(models[kind].parameters(), own.parameters(), strict=True):
            assert torch.equal(one, two)


def test_bits_by_place_are_those_of_the_sliding_window(model):
    codes = torch.randint(16, (9, 7, 7), generator=generator())
    found = experiment.by_place(model, codes)
    log_probs = sliding.log_probs_large(model.transformer, codes, model.prefix_of(7, 7)).detach()
    expected = -log_probs.double().mean(0) / math.log(2)
    torch.testing.assert_close(found, expected)
    bits = experiment.bits_of({"blind": model, "placed": model}, codes)
    assert bits["placed"] == bits["blind"] == pytest.approx(found.mean().item(), rel=1e-6)
    assert bits["turned"] == experiment.turned(model, codes)


def test_a_turned_window_is_told_the_place_across(model, monkeypatch):
    codes = torch.randint(16, (9, 7, 7), generator=generator())

    def across(where):
        place = 1 - torch.tensor([[where.top / 3, where.left / 3]])
        return model.prefix(place)[0]

    log_probs = sliding.log_probs_large(model.transformer, codes, across).detach()
    expected = priors.mean_bits(log_probs.sum((1, 2)), 49)
    told, asked = model.prefix_of(7, 7), []

    def recorded(where):
        asked.append((where.top, where.left))
        return told(where)

    monkeypatch.setattr(model, "prefix_of", lambda height, width: recorded)
    assert experiment.turned(model, codes) == pytest.approx(expected, rel=1e-5)
    windows = [sliding.window(i, j, 7, 7, 4) for i in range(7) for j in range(7)]
    assert asked == [(3 - where.top, 3 - where.left) for where in windows]


def test_a_profile_by_hand():
    rows = {"test": torch.tensor([0.0, 1.0, 2.0]), "blind": torch.tensor([3.0, 5.0, 90.0])}
    images = {name: row.view(3, 1, 1, 1).expand(3, 1, 28, 28) for name, row in rows.items()}
    assert experiment.profile(images, 2) == pytest.approx({"test": 0.5, "blind": 3.0})


def test_the_data_are_those_of_the_other_experiments():
    assert experiment.data_digest() == vae_training.data_digest()
