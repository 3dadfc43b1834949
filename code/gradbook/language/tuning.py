"""Fine-tuning a classifier of texts: batches of near-equal length, AdamW, and what came of it.

A model is called as ``model(ids, mask)`` and returns logits, [B, C]. What trains is whatever has
``requires_grad``: the methods of this part differ in that alone. The order of the rows is drawn on
the CPU. The model's mode is left as it is; the book's classifiers have no dropout.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from gradbook.checks import require
from gradbook.language.encoder import Tokens, trimmed
from gradbook.language.schedule import batches, share, stalled

DECAY = 0.01
LARGEST_NORM = 1.0


class Setting(NamedTuple):
    """How to train.

    Attributes:
        epochs: passes over the rows.
        batch: rows of a step; the last of a pass may have fewer.
        rate: AdamW's largest step size.
        patience: after how many epochs in a row without a better accuracy
            on the held-out rows to stop; None never stops.
    """

    epochs: int = 2
    batch: int = 16
    rate: float = 1e-4
    patience: int | None = None


class Course(NamedTuple):
    """What a training showed.

    Attributes:
        losses: of each step's batch, before the step, in nats.
        accuracy: on the held-out rows, after each epoch; empty without
            such rows.
        seconds: of a step, without the measures.
    """

    losses: list[float]
    accuracy: list[float]
    seconds: float


def fit(
    model: nn.Module,
    tokens: Tokens,
    labels: Tensor,
    setting: Setting,
    seed: int,
    held_out: tuple[Tokens, Tensor] | None = None,
) -> Course:
    """Train a model in place.

    Args:
        model: classifies texts.
        tokens: ids and mask, [n, T].
        labels: [n] int64.
        setting: how long and how fast.
        seed: of the order of the rows.
        held_out: tokens and labels to measure the accuracy on.

    Returns:
        Losses, accuracies and seconds. The weights are those of the last
        epoch, also after an early stop.

    Raises:
        ValueError: if the setting or the labels make no sense, there are
            no rows, or nothing in the model is trainable.
        RuntimeError: if a gradient is not finite.

    Source: Loshchilov and Hutter 2019, algorithm 2 (AdamW); Devlin et al.
    2019, appendix A.2 (warm-up and linear decay).
    """
    _require_setting(setting, held_out is not None)
    _require_rows(tokens, labels)
    optimizer = adamw(model, setting.rate)
    generator = torch.Generator().manual_seed(seed)
    lengths = tokens.mask.sum(1).cpu()
    steps = setting.epochs * -(-len(labels) // setting.batch)
    losses, accuracies, seconds = [], [], 0.0
    with tqdm(total=steps, leave=False, disable=None) as bar:
        for _ in range(setting.epochs):
            start = time.perf_counter()
            for rows in batches(lengths, setting.batch, generator):
                scale(optimizer, setting.rate * share(len(losses), steps))
                losses.append(step(model, optimizer, tokens, labels, rows.to(labels.device)))
                bar.update()
            seconds += time.perf_counter() - start
            if held_out is not None:
                accuracies.append(accuracy(model, *held_out, setting.batch))
            if stalled(accuracies, setting.patience):
                break
    return Course(losses, accuracies, seconds / len(losses))


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Tokens,
    labels: Tensor,
    rows: Tensor,
) -> float:
    """Take one step along the clipped gradient of the mean loss of some rows.

    Args:
        model: classifies texts.
        optimizer: of what trains in it.
        tokens: ids and mask, [n, T].
        labels: [n] int64.
        rows: indices [B].

    Returns:
        The loss before the step, in nats.

    Raises:
        ValueError: if a label is no class.
        RuntimeError: if the gradient is not finite.
    """
    logits = model(*trimmed(tokens, rows))
    _require_classes(labels[rows], logits)
    return descend(optimizer, _losses(logits, labels[rows]).mean())


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """Take one step along the clipped gradient of a loss.

    Args:
        optimizer: of what trains.
        loss: a number that depends on it.

    Returns:
        The loss before the step.

    Raises:
        RuntimeError: if the gradient is not finite.
    """
    optimizer.zero_grad()
    loss.backward()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(trained, LARGEST_NORM, error_if_nonfinite=True)
    optimizer.step()
    return loss.item()


def adamw(model: nn.Module, rate: float) -> torch.optim.AdamW:
    """Build the optimizer of what trains in a model.

    Weights decay if they are matrices. Biases and norms do not, nor does
    any other vector: it has few numbers, and for a scale 0 is no
    neutral value.

    Args:
        model: of which the parameters with ``requires_grad`` train.
        rate: the step size.

    Returns:
        AdamW with decay 0.01 for matrices and 0 for vectors.

    Raises:
        ValueError: if nothing in the model is trainable.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("model: must have a parameter that requires a gradient")
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=rate)


