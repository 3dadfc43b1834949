"""Conditions, orders, corruption and filters on images of our own, and the experiment's parts."""

import math

import pytest
import torch

from gradbook import pictures, priors, vae_training, vq_vae_training
from gradbook.conditional_prior import ClassPrefix, CodePrefix
from gradbook.conditional_prior_training import bits_per_code, possible_share
from gradbook.experiments import conditional_priors as experiment
from gradbook.image_judges import edges, quality
from gradbook.priors import CausalTransformer
from gradbook.sampling import nucleus, sample_grids, tempered, top_k


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


TINY = experiment.Scale(2, 3, 20, 2, 2, 1e-2, 8, (8, 1, 2), 2)


@pytest.fixture
def tiny(monkeypatch, stand_in):
    """Stands in for Fashion-MNIST, with labels, and shortens the trainings."""
    for split, images in (sets := stand_in(train=80, test=9)).items():
        sets[split] = images._replace(labels=torch.arange(len(images.images)) % 10)
    monkeypatch.setattr(experiment.code_priors, "GRIDS", 70)
    for name, value in {
        "SHORT_IMAGES": (40, 8),
        "SHORT_STAGE": 2,
        "SHORT_STEPS": 2,
        "FOLLOWED": 5,
        "SHOWN": 3,
        "AGAIN": 2,
        "SMALL": TINY,
    }.items():
        monkeypatch.setattr(experiment, name, value)


@pytest.fixture
def images(tiny):
    return vq_vae_training.grey("train"), vq_vae_training.grey("test")


@pytest.fixture
def world(images):
    return experiment.coded(*images, 0, 2)


@pytest.fixture
def models(world):
    return {name: experiment.trained(world, name, 0, TINY) for name in experiment.CONDITIONS}


def test_a_tiny_run_has_all_its_parts(tiny):
    found = experiment.run(0, TINY)
    assert found["short"] == experiment.run_short(0)
    assert set(found["short"]) == {"own", "other"}
    assert set(found["bits"]) == {"none", "class", "edges"}
    for stage in found["stages"].values():
        assert set(stage) == {"psnr", "used", "perplexity", "norm"}
    assert set(found["stages"]) == {"images", "edges"}
    assert found["bits"]["none"]["own"] == found["bits"]["none"]["other"]
    for name in ("class", "edges"):
        assert found["bits"][name]["own"] != found["bits"][name]["other"]
    assert set(found["orders"]) == {"raster", "column", "spiral"}
    assert found["orders"]["raster"] == found["bits"]["none"]["own"]
    assert len(set(found["orders"].values())) == 3
    assert found["keeps"]["keep"] == [1.0, 0.9, 0.5]
    for part in ("train", "test"):
        assert len(set(found["keeps"][part])) == 3
        assert all(math.isfinite(value) for value in found["keeps"][part])
    filters = {"all", "tempered", "top_k", "nucleus"}
    assert set(found["samples"]) == filters | {"test", "reconstructions"}
    assert found["samples"]["all"]["possible"] == found["samples"]["tempered"]["possible"] == 1
    assert set(found["followed"]) == {"reconstructions", "none", "class", "edges"}
    shown = {f"classes_{name}" for name in filters}
    assert set(found["pictures"]) == shown | {"from_edges", "test", "edges", "coded_edges"}


def test_other_seeds_keep_no_pictures(tiny):
    found = experiment.run(1, TINY)
    assert "pictures" not in found
    assert found["short"] != experiment.run_short(0)


def test_the_data_are_codes_with_their_conditions(world, images):
    for part, split, count in ((world.train, 0, 70), (world.test, 1, 9)):
        shown = images[split][:count]
        assert torch.equal(part.codes, world.images.model.codes(shown))
        assert torch.equal(part.conditions["edges"], world.edges.model.codes(edges(shown)))
        assert torch.equal(part.conditions["class"], torch.arange(count) % 10)
        assert torch.equal(part.conditions["none"], torch.zeros(count, dtype=torch.int64))
        assert part.pair("class") == (part.codes, part.conditions["class"])


