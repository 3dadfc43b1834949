"""Local expectation gradients: one categorical at a time is summed out, the others are sampled."""

import torch
from torch import Tensor
from torch.func import grad, vmap

from gradbook.estimators.draws import Objective, no_gradients, require_draws, scalar, values
from gradbook.gumbel import gumbel_one_hot


def local_expectation(
    f: Objective,
    logits: Tensor,
    noise: Tensor,
) -> Tensor:
    """Estimate the gradient with each latent summed over its own classes.

    It is the score function averaged over the latent of the score, given
    all others; where f depends on the logits, its own gradient in them is
    taken at the draw, not averaged. It evaluates f as many times per draw
    as there are logits, and once more for that gradient.

    Args:
        f: maps one-hot rows shaped as the logits, and the logits, to a
            scalar.
        logits: [..., k]; all axes but the last count independent latents.
            Minus infinity is an impossible class, whose f counts nothing.
        noise: standard Gumbel draws [n, ..., k].

    Returns:
        Per-sample gradients [n, ..., k].

    Raises:
        ValueError: if the noise is not finite or of that shape, f is no
            scalar, or as ``gumbel_max`` where the logits are refused.

    Source: Titsias and Lázaro-Gredilla 2015.
    """
    logits = logits.detach()
    require_draws(logits, noise=noise)
    z = gumbel_one_hot(logits, noise)
    if len(z) == 0:
        return no_gradients(logits)
    probs = logits.softmax(-1)
    value = _values_of_classes(f, logits, z).where(probs > 0, probs)
    centred = value - (probs * value).sum(-1, keepdim=True)

    def direct(logits, z):
        return scalar("f", f(z, logits))

    slope = vmap(grad(direct), in_dims=(None, 0))(logits, z)
    return probs * centred + slope


def _values_of_classes(f: Objective, logits: Tensor, z: Tensor) -> Tensor:
    """Evaluate f with one latent put into each of its classes, for every latent in turn."""
    n, k = len(z), z.shape[-1]
    rows = z.reshape(n, -1, k)
    every_class = torch.eye(k, dtype=z.dtype, device=z.device)
    found = []
    for latent in range(rows.shape[1]):
        moved = rows[:, None].repeat(1, k, 1, 1)  # [n, k, latents, k]
        moved[:, :, latent] = every_class
        found.append(values(f, moved.reshape(n * k, *logits.shape), logits).reshape(n, k))
    return torch.stack(found, 1).reshape(z.shape)
