"""Learning to complete texts: sources to read, targets to learn, and a decoder with a prompt.

A source and a target are cut into tokens apart and stand behind each other. The loss is that of the
target's tokens and of the mark that ends it. A batch is B rows of T tokens, a prompt has p vectors
of the decoder's width e. What trains is whatever has ``requires_grad``.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from gradbook.devices import device
from gradbook.language.descent import Build, Course, Setting, adamw, descend, require_setting, run
from gradbook.language.encoder import Tokens
from gradbook.language.prompted_decoder import PromptedDecoder, require_right
from gradbook.peft.prompts import IGNORED
from gradbook.priors.grids import require_sizes


class Examples(NamedTuple):
    """Pairs of a source and a target, padded on the right; all [n, T] int64.

    Attributes:
        ids: of the source's tokens, the target's and the end.
        mask: 1 at a token, 0 at padding.
        labels: the ids at the target's tokens and the end, -100 elsewhere.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor


class Nats(NamedTuple):
    """What predicting tokens costs: nats of all together, and how many tokens they are."""

    total: float
    tokens: int


def examples(
    tokenizer: PreTrainedTokenizerFast,
    sources: Sequence[str],
    targets: Sequence[str],
    longest: int,
) -> Examples:
    """Turn pairs of texts into ids, masks and labels.

    Args:
        tokenizer: with a token that ends a text.
        sources: n texts. If one is empty, the first token of its target has nothing before it;
            only a prompt makes it count.
        targets: n texts; each gets the end behind it.
        longest: how many tokens a pair may have, the end included.

    Returns:
        Rows as wide as the longest pair, on the book's device.

    Raises:
        ValueError: if the numbers of texts differ, something else than texts is there, a pair is
            too long, or the tokenizer has no end.
    """
    require_sizes(longest=longest)
    end = _end(tokenizer)
    firsts, seconds = _pieces(tokenizer, sources, "sources"), _pieces(tokenizer, targets, "targets")
    if len(firsts) != len(seconds):
        raise ValueError(f"targets: must be {len(firsts)} texts, got {len(seconds)}")
    whole = [a + b + [end] for a, b in zip(firsts, seconds, strict=True)]
    labels = [[IGNORED] * len(a) + b + [end] for a, b in zip(firsts, seconds, strict=True)]
    width = max(map(len, whole), default=0)
    if width > longest:
        raise ValueError(f"longest: a pair has {width} tokens, more than {longest}")
    seen = [[1] * len(row) for row in whole]
    fills = ((whole, end), (seen, 0), (labels, IGNORED))
    return Examples(*(_matrix([row + [x] * (width - len(row)) for row in y]) for y, x in fills))


def sources_to_complete(tokenizer: PreTrainedTokenizerFast, sources: Sequence[str]) -> Tokens:
    """Turn texts into ids that a decoder may go on from: padded on the left.

    Args:
        tokenizer: with a token that ends a text.
        sources: n texts.

    Returns:
        Ids and mask, [n, T] int64, T that of the longest, on the book's device.

    Raises:
        ValueError: if something else than texts is there, or the tokenizer has no end.
    """
    end = _end(tokenizer)
    pieces = _pieces(tokenizer, sources, "sources")
    width = max(map(len, pieces), default=0)
    blanks = [width - len(row) for row in pieces]
    ids = [[end] * blank + row for blank, row in zip(blanks, pieces, strict=True)]
    mask = [[0] * blank + [1] * (width - blank) for blank in blanks]
    return Tokens(_matrix(ids), _matrix(mask))


def fit(
    model: PromptedDecoder,
    examples: Examples,
    setting: Setting,
    seed: int,
    optimizer: Build = adamw,
    penalty: Callable[[], Tensor] | None = None,
    after: Callable[[], None] | None = None,
) -> Course:
    """Train a prompted decoder in place.

    Args:
        model: whatever in it, or in its prompt, has ``requires_grad``
            trains.
        examples: n of them.
        setting: how long and how fast.
        seed: of the order of the rows.
        optimizer: as for :func:`gradbook.language.tuning.fit`.
        penalty: likewise.
        after: likewise.

    Returns:
        The mean nats of each step's labelled tokens, before the step and
        without the penalty, and seconds of a step.

    Raises:
        ValueError: if the setting or the examples make no sense, or nothing
            is trainable.
        RuntimeError: if a gradient is not finite.

    Source: as :func:`gradbook.language.tuning.fit`.
    """
    require_setting(setting)
    _require_examples(examples)
    built = optimizer(model, setting.rate)

    def work(rows: Tensor) -> float:
        return step(model, built, cut(examples, rows), penalty)

    return run(work, built, examples.mask.sum(1).cpu(), setting, seed, after)


