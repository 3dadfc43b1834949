"""The experiment on four families, on images of our own, and what its measures must show."""

import json
import math
from functools import partial

import pytest
import torch

from gradbook import data, families, family_measures, ising
from gradbook.experiments import four_families as experiment
from gradbook.families import Model
from gradbook.family_measures import Bits, estimate
from gradbook.two_samples import mmd_squared

PIXELS = {"ising": 64, "fashion": 196}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


@pytest.fixture
def garments(stand_in):
    """Stands in for Fashion-MNIST, with ten labels."""
    sets = stand_in(train=60, test=50)
    for split, one in sets.items():
        sets[split] = data.Images(one.images, torch.arange(len(one.images)) % 10)
    return sets


@pytest.fixture
def tiny(monkeypatch, garments):
    """Shortens the training, and measures on few images."""
    short = {k: recipe._replace(steps=2, batch=10) for k, recipe in experiment.RECIPES.items()}
    builders = dict(experiment.FAMILIES)
    for name in ("vae", "flow"):
        builders[name] = partial(builders[name], draws=3)
    for name, value in {
        "RECIPES": short,
        "FAMILIES": builders,
        "BUDGETS": {"ising": 3_000, "fashion": 9_000},
        "ISING_IMAGES": (60, 50),
        "HELD_OUT": 25,
        "LIKELIHOOD_IMAGES": 20,
        "MMD_IMAGES": 20,
        "BANDWIDTH_IMAGES": 20,
        "PROBE_IMAGES": 40,
        "SHORT_STEPS": 2,
        "SHORT_IMAGES": (110, 20),
    }.items():
        monkeypatch.setattr(experiment, name, value)


@pytest.mark.parametrize("name", experiment.BUDGETS)
def test_every_family_is_within_a_tenth_of_the_budget(name):
    budget = experiment.BUDGETS[name]
    widths = families.sizes(experiment.FAMILIES, PIXELS[name], budget)
    assert set(widths) == {"nade", "vae", "flow", "gan"}
    for family, width in widths.items():
        model = experiment.FAMILIES[family](PIXELS[name], width, generator())
        assert abs(families.parameter_count(model) - budget) <= 0.1 * budget


def test_every_family_sees_as_many_images():
    assert set(experiment.RECIPES) == set(experiment.FAMILIES)
    assert {recipe.steps * recipe.batch for recipe in experiment.RECIPES.values()} == {300_000}


def test_a_tiny_run_has_all_its_parts_and_only_the_first_seed_has_pictures(tiny):
    first, second = experiment.run(0), experiment.run(1)
    assert first["short"] == experiment.run_short(0) != second["short"]
    assert set(first["short"]) == {"nade", "vae"}
    for name in ("ising", "fashion"):
        rows = first[name]
        assert set(rows) - set(second[name]) == {"pictures"}
        extra = {"probes"} if name == "fashion" else set()
        expected = {"bandwidth", "data", "independent", "pictures", *experiment.FAMILIES, *extra}
        assert set(rows) == expected
        assert rows["gan"]["likelihood"] is None
        for family in experiment.FAMILIES:
            row = rows[family]
            assert (row["seconds"] > 0) & ("draws" in row) & (("probe" in row) == bool(extra))
            assert ("kl" in (row["likelihood"] or {})) == (name == "ising" and family != "gan")
        assert set(rows["pictures"]) == {"data", *experiment.FAMILIES}
        for text in rows["pictures"].values():
            assert families.unpacked(text, 16, PIXELS[name]).shape == (16, PIXELS[name])
    assert len(json.dumps(first)) < 12_000


def test_a_row_is_of_the_model_that_was_trained_and_of_one_seed(tiny):
    """By hand, for the family whose log-probability is exact."""
    bits = experiment.ising_bits(3, 60, 50)
    row = experiment.study(bits, 3_000, 3)["nade"]
    noise = generator(3)
    model = experiment.FAMILIES["nade"](64, row["width"], noise)
    families.train(model, bits.train, experiment.RECIPES["nade"], noise)
    log_q = model.log_prob(bits.test[:20], None).detach().double()
    kl = bits.log_prob(bits.test[:20]) - log_q
    assert row["likelihood"]["kl"]["value"] == pytest.approx(kl.mean().item(), rel=1e-5)
    x = model.sample(25, generator(2_003))
    assert row["draws"]["bond"] == experiment.quality(x, bits.test[:25], 1.0, bits)["bond"]


def trained(name, bits, budget, seed):
    """A family, by hand, as the experiment should train it."""
    builders = {name: experiment.FAMILIES[name]}
    width = families.sizes(builders, bits.train.shape[1], budget)[name]
    noise = generator(seed)
    model = builders[name](bits.train.shape[1], width, noise)
    families.train(model, bits.train, experiment.RECIPES[name], noise)
    return model


