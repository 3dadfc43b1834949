"""Networks with any number of halvings, against those of the VQ-VAE, and their start."""

import pytest
import torch
from torch import nn

from gradbook import vq_vae, vq_vae_training, vqgan_networks
from gradbook.quantizer_variants import normal_codebook
from gradbook.quantizers import RestartedCodebook
from gradbook.vq_vae_measures import vectors

D = 3


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=40, side=16, channels=3, seed=1):
    return torch.rand(n, channels, side, side, generator=generator(seed), dtype=torch.float32)


def make(vectors, generator):
    return RestartedCodebook(normal_codebook(5, vectors.shape[1], generator))


def same_numbers(a, b):
    """Whatever the names are."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_two_halvings_are_the_networks_of_the_vq_vae():
    sizes = (3, 4, D, 2)
    ours = vqgan_networks.build(*sizes, 2, nn.Identity(), generator(7))
    theirs = vq_vae.build(*sizes, nn.Identity(), generator(7))
    assert same_numbers(ours, theirs)
    x = images(4)
    with torch.no_grad():
        found, expected = ours.vectors(x), theirs.vectors(x)
        assert torch.equal(found, expected)
        assert torch.equal(ours.pixels(found), theirs.pixels(expected))


def test_two_halvings_start_as_the_vq_vae():
    ours = vqgan_networks.started(make, images(), 3, 4, D, 1)
    theirs = vq_vae_training.started(make, images(), 3, 4, D, 1)
    assert same_numbers(ours, theirs)


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_a_code_stands_for_a_square(halvings):
    model = vqgan_networks.started(make, images(), 0, 4, D, 1, halvings).double()
    x = images(1).double().requires_grad_()
    found = model.vectors(x)
    assert found.shape == (1, 16 // 2**halvings, 16 // 2**halvings, D)
    assert model.codes(x).shape == found.shape[:3]
    assert model(x).images.shape == x.shape
    assert model.decode(model.codes(x)).shape == x.shape
    assert len(model.encoder.halves) == len(model.decoder.doubles) + 1 == halvings


@pytest.mark.parametrize("halvings", [1, 3])
def test_the_first_vectors_are_standardized(halvings):
    x = images()
    found = vectors(vqgan_networks.started(make, x, 0, 4, D, 1, halvings), x)
    scale, mean = torch.std_mean(found, 0, correction=0)
    torch.testing.assert_close(mean, torch.zeros(D), atol=1e-5, rtol=0)
    torch.testing.assert_close(scale, torch.ones(D), atol=1e-5, rtol=0)


def test_networks_are_float32_under_other_defaults_and_leave_torchs_draws_alone():
    expected = vqgan_networks.started(make, images(), 0, 4, D, 1, 3)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        found = vqgan_networks.started(make, images(), 0, 4, D, 1, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(state, torch.get_rng_state())
    assert same_numbers(expected, found)
    assert all(parameter.dtype == torch.float32 for parameter in found.parameters())


def test_the_seed_decides():
    first, second = (vqgan_networks.started(make, images(), seed, 4, D, 1) for seed in (0, 1))
    assert not same_numbers(first.encoder, second.encoder)
    assert not torch.equal(first.quantizer.codebook, second.quantizer.codebook)


def test_no_images_give_no_vectors():
    model = vqgan_networks.started(make, images(), 0, 4, D, 1, 3)
    assert model.vectors(images(0)).shape == (0, 2, 2, D)
    assert model(images(0)).images.shape == (0, 3, 16, 16)


def built(**changes):
    sizes = {"channels": 3, "width": 4, "dim": D, "blocks": 1, "halvings": 2} | changes
    return vqgan_networks.build(**sizes, quantizer=nn.Identity(), generator=generator())


@pytest.mark.parametrize("size", ["channels", "width", "dim", "halvings"])
def test_a_size_that_is_not_positive_is_refused(size):
    with pytest.raises(ValueError, match=f"^{size}: must be positive, got 0"):
        built(**{size: 0})


def test_negative_blocks_are_refused():
    with pytest.raises(ValueError, match="^blocks: "):
        built(blocks=-1)
    assert not len(built(blocks=0).encoder.blocks)


@pytest.mark.parametrize("shape", [(2, 3, 12, 16), (2, 3, 16, 12), (2, 1, 16, 16), (3, 16, 16)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="^images: "):
        built(halvings=3).encoder(torch.zeros(shape))


def test_what_does_not_start_on_images_is_refused():
    for x in (images()[:, 0], images(0)):
        with pytest.raises(ValueError, match="^images: "):
            vqgan_networks.started(make, x, 0, 4, D, 1)
