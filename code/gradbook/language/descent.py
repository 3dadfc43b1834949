"""Descent on a loss: AdamW and its groups, a clipped step, and passes over rows with a schedule.

What trains is whatever has ``requires_grad``. The order of the rows is drawn on the CPU.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gradbook.language.schedule import batches, share
from gradbook.transformer_sizes import require_sizes

DECAY = 0.01
LARGEST_NORM = 1.0

Build = Callable[[nn.Module, float], torch.optim.Optimizer]


class Setting(NamedTuple):
    """How to train.

    Attributes:
        epochs: passes over the rows.
        batch: rows of a step; the last of a pass may have fewer.
        rate: the largest step size, of groups that have no other of their own.
    """

    epochs: int = 2
    batch: int = 16
    rate: float = 1e-4


class Course(NamedTuple):
    """What a training showed.

    Attributes:
        losses: of each step's batch, before the step, in nats.
        seconds: of a step on average, with what comes after it.
    """

    losses: list[float]
    seconds: float


def run(
    step: Callable[[Tensor], float],
    optimizer: torch.optim.Optimizer,
    lengths: Tensor,
    setting: Setting,
    seed: int,
    after: Callable[[], None] | None = None,
) -> Course:
    """Take all steps of a training.

    Args:
        step: takes one with the rows of the indices [B], on the CPU, and
            returns the loss before it.
        optimizer: the step sizes of its groups are their largest ones; all
            follow the same schedule, and are as they were at the end.
        lengths: of the rows, [n], on the CPU.
        setting: how long and how fast.
        seed: of the order of the rows.
        after: called after each step.

    Returns:
        Losses and seconds.

    Raises:
        ValueError: if the setting makes no sense, or there are no rows.
    """
    require_setting(setting)
    if not len(lengths):
        raise ValueError("lengths: must have a row")
    steps = setting.epochs * -(-len(lengths) // setting.batch)
    losses, start = [], time.perf_counter()
    with _rates(optimizer, setting.rate), tqdm(total=steps, leave=False, disable=None) as bar:
        for rows in _passes(lengths, setting, seed):
            scale(optimizer, setting.rate * share(len(losses), steps))
            losses.append(step(rows))
            if after is not None:
                after()
            bar.update()
    return Course(losses, (time.perf_counter() - start) / steps)


@contextlib.contextmanager
def _rates(optimizer: torch.optim.Optimizer, rate: float) -> Iterator[None]:
    """Note the ratios of the groups' step sizes to a rate, and put the step sizes back."""
    largest = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["ratio"] = group["lr"] / rate
    try:
        yield
    finally:
        # Else a second run would take the last, smallest ones for the largest.
        for group, own in zip(optimizer.param_groups, largest, strict=True):
            group["lr"] = own


def _passes(lengths: Tensor, setting: Setting, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator("cpu").manual_seed(seed)
    for _ in range(setting.epochs):
        yield from batches(lengths, setting.batch, generator)


def scale(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the step size of all of an optimizer's groups.

    Args:
        optimizer: any.
        rate: the step size; times the ratio of a group that has one.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("ratio", 1.0)


def descend(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    penalty: Callable[[], Tensor] | None = None,
) -> float:
    """Take one step along the clipped gradient of a loss.

    Args:
        optimizer: of what trains.
        loss: a number that depends on it.
        penalty: computes what is added to the loss for its gradient.

    Returns:
        The loss before the step, without the penalty.

    Raises:
        RuntimeError: if the gradient is not finite.
    """
    optimizer.zero_grad()
    (loss if penalty is None else loss + penalty()).backward()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(trained, LARGEST_NORM, error_if_nonfinite=True)
    optimizer.step()
    return loss.item()


def adamw(model: nn.Module, rate: float) -> torch.optim.AdamW:
    """Build the optimizer of what trains in a model.

    Args:
        model: of which the parameters with ``requires_grad`` train.
        rate: the step size.

    Returns:
        AdamW of the :func:`groups` of the model.

    Raises:
        ValueError: if nothing in the model is trainable.
    """
    return torch.optim.AdamW(groups(model, rate), lr=rate)


def groups(model: nn.Module, rate: float) -> list[dict]:
    """Put what trains in a model into an optimizer's groups.

    Weights decay if they are matrices. Biases and norms do not, nor does
    any other vector: it has few numbers, and for a scale 0 is no
    neutral value.

    Args:
        model: of which the parameters with ``requires_grad`` train.
        rate: the step size.

    Returns:
        Groups that are not empty, with their step size and their decay:
        0.01 for matrices and 0 for vectors.

    Raises:
        ValueError: if nothing in the model is trainable.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("model: must have a parameter that requires a gradient")
    found = [
        {"params": [p for p in trained if p.ndim > 1], "lr": rate, "weight_decay": DECAY},
        {"params": [p for p in trained if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
    ]
    return [group for group in found if group["params"]]


def require_setting(setting: Setting) -> None:
    """Raise unless a setting makes sense.

    Args:
        setting: has an epoch, a row a step and a positive, finite rate.

    Raises:
        ValueError: if it does not.
    """
    require_sizes(epochs=setting.epochs, batch=setting.batch)
    if not 0 < setting.rate < float("inf"):
        raise ValueError(f"setting: rate must be positive and finite, got {setting.rate}")
