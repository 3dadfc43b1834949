"""What no prefix can do: make one head look at another token than before.

The head, the four texts and the task are those of :mod:`gradbook.peft.colour_task`: it answers u,
and shall answer v. A prefix leaves red and blue their shares of what it does not draw itself. So it
can answer only s (a u + (1 - a) v) + c, with a = sigmoid(gap). LoRA changes the shares.

Source: A. Petrov, P. Torr and A. Bibi, 2023, "When do prompting and prefix-tuning work? A theory of
capabilities and limitations"; the task and its bounds are worked out here.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gradbook.checks import require, require_finite
from gradbook.peft.colour_task import (
    FEATURES,
    WIDTH,
    Layer,
    contents,
    right,
    with_lora,
    with_prefix,
)
from gradbook.priors.grids import require_sizes


class Fitted(NamedTuple):
    """Two learnt tensors, and the mean squared error before every step and at the end."""

    parts: tuple[Tensor, Tensor]
    errors: Tensor


def prefixed_law(a: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Compute the four answers that a prefix leads to, from all that they depend on.

    Args:
        a: share of the red token where there is no prefix, from 0 to 1.
        scale: s = 1 - lambda, what the prefix leaves to the text; from 0 to
            1.
        shift: c, lambda times the mean of the prefix's values.

    Returns:
        s (a u + (1 - a) v) + c, [..., 4]; the arguments broadcast.

    Raises:
        ValueError: if a share is not from 0 to 1, or the shift is not
            finite.

    Source: He et al. 2022, "Towards a unified view of parameter-efficient transfer learning",
    section 3.1.
    """
    _require_share(a=a, scale=scale)
    require_finite(shift=shift)
    u, v = a.new_tensor([[1, 1, -1, -1], [1, -1, 1, -1]])
    a, scale, shift = (x[..., None] for x in (a, scale, shift))
    return scale * (a * u + (1 - a) * v) + shift


def most_right(a: float) -> int:
    """Find the most texts of four that a prefix answers rightly, by trying all there are.

    Only signs count, hence of s and c only the threshold -c / s. It stands
    below, on, between or above the four values of a u + (1 - a) v: these
    are all cases.

    Args:
        a: share of the red token where there is no prefix, from 0 to 1.

    Returns:
        3 if a is at least 1 / 2, and 4 below.

    Raises:
        ValueError: if a is not from 0 to 1.
    """
    share = torch.tensor(a, dtype=torch.float64, device="cpu")
    one = torch.ones_like(share)
    values = prefixed_law(share, one, 0 * one)
    cuts = values.sort().values
    between = (cuts[1:] + cuts[:-1]) / 2
    cuts = torch.cat([cuts[:1] - 1, cuts, between, cuts[-1:] + 1])
    _, targets = contents(values.dtype, values.device)
    return int(right(values - cuts[:, None], targets).max())


def best_scale(a: Tensor) -> Tensor:
    """Compute the scale s with which a prefix's mean squared error is least; the shift is then 0.

    Args:
        a: share of the red token where there is no prefix, from 0 to 1.

    Returns:
        Like ``a``. A prefix reaches it if a is above 1 / 2 and below 1, and
        else comes as near as one likes: s is 1 or 0.

    Raises:
        ValueError: if a is not from 0 to 1.
    """
    _require_share(a=a)
    return ((1 - a) / (a**2 + (1 - a) ** 2)).clamp(max=1)


def least_error(a: Tensor) -> Tensor:
    """Compute the infimum of the mean squared error to v over all prefixes.

    Args:
        a: share of the red token where there is no prefix, from 0 to 1.

    Returns:
        Like ``a``. If a is at least 1 / 2 it is a^2 / (a^2 + (1 - a)^2),
        which is sigmoid(2 gap), from 1 / 2 up to 1. Below it is 2 a^2, the
        error of the frozen layer.

    Raises:
        ValueError: if a is not from 0 to 1.
    """
    scale = best_scale(a)
    return (scale * a) ** 2 + (1 - scale * (1 - a)) ** 2


