"""The colour experiment on photographs of our own, and its parts."""

import math
from types import SimpleNamespace

import pytest
import torch

from gradbook import photographs, pictures, priors
from gradbook.experiments import colour_patches as experiment
from gradbook.vae_training import Curve

SIDES = {"coffee": (72, 68), "rocket": (67, 97)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(height, width, seed=0):
    """Smooth colours, as a photograph has."""
    coarse = torch.rand(1, 3, 4, 4, generator=generator(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return pictures.to_levels(fine)[0]


@pytest.fixture
def stand_ins(monkeypatch):
    """Puts small pictures in the place of the photographs."""
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    made = {
        name: picture(*SIDES.get(name, (80, 90)), seed=i)
        for i, name in enumerate(photographs.NAMES)
    }
    monkeypatch.setattr(photographs, "photograph", made.__getitem__)
    return made


@pytest.fixture
def tiny(monkeypatch, stand_ins):
    """Shortens the training, and makes the networks small."""
    for name, value in {
        "WIDTH": 4,
        "DIM": 3,
        "CODES": 16,
        "STEPS": 3,
        "POINTS": (0, 3),
        "MEASURED": 10,
        "PRIOR_SIZES": (8, 1, 2),
        "PRIOR_STEPS": 2,
        "PRIOR_BATCH": 5,
        "PRIOR_POINTS": (0, 2),
        "SHORT_STEPS": 2,
        "SHOWN": 4,
        "SAMPLES": 3,
        "CROP": (slice(8, 24), slice(4, 28)),
        "QUALITIES": (5, 50),
    }.items():
        monkeypatch.setattr(experiment, name, value)


@pytest.fixture
def model(tiny):
    return experiment.started(experiment.training_images(), 0).eval()


def test_a_tiny_run_has_all_its_parts_and_only_the_first_seed_has_pictures(tiny):
    first, second = experiment.run(0), experiment.run(1)
    parts = {"short", "bits_in", "bits_out", "curve", "final", "photographs", "bits"}
    parts |= {"prior_curve", "seconds"}
    assert set(second) == parts
    assert set(first) == parts | {"pictures"}
    assert (first["bits_in"], first["bits_out"]) == (24_576, 64 * 4)
    for curve, steps in (("curve", [0, 3]), ("prior_curve", [0, 2])):
        assert first[curve]["steps"] == steps
        assert {len(first[curve][part]) for part in ("train", "held_out")} == {2}
    for part in ("train", "held_out"):
        final = first["final"][part]
        assert set(final) == {"psnr", "used", "perplexity", "norm"}
        assert final["psnr"] == pytest.approx(first["curve"][part][-1], rel=1e-6)
    assert set(first["photographs"]) == set(photographs.HELD_OUT)
    assert first["short"] == experiment.run_short(0) != second["short"]
    assert all(value > 0 for value in first["seconds"].values())
    sizes = {"patches": (8, 32, 32, 3), "samples": (3, 32, 32, 3), "coffee": (2, 16, 24, 3)}
    for name, size in sizes.items():
        assert pictures.decode(first["pictures"][name]).shape == size


def test_the_numbers_are_those_of_the_chapter():
    assert tuple(range(5)) == experiment.SEEDS
    assert (experiment.CODES, experiment.POINTS[-1]) == (256, experiment.STEPS)
    assert experiment.PRIOR_POINTS[-1] == experiment.PRIOR_STEPS
    rows, columns = experiment.CROP
    assert (rows.stop - rows.start) % 4 == (columns.stop - columns.start) % 4 == 0


def test_training_patches_are_mixed_and_lose_none(stand_ins):
    found = pictures.to_levels(experiment.training_images())
    cut = photographs.training_patches()
    assert found.shape == cut.shape
    assert not torch.equal(found, cut)
    whole = [sorted(p.numpy().tobytes() for p in patches) for patches in (found, cut)]
    assert whole[0] == whole[1]
    assert torch.equal(found, pictures.to_levels(experiment.training_images()))
    held_out = pictures.to_levels(experiment.held_out_images())
    assert torch.equal(held_out, photographs.held_out_patches())


def test_codes_start_at_different_vectors_of_the_encoder(tiny):
    vectors = torch.randn(40, 3, generator=generator())
    codebook = experiment.quantizer(vectors, generator(1)).codebook
    assert len(codebook.unique(dim=0)) == 16
    places = (codebook[:, None] == vectors).all(2)
    assert (places.sum(1) == 1).all()
    assert not torch.equal(codebook, experiment.quantizer(vectors, generator(2)).codebook)


def test_columns_turn_rows_around():
    rows = Curve([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}], 0.1)
    expected = {"steps": [0, 5], "a": [1.0, 3.0], "b": [2.0, 4.0]}
    assert experiment.columns((0, 5), rows) == expected


def test_nothing_but_codes_passes(model):
    image = photographs.cropped("rocket")
    codes, again = experiment.through_codes(model, image)
    assert codes.shape == (16, 24)
    assert again.shape == image.shape
    with torch.no_grad():
        direct = model(pictures.from_levels(image[None])).images
    difference = (again.int() - pictures.to_levels(direct)[0].int()).abs().max()
    assert difference <= 1


def test_a_whole_photograph_costs_half_a_bit_a_pixel(model):
    found = experiment.coded_whole(model, "rocket")
    assert found["bits_per_pixel"] == 4 / 16
    codes, again = experiment.through_codes(model, photographs.cropped("rocket"))
    error = (again.double() - photographs.cropped("rocket").double()).square().mean().item()
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / error), rel=1e-12)
    assert found["used"] == len(set(codes.flatten().tolist())) <= 16


