"""The four compressors on photographs of our own, and the experiment's parts."""

import math

import pytest
import torch
from torch import nn

from gradbook import (
    efficientnet,
    patch_gan,
    photographs,
    pictures,
    vqgan,
    vqgan_losses,
    vqgan_measures,
    vqgan_training,
)
from gradbook.experiments import four_compressors as experiment
from gradbook.quantizers import LossCodebook
from gradbook.vqgan_training import Setting

TINY = experiment.Scale(4, 3, 1, 2, Setting(12, 4, 2e-3, 1e-3), 2, 10, (0, 10, 12), (0, 1, 2))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(height, width, seed=0):
    """Smooth colours, as a photograph has."""
    coarse = torch.rand(1, 3, 6, 6, generator=generator(seed))
    fine = nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return pictures.to_levels(fine)[0]


class Judge(nn.Module):
    """Random features in the place of the network."""

    def features(self, images):
        halves = nn.functional.avg_pool2d(images, 4)
        return [halves.sin(), (3 * halves).cos()]

    def pooled(self, images):
        small = nn.functional.avg_pool2d(images, 4).flatten(1)
        return (small @ torch.randn(192, 70, generator=generator(5))).tanh()


@pytest.fixture
def tiny(monkeypatch):
    """Stands in for the photographs and the judge, and makes all parts small."""
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    made = {name: picture(70, 72, seed=i) for i, name in enumerate(photographs.NAMES)}
    monkeypatch.setattr(photographs, "photograph", made.__getitem__)
    monkeypatch.setattr(efficientnet, "pretrained", Judge)
    for name, value in {
        "SHORT": TINY,
        "CODES": 16,
        "ROWS": 200,
        "LLOYD": 2,
        "STRIDE": 5,
        "WATCHING": 2,
        "SHOWN": 4,
        "CROP": (slice(8, 24), slice(4, 28)),
    }.items():
        monkeypatch.setattr(experiment, name, value)


@pytest.fixture
def data(tiny):
    return experiment.loaded()


def trained(name, data, steps, seed=0):
    training = experiment.started(*experiment.plans(data, TINY)[name], data, seed, TINY)
    vqgan_training.fit(training, data.train, steps)
    return training


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_tiny_run_has_all_its_parts_and_only_the_first_seed_has_pictures(tiny):
    first, second = experiment.run(0, TINY), experiment.run(1, TINY)
    assert set(second) == {"short", "compressors", "switch"}
    assert set(first) == {*second, "pictures"}
    names = ["mse", "perceptual", "adversarial", "reversed"]
    assert list(first["compressors"]) == names
    for name, found in first["compressors"].items():
        assert set(found) == {"final", "curve", "trace", "seconds"}
        assert set(found["final"]) == set(vqgan_measures.Verdict._fields)
        assert all(math.isfinite(value) for value in found["final"].values())
        assert found["curve"]["steps"] == [0, 10, 12]
        assert set(found["curve"]) == {"steps", *vqgan_measures.Progress._fields}
        assert ("weight" in found["trace"]) == (name in names[2:])
        assert found["seconds"] > 0
    assert list(first["short"]) == names[:2]
    assert first["short"] == experiment.run_short(0) != second["short"]
    patches = pictures.decode(first["pictures"]["patches"])
    assert patches.shape == (4 * 5, 32, 32, 3)
    assert pictures.decode(first["pictures"]["coffee"]).shape == (5, 16, 24, 3)


def test_the_switch_is_seen_from_both_sides(data):
    found = experiment.switched(data, 0, TINY)
    assert list(found) == ["cold", "warmed"]
    cold, warmed = found["cold"], found["warmed"]
    for part in (cold, warmed):
        assert part["curve"]["steps"] == [0, 1, 2]
        assert part["trace"]["weight"]["steps"] == [10, 11]
        assert part["trace"]["reconstruction"]["steps"] == [8, 9, 10, 11]
    assert cold["trace"]["real"]["steps"] == [10, 11]
    assert warmed["trace"]["real"]["steps"] == [8, 9, 10, 11]
    # Up to the switch only the critic differs.
    for column in vqgan_measures.Progress._fields:
        assert cold["curve"][column][0] == warmed["curve"][column][0]
    assert cold["trace"]["weight"]["values"][0] != warmed["trace"]["weight"]["values"][0]


