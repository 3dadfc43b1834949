"""Other quantizers on images of our own: bits that agree, and a run with all its parts."""

import math

import pytest
import torch

from gradbook import vq_vae_training as training
from gradbook.experiments import vq_alternatives as experiment
from gradbook.experiments import vq_codebooks
from gradbook.quantizer_variants import (
    GumbelCodebook,
    Identity,
    ResidualCodebook,
    RotatedCodebook,
    ScalarQuantizer,
)
from gradbook.quantizers import RestartedCodebook
from gradbook.vq_vae_afterwards import FixedCodebook

COLUMNS = {"psnr", "used", "perplexity", "codes", "bits", "seconds"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tiny(monkeypatch, stand_in):
    """Stands in for Fashion-MNIST, and shortens the training."""
    stand_in(train=40, test=9)
    for name, value in {
        "STEPS": 2,
        "TUNING_STEPS": 1,
        "K_MEANS_STEPS": 2,
        "TEST_IMAGES": 8,
        "SHORT_STEPS": 1,
        "SHORT_IMAGES": (36, 5),
    }.items():
        monkeypatch.setattr(experiment, name, value)


def vectors(n=200):
    return torch.randn(n, 16, generator=generator(1), dtype=torch.float32)


def test_a_tiny_run_has_all_its_parts(tiny):
    found = experiment.run(0)
    rows = found["methods"]
    assert (found["steps"], found["tuning_steps"]) == (2, 1)
    assert list(rows) == [*experiment.METHODS, "plain", "afterwards", "tuned"]
    for name, row in rows.items():
        assert set(row) == COLUMNS
        assert all(math.isfinite(value) for value in row.values())
        assert 1 <= row["perplexity"] <= row["used"] + 1e-9
        assert row["used"] <= row["codes"]
        assert row["seconds"] > 0
        bits = {"residual_double": 14, "plain": 0}.get(name, 7)
        assert row["bits"] == pytest.approx(bits, abs=1e-12)
    assert (rows["plain"]["used"], rows["plain"]["perplexity"]) == (1, 1)
    # The decoder alone is trained on: the codes are the same, the pictures are not.
    for name in ("used", "perplexity"):
        assert rows["tuned"][name] == rows["afterwards"][name]
    assert rows["tuned"]["psnr"] != rows["afterwards"]["psnr"]
    assert rows["afterwards"]["seconds"] == rows["plain"]["seconds"]
    assert found["short"] == experiment.run_short(0)
    assert set(found["short"]) == {"psnr", "used", "perplexity"}


def test_the_codes_afterwards_are_those_of_the_plain_vectors(tiny, monkeypatch):
    seen = []

    def spying(model, vectors, k, generator, steps):
        seen.append((model, vectors, k, steps))
        return afterwards(model, vectors, k, generator, steps)

    afterwards = experiment.k_means_afterwards
    monkeypatch.setattr(experiment, "k_means_afterwards", spying)
    experiment.run(0)
    ((model, found, k, steps),) = seen
    assert isinstance(model.quantizer, Identity)
    assert torch.equal(found, training.vectors(model, training.grey("train")))
    assert (k, steps) == (128, 2)


def test_every_method_is_the_quantizer_that_its_name_says():
    z = vectors()
    kinds = {
        "restarts": RestartedCodebook,
        "rotation": RotatedCodebook,
        "gumbel": GumbelCodebook,
        "scalar": ScalarQuantizer,
        "residual": ResidualCodebook,
        "residual_double": ResidualCodebook,
    }
    codes = {"residual_double": 128**2}
    assert set(kinds) == set(experiment.METHODS)
    for name, kind in kinds.items():
        made = experiment.METHODS[name](z, generator())
        assert type(made) is kind
        assert made.codes == codes.get(name, 128)
        assert made(z).values.shape == z.shape
    stages = experiment.residual(z, generator()).codebooks
    assert [tuple(stage.shape) for stage in stages] == [(16, 16), (8, 16)]
    assert experiment.METHODS["restarts"] is vq_codebooks.METHODS["restarts"]
    assert type(experiment.without_codes(z, generator())) is Identity


def test_a_row_measures_the_model_that_it_is_given(tiny):
    train, test = training.grey("train"), training.grey("test")
    model = training.started(vq_codebooks.with_restarts, train, 0)
    found = training.measures(model, test)
    row = experiment.row(model, test, 0.5)
    assert (row["psnr"], row["used"], row["perplexity"]) == found[:3]
    assert (row["codes"], row["bits"], row["seconds"]) == (128, 7, 0.5)
    model.quantizer = FixedCodebook(vectors(2))
    assert experiment.row(model, test, 0.5)["bits"] == 1


def test_the_model_the_data_and_the_steps_are_those_of_the_codebooks():
    assert experiment.SEEDS == (0, 1, 2, 3, 4)
    assert experiment.data_digest() == vq_codebooks.data_digest()
    for name in ("STEPS", "RATE", "TEST_IMAGES", "CODES", "SHORT_STEPS", "SHORT_IMAGES"):
        assert getattr(experiment, name) == getattr(vq_codebooks, name)
