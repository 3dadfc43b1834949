"""LoRA of a larger rank, DoRA and AdaLoRA on the records of airports, by a pretrained decoder.

All is as in :mod:`gradbook.experiments.table_to_text`, whose record holds LoRA of rank 2, prefixes,
and all weights: the decoder, SmolLM2-135M-Instruct, the records that a seed draws, their order and
number of steps, the records to test on, and LoRA's rate. Additions stand at the maps to queries and
to values of every layer, with alpha 4.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from gradbook.experiments import table_to_text
from gradbook.experiments.table_to_text import BATCH, SHORT, SHOWN, TABLE, Scale
from gradbook.language import airports, completion, decoder
from gradbook.language.airports import Airport
from gradbook.language.completion import Examples
from gradbook.language.prompted_decoder import PromptedDecoder
from gradbook.language.tuning import Course, Setting
from gradbook.peft import adalora
from gradbook.peft.dora import DoRALinear
from gradbook.peft.injection import count, inject
from gradbook.peft.lora import LoRALinear
from gradbook.peft.selection import named
from gradbook.peft.svd_linear import SVDLinear, orthogonality

SEEDS = tuple(range(5))
ALPHA, RATE = 4.0, 1e-2
# AdaLoRA's triplets of a map before any is taken away, and the weight of their orthogonality.
ADALORA_FIRST, PENALTY = 3, 0.1

data_digest = airports.data_digest

Make = Callable[[torch.Generator], Callable[[nn.Module], nn.Module]]
Train = Callable[[PromptedDecoder, Examples, Setting, int], Course]


def plain(model: PromptedDecoder, rows: Examples, setting: Setting, seed: int) -> Course:
    """Train what is trainable."""
    return completion.fit(model, rows, setting, seed)


def allocated(model: PromptedDecoder, rows: Examples, setting: Setting, seed: int) -> Course:
    """Train triplets, and take away the least important third of them on the way."""
    steps = -(-len(rows.ids) // setting.batch)
    first = len(model.decoder.model.layers) * 2 * ADALORA_FIRST
    schedule = adalora.Schedule(
        last=first * 2 // 3,
        warm_up=steps // 5,
        final=steps * 2 // 5,
        total=steps,
    )
    with adalora.Allocator(model, schedule) as allocator:
        return completion.fit(
            model,
            rows,
            setting,
            seed,
            penalty=lambda: PENALTY * orthogonality(model),
            after=allocator.step,
        )


class Way(NamedTuple):
    """A way to tune: of a generator, what puts an addition around a map; and what trains it."""

    make: Make
    train: Train = plain


# What the ways are called, and in which order they stand in a table.
WAYS = {
    "lora 8": Way(lambda generator: lambda layer: LoRALinear(layer, 8, ALPHA, generator)),
    "dora 2": Way(lambda generator: lambda layer: DoRALinear(layer, 2, ALPHA, generator)),
    "adalora 2": Way(
        lambda generator: lambda layer: SVDLinear(layer, ADALORA_FIRST, ALPHA, generator),
        allocated,
    ),
}


def run(seed: int, scale: Scale = TABLE) -> dict[str, Any]:
    """Tune in every way, and measure on records to test on.

    Args:
        seed: of the records to learn from, their order, and what starts at random.
        scale: how much to learn from, and to test on.

    Returns:
        ``short``, as :func:`run_short`; ``ways``, by way what :func:`tuned` says; and ``texts``, by
        way the first four completions.
    """
    words, rows, test = table_to_text.drawn(seed, scale)
    found, texts = {}, {}
    for name in WAYS:
        found[name], lines = tuned(name, words, rows, test, seed)
        texts[name] = lines[:SHOWN]
    return {"short": run_short(seed), "ways": found, "texts": texts}


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live: DoRA in two steps on eight records.

    Args:
        seed: as for :func:`run`.

    Returns:
        The ``late_loss`` of the second step, and ``nats`` per token on four records to test on.
    """
    words, rows, test = table_to_text.drawn(seed, SHORT)
    found, _ = tuned("dora 2", words, rows, test, seed)
    return {"late_loss": found["late_loss"], "nats": found["nats"]}


def tuned(
    name: str,
    words: PreTrainedTokenizerFast,
    rows: Sequence[Airport],
    test: Sequence[Airport],
    seed: int,
) -> tuple[dict[str, Any], list[str]]:
    """Tune in one way, and measure.

    Args:
        name: of the way.
        words: the tokenizer.
        rows: records to learn from.
        test: records to measure on.
        seed: of the order of the rows and of what starts at random.

    Returns:
        ``trainable`` numbers, ``late_loss`` in the last half of the steps, in nats per token,
        ``seconds`` of a step, whether the ``frozen`` numbers of the decoder stayed the same, and
        what :func:`gradbook.experiments.table_to_text.measured` says; and the completions.
    """
    generator = torch.Generator().manual_seed(seed + 20_000)
    model = PromptedDecoder(decoder.pretrained_decoder(), None)
    inject(model.decoder, named(r".*\.(q_proj|v_proj)"), WAYS[name].make(generator))
    before, trainable = table_to_text.digest(model), count(model)[0]
    pairs = table_to_text.pairs(words, rows)
    course = WAYS[name].train(model, pairs, Setting(1, BATCH, RATE), seed + 30_000)
    found, texts = table_to_text.measured(model, words, test)
    return {
        "trainable": trainable,
        "late_loss": fmean(course.losses[len(course.losses) // 2 :]),
        "seconds": course.seconds,
        "frozen": float(table_to_text.digest(model) == before),
        **found,
    }, texts
