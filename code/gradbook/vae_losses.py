"""Losses that draw their own noise: what a training of a VAE with a given code descends.

Each function makes a loss for :func:`gradbook.vae_training.fit`, a function of the model, a batch of
images, the number of steps before it and a generator. Several trainings share them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook import vae_gradients, vae_training
from gradbook.vae import CategoricalVAE
from gradbook.vae_training import Loss


class Code(NamedTuple):
    """The shape of a code: how many latent variables, of how many classes each."""

    latents: int
    classes: int


def noise(code: Code, images: Tensor, generator: torch.Generator, *draws: int) -> Tensor:
    """Draw the Gumbel noise of a batch.

    Args:
        code: its shape.
        images: [n, 28, 28].
        generator: of the CPU.
        draws: how many to an image; by default one, without an axis.

    Returns:
        [..., n, latents, classes], with the draws in front.
    """
    return vae_training.gumbels(*draws, len(images), *code, generator=generator)


def exact() -> Loss:
    """Make the loss that is summed over every code; it needs no noise.

    Returns:
        :func:`gradbook.vae_gradients.exact` as a loss.
    """

    def loss(model: CategoricalVAE, images: Tensor, step: int, generator: torch.Generator):
        return vae_gradients.exact(model, images)

    return loss


def relaxed(code: Code, temperature: Callable[[int], float]) -> Loss:
    """Make the Gumbel-Softmax loss.

    Args:
        code: its shape.
        temperature: of the number of steps before.

    Returns:
        :func:`gradbook.vae_gradients.relaxed` as a loss.
    """

    def loss(model: CategoricalVAE, images: Tensor, step: int, generator: torch.Generator):
        drawn = noise(code, images, generator)
        return vae_gradients.relaxed(model, images, drawn, temperature(step))

    return loss


def straight_through(code: Code, temperature: float) -> Loss:
    """Make the straight-through Gumbel-Softmax loss.

    Args:
        code: its shape.
        temperature: of the backward pass.

    Returns:
        :func:`gradbook.vae_gradients.straight_through` as a loss.
    """

    def loss(model: CategoricalVAE, images: Tensor, step: int, generator: torch.Generator):
        drawn = noise(code, images, generator)
        return vae_gradients.straight_through(model, images, drawn, temperature)

    return loss


def leave_one_out(code: Code, draws: int) -> Loss:
    """Make the leave-one-out loss.

    Args:
        code: its shape.
        draws: codes to an image, at least 2.

    Returns:
        :func:`gradbook.vae_gradients.leave_one_out` as a loss.
    """

    def loss(model: CategoricalVAE, images: Tensor, step: int, generator: torch.Generator):
        return vae_gradients.leave_one_out(model, images, noise(code, images, generator, draws))

    return loss
