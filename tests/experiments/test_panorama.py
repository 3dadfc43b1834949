"""The panoramas on photographs of our own, and the experiment's parts."""

import math

import pytest
import torch

from gradbook import photographs, pictures, priors
from gradbook import window_priors as windowed
from gradbook.experiments import colour_patches
from gradbook.experiments import panorama as experiment

TINY = experiment.Scale(4, 2, (8, 1, 2), 3, 2, 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(height, width, seed=0):
    """Smooth colours, as a photograph has."""
    coarse = torch.rand(1, 3, 4, 4, generator=generator(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return pictures.to_levels(fine)[0]


@pytest.fixture
def tiny(monkeypatch):
    """Puts small pictures in the place of the photographs, and shortens the trainings."""
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    made = {name: picture(99, 108 + i, seed=i) for i, name in enumerate(photographs.NAMES)}
    monkeypatch.setattr(photographs, "photograph", made.__getitem__)
    monkeypatch.setattr(colour_patches, "CODES", 16)
    monkeypatch.setattr(colour_patches, "DIM", 3)
    monkeypatch.setattr(experiment, "LONG", 16)
    monkeypatch.setattr(experiment, "SHORT", TINY)


@pytest.fixture
def model(tiny):
    return experiment.compressor(0, TINY)


def codes_of(height, width, seed=0, count=1):
    return torch.randint(16, (count, height, width), generator=generator(seed))


def test_a_tiny_run_has_all_its_parts_and_only_the_first_seed_has_pictures(tiny):
    first, second = experiment.run(0, TINY), experiment.run(1, TINY)
    parts = {"short", "bits", "panoramas", "bands", "seconds"}
    assert set(second) == parts
    assert set(first) == parts | {"pictures"}
    assert set(first["bits"]) == {"train", "held_out"}
    for group in first["bits"].values():
        assert set(group) == {"border", "interior"}
        for bits in group.values():
            assert set(bits) == {"blind", "placed", "turned"}
            assert all(0 < value < 8 for value in bits.values())
    assert set(first["panoramas"]) == {"blind", "placed", "tiles"}
    assert set(first["bands"]) == {"photographs", "blind", "placed"}
    assert {len(rows) for rows in first["bands"].values()} == {8}
    assert min(first["seconds"].values()) > 0
    assert first["short"] == experiment.run_short(0) != second["short"]
    for name in ("blind", "placed", "tiles"):
        assert pictures.decode(first["pictures"][name]).shape == (2, 32, 64, 3)


def test_the_default_scale_is_the_records():
    assert experiment.run.__defaults__ == (experiment.SMALL,)
    assert tuple(range(3)) == experiment.SEEDS
    assert experiment.LONG == 8 * experiment.SIDE
    assert experiment.FULL.steps > experiment.SMALL.steps
    assert set(experiment.SHORT_NAMES) <= set(photographs.TRAINING)


def test_a_photograph_is_coded_whole(model):
    found = experiment.coded(model, "rocket")
    image = pictures.from_levels(photographs.cropped("rocket")[None])
    assert found.shape == (1, 24, 28)
    assert torch.equal(found, model.codes(image))


def test_both_priors_are_trained_from_their_seed(tiny):
    grids = [codes_of(12, 13), codes_of(14, 12, 1)]
    models, seconds = experiment.trained(grids, 4, TINY)
    assert set(models) == set(seconds) == {"blind", "placed"}
    for kind, make in (("blind", windowed.blind), ("placed", windowed.placed)):
        own = make(8, 16, (8, 1, 2), 40_004)
        windowed.fit(own, grids, 4, 3, experiment.RATE, 2)
        for one, two in zip(models[kind].parameters(), own.parameters(), strict=True):
            assert torch.equal(one, two)


def test_tiles_are_windows_side_by_side(tiny):
    prior = windowed.blind(8, 16, (8, 1, 2), 0)
    found = experiment.tiles(prior, 3, 5)
    noise = priors.grid_noise(prior.transformer, 6, 4_005)
    windows = prior.transformer.sample(6, noise)
    assert found.shape == (3, 8, 16)
    for n in range(3):
        assert torch.equal(found[n], torch.cat([windows[2 * n], windows[2 * n + 1]], 1))


def test_windows_at_the_edges_and_inside():
    codes = torch.arange(30 * 33).view(1, 30, 33)
    found = experiment.edge_windows(codes)
    tops, lefts = (found["border"].codes[:, 0, 0] // 33, found["border"].codes[:, 0, 0] % 33)
    expected = {(i, j) for i in range(23) for j in range(26) if i in (0, 22) or j in (0, 25)}
    assert set(zip(tops.tolist(), lefts.tolist(), strict=True)) == expected
    assert len(tops) == len(expected)
    inside = found["interior"].codes
    corners = [(row // 33, row % 33) for row in inside[:, 0, 0].tolist()]
    assert corners == [(i, j) for i in (8, 12) for j in (8, 12, 16)]
    # A whole window away from every edge.
    rows, columns = inside // 33, inside % 33
    assert (rows.min(), columns.min()) == (8, 8)
    assert rows.max() < 30 - 8
    assert columns.max() < 33 - 8


def test_bits_are_means_over_photographs_and_turned_ones_are_told_the_place_across():
    grids = [codes_of(24, 25), codes_of(30, 24, 1)]
    models = {kind: make(8, 16, (8, 1, 2), 0) for kind, make in experiment.MAKERS.items()}
    found = experiment.bits_of(models, grids)
    for part in ("border", "interior"):
        own = [experiment.edge_windows(codes)[part] for codes in grids]
        for kind, model in models.items():
            bits = [windowed.bits_per_code(model, windows) for windows in own]
            assert found[part][kind] == pytest.approx(sum(bits) / 2, rel=1e-12)
        across = [windowed.Windows(codes, 1 - places) for codes, places in own]
        bits = [windowed.bits_per_code(models["placed"], windows) for windows in across]
        assert found[part]["turned"] == pytest.approx(sum(bits) / 2, rel=1e-12)


def test_seams_and_drift_by_hand():
    codes = torch.tensor([0] * 8 + [1, 2] * 4).expand(1, 8, 16)
    images = torch.zeros(1, 3, 32, 64)
    # A step of 0.6 at the end of a window, of 0.1 and 0.5 at two ends of codes, and one inside a code.
    for start, height in ((32, 0.6), (4, 0.1), (44, 0.5), (50, 9.0)):
        images[..., start:] += height
    found = experiment.measures(codes, images)
    assert found["seam"] == pytest.approx(0.6)
    assert found["elsewhere"] == pytest.approx(0.6 / 14)
    assert found["left"] == pytest.approx(1)
    assert found["right"] == pytest.approx(2)
    assert found["shift"] == pytest.approx(1)
    same = experiment.measures(torch.tensor([3, 4]).repeat(8).expand(2, 8, 16), images)
    assert same["shift"] == 0
    assert same["left"] == same["right"] == pytest.approx(2)


def test_brightness_is_that_of_eighths(tiny):
    images = torch.arange(8.0).repeat_interleave(4)[None, None, :, None].expand(2, 3, 32, 5)
    assert experiment.brightness(images) == pytest.approx(list(range(8)))
    rows = [
        experiment.brightness(pictures.from_levels(photographs.cropped(name)[None]))
        for name in photographs.TRAINING
    ]
    means = torch.tensor(rows).mean(0).tolist()
    assert experiment.photograph_brightness() == pytest.approx(means, rel=1e-6)
    assert all(math.isfinite(value) for value in means)


def test_the_data_are_the_photographs():
    assert experiment.data_digest() == photographs.digest()