def three_right(layer: Layer) -> tuple[Tensor, Tensor]:
    """Build a prefix of one position that answers three of the four texts rightly.

    It draws half of the attention and has the value -a. All answers become
    negative but that to (1, 1), which is (1 - a) / 2, and that to (1, -1)
    is the opposite.

    Args:
        layer: of :func:`gradbook.peft.colour_task.colour_layer`, gap at least 0.

    Returns:
        Key [1, 2] and value [1, 1].

    Raises:
        ValueError: if the share a of red is below 1 / 2, or rounds to 1.
    """
    q = layer.w_q @ layer.asker
    tokens, _ = contents(q.dtype, q.device)
    scores = tokens[0] @ layer.w_k.T @ q * WIDTH**-0.5
    a = scores.softmax(0)[0]
    require((a >= 0.5) & (a < 1), "layer: must give red a share from 1 / 2 to below 1")
    # The one key along q whose score is the logarithm of the text's whole mass.
    key = scores.logsumexp(0) * WIDTH**0.5 * q / (q @ q)
    return key[None], -a[None, None]


def fitted_prefix(
    layer: Layer,
    length: int,
    generator: torch.Generator,
    steps: int = 500,
    rate: float = 0.05,
) -> Fitted:
    """Learn a prefix for the new task with Adam on all four texts.

    Args:
        layer: frozen.
        length: n, of the prefix.
        generator: of the start, on the CPU: normal draws, in float64, then
            rounded.
        steps: of Adam.
        rate: of Adam, positive.

    Returns:
        Keys [n, 2] and values [n, 1]; errors [steps + 1].

    Raises:
        ValueError: if a size is below 1 or the rate is not positive.
    """
    require_sizes(length=length)
    keys, values = (_drawn((length, size), generator, layer) for size in (WIDTH, 1))
    return _fitted(layer, with_prefix, (keys, values), steps, rate)


def fitted_lora(
    layer: Layer,
    rank: int,
    generator: torch.Generator,
    steps: int = 500,
    rate: float = 0.05,
) -> Fitted:
    """Learn a LoRA of the keys for the new task, as :func:`fitted_prefix` learns a prefix.

    Args:
        layer: frozen.
        rank: r.
        generator: of a's start; b starts at zero.
        steps: of Adam.
        rate: of Adam, positive.

    Returns:
        a [r, 4] and b [2, r]; errors [steps + 1].

    Raises:
        ValueError: if a size is below 1 or the rate is not positive.
    """
    require_sizes(rank=rank)
    a = _drawn((rank, FEATURES), generator, layer)
    return _fitted(layer, with_lora, (a, a.new_zeros(WIDTH, rank)), steps, rate)


def _fitted(
    layer: Layer,
    forward: Callable[[Layer, Tensor, Tensor, Tensor], Tensor],
    start: tuple[Tensor, Tensor],
    steps: int,
    rate: float,
) -> Fitted:
    require_sizes(steps=steps)
    require_finite(rate=rate)
    if rate <= 0:
        raise ValueError(f"rate: must be positive, got {rate}")
    parts = [x.requires_grad_() for x in start]
    tokens, targets = contents(layer.w_k.dtype, layer.w_k.device)
    optimizer = torch.optim.Adam(parts, lr=rate)
    errors = []
    for step in range(steps + 1):
        error = functional.mse_loss(forward(layer, tokens, *parts), targets)
        errors.append(error.detach())
        if step < steps:
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
    return Fitted(tuple(x.detach() for x in parts), torch.stack(errors))


def _drawn(shape: tuple[int, int], generator: torch.Generator, layer: Layer) -> Tensor:
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return drawn.to(layer.w_k.device, layer.w_k.dtype)


def _require_share(**shares: Tensor) -> None:
    for name, x in shares.items():
        require((x >= 0) & (x <= 1), f"{name}: must be from 0 to 1")