def test_a_run_has_the_images_and_the_budget_of_each_set(tiny, monkeypatch):
    monkeypatch.setattr(experiment, "study", lambda *found: found)
    found = experiment.run(3)
    for name, expected, budget in (
        ("ising", experiment.ising_bits(3, 60, 50), 3_000),
        ("fashion", experiment.fashion_bits(3), 9_000),
    ):
        bits, *rest = found[name]
        assert torch.equal(bits.train, expected.train)
        assert torch.equal(bits.test, expected.test)
        assert rest == [budget, 3]


def test_a_short_run_is_the_divergence_after_a_few_steps(tiny, monkeypatch):
    monkeypatch.setattr(experiment, "SHORT_STEPS", 5)
    found = experiment.run_short(7)
    bits = experiment.ising_bits(7, 110, 20)
    for name, value in found.items():
        recipe = experiment.RECIPES[name]._replace(steps=5)
        monkeypatch.setitem(experiment.RECIPES, name, recipe)
        model = trained(name, bits, 3_000, 7)
        assert value == experiment.likelihood(model, bits, 7)["kl"]["value"]


def test_every_family_has_its_own_recipe_and_is_probed_by_its_own_features(tiny, monkeypatch):
    """The probe tells what it was asked."""

    def asked(features, bits, images, strength):
        return features(bits.test[:5]).sum().item(), images, strength

    monkeypatch.setattr(family_measures, "probe", asked)
    bits = experiment.fashion_bits(1)
    rows = experiment.study(bits, 9_000, 1)
    for name in experiment.FAMILIES:
        model = trained(name, bits, 9_000, 1)
        expected = asked(model.features, bits, 40, experiment.PROBE_C)
        assert rows[name]["probe"] == expected
        assert rows[name]["parameters"] == families.parameter_count(model)
        assert rows[name]["likelihood"] == experiment.likelihood(model, bits, 1)


def test_independent_pixels_stand_beside_the_families(tiny):
    bits = experiment.ising_bits(0, 60, 50)
    found = experiment.study(bits, 3_000, 0)["independent"]
    fitted = family_measures.independent(bits)
    assert found == {"likelihood": experiment.likelihood(fitted, bits, 0)}


