"""Codebooks on images of our own: every method is what its name says, and a run has its parts."""

import math

import pytest
import torch

from gradbook import vq_vae_training as training
from gradbook.codebooks import perplexity
from gradbook.experiments import vq_codebooks as experiment
from gradbook.k_means import k_means, k_means_plus_plus
from gradbook.quantizer_variants import normal_codebook
from gradbook.quantizers import (
    CosineCodebook,
    EmaCodebook,
    LossCodebook,
    ProjectedCodebook,
    RestartedCodebook,
)

COLUMNS = {"psnr", "used", "perplexity", "norm"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tiny(monkeypatch, stand_in):
    """Stands in for Fashion-MNIST, and shortens the training."""
    stand_in(train=40, test=9)
    for name, value in {
        "CODES": 12,
        "STEPS": 2,
        "POINTS": (0, 1, 2),
        "BETAS": (0.0, 0.25, 4.0),
        "TEST_IMAGES": 8,
        "FEWER_IMAGES": (1, 3, 8),
        "SHORT_STEPS": 1,
        "SHORT_IMAGES": (36, 5),
    }.items():
        monkeypatch.setattr(experiment, name, value)


def vectors(n=200):
    return torch.randn(n, 16, generator=generator(1), dtype=torch.float32)


def test_a_tiny_run_has_all_its_parts(tiny):
    found = experiment.run(0)
    assert (found["steps"], found["images"]) == ([0, 1, 2], [1, 3, 8])
    assert found["betas"] == [0.0, 0.25, 4.0]
    assert list(found["methods"]) == list(experiment.METHODS)
    assert len(found["commitment"]) == 3
    for study in (*found["methods"].values(), *found["commitment"]):
        assert set(study["curve"]) == COLUMNS
        assert all(len(column) == 3 for column in study["curve"].values())
        assert all(math.isfinite(x) for column in study["curve"].values() for x in column)
        assert study["seconds"] > 0
        assert study["by_images"]["used"] == sorted(study["by_images"]["used"])
        # All the images that are counted are those of the curve.
        for name in ("used", "perplexity"):
            assert study["by_images"][name][-1] == study["curve"][name][-1]
    assert found["commitment"][1] == found["methods"]["loss"]
    assert found["short"] == experiment.run_short(0)
    assert set(found["short"]) == COLUMNS


def test_all_methods_start_from_the_same_networks_and_see_the_same_batches(tiny):
    found = experiment.run(0)
    norms = [study["curve"]["norm"] for study in found["methods"].values()]
    assert len({row[0] for row in norms}) == 1
    # The commitment changes nothing at the start, and something later.
    psnr = [study["curve"]["psnr"] for study in found["commitment"]]
    assert len({row[0] for row in psnr}) == 1
    assert len({row[-1] for row in psnr}) == 3


def test_the_commitment_of_the_sweep_is_that_of_its_name():
    for beta in experiment.BETAS:
        assert experiment.by_loss(beta)(vectors(), generator()).beta == beta
    assert experiment.BETA in experiment.BETAS


def test_every_method_is_the_quantizer_that_its_name_says():
    z = vectors()
    kinds = {
        "loss": LossCodebook,
        "averages": EmaCodebook,
        "k_means": EmaCodebook,
        "restarts": RestartedCodebook,
        "low_dimension": ProjectedCodebook,
        "cosine": CosineCodebook,
    }
    assert set(kinds) == set(experiment.METHODS)
    normal = experiment.normal_start(z, generator())
    for name, kind in kinds.items():
        made = experiment.METHODS[name](z, generator())
        assert type(made) is kind
        assert made.codes == 128
        assert made(z).values.shape == z.shape
        if kind in (EmaCodebook, RestartedCodebook):
            assert (made.decay, made.beta) == (0.99, 0.25)
        if name in ("loss", "averages", "restarts"):
            assert torch.equal(made.codebook, normal)


def test_k_means_starts_from_the_vectors():
    z = vectors()
    made = experiment.from_k_means(z, generator())
    start = k_means_plus_plus(z, 128, generator())
    assert torch.equal(made.codebook, k_means(z, start, experiment.K_MEANS_STEPS))


def test_the_low_dimension_is_four_and_keeps_the_size_of_a_coordinate():
    z = vectors(20_000)
    made = experiment.in_low_dimension(z, generator())
    assert made.inner.codebook.shape == (128, 4)
    low = z @ made.down
    assert low.std().item() == pytest.approx(1, rel=0.3)
    assert (low @ made.up).std().item() == pytest.approx(1, rel=0.6)
    g, dim = generator(), z.shape[1]
    maps = [normal_codebook(dim, 4, g) / dim**0.5, normal_codebook(4, dim, g) / 2]
    assert all(map(torch.equal, (made.down, made.up), maps))


def test_perplexity_is_that_of_the_first_images_together(tiny, monkeypatch):
    train = training.grey("train")
    model = training.started(experiment.with_restarts, train, 0)
    found = experiment.by_images(model, training.grey("test", 8))
    codes = model.codes(training.grey("test"))
    for i, count in enumerate((1, 3, 8)):
        first = codes[:count]
        assert found["perplexity"][i] == pytest.approx(perplexity(first, 12).item())
        assert found["used"][i] == len(first.unique())


def test_the_record_says_what_it_depends_on():
    assert experiment.SEEDS == (0, 1, 2, 3, 4)
    assert len(experiment.data_digest()) == 64
    assert experiment.POINTS[-1] == experiment.STEPS
    assert experiment.FEWER_IMAGES[-1] == experiment.TEST_IMAGES
