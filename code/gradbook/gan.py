"""A generative adversarial network for bits: two networks, their losses, and the exact game.

The generator G turns normal noise into the logits of independent bits, which are drawn hard and
carry the gradient of relaxed ones. The discriminator D gives one logit for each x, that of "x is
real". D(x) below is the probability, ``sigmoid`` of that logit. The game on a finite set, where
real and fake have the probability vectors p and q, needs no network: its value is a sum.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, logsigmoid

from gradbook.binary_concrete import hard_bits
from gradbook.checks import require, require_finite

__all__ = [
    "GAN",
    "Discriminator",
    "Generator",
    "best_discriminator",
    "build",
    "discriminator_loss",
    "features",
    "generator_loss",
    "gradient_penalty",
    "hard_bits",
    "saturating_loss",
    "value",
]

LEAK = 0.2


class Generator(nn.Module):
    """Two hidden layers, from noise to the logits of bits.

    Args:
        dimensions: how many bits.
        latents: how many noise variables.
        hidden: units of each hidden layer.

    Attributes:
        latents: how many noise variables.
    """

    def __init__(self, dimensions: int, latents: int, hidden: int):
        super().__init__()
        self.latents = latents
        self.first = nn.Linear(latents, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, dimensions)

    def forward(self, noise: Tensor) -> Tensor:
        """Compute the logits of the bits.

        Args:
            noise: standard normal draws, [n, latents].

        Returns:
            [n, dimensions].
        """
        x = leaky_relu(self.first(noise), LEAK)
        return self.out(leaky_relu(self.second(x), LEAK))


class Discriminator(nn.Module):
    """Two hidden layers, from bits to the logit of "real".

    Args:
        dimensions: how many bits.
        hidden: units of each hidden layer.
    """

    def __init__(self, dimensions: int, hidden: int):
        super().__init__()
        self.first = nn.Linear(dimensions, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of "real".

        Args:
            x: bits, [n, dimensions].

        Returns:
            [n].
        """
        return self.out(features(self, x))[:, 0]


class GAN(NamedTuple):
    """The two players; their parameters take turns."""

    generator: Generator
    discriminator: Discriminator


def build(
    dimensions: int,
    latents: int,
    hidden: int,
    generator: torch.Generator,
) -> GAN:
    """Build both networks with initial weights from a generator.

    Weights are uniform with Glorot's bound, biases zero.

    Args:
        dimensions: how many bits.
        latents: how many noise variables.
        hidden: units of each hidden layer of both networks.
        generator: of the CPU.

    Returns:
        A float32 pair on the CPU.

    Raises:
        ValueError: if a size is not positive.
    """
    sizes = {"dimensions": dimensions, "latents": latents, "hidden": hidden}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: must be positive, got {size}")
    # torch's own initialization draws from its global generator: put that back as it was.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        gan = GAN(Generator(dimensions, latents, hidden), Discriminator(dimensions, hidden))
    # A page's default type may be float64, whose draws would be other weights.
    for player in gan:
        for parameter in player.float().parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                nn.init.zeros_(parameter)
    return gan


def features(discriminator: Discriminator, x: Tensor) -> Tensor:
    """Compute what the discriminator's last hidden layer says of data.

    Args:
        discriminator: of bits [n, dimensions].
        x: bits, [n, dimensions].

    Returns:
        [n, hidden]; the logit is a linear function of them.
    """
    # Bits are centred: zeros would tell the weights nothing.
    first = leaky_relu(discriminator.first(2 * x - 1), LEAK)
    return leaky_relu(discriminator.second(first), LEAK)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Estimate the discriminator's loss, minus the value of the game.

    Args:
        real_logits: of data, [n].
        fake_logits: of draws of the generator, [m].

    Returns:
        - mean log D(real) - mean log(1 - D(fake)), a scalar.

    Raises:
        ValueError: if one is empty or not finite.

    Source: I. Goodfellow et al., 2014, equation 1.
    """
    _require_some(real_logits=real_logits, fake_logits=fake_logits)
    return -logsigmoid(real_logits).mean() - logsigmoid(-fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Estimate the generator's loss that does not saturate.

    Where the discriminator is sure that a draw is fake, its slope in the
    logit is -1, while that of :func:`saturating_loss` is 0.

    Args:
        fake_logits: of draws of the generator, [m].

    Returns:
        - mean log D(fake), a scalar.

    Raises:
        ValueError: if there is none, or one is not finite.

    Source: Goodfellow et al. 2014, section 3.
    """
    _require_some(fake_logits=fake_logits)
    return -logsigmoid(fake_logits).mean()