def test_the_noise_of_a_likelihood_is_the_seeds():
    n = experiment.LIKELIHOOD_IMAGES
    bits = Bits(torch.ones(n + 1, 2), torch.ones(n + 1, 2))

    def noisy(x, generator):
        return torch.randn(len(x), generator=generator)

    found = experiment.likelihood(Model((), None, None, noisy), bits, 5)
    noise = generator(3_005)
    drawn = torch.cat([torch.randn(100, generator=noise) for _ in range(n // 100)])
    assert found["nll"] == estimate(-drawn.double())


def test_draws_are_compared_with_held_out_images_and_the_data_with_themselves(tiny):
    bits = experiment.ising_bits(0, 60, 50)
    rows = experiment.study(bits, 3_000, 0)
    held, fresh = bits.test[:25], bits.test[25:]
    pairs = [(held[i] - held[j]).norm() for i in range(20) for j in range(i)]
    bandwidth = torch.stack(pairs).median().item()
    assert rows["bandwidth"] == pytest.approx(bandwidth, rel=1e-6)
    expected = mmd_squared(fresh[:20].double(), held[:20].double(), bandwidth).item()
    assert rows["data"]["draws"]["mmd_squared"] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    shown = families.unpacked(rows["pictures"]["data"], 16, 64)
    assert torch.equal(shown.float(), fresh[:16])


def test_ising_images_are_the_seeds_and_know_their_log_probability():
    bits, again, other = (experiment.ising_bits(seed, 30, 20) for seed in (4, 4, 5))
    assert (bits.train.shape, bits.test.shape) == ((30, 64), (20, 64))
    assert bits.train.dtype == torch.float32
    assert torch.equal(bits.train, again.train)
    assert not torch.equal(bits.train, other.train)
    assert not torch.equal(bits.train[:20], bits.test)
    world = ising.Ising(0.4, 0.05, 8, 8)
    expected = ising.log_prob(world, bits.test.double().reshape(20, 8, 8))
    assert torch.equal(bits.log_prob(bits.test), expected)


def test_noise_is_drawn_on_the_cpu_whatever_the_default_device(monkeypatch, garments):
    """A page draws there too, and may have another device for all else."""
    x = torch.rand(40, 4, generator=generator()).round()
    bits = Bits(x, x, (x[:, 0].long(), x[:, 0].long()))
    seen = []

    def sample(world, uniforms):
        seen.append(uniforms)
        return torch.zeros(len(uniforms), 8, 8, device="cpu")

    def probe(features, bits):
        seen.append(features(bits.train))

    monkeypatch.setattr(ising, "sample", sample)
    monkeypatch.setattr(experiment, "probe", probe)
    with torch.device("meta"):
        experiment.ising_bits(0, 3, 2)
        seen += experiment.fashion_bits(0).labels
        experiment.yardsticks(bits, 0)
    assert len(seen) == 6
    assert {one.device.type for one in seen} == {"cpu"}


def test_the_reference_is_what_many_draws_show():
    known = experiment.reference()
    bits = experiment.ising_bits(0, 2, 20_000)
    found = experiment.quality(bits.test, bits.test[:10], 1.0, bits)
    for name, key in (
        ("entropy", "cross_entropy"),
        ("bond", "bond"),
        ("magnetization_squared", "magnetization_squared"),
    ):
        assert abs(found[key]["value"] - known[name]) <= 4.5 * found[key]["stderr"]
        assert found[key]["stderr"] < 0.01 * known[name]


def test_the_statistics_of_a_draw_are_means_over_bonds_and_spins():
    """All black: every bond agrees and the mean spin is -1; a chessboard: the opposite."""
    black = torch.zeros(3, 64)
    board = (torch.arange(8)[:, None] + torch.arange(8)).fmod(2).float().flatten().expand(3, 64)
    bits = experiment.ising_bits(0, 2, 5)
    for x, bond, square in ((black, 1, 1), (board, -1, 0)):
        found = experiment.quality(x, bits.test, 2.0, bits)
        assert found["bond"] == {"value": bond, "stderr": 0}
        assert found["magnetization_squared"] == {"value": square, "stderr": 0}
        assert found["cross_entropy"] == estimate(-bits.log_prob(x))
        assert found["mmd_squared"] == mmd_squared(x.double(), bits.test.double(), 2.0).item()


def test_without_a_density_draws_have_their_distance_alone():
    x = torch.rand(6, 9, generator=generator()).round()
    assert set(experiment.quality(x, x, 1.0, Bits(x, x))) == {"mmd_squared"}


def test_fashion_bits_keep_their_labels_through_the_order_of_the_seed(garments):
    """Bright images are label 1 and stay so after pooling and reordering."""
    for split, one in garments.items():
        bright = (torch.arange(len(one.images)) % 3 == 0)[:, None, None]
        grey = (255 * bright).expand(-1, 28, 28).to(torch.uint8)
        garments[split] = data.Images(grey, bright[:, 0, 0].long())
    first, second = (experiment.fashion_bits(seed) for seed in (0, 1))
    for bits in (first, second):
        assert bits.log_prob is None
        for x, labels, n in zip((bits.train, bits.test), bits.labels, (60, 50), strict=True):
            assert torch.equal(x, labels[:, None].expand(n, 196).float())
    assert torch.equal(first.train, second.train)
    assert not torch.equal(first.labels[1], second.labels[1])


def test_pixels_are_drawn_once_for_all_seeds(garments):
    first, second = (experiment.fashion_bits(seed) for seed in (0, 1))
    assert torch.equal(first.train, second.train)
    rows = [sorted(map(tuple, bits.test.tolist())) for bits in (first, second)]
    assert rows[0] == rows[1]
    assert not torch.equal(first.test, second.test)


def test_yardsticks_read_labels_from_pixels_and_none_from_noise():
    x = torch.rand(2_000, 12, generator=generator()).round()
    labels = (4 * x[:, 0] + 2 * x[:, 1] + x[:, 2]).long()
    bits = Bits(x[:1_000], x[1_000:], (labels[:1_000], labels[1_000:]))
    found = experiment.yardsticks(bits, 0)
    assert found["pixels"] == 1.0
    assert found["untrained"] > 0.9
    assert abs(found["noise"] - 1 / 8) <= 4.5 * math.sqrt(1 / 8 * 7 / 8 / 1_000)
    assert found == experiment.yardsticks(bits, 0) != experiment.yardsticks(bits, 1)


def test_untrained_features_are_rectified_projections_and_noise_knows_no_image(monkeypatch):
    monkeypatch.setattr(experiment, "probe", lambda features, bits: features)
    x = torch.rand(50, 6, generator=generator(1)).round()
    found = experiment.yardsticks(Bits(x, x), 2)
    assert torch.equal(found["pixels"](x), x)
    weights = torch.randn(6, 128, generator=generator(4_002))
    torch.testing.assert_close(found["untrained"](x), ((2 * x - 1) @ weights).clamp(min=0))
    noise = [found["noise"](x) for _ in range(2)]
    assert noise[0].shape == (50, 128)
    assert not torch.equal(*noise)


def test_the_digest_is_of_pixels_and_labels(monkeypatch):
    before = experiment.data_digest()
    assert len(before) == 64
    for name in data.FASHION_MNIST_SHA256:
        with monkeypatch.context() as changed:
            changed.setitem(data.FASHION_MNIST_SHA256, name, "0" * 64)
            assert (experiment.data_digest() != before) == ("labels" in name)
    monkeypatch.setattr(data, "FASHION_MNIST_PIXELS_SHA256", "0" * 64)
    assert experiment.data_digest() != before
