"""A face for models of binary pixels of any family: what they can be asked, their size, training.

A *builder* makes a :class:`Model` from the number of pixels, a width and a generator of the CPU;
its other arguments are bound beforehand by ``functools.partial``. :mod:`gradbook.family_builders`
has four. Pixels are float32 zeros and ones, [N, n], on the book's device.
"""

import base64
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradbook.checks import require
from gradbook.vae_training import minibatches

Loss = Callable[[Tensor, torch.Generator], Tensor]


class Player(NamedTuple):
    """Weights, and the loss of a batch that they alone are to lower."""

    parameters: tuple[Tensor, ...]
    loss: Loss


class Model(NamedTuple):
    """What a model of binary pixels can be asked.

    Attributes:
        players: who moves at each step, in this order: one, or in a game two.
        sample: from a count and a generator, draws [count, n].
        features: from pixels [N, n], what the model makes of them [N, f].
        log_prob: from pixels and a generator, [N] in nats: the log-probability, or an estimate that
            is not above it in expectation; None for a model that has none.
    """

    players: tuple[Player, ...]
    sample: Callable[[int, torch.Generator], Tensor]
    features: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor, torch.Generator], Tensor] | None


class Recipe(NamedTuple):
    """How to train: steps, images of a step, and Adam's first rate and decays."""

    steps: int
    batch: int
    rate: float
    betas: tuple[float, float]


Builder = Callable[[int, int, torch.Generator], Model]


def parameter_count(model: Model) -> int:
    """Count what is trained, of all players.

    Args:
        model: of any family.

    Returns:
        How many numbers.
    """
    return sum(part.numel() for player in model.players for part in player.parameters)


def sizes(builders: Mapping[str, Builder], pixels: int, budget: int) -> dict[str, int]:
    """Choose the width at which each family comes closest to one number of parameters.

    Args:
        builders: by name; more width must mean more parameters.
        pixels: n.
        budget: how many parameters each should have.

    Returns:
        Width by name.

    Raises:
        ValueError: if a family of width 1 is above the budget already.
    """
    return {name: _size(name, build, pixels, budget) for name, build in builders.items()}


def train(model: Model, images: Tensor, recipe: Recipe, generator: torch.Generator) -> float:
    """Train all players in place by Adam, at a rate that falls linearly to zero.

    Each player moves once a step, on the same images; a player's loss changes its own weights only.

    Args:
        model: of any family.
        images: [N, n].
        recipe: how.
        generator: of the order of the images and of the noise.

    Returns:
        Seconds.

    Raises:
        ValueError: as :func:`gradbook.vae_training.minibatches`.
    """
    start = time.perf_counter()
    optimizers = [
        torch.optim.Adam(player.parameters, lr=recipe.rate, betas=recipe.betas)
        for player in model.players
    ]
    batches = minibatches(len(images), recipe.batch, generator)
    for step in range(recipe.steps):
        batch = images[next(batches)]
        for player, optimizer in zip(model.players, optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = recipe.rate * (1 - step / recipe.steps)
            slopes = torch.autograd.grad(player.loss(batch, generator), player.parameters)
            for part, slope in zip(player.parameters, slopes, strict=True):
                part.grad = slope
            optimizer.step()
    return time.perf_counter() - start


@torch.no_grad()
def in_chunks(function: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """Apply a function of rows to some rows at a time, without gradients.

    Args:
        function: from [M, ...] to [M, ...].
        x: [N, ...], N at least 1.
        size: M, but for the last time.

    Returns:
        [N, ...], as from one call.
    """
    return torch.cat([function(chunk) for chunk in x.split(size)])


def packed(bits: Tensor) -> str:
    """Write zeros and ones as text, six to a character.

    Args:
        bits: of any shape.

    Returns:
        Base64 of the bits, eight to a byte, the first one highest.

    Raises:
        ValueError: if a value is neither 0 nor 1.
    """
    require((bits == 0) | (bits == 1), "bits: must be 0 or 1")
    array = bits.detach().cpu().numpy().astype(bool).ravel()
    return base64.b64encode(np.packbits(array).tobytes()).decode()


def unpacked(text: str, *shape: int) -> Tensor:
    """Read back what :func:`packed` wrote.

    Args:
        text: from :func:`packed`.
        shape: of the bits.

    Returns:
        uint8 of that shape, on the CPU.

    Raises:
        ValueError: if the text does not hold as many bits.
    """
    data = np.frombuffer(base64.b64decode(text), np.uint8)
    count = int(np.prod(shape))
    if len(data) != -(-count // 8):
        raise ValueError(f"text: holds {8 * len(data)} bits, not those of shape {shape}")
    return torch.tensor(np.unpackbits(data, count=count), device="cpu").reshape(shape)


def _size(name: str, build: Builder, pixels: int, budget: int) -> int:
    def count(width: int) -> int:
        return parameter_count(build(pixels, width, torch.Generator().manual_seed(0)))

    if count(1) > budget:
        raise ValueError(f"budget: {budget} parameters are too few for {name}")
    low, high = 1, 2
    while count(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= budget else (low, middle)
    return min((low, high), key=lambda width: abs(count(width) - budget))