@pytest.mark.parametrize("limit", [3.0, 1.5, 0.01])
def test_the_reference_shows_the_best_file_within_the_codes_bits(tiny, monkeypatch, limit):
    monkeypatch.setattr(experiment, "CODES", 2 ** (16 * limit))
    found = experiment.reference()
    assert set(found["jpeg"]) == set(photographs.HELD_OUT)
    curve = found["jpeg"]["coffee"]
    fitting = [i for i, bits in enumerate(curve["bits_per_pixel"]) if bits <= limit] or [0]
    assert found["pictures"]["bits_per_pixel"] == curve["bits_per_pixel"][fitting[-1]]
    _, again = pictures.jpeg(photographs.cropped("coffee"), curve["quality"][fitting[-1]])
    tile = pictures.decode(found["pictures"]["coffee_jpeg"])
    assert torch.equal(tile[0], again[8:24, 4:28])


def test_bits_without_a_network_by_hand(monkeypatch):
    monkeypatch.setattr(experiment, "CODES", 3)
    monkeypatch.setattr(experiment, "MEASURED", 1)
    train = torch.tensor([[[0, 1]], [[0, 0]]])
    held_out = torch.tensor([[[2, 1]]])
    found = experiment.table_bits(train, held_out)
    p = [4 / 7, 2 / 7, 1 / 7]
    assert found["uniform"] == pytest.approx(2 * math.log2(3), rel=1e-12)
    assert found["frequencies"]["train"] == pytest.approx(-math.log2(p[0] * p[1]), rel=1e-12)
    assert found["frequencies"]["held_out"] == pytest.approx(-math.log2(p[2] * p[1]), rel=1e-12)


def test_the_priors_curve_is_in_bits_of_a_patch(tiny):
    codes = torch.randint(16, (30, 2, 3), generator=generator())
    prior, curve = experiment.fitted_prior(codes, codes[:7], 0)
    assert [set(row) for row in curve.values] == [{"train", "held_out"}] * 2
    last = curve.values[-1]
    with torch.no_grad():
        log_probs = {"train": prior.log_prob(codes[:10]), "held_out": prior.log_prob(codes[:7])}
    for part, value in log_probs.items():
        assert last[part] == pytest.approx(priors.mean_bits(value, 1), rel=1e-5)
    assert last["train"] == pytest.approx(6 * math.log2(16), rel=0.1)
    assert isinstance(prior, priors.CausalTransformer)


def test_pictures_show_patches_above_their_reconstructions(model):
    images = experiment.held_out_images()
    prior, _ = experiment.fitted_prior(model.codes(images), model.codes(images), 0)
    found = experiment.drawn(model, prior, images, 0)
    tiles = pictures.decode(found["patches"])
    step = len(images) // 4
    shown = images[[0, step, 2 * step, 3 * step]]
    assert torch.equal(tiles[:4], pictures.to_levels(shown))
    assert torch.equal(tiles[4:], pictures.to_levels(model.decode(model.codes(shown)).detach()))
    crops = pictures.decode(found["coffee"])
    coffee = photographs.cropped("coffee")
    assert torch.equal(crops[0], coffee[8:24, 4:28])
    assert torch.equal(crops[1], experiment.through_codes(model, coffee)[1][8:24, 4:28])
    assert found == experiment.drawn(model, prior, images, 0)
    assert found["samples"] != experiment.drawn(model, prior, images, 1)["samples"]


def test_samples_are_codes_of_the_prior_decoded(model, monkeypatch):
    drawn = torch.randint(16, (3, 8, 8), generator=generator())
    shapes = []

    def sample(count, noise):
        shapes.append((count, *noise.shape))
        return drawn

    found = experiment.drawn(model, SimpleNamespace(sample=sample), experiment.held_out_images(), 0)
    assert shapes == [(3, 3, 8, 8, 16)]
    expected = pictures.to_levels(model.decode(drawn).detach())
    assert torch.equal(pictures.decode(found["samples"]), expected)


def test_the_data_are_the_photographs():
    assert experiment.data_digest() == photographs.digest()