def test_both_autoencoders_start_from_seeds_of_their_own(world):
    first, second = (w.model.encoder.halves[0].weight for w in (world.images, world.edges))
    assert not torch.allclose(first, second, atol=0.05)


def test_priors_differ_in_their_prefix_alone():
    built = {name: experiment.started(name, 3, experiment.SMALL) for name in experiment.CONDITIONS}
    assert {name: model.transformer.prefix for name, model in built.items()} == {
        "none": 1,
        "class": 1,
        "edges": 49,
    }
    assert (built["none"].prefix.classes, built["class"].prefix.classes) == (1, 10)
    networks = [built[name].transformer.parameters() for name in ("none", "class")]
    assert all(torch.equal(one, two) for one, two in zip(*networks, strict=True))
    spiral = experiment.started("none", 3, experiment.SMALL, "spiral").transformer
    assert torch.equal(spiral.order, experiment.orders.spiral(7, 7))
    assert torch.equal(spiral.head.weight, built["none"].transformer.head.weight)


def test_prefix_and_transformer_are_drawn_from_streams_of_their_own():
    for name, make in {
        "class": lambda seed: ClassPrefix(10, 64, generator(seed)),
        "edges": lambda seed: CodePrefix(128, 49, 64, generator(seed)),
    }.items():
        built = experiment.started(name, 3, experiment.SMALL)
        expected = CausalTransformer(7, 7, 128, 64, 2, 4, generator(30_003), built.prefix.vectors)
        for one, two in zip(built.transformer.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, two)
        assert torch.equal(built.prefix.table, make(60_003).table)
        assert not torch.equal(built.prefix.table, make(30_003).table)


def test_what_is_left_out_and_replaced_is_what_the_chapter_says():
    assert experiment.KEEPS == (1.0, 0.9, 0.5)
    assert experiment.ORDERS == ("raster", "column", "spiral")
    logits = torch.randn(5, 128, generator=generator())
    expected = {
        "all": logits,
        "tempered": tempered(logits, 0.5),
        "top_k": top_k(logits, 8),
        "nucleus": nucleus(logits, 0.7),
    }
    assert list(experiment.FILTERS) == list(expected)
    for name, filter in experiment.FILTERS.items():
        assert torch.equal(filter(logits), expected[name]), name


def test_a_short_run_knows_the_class(tiny):
    found = experiment.run_short(0)
    shown = vq_vae_training.grey("train", 40), vq_vae_training.grey("test", 8)
    stage = experiment.code_priors.first_stage(*shown, 0, 2)
    prior = experiment.started("class", 0, TINY)
    experiment.fit(prior, stage.train, torch.arange(40) % 10, 0, 2, 1e-2, 8)
    assert found["own"] == bits_per_code(prior, stage.test, torch.arange(8))


def test_a_false_condition_is_that_of_the_next_image(world, models):
    codes, labels = world.test.pair("class")
    found = experiment.own_and_other(models["class"], codes, labels)
    following = torch.tensor([*range(1, 9), 0])
    assert found["own"] == bits_per_code(models["class"], codes, labels)
    assert found["other"] == bits_per_code(models["class"], codes, following)


def test_orders_that_are_known_are_not_trained_again(world):
    known = {"raster": 1.0, "column": 2.0}
    found = experiment.order_bits(world, 0, TINY, known)
    model = experiment.trained(world, "none", 0, TINY, "spiral")
    expected = bits_per_code(model, *world.test.pair("none"))
    assert found == known | {"spiral": expected}