def scale(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the step size of all of an optimizer's groups.

    Args:
        optimizer: any.
        rate: the step size.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def predicted(model: nn.Module, tokens: Tokens, batch: int) -> Tensor:
    """Compute the logits of all rows, those of near-equal length together.

    Args:
        model: classifies texts.
        tokens: ids and mask, [n, T].
        batch: rows of a call.

    Returns:
        [n, C], in the order of the rows.

    Raises:
        ValueError: if ``batch`` is less than 1.
    """
    if batch < 1:
        raise ValueError(f"batch: must be at least 1, got {batch}")
    order = tokens.mask.sum(1).argsort(stable=True)
    logits = torch.cat([model(*trimmed(tokens, rows)) for rows in order.split(batch)])
    return logits[order.argsort()]


def accuracy(model: nn.Module, tokens: Tokens, labels: Tensor, batch: int) -> float:
    """Compute the share of rows whose largest logit is that of their label.

    Args:
        model: classifies texts.
        tokens: ids and mask, [n, T].
        labels: [n] int64.
        batch: rows of a call.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: if there are no rows, or the labels are no classes.
    """
    return _mean(model, tokens, labels, batch, _right)


def log_loss(model: nn.Module, tokens: Tokens, labels: Tensor, batch: int) -> float:
    """Compute the mean of minus the log-probability of the labels.

    Args:
        model: classifies texts.
        tokens: ids and mask, [n, T].
        labels: [n] int64.
        batch: rows of a call.

    Returns:
        Nats per row.

    Raises:
        ValueError: if there are no rows, or the labels are no classes.
    """
    return _mean(model, tokens, labels, batch, _losses)


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(1) == labels


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _mean(
    model: nn.Module,
    tokens: Tokens,
    labels: Tensor,
    batch: int,
    measure: Callable[[Tensor, Tensor], Tensor],
) -> float:
    _require_rows(tokens, labels)
    logits = predicted(model, tokens, batch)
    _require_classes(labels, logits)
    return measure(logits, labels).double().mean().item()


def _require_rows(tokens: Tokens, labels: Tensor) -> None:
    n = len(tokens.ids)
    if not n:
        raise ValueError("tokens: must have a row")
    if labels.shape != (n,) or labels.dtype != torch.int64:
        raise ValueError(f"labels: must be [{n}] int64, got {list(labels.shape)} {labels.dtype}")
    require(labels >= 0, "labels: must not be negative")


def _require_classes(labels: Tensor, logits: Tensor) -> None:
    require(labels < logits.shape[1], f"labels: must be less than {logits.shape[1]}")


def _require_setting(setting: Setting, measured: bool) -> None:
    for name in ("epochs", "batch"):
        if getattr(setting, name) < 1:
            raise ValueError(f"setting: {name} must be at least 1, got {getattr(setting, name)}")
    if not 0 < setting.rate < float("inf"):
        raise ValueError(f"setting: rate must be positive and finite, got {setting.rate}")
    if setting.patience is not None and setting.patience < 1:
        raise ValueError(f"setting: patience must be at least 1, got {setting.patience}")
    if setting.patience is not None and not measured:
        raise ValueError("setting: patience needs held-out rows")
