"""Compressors of several code lengths on photographs of our own."""

import math

import pytest
import torch

from gradbook import photographs, pictures
from gradbook.experiments import code_lengths as experiment

SCALE = experiment.Scale(4, 3, 1, 2, 4, 2e-3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(height, width, seed=0):
    """Smooth colours, as a photograph has."""
    coarse = torch.rand(1, 3, 4, 4, generator=generator(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return pictures.to_levels(fine)[0]


@pytest.fixture
def tiny(monkeypatch):
    """Puts small pictures in the place of the photographs, and shortens the training."""
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    made = {name: picture(70, 72, seed=i) for i, name in enumerate(photographs.NAMES)}
    monkeypatch.setattr(photographs, "photograph", made.__getitem__)
    monkeypatch.setattr(experiment, "SMALL", SCALE)
    monkeypatch.setattr(experiment, "SHORT_STEPS", 2)
    monkeypatch.setattr(experiment, "CODEBOOKS", (4, 16, 32))
    monkeypatch.setattr(experiment, "CODES", 16)


def test_a_tiny_run_has_all_its_parts(tiny):
    found = experiment.run(0, SCALE)
    assert set(found) == {"short", "codebooks", "sides"}
    assert list(found["codebooks"]) == ["4", "16", "32"]
    assert list(found["sides"]) == ["2", "4", "8"]
    assert found["codebooks"]["16"] == found["sides"]["4"]
    columns = {"psnr", "used", "perplexity", "norm", "bits_per_pixel", "seconds"}
    for part in ("codebooks", "sides"):
        for codes, row in found[part].items():
            assert set(row) == columns
            assert 1 <= row["used"] <= (int(codes) if part == "codebooks" else 16)
            assert row["perplexity"] <= row["used"] * (1 + 1e-9)
            assert row["seconds"] > 0
    assert list(found["short"]) == ["4", "32"]
    again, other = experiment.run_short(0), experiment.run_short(1)
    for codes, row in found["short"].items():
        assert row["psnr"] == again[codes]["psnr"] != other[codes]["psnr"]


def test_bits_of_a_pixel_by_hand(tiny):
    found = experiment.run(0, SCALE)
    rates = {codes: row["bits_per_pixel"] for codes, row in found["codebooks"].items()}
    assert rates == {"4": 2 / 16, "16": 4 / 16, "32": 5 / 16}
    rates = {side: row["bits_per_pixel"] for side, row in found["sides"].items()}
    assert rates == {"2": 1.0, "4": 0.25, "8": 4 / 64}


def test_all_patches_have_as_many_codes(tiny):
    for halvings, side in {1: 16, 2: 32, 3: 64}.items():
        train, held_out = experiment.cut(halvings)
        assert train.shape[1:] == held_out.shape[1:] == (3, side, side)
        expected = photographs.held_out_patches(side, side)
        assert torch.equal(pictures.to_levels(held_out), expected)
        expected = photographs.training_patches(side, side // 4)
        assert torch.equal(pictures.to_levels(train), expected)
        model = experiment.vqgan_networks.started(
            lambda vectors, draws: experiment.quantizer(vectors, draws, 8),
            train,
            0,
            4,
            3,
            1,
            halvings,
        )
        assert model.codes(held_out[:2]).shape == (2, 8, 8)


def test_codes_start_at_different_vectors():
    vectors = torch.randn(40, 3, generator=generator())
    codebook = experiment.quantizer(vectors, generator(1), 16).codebook
    assert len(codebook.unique(dim=0)) == 16
    assert ((codebook[:, None] == vectors).all(2).sum(1) == 1).all()
    assert not torch.equal(codebook, experiment.quantizer(vectors, generator(2), 16).codebook)


def test_the_numbers_are_those_of_the_chapter():
    assert tuple(range(3)) == experiment.SEEDS
    assert experiment.CODEBOOKS == (16, 64, 256, 1024)
    assert experiment.CODES in experiment.CODEBOOKS
    assert experiment.HALVINGS in experiment.DEPTHS
    assert [math.log2(experiment.CODES) / 4**h for h in experiment.DEPTHS] == [2, 0.5, 0.125]
    assert experiment.data_digest() == photographs.digest()


def test_the_large_scale_runs(tiny):
    large = experiment.FULL._replace(steps=1, batch=2, width=8)
    found = experiment.compressor(experiment.cut(1), 1, 4, 0, large)
    assert math.isfinite(found["psnr"])
