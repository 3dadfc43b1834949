"""Measures of images that come back from codes, against the definitions."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gradbook import frechet, vq_vae_measures, vq_vae_training, vqgan_measures
from gradbook.perceptual import perceptual_distance
from gradbook.quantizers import LossCodebook

WIDTH = 70


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=300, seed=1):
    return torch.rand(n, 3, 4, 4, generator=generator(seed), dtype=torch.float32)


def features(x):
    return [x.sin(), nn.functional.avg_pool2d(x, 2).square()]


def pooled(x):
    weight = torch.randn(48, WIDTH, generator=generator(3))
    return (x.flatten(1) @ weight).tanh()


JUDGE = SimpleNamespace(features=features, pooled=pooled)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")

    def make(vectors, draws):
        return LossCodebook(vectors[:5])

    return vq_vae_training.started(make, images(), 0, 4, 3, 1)


def test_progress_is_made_of_known_measures(model):
    x = images(9)
    found = vqgan_measures.progress(model, x, JUDGE)
    with torch.no_grad():
        distances = perceptual_distance(model(x).images, x, features)
    assert found.perceptual == pytest.approx(distances.mean().item(), rel=1e-5)
    expected = vq_vae_measures.measures(model, x)
    assert found[:3] == (expected.psnr, expected.used, expected.perplexity)


def test_the_verdict_is_made_of_known_measures(model):
    x = images()
    found = vqgan_measures.verdict(model, x, JUDGE)
    with torch.no_grad():
        back = model(x).images
        rows = [pooled(part).double() for part in (back, x)]
        distances = perceptual_distance(back, x, features)
    subspace = frechet.projection(WIDTH, 64, generator(0))
    laws = [frechet.moments(row @ subspace) for row in rows]
    expected = frechet.frechet_distance(*laws[0], *laws[1]).item()
    assert found.frechet == pytest.approx(expected, rel=1e-4)
    assert found.perceptual == pytest.approx(distances.mean().item(), rel=1e-5)
    assert found[:4] == vq_vae_measures.measures(model, x)
    assert found.detail == vqgan_measures.detail(vqgan_measures.again(model, x), x)
    assert found == vqgan_measures.verdict(model, x, JUDGE)


def test_chunks_change_nothing(model, monkeypatch):
    x = images(11)
    whole = vqgan_measures.again(model, x), vqgan_measures.mean_distance(x, 1 - x, features)
    monkeypatch.setattr(vqgan_measures, "CHUNK", 4)
    torch.testing.assert_close(vqgan_measures.again(model, x), whole[0])
    parts = vqgan_measures.mean_distance(x, 1 - x, features)
    assert parts == pytest.approx(whole[1], rel=1e-6)


def test_measuring_leaves_the_mode_and_needs_no_gradient(model):
    model.train()
    assert not vqgan_measures.again(model, images(2)).requires_grad
    assert model.training


def test_detail_by_hand():
    """Columns 0, 1, 0 differ by 1 twice in each row; rows do not differ."""
    x = torch.tensor([[[[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]]])
    y = x / 2 + 0.3
    assert vqgan_measures.detail(y, x) == pytest.approx(0.25, rel=1e-6)
    # A slope down the rows counts as one along them: 1 = (1 + 0) / 1.
    assert vqgan_measures.detail(x.transpose(2, 3), x) == pytest.approx(1.0, rel=1e-6)
    # Rows that differ by 2, once more: the means of both directions are added, 5 = (4 + 1) / (0 + 1).
    both = x + torch.tensor([[0.0], [2.0]])
    assert both.tolist() == [[[[0, 1, 0], [2, 3, 2]]]]
    assert vqgan_measures.detail(both, x) == pytest.approx(5, rel=1e-12)
    blurred = nn.functional.avg_pool2d(images(5), 3, 1, 1)
    assert vqgan_measures.detail(blurred, images(5)) < 0.5


def test_originals_without_detail_are_refused():
    x = images(2)
    with pytest.raises(ValueError, match="^target: "):
        vqgan_measures.detail(x, torch.zeros_like(x))


def test_too_few_images_are_refused(model):
    with pytest.raises(ValueError, match="^features: "):
        vqgan_measures.verdict(model, images(64), JUDGE)
    with pytest.raises(ValueError, match="^images: "):
        vqgan_measures.progress(model, images(0), JUDGE)
