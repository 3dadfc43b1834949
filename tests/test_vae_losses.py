"""Losses that draw their own noise, against the losses of a noise that is passed in."""

import pytest
import torch

from gradbook import vae, vae_gradients, vae_losses, vae_training
from gradbook.vae_losses import Code

CODE = Code(latents=2, classes=3)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model():
    return vae.build(*CODE, generator(), width=2)


def images(n=4):
    return torch.rand(n, 28, 28, generator=generator(1)).round()


def same(loss, expected, built):
    weight = built.encoder.logits.weight
    slopes = [torch.autograd.grad(value, weight)[0] for value in (loss, expected)]
    return loss.item() == expected.item() and torch.equal(*slopes)


def test_noise_has_the_shape_of_the_codes_and_comes_from_the_generator():
    one = vae_losses.noise(CODE, images(), generator(5))
    assert one.shape == (4, 2, 3)
    assert torch.equal(one, vae_training.gumbels(4, 2, 3, generator=generator(5)))
    assert vae_losses.noise(CODE, images(), generator(5), 7).shape == (7, 4, 2, 3)


def test_each_loss_is_that_of_its_noise():
    built, batch = model(), images()
    drawn = vae_losses.noise(CODE, batch, generator(5))
    many = vae_losses.noise(CODE, batch, generator(5), 3)
    cooling = vae_losses.relaxed(CODE, lambda step: 1 / step)
    for loss, step, expected in (
        (vae_losses.exact(), 0, vae_gradients.exact(built, batch)),
        (cooling, 4, vae_gradients.relaxed(built, batch, drawn, 0.25)),
        (
            vae_losses.straight_through(CODE, 0.5),
            9,
            vae_gradients.straight_through(built, batch, drawn, 0.5),
        ),
        (vae_losses.leave_one_out(CODE, 3), 9, vae_gradients.leave_one_out(built, batch, many)),
    ):
        assert same(loss(built, batch, step, generator(5)), expected, built)


def test_the_exact_loss_leaves_the_generator_alone():
    drawn = generator(5)
    vae_losses.exact()(model(), images(), 0, drawn)
    assert torch.equal(drawn.get_state(), generator(5).get_state())
