"""VQGAN: the steps that train an autoencoder with discrete codes, alone or against a critic.

A step trains the autoencoder, and in two of three kinds a critic after it, on the images of the same
pass; in the published code the critic's step decodes again, after the autoencoder has moved. The
loss of images is passed in, see :mod:`gradbook.vqgan_losses`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradbook import adversarial
from gradbook.codebooks import reversed_vq_loss
from gradbook.quantizers import LossCodebook
from gradbook.vq_vae import VQVAE, Output
from gradbook.vqgan_losses import Reconstruction

# Adam's betas in the paper.
BETAS = (0.5, 0.9)


class Players(NamedTuple):
    """An autoencoder whose decoder has a ``last`` layer, a critic, and their optimizers."""

    model: VQVAE
    critic: nn.Module
    optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer


# What a step does with the players, a batch and a generator of the CPU.
Step = Callable[[Players, Tensor, torch.Generator], dict[str, float]]


class ReversedCodebook(LossCodebook):
    """A codebook that the optimizer trains, with beta on the other term.

    The encoder is pulled with weight 1, the codes with weight beta: what
    the published models were trained with.

    Args:
        codebook: where the codes start, [K, D].
        beta: the weight of the codebook's term, at least 0.

    Source: the code of taming-transformers, VectorQuantizer2's default.
    """

    def loss(self, z: Tensor, z_q: Tensor) -> Tensor:
        """Compute both terms, as :func:`gradbook.codebooks.reversed_vq_loss`."""
        return reversed_vq_loss(z, z_q, self.beta)


def plain_step(
    players: Players,
    images: Tensor,
    draws: torch.Generator,
    reconstruct: Reconstruction,
) -> dict[str, float]:
    """Train the autoencoder alone.

    Args:
        players: changed in place; the critic is not asked.
        images: a batch, [B, C, H, W].
        draws: for what the quantizer draws after the step, of the CPU.
        reconstruct: the loss of images.

    Returns:
        ``reconstruction`` and ``codebook``, the two terms of the loss.
    """
    _, found = _alone(players, images, draws, reconstruct)
    return found


def watched_step(
    players: Players,
    images: Tensor,
    draws: torch.Generator,
    reconstruct: Reconstruction,
) -> dict[str, float]:
    """Train the autoencoder as if alone, and the critic on what it does.

    Args:
        players: changed in place.
        images: a batch, [B, C, H, W].
        draws: as for :func:`plain_step`.
        reconstruct: the loss of images.

    Returns:
        As :func:`plain_step` and :func:`critic_step`.
    """
    output, found = _alone(players, images, draws, reconstruct)
    return found | critic_step(players, images, output.images)


def game_step(
    players: Players,
    images: Tensor,
    draws: torch.Generator,
    reconstruct: Reconstruction,
    share: float = adversarial.SHARE,
) -> dict[str, float]:
    """Train the autoencoder against the critic, then the critic.

    The adversarial term's weight brings its gradient in the decoder's
    last layer to a share of the reconstruction's.

    Args:
        players: changed in place.
        images: a batch, [B, C, H, W].
        draws: as for :func:`plain_step`.
        reconstruct: the loss of images.
        share: of the norm of the reconstruction's gradient; 0.8 as
            published.

    Returns:
        As :func:`watched_step`, and ``adversarial``, its ``weight``, and
        the norms ``pull`` and ``push`` of the gradients of the
        reconstruction and of the adversarial term in the last layer.

    Raises:
        ValueError: as the model and ``reconstruct``; if there is no score, or
            one is not finite; if one of the two losses has no finite gradient
            in the last layer; or if the share is negative or not finite.

    Source: Esser, Rombach and Ommer 2021, equations 6 and 7.
    """
    output = players.model(images)
    codebook = output.quantized.loss
    reconstruction = reconstruct(output.images, images)
    _, fake = scores(players.critic, images, output.images)
    game = adversarial.generator_loss(fake)
    last = players.model.decoder.last.weight
    pull = adversarial.gradient_norm(reconstruction, last)
    push = adversarial.gradient_norm(game, last)
    weight = adversarial.balance(pull, push, share=share)
    total = reconstruction + codebook + weight * game
    _move(players, total, output, draws)
    terms = {"reconstruction": reconstruction, "codebook": codebook}
    forces = {"weight": weight, "pull": pull, "push": push}
    found = _numbers(**terms, adversarial=game, **forces)
    return found | critic_step(players, images, output.images)


def critic_step(
    players: Players,
    real: Tensor,
    fake: Tensor,
) -> dict[str, float]:
    """Train the critic alone, by the hinge loss.

    Args:
        players: their critic is changed in place.
        real: images, [B, C, H, W].
        fake: reconstructions, [B, C, H, W]; they get no gradient.

    Returns:
        ``critic``, the loss, and the mean scores ``real`` and ``fake``.
    """
    found = scores(players.critic, real, fake.detach())
    loss = adversarial.discriminator_hinge(*found)
    players.critic_optimizer.zero_grad()
    loss.backward()
    players.critic_optimizer.step()
    means = {"real": found[0].mean(), "fake": found[1].mean()}
    return _numbers(critic=loss, **means)


def scores(
    critic: nn.Module,
    real: Tensor,
    fake: Tensor,
) -> tuple[Tensor, Tensor]:
    """Score originals and reconstructions in one pass.

    In the published code each has a pass of its own. Then batch
    normalization gives both the same mean and contrast in every channel,
    and takes away much of what tells a blurred image.

    Args:
        critic: of images.
        real: images, [B, C, H, W].
        fake: images, [B, C, H, W].

    Returns:
        The scores of the two.
    """
    real, fake = critic(torch.cat([real, fake])).chunk(2)
    return real, fake


def alone(reconstruct: Reconstruction) -> dict[int, Step]:
    """Plan a training without a critic.

    Args:
        reconstruct: the loss of images.

    Returns:
        One kind of step, from step 0.
    """
    return {0: partial(plain_step, reconstruct=reconstruct)}


def against(
    reconstruct: Reconstruction,
    start: int,
    watching: int = 0,
    share: float = adversarial.SHARE,
) -> dict[int, Step]:
    """Plan a training that becomes a game.

    Args:
        reconstruct: the loss of images.
        start: the first step of the game.
        watching: for how many steps before it the critic learns alone.
        share: see :func:`game_step`.

    Returns:
        The kinds of steps, by the first step of each.

    Raises:
        ValueError: if the critic would start before step 0, or after the
            game.
    """
    if not 0 <= watching <= start:
        raise ValueError(f"watching: must be from 0 to {start}, got {watching}")
    return {
        **alone(reconstruct),
        start - watching: partial(watched_step, reconstruct=reconstruct),
        # Replaces the kind above where the critic is not to watch.
        start: partial(game_step, reconstruct=reconstruct, share=share),
    }


def _alone(
    players: Players,
    images: Tensor,
    draws: torch.Generator,
    reconstruct: Reconstruction,
) -> tuple[Output, dict[str, float]]:
    output = players.model(images)
    codebook = output.quantized.loss
    reconstruction = reconstruct(output.images, images)
    _move(players, reconstruction + codebook, output, draws)
    return output, _numbers(reconstruction=reconstruction, codebook=codebook)


def _move(players: Players, total: Tensor, output: Output, draws: torch.Generator) -> None:
    trained = [p for p in players.model.parameters() if p.requires_grad]
    players.optimizer.zero_grad()
    # The critic's weights are in the graph too, and get no gradient here.
    total.backward(inputs=trained)
    players.optimizer.step()
    rows = output.vectors.detach().flatten(0, 2)
    players.model.quantizer.update(rows, output.quantized.indices, draws)


def _numbers(**scalars: Tensor) -> dict[str, float]:
    return {name: scalar.item() for name, scalar in scalars.items()}
