"""Training a decoder on a long text, window by window, and measuring it in bits a character.

A window of T pieces is T - 1 predictions: its first piece is given. Windows of one text do not
overlap, and the last ones are set aside.
"""

import math
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaForCausalLM

from gradbook.checks import require, require_finite
from gradbook.language import plays
from gradbook.language.descent import adamw, descend, scale
from gradbook.language.schedule import share
from gradbook.priors.grids import require_sizes

# Windows at the end of a text that no decoder is trained on.
HELD_OUT = 64


class Settings(NamedTuple):
    """How to train.

    Attributes:
        steps: of AdamW, with the warm-up and fall of
            :func:`gradbook.language.schedule.share`.
        batch: windows of a step.
        length: pieces of a window.
        rate: AdamW's largest step size.
    """

    steps: int = 640
    batch: int = 16
    length: int = 128
    rate: float = 3e-3


def train(
    decoder: LlamaForCausalLM, ids: Tensor, settings: Settings, generator: torch.Generator
) -> list[float]:
    """Train a decoder in place to predict every next piece of a text's windows.

    The windows are shuffled, and shuffled again once all were seen.

    Args:
        decoder: on any device.
        ids: of the text, [n] int64.
        settings: how long and how fast.
        generator: of the CPU, for the order of the windows.

    Returns:
        Of each step, the loss before it, in nats a piece.

    Raises:
        ValueError: if the settings make no sense, there are fewer windows than a batch takes, an
            id is no piece, or a window is longer than the decoder's context.
        RuntimeError: if a gradient is not finite.
    """
    rows = _rows(decoder, ids, settings)
    optimizer = adamw(decoder, settings.rate)
    losses, order = [], torch.empty(0, dtype=torch.int64, device="cpu")
    for step in tqdm(range(settings.steps), leave=False, disable=None):
        if len(order) < settings.batch:
            order = torch.randperm(len(rows), generator=generator, device="cpu")
        batch, order = rows[order[: settings.batch]], order[settings.batch :]
        scale(optimizer, settings.rate * share(step, settings.steps))
        loss = next_piece_losses(decoder, batch.to(decoder.device)).mean()
        losses.append(descend(optimizer, loss))
    return losses


def next_piece_losses(decoder: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Compute minus the log-probability of every piece but the first.

    Args:
        decoder: on the device of the rows.
        rows: windows, [B, T] int64.

    Returns:
        [B, T - 1], in nats.
    """
    logits = decoder(input_ids=rows, use_cache=False).logits[:, :-1]
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none"
    )
    return losses.reshape(len(rows), -1)


@torch.no_grad()
def bits_per_character(decoder: LlamaForCausalLM, tokenizer: Tokenizer, rows: Tensor) -> float:
    """Measure a decoder on windows; of each, the first piece is given.

    Args:
        decoder: on any device.
        tokenizer: of its pieces.
        rows: [B, T] int64, on the CPU.

    Returns:
        The sum of the losses in bits over the characters of the pieces
        that were predicted.
    """
    batches = rows.split(16)
    nats = [next_piece_losses(decoder, batch.to(decoder.device)).double() for batch in batches]
    count = plays.characters(tokenizer, rows[:, 1:])
    return torch.cat(nats).sum().item() / count / math.log(2)


def parts(tokenizer: Tokenizer, text: str, length: int) -> tuple[Tensor, Tensor]:
    """Set the end of a text aside.

    Args:
        tokenizer: of the text.
        text: to train on.
        length: T, pieces of a window.

    Returns:
        The ids to train on, [n], and the last 64 windows, [64, T], which are not among them.

    Raises:
        ValueError: if the text is not longer than 64 windows.
    """
    ids = plays.tokens(tokenizer, text)
    if len(ids) <= HELD_OUT * length:
        raise ValueError(f"text: must be longer than {HELD_OUT} windows, got {len(ids)} pieces")
    return ids[: -HELD_OUT * length], plays.windows(ids[-HELD_OUT * length :], length)


def _rows(decoder: LlamaForCausalLM, ids: Tensor, settings: Settings) -> Tensor:
    """Check what a training is given, and cut the text into windows."""
    require_sizes(steps=settings.steps, batch=settings.batch)
    require_finite(rate=settings.rate)
    if settings.rate <= 0:
        raise ValueError(f"rate: must be positive, got {settings.rate}")
    config = decoder.config
    if not 2 <= settings.length <= config.max_position_embeddings:
        most = config.max_position_embeddings
        raise ValueError(f"length: must be from 2 to {most}, got {settings.length}")
    rows = plays.windows(ids, settings.length)
    require((rows >= 0) & (rows < config.vocab_size), f"ids: must be below {config.vocab_size}")
    if len(rows) < settings.batch:
        raise ValueError(f"ids: must be at least {settings.batch} windows, got {len(rows)}")
    return rows