def saturating_loss(fake_logits: Tensor) -> Tensor:
    """Estimate the generator's loss in the game: its part of the value.

    Args:
        fake_logits: of draws of the generator, [m].

    Returns:
        mean log(1 - D(fake)), a scalar.

    Raises:
        ValueError: if there is none, or one is not finite.

    Source: Goodfellow et al. 2014, equation 1.
    """
    _require_some(fake_logits=fake_logits)
    return logsigmoid(-fake_logits).mean()


def gradient_penalty(discriminator: nn.Module, x: Tensor) -> Tensor:
    """Compute the R1 penalty: how steep the logit is at the data.

    Args:
        discriminator: maps [n, d] to logits [n], one row at a time.
        x: data, [n, d]; bits count as points of R^d.

    Returns:
        The mean over rows of the squared length of the logit's gradient,
        a scalar, differentiable in the weights. The paper weighs it with
        gamma / 2.

    Raises:
        ValueError: if ``x`` has no row.

    Source: L. Mescheder, A. Geiger and S. Nowozin, 2018, equation 9.
    """
    _require_some(x=x)
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return slope.square().sum(-1).mean()


def best_discriminator(p: Tensor, q: Tensor) -> Tensor:
    """Compute the discriminator that maximizes the value of the game.

    Args:
        p: probabilities of real data, [..., k].
        q: probabilities of the generator, [..., k].

    Returns:
        p / (p + q), [..., k]; 1/2 where both are 0 and nothing matters.

    Raises:
        ValueError: if one has a negative element or does not sum to 1, or
            the shapes differ.

    Source: Goodfellow et al. 2014, proposition 1.
    """
    _require_laws(p, q)
    total = p + q
    return torch.where(total > 0, p, 0.5) / torch.where(total > 0, total, 1.0)


def value(p: Tensor, q: Tensor, d: Tensor) -> Tensor:
    """Compute the value of the game on a finite set.

    Args:
        p: probabilities of real data, [..., k].
        q: probabilities of the generator, [..., k].
        d: the discriminator's probabilities of "real", [..., k].

    Returns:
        sum p log d + sum q log(1 - d), [...], with 0 log 0 = 0; at the
        best d it is 2 JS(p, q) - log 4.

    Raises:
        ValueError: as :func:`best_discriminator`, or if a value of ``d``
            is not from 0 to 1 or its shape differs.

    Source: Goodfellow et al. 2014, equation 1 and theorem 1.
    """
    _require_laws(p, q)
    if d.shape != p.shape:
        raise ValueError(f"d: must have the shape of p, {tuple(p.shape)}, is {tuple(d.shape)}")
    require((d >= 0) & (d <= 1), "d: must be from 0 to 1")
    return (torch.xlogy(p, d) + torch.xlogy(q, 1 - d)).sum(-1)


def _require_some(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if len(tensor) == 0:
            raise ValueError(f"{name}: must not be empty")
    require_finite(**tensors)


def _require_laws(p: Tensor, q: Tensor) -> None:
    if p.shape != q.shape:
        raise ValueError(f"q: must have the shape of p, {tuple(p.shape)}, is {tuple(q.shape)}")
    for name, law in (("p", p), ("q", q)):
        tolerance = torch.finfo(law.dtype).eps ** 0.5
        require(law >= 0, f"{name}: must not be negative")
        require((law.sum(-1) - 1).abs() <= tolerance, f"{name}: must sum to 1")
