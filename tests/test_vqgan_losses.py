"""The losses of images, against their definitions."""

import pytest
import torch
from torch import nn

from gradbook import vqgan_losses
from gradbook.perceptual import perceptual_distance


def images(n=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 8, 8, generator=generator, dtype=torch.float64)


def features(x):
    """Two stages, the second of half the size."""
    return [x.sin(), nn.functional.avg_pool2d(x, 2).square()]


def test_losses_of_images_by_hand():
    x, y = images(), images(seed=2)
    error = (x - y).square().sum() / x.numel()
    assert vqgan_losses.squared_loss(x, y, 0.2).item() == pytest.approx(
        error.item() / 0.2, rel=1e-12
    )
    error = (x - y).abs().sum() / x.numel() / 0.5
    distance = sum(perceptual_distance(x, y, features)) / 6
    found = vqgan_losses.perceptual_loss(x, y, features, 0.5, 3.0)
    assert found.item() == pytest.approx((error + 3 * distance).item(), rel=1e-12)
    assert (
        vqgan_losses.perceptual_loss(x, x, features, 0.5, 3.0)
        == vqgan_losses.squared_loss(x, x, 1.0)
        == 0
    )


def test_both_losses_have_gradients_where_they_are_nothing():
    x, y = images(), images().requires_grad_()
    units = (features, 0.5, 3.0)
    for loss in (
        vqgan_losses.squared_loss(y, x, 0.2),
        vqgan_losses.perceptual_loss(y, x, *units),
    ):
        (slope,) = torch.autograd.grad(loss, y)
        assert torch.equal(slope, torch.zeros_like(x))


BAD = {
    "no_images": (lambda x: vqgan_losses.squared_loss(x[:0], x[:0], 1.0), "images"),
    "shape": (lambda x: vqgan_losses.squared_loss(x, x[:2], 1.0), "images"),
    "features_shape": (
        lambda x: vqgan_losses.perceptual_loss(x, x[:2], features, 1.0, 1.0),
        "images",
    ),
    "variance": (lambda x: vqgan_losses.squared_loss(x, x, 0.0), "variance"),
    "negative": (lambda x: vqgan_losses.squared_loss(x, x, -1.0), "variance"),
    "nan": (lambda x: vqgan_losses.squared_loss(x, x, float("nan")), "variance"),
    "deviation": (lambda x: vqgan_losses.perceptual_loss(x, x, features, 0.0, 1.0), "deviation"),
    "weight": (lambda x: vqgan_losses.perceptual_loss(x, x, features, 1.0, -1.0), "weight"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    call, argument = BAD[name]
    with pytest.raises(ValueError, match=f"^{argument}: "):
        call(images())
