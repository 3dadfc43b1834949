"""Measures of an autoencoder with discrete codes, against their definitions."""

import math

import pytest
import torch

from gradbook import vq_vae
from gradbook import vq_vae_measures as measuring
from gradbook.quantizer_variants import GumbelCodebook, ResidualCodebook, normal_codebook
from gradbook.quantizers import EmaCodebook

K, D = 6, 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=11, seed=1):
    return torch.rand(n, 1, 8, 8, generator=generator(seed), dtype=torch.float32)


def one_book():
    return EmaCodebook(0.1 * normal_codebook(K, D, generator(7)))


def two_books():
    return ResidualCodebook([0.1 * normal_codebook(k, D, generator(k)) for k in (4, 3)])


def model(make=one_book):
    return vq_vae.build(1, 4, D, 1, make(), generator(3))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(measuring, "CHUNK", 4)


def test_psnr_is_that_of_all_pixels_together():
    built, x = model(), images()
    with torch.no_grad():
        error = (built(x).images.double() - x.double()).square().mean().item()
    assert measuring.psnr(built, x) == pytest.approx(10 * math.log10(1 / error), rel=1e-6)


def test_an_error_of_a_tenth_is_20_decibels():
    built = model()
    for parameter in built.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.full((3, 1, 8, 8), 0.1)
    assert measuring.psnr(built, x) == pytest.approx(20, abs=1e-5)
    assert measuring.psnr(built, 0 * x) == math.inf


@pytest.mark.parametrize("make", [one_book, two_books])
def test_chunks_are_put_together(make):
    built, x = model(make), images()
    with torch.no_grad():
        assert torch.equal(measuring.codes(built, x), built.codes(x))
        torch.testing.assert_close(measuring.vectors(built, x), built.vectors(x).flatten(0, 2))


@pytest.mark.parametrize("make", [one_book, two_books])
def test_one_pass_finds_what_three_find(make):
    built, x = model(make), images()
    found = measuring.measures(built, x)
    rows = measuring.codes(built, x).flatten(0, 2)
    assert (found.used, found.perplexity) == measuring.code_usage(rows)
    lengths = measuring.vectors(built, x).square().sum(-1).sqrt()
    assert found.norm == pytest.approx(lengths.mean().item(), rel=1e-6)
    assert found.psnr == measuring.psnr(built, x)


@pytest.mark.parametrize(
    ("rows", "used", "perplexity"),
    [
        ([5, 5, 5, 5], 1, 1),
        ([0, 9, 9, 0], 2, 2),
        ([3, 3, 3, 8], 2, 4 / 27**0.25),
        ([[0, 1], [1, 0], [0, 0], [1, 1]], 4, 4),
        ([[2, 1], [2, 1], [2, 0], [2, 0]], 2, 2),
    ],
)
def test_codes_are_counted_as_whole_rows(rows, used, perplexity):
    found = measuring.code_usage(torch.tensor(rows))
    assert found == pytest.approx((used, perplexity), rel=1e-12)


def test_evaluation_is_without_noise_and_ends():
    built, x = model(lambda: GumbelCodebook(D, K, 1.0, 0.0, generator(5))), images()
    built.train()
    assert torch.equal(measuring.codes(built, x), measuring.codes(built, x))
    assert measuring.measures(built, x) == measuring.measures(built, x)
    assert built.training
    assert built.quantizer.training
    built.eval()
    measuring.psnr(built, x)
    assert not built.training
    assert torch.is_grad_enabled()


def test_evaluation_ends_after_an_error_too():
    built = model()
    built.train()
    with pytest.raises(ValueError, match="^images: "):
        measuring.psnr(built, images() / 0)
    assert built.training


def test_no_code_has_no_usage():
    with pytest.raises(ValueError, match="^rows: must not be empty"):
        measuring.code_usage(torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize(
    "measure",
    [
        measuring.measures,
        measuring.psnr,
        measuring.codes,
        measuring.vectors,
    ],
)
def test_no_images_have_no_measures(measure):
    with pytest.raises(ValueError, match="^images: must not be empty"):
        measure(model(), images(0))


def test_another_default_device_is_left_alone():
    built, x = model(), images()
    with torch.device("meta"):
        assert measuring.measures(built, x).psnr < 100