def step(
    model: PromptedDecoder,
    optimizer: torch.optim.Optimizer,
    batch: Examples,
    penalty: Callable[[], Tensor] | None = None,
) -> float:
    """Take one step along the clipped gradient of the mean loss of a batch.

    Args:
        model: with something that trains.
        optimizer: of what trains in it.
        batch: the examples.
        penalty: as for :func:`gradbook.language.tuning.fit`.

    Returns:
        The loss before the step, in nats per labelled token, without the
        penalty.

    Raises:
        ValueError: as :meth:`gradbook.language.prompted_decoder.PromptedDecoder.loss`.
        RuntimeError: if the gradient is not finite.
    """
    return descend(optimizer, model.loss(*batch), penalty)


def cut(examples: Examples, rows: Tensor) -> Examples:
    """Take some rows, without the padding that all of them share.

    Args:
        examples: n of them, padded on the right.
        rows: indices [B].

    Returns:
        B examples, as wide as the longest.
    """
    few = Examples(*(part[rows.to(part.device)] for part in examples))
    width = int(few.mask.sum(1).max()) if len(few.mask) else 0
    return Examples(*(part[:, :width] for part in few))


@torch.no_grad()
def nats(model: PromptedDecoder, examples: Examples, batch: int) -> Nats:
    """Add the losses of all labelled tokens.

    Args:
        model: predicts them.
        examples: n of them.
        batch: rows of a call.

    Returns:
        The sum, added in float64, and how many tokens it is of. Where a
        source is empty and there is no prompt, the first token is in
        neither: nothing predicts it.

    Raises:
        ValueError: if there are no rows, they are not padded on the right,
            ``batch`` is below 1, or as :meth:`gradbook.language.prompted_decoder.PromptedDecoder.losses`.
    """
    require_sizes(batch=batch)
    _require_examples(examples)
    total, tokens = 0.0, 0
    for part in _by_length(examples.mask.sum(1), batch):
        each = model.losses(*cut(examples, part))
        total, tokens = total + each.double().sum().item(), tokens + len(each)
    return Nats(total, tokens)


def nats_per_token(model: PromptedDecoder, examples: Examples, batch: int) -> float:
    """Compute the mean loss of all labelled tokens; each counts the same.

    Args:
        model: predicts them.
        examples: n of them.
        batch: rows of a call.

    Returns:
        Nats per token.

    Raises:
        ValueError: as :func:`nats`, or if nothing is predicted.
    """
    total, tokens = nats(model, examples, batch)
    if not tokens:
        raise ValueError("examples: must have labels behind a token or a prompt")
    return total / tokens


def completions(
    model: PromptedDecoder,
    tokenizer: PreTrainedTokenizerFast,
    sources: Sequence[str],
    steps: int,
    batch: int,
) -> list[str]:
    """Complete texts greedily, those of near-equal length together.

    Args:
        model: goes on from them.
        tokenizer: the decoder's, with a token that ends a text.
        sources: n texts.
        steps: how many tokens a completion may have.
        batch: rows of a call.

    Returns:
        The completions in the order of the sources, without the end and
        what follows it.

    Raises:
        ValueError: as :func:`sources_to_complete`, or as
            :meth:`gradbook.language.prompted_decoder.PromptedDecoder.complete`: it refuses an empty source
            among others. Or if ``batch`` is below 1.
    """
    require_sizes(batch=batch)
    tokens, end = sources_to_complete(tokenizer, sources), _end(tokenizer)
    lengths, texts = tokens.mask.sum(1), [""] * len(sources)
    for rows in _by_length(lengths, batch):
        first = tokens.ids.shape[1] - int(lengths[rows].max())
        new = model.complete(*(part[rows, first:] for part in tokens), steps, end)
        for i, row in zip(rows.tolist(), new.tolist(), strict=True):
            texts[i] = tokenizer.decode(row[: row.index(end)] if end in row else row)
    return texts


def _by_length(lengths: Tensor, batch: int) -> Iterator[Tensor]:
    """Cut the indices of rows into batches, the shortest rows first."""
    return (x for x in lengths.argsort(stable=True).split(batch) if len(x))


def _end(tokenizer: PreTrainedTokenizerFast) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer: must have a token that ends a text")
    return tokenizer.eos_token_id


def _pieces(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], name: str) -> list[list[int]]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}: must be a sequence of strings")
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if len(texts) else []


def _matrix(rows: list[list[int]]) -> Tensor:
    width = len(rows[0]) if rows else 0
    found = torch.tensor(rows, dtype=torch.int64, device="cpu")
    return found.reshape(len(rows), width).to(device())


def _require_examples(examples: Examples) -> None:
    require_sizes(examples=len(examples.ids))
    require_right(examples.mask)
