"""Edges against scipy, and a network that tells classes which anyone can tell."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from gradbook import vae_training
from gradbook.image_judges import edges, judge, quality
from gradbook.priors.training import rate_factor


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=generator(seed), dtype=dtype)


def test_a_step_from_black_to_white_has_edges_of_one_on_both_sides():
    image = torch.zeros(1, 1, 5, 6)
    image[..., 3:] = 1
    expected = torch.tensor([0, 0, 1, 1, 0, 0.0]).expand(1, 1, 5, 6)
    assert torch.equal(edges(image), expected)
    assert torch.equal(edges(image.transpose(2, 3)), expected.transpose(2, 3))


def test_edges_are_those_of_scipy_cut_off_at_one():
    images = uniform(4, 1, 9, 7)
    found = edges(images)
    largest = 0
    for image, own in zip(images[:, 0].numpy(), found[:, 0].numpy(), strict=True):
        parts = [ndimage.sobel(image, axis, mode="nearest") / 4 for axis in (0, 1)]
        expected = np.hypot(*parts)
        np.testing.assert_allclose(own, expected.clip(max=1), rtol=1e-12, atol=1e-12)
        largest = max(largest, expected.max())
    assert largest < 1
    corner = torch.zeros(1, 1, 4, 4)
    corner[..., 2:, 2:] = 1
    assert edges(corner).max() == 1


def test_an_empty_batch_has_no_edges():
    assert edges(torch.empty(0, 1, 8, 8)).shape == (0, 1, 8, 8)


def bright(count, seed=0):
    """Three classes: which third of the picture is bright."""
    labels = torch.arange(count) % 3
    images = 0.2 * uniform(count, 1, 12, 12, seed=seed, dtype=torch.float32)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * label : 4 * label + 4] += 0.6
    return images, labels


def test_a_judge_tells_what_anyone_can_tell():
    network = judge(*bright(200), 3, 0, 30)
    images, labels = bright(60, seed=1)
    assert network(images).shape == (60, 3)
    assert not network.training
    assert quality(network, images, labels)["accuracy"] == 1
    assert quality(network, images, (labels + 1) % 3)["accuracy"] == 0


def test_a_judge_is_an_encoder_and_a_linear_layer_of_what_is_positive():
    encoder, *_, last = network = judge(*bright(80), 3, 0, 3)
    images, _ = bright(9, seed=1)
    encoded = encoder(images)
    assert (encoded < 0).any()
    assert torch.equal(network(images), last(encoded.relu().flatten(1)))


def test_a_judge_is_trained_at_a_rate_that_falls():
    """From the start, which no step makes, by hand."""
    images, labels = bright(80)
    found, byhand = judge(images, labels, 3, 4, 5), judge(images, labels, 3, 4, 0).train()
    optimizer = torch.optim.Adam(byhand.parameters(), lr=1.0)
    batches = vae_training.minibatches(80, 64, generator(4))
    for step in range(5):
        rows = next(batches)
        optimizer.param_groups[0]["lr"] = 2e-3 * rate_factor(step, 5)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(byhand(images[rows]), labels[rows]).backward()
        optimizer.step()
    for one, two in zip(found.parameters(), byhand.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_judge_depends_on_its_seed_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    weights = [judge(*bright(80), 3, seed, 2)[-1].weight for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].dtype == torch.float32


def test_quality_counts_classes_and_measures_the_variance_within_them():
    images = uniform(700, 1, 4, 4)
    labels = torch.arange(700) % 3
    picked = torch.randint(3, (700,), generator=generator(2))
    logits = torch.nn.functional.one_hot(picked, 3).double()
    chunks = iter(logits.split(500))
    found = quality(lambda images: next(chunks), images, labels)
    assert found["accuracy"] == pytest.approx((picked == labels).double().mean().item(), rel=1e-12)
    total = 0.0
    for label in range(3):
        own = images[labels == label].flatten(1).numpy()
        total += own.var(0).sum() * len(own)
    assert found["spread"] == pytest.approx(total / images.numel(), rel=1e-10)


IMAGES, LABELS = bright(70)
BAD = [
    (lambda: edges(IMAGES[:, 0]), "images: must be \\[n, 1, H, W\\]"),
    (lambda: edges(IMAGES.expand(-1, 3, -1, -1)), "images: must be \\[n, 1, H, W\\]"),
    (lambda: edges(IMAGES + 1), "images: must be from 0 to 1"),
    (lambda: edges(IMAGES / 0), "images: must be from 0 to 1"),
    (lambda: judge(IMAGES - 1, LABELS, 3, 0, 1), "images: must be from 0 to 1"),
    (lambda: judge(IMAGES, LABELS[:5], 3, 0, 1), "labels: must be int64 \\[70\\]"),
    (lambda: judge(IMAGES, LABELS.int(), 3, 0, 1), "labels: must be int64"),
    (lambda: judge(IMAGES, LABELS, 2, 0, 1), "labels: must be from 0 to 1"),
    (lambda: judge(IMAGES[:63], LABELS[:63], 3, 0, 1), "size: must be from 1 to 63"),
    (lambda: quality(abs, IMAGES[:0], LABELS[:0]), "labels: must be 0, at least 1"),
    (lambda: quality(abs, IMAGES, LABELS[:5]), "labels: must be 70"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