def test_the_switch_goes_on_from_the_second_compressor_with_the_published_share(data):
    start = experiment.measuring(data)(trained("perceptual", data, 10).players.model)
    for part in experiment.switched(data, 0, TINY).values():
        assert {name: part["curve"][name][0] for name in start} == start
        weight, pull, push = (
            part["trace"][name]["values"][0] for name in ("weight", "pull", "push")
        )
        assert weight == pytest.approx(0.8 * pull / (push + 1e-4), rel=1e-5)


@pytest.mark.parametrize("name", ["adversarial", "reversed"])
def test_a_critic_watches_before_the_game_and_takes_a_smaller_share(data, name):
    phases = experiment.plans(data, TINY)[name][1]
    kinds = {0: vqgan.plain_step, 8: vqgan.watched_step, 10: vqgan.game_step}
    assert {step: phase.func for step, phase in phases.items()} == kinds
    assert phases[10].keywords["share"] == 0.3


def test_the_second_and_the_third_are_the_same_up_to_the_game(data):
    for steps, equal in ((10, True), (11, False)):
        pair = [trained(name, data, steps).players.model for name in ("perceptual", "adversarial")]
        assert same(*pair) == equal


def test_all_start_alike(data):
    starts = [trained(name, data, 0) for name in experiment.plans(data, TINY)]
    for training in starts[1:]:
        assert same(starts[0].players.model, training.players.model)
        assert same(starts[0].players.critic, training.players.critic)
    kinds = [type(training.players.model.quantizer) for training in starts]
    assert kinds == [LossCodebook] * 3 + [vqgan.ReversedCodebook]
    assert not same(starts[0].players.model, trained("mse", data, 0, 1).players.model)


def test_the_start_was_trained_without_codes_then_clustered(data):
    model = trained("mse", data, 0).players.model
    untrained = experiment.started(LossCodebook, {0: None}, data, 0, TINY._replace(before=0))
    assert not same(model.encoder, untrained.players.model.encoder)
    assert model.quantizer.codebook.shape == (16, 3)
    # Codes of k-means lie among the vectors, and few are one of them.
    rows = experiment.vq_vae_training.vectors(model, data.train)
    codebook = model.quantizer.codebook
    assert (codebook <= rows.amax(0)).all()
    assert (codebook >= rows.amin(0)).all()
    assert (codebook[:, None] == rows).all(2).any(1).sum() < 8


def test_losses_are_in_units_of_the_pixels_spread(data):
    plans = experiment.plans(data, TINY)
    x, y = data.held_out[:3], data.held_out[3:6]
    variance = data.train.var().item()
    assert data.variance == variance
    found = plans["mse"][1][0].keywords["reconstruct"](x, y)
    assert found.item() == pytest.approx((x - y).square().mean().item() / variance, rel=1e-5)
    features = data.judge.features
    expected = vqgan_losses.perceptual_loss(x, y, features, variance**0.5, experiment.WEIGHT)
    for name in ("perceptual", "adversarial", "reversed"):
        for kind in plans[name][1].values():
            assert kind.keywords["reconstruct"](x, y).item() == pytest.approx(expected.item())


def test_a_curve_is_measured_on_one_in_twelve(data):
    model = trained("mse", data, 0).players.model
    found = experiment.measuring(data)(model)
    expected = vqgan_measures.progress(model, data.held_out[::12], data.judge)
    assert found == expected._asdict()


def test_the_numbers_are_those_of_the_chapter():
    assert tuple(range(3)) == experiment.SEEDS
    assert (experiment.CODES, experiment.BETA) == (256, 0.25)
    for scale in (experiment.SMALL, experiment.FULL):
        assert scale.points[-1] == scale.setting.steps
        assert scale.start + scale.after[-1] <= scale.setting.steps
        assert scale.start in scale.points
        assert scale.start >= experiment.WATCHING
    assert experiment.data_digest() == photographs.digest()
    # Both held-out photographs, patches of 32 pixels.
    patches = [(400, 600), (427, 640)]
    counts = [
        math.prod((side - 32) // experiment.STRIDE + 1 for side in sides) for sides in patches
    ]
    assert sum(counts) >= 2_000


def test_what_a_critics_score_sees_is_a_part_of_a_patch():
    critic = patch_gan.PatchGAN(3, 2, experiment.LAYERS, generator())
    assert patch_gan.receptive_field(critic.kernels, critic.strides) == 16
