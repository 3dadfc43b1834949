"""Fine-tuning a classifier of texts: batches of near-equal length, AdamW, and what came of it.

A model is called as ``model(ids, mask)`` and returns logits, [B, C]. What trains is whatever has
``requires_grad``: the methods of this part differ in that alone. The order of the rows is drawn on
the CPU. The model's mode is left as it is; the book's classifiers have no dropout.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradbook.checks import require
from gradbook.language.descent import Build, Course, Setting, adamw, descend, require_setting, run
from gradbook.language.encoder import Tokens, trimmed


def fit(
    model: nn.Module,
    tokens: Tokens,
    labels: Tensor,
    setting: Setting,
    seed: int,
    optimizer: Build = adamw,
    penalty: Callable[[], Tensor] | None = None,
    after: Callable[[], None] | None = None,
) -> Course:
    """Train a model in place.

    Args:
        model: classifies texts.
        tokens: ids and mask, [n, T].
        labels: [n] int64.
        setting: how long and how fast.
        seed: of the order of the rows.
        optimizer: builds it of a model and a rate; its groups keep the
            ratios of their step sizes to the rate.
        penalty: a number that is added to the loss of each step.
        after: called after each step, with its clipped gradients there.

    Returns:
        Losses, without the penalty, and seconds.

    Raises:
        ValueError: if the setting or the labels make no sense, there are
            no rows, or nothing is trainable.
        RuntimeError: if a gradient is not finite.

    Source: Devlin et al. 2019, appendix A.2: warm-up and linear decay.
    """
    require_setting(setting)
    _require_rows(tokens, labels)
    built = optimizer(model, setting.rate)
    work = partial(step, model, built, tokens, labels, penalty=penalty)
    return run(work, built, tokens.mask.sum(1).cpu(), setting, seed, after)


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Tokens,
    labels: Tensor,
    rows: Tensor,
    penalty: Callable[[], Tensor] | None = None,
) -> float:
    """Take one step along the clipped gradient of the mean loss of some rows.

    Args:
        model: classifies texts.
        optimizer: of what trains in it.
        tokens: ids and mask, [n, T].
        labels: [n] int64.
        rows: indices [B], on any device.
        penalty: as for :func:`fit`.

    Returns:
        The loss before the step, in nats, without the penalty.

    Raises:
        ValueError: if a label is no class.
        RuntimeError: if the gradient is not finite.
    """
    rows = rows.to(labels.device)
    logits = model(*trimmed(tokens, rows))
    _require_classes(labels[rows], logits)
    return descend(optimizer, _losses(logits, labels[rows]).mean(), penalty)


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