def test_corruption_is_measured_on_the_few_grids_of_its_training(world, monkeypatch):
    seen = []

    def fit(prior, codes, condition, seed, steps, rate, batch, keep):
        seen.append((codes, condition, seed, steps, rate, batch, keep))

    monkeypatch.setattr(experiment, "fit", fit)
    found = experiment.keep_bits(world, 4, TINY)
    assert [call[-1] for call in seen] == found["keep"] == [1.0, 0.9, 0.5]
    for codes, condition, *rest in seen:
        assert torch.equal(codes, world.train.codes[:20])
        assert condition.shape == (20,)
        assert rest[:4] == [4, 2, 1e-2, 8]
    # Without a training all three are the start.
    start = experiment.started("none", 4, TINY)
    few = world.train.codes[:20], world.train.conditions["none"][:20]
    assert found["train"] == [bits_per_code(start, *few)] * 3
    assert found["test"] == [bits_per_code(start, *world.test.pair("none"))] * 3


def test_samples_of_each_class_are_judged(world, models, images, monkeypatch):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    calls = []
    monkeypatch.setattr(experiment, "judge", lambda *given: calls.append(given) or network)
    found = experiment.judged(world, models["class"], *images, 2, TINY)
    ((shown, labels, *rest),) = calls
    assert torch.equal(shown, images[0][:70])
    assert torch.equal(labels, torch.arange(70) % 10)
    assert rest == [10, 2, 2]
    wanted = torch.arange(20) // 2
    noise = priors.grid_noise(models["class"], 20, 40_002)
    for name, filter in experiment.FILTERS.items():
        drawn = sample_grids(models["class"], 20, noise, filter, wanted)
        decoded = world.images.model.decode(drawn).detach()
        possible = possible_share(models["class"], *world.test.pair("class"), filter)
        assert found[name] == {**quality(network, decoded, wanted), "possible": possible}
    test_labels = world.test.conditions["class"]
    assert found["test"] == quality(network, images[1], test_labels)
    again = world.images.model.decode(world.test.codes).detach()
    assert found["reconstructions"] == quality(network, again, test_labels)


def test_edges_of_samples_are_compared_with_those_of_the_images(world, models, images):
    found = experiment.followed(world, models, images[1], 0)
    again = world.images.model.decode(world.test.codes[:5]).detach().clamp(0, 1)
    expected = (edges(again) - edges(images[1][:5])).abs().mean().item()
    assert found["reconstructions"] == pytest.approx(expected, rel=1e-6)
    noise = priors.grid_noise(models["edges"], 5, 40_000)
    drawn = models["edges"].sample(5, noise, world.edges.test[:5])
    decoded = world.images.model.decode(drawn).detach().clamp(0, 1)
    expected = (edges(decoded) - edges(images[1][:5])).abs().mean().item()
    assert found["edges"] == pytest.approx(expected, rel=1e-6)


def test_pictures_are_decoded_samples_for_the_conditions(world, models, images):
    sheets = experiment.sheets(world, models, images[1], 0)
    wanted = torch.arange(30) // 3
    noise = priors.grid_noise(models["class"], 30, 80_000)
    for name, filter in experiment.FILTERS.items():
        drawn = sample_grids(models["class"], 30, noise, filter, wanted)
        expected = pictures.to_levels(world.images.model.decode(drawn).detach())
        assert torch.equal(pictures.decode(sheets[f"classes_{name}"]), expected)
    lines = world.edges.test[[0, 1, 2, 0, 1, 2]]
    drawn = models["edges"].sample(6, priors.grid_noise(models["edges"], 6, 80_000), lines)
    expected = {
        "from_edges": world.images.model.decode(drawn),
        "test": images[1][:3],
        "edges": edges(images[1][:3]),
        "coded_edges": world.edges.model.decode(world.edges.test[:3]),
    }
    for name, tiles in expected.items():
        assert torch.equal(pictures.decode(sheets[name]), pictures.to_levels(tiles.detach()))


def test_the_data_are_those_of_the_other_experiments():
    assert experiment.data_digest() == vae_training.data_digest()
