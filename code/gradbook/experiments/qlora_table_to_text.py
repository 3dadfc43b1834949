"""LoRA on a decoder that is kept in 4 bits: from records of airports to sentences.

All but the base is as for LoRA in :mod:`gradbook.experiments.table_to_text`, seed by seed: the
records, their order, LoRA of rank two at the maps to queries and to values, what starts at random,
rate and number of steps. So that record holds the float base. Here all seven maps of a layer are in
NF4, with scales in bytes; embeddings and norms are not.

The package's weights of SmolLM2 are rounded to 4 bits already, another way: what is lost here is
lost by rounding a second time.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from gradbook.experiments import table_to_text
from gradbook.experiments.table_to_text import RANK, SHORT, SHOWN, TABLE, WAYS, Scale
from gradbook.language import airports, completion, decoder
from gradbook.language.airports import Airport
from gradbook.language.prompted_decoder import PromptedDecoder
from gradbook.language.tuning import Setting
from gradbook.peft.injection import count, inject
from gradbook.peft.merging import add_to, additions
from gradbook.peft.nf4_linear import DoubleScales, NF4Linear
from gradbook.peft.qlora import QLoRALinear, merge_all
from gradbook.peft.selection import named

SEEDS = tuple(range(5))
BLOCK, MANY = 64, 30
MAPS = named(r".*\.(q|k|v|o|gate|up|down)_proj")
PAIR = named(r".*\.(q|v)_proj")

data_digest = airports.data_digest


def doubly(layer: nn.Module) -> NF4Linear:
    """Keep a map in NF4, with scales in bytes."""
    return NF4Linear(layer, BLOCK, DoubleScales)


def rounded() -> PromptedDecoder:
    """Read the decoder, and keep all maps of its layers in 4 bits."""
    model = PromptedDecoder(decoder.pretrained_decoder(), None)
    inject(model.decoder, MAPS, doubly)
    return model


def run(seed: int, scale: Scale = TABLE) -> dict[str, Any]:
    """Tune in 4 bits, and measure on records to test on, before and after merges.

    Args:
        seed: of the records to learn from, their order, and what starts at random.
        scale: how much to learn from, and to test on.

    Returns:
        ``short``, as :func:`run_short`; ``ways``, what
        :func:`gradbook.experiments.table_to_text.measured` says: of ``apart``, with what
        :func:`tuned` says, and of the merges of :func:`merges`; ``texts``, by way the first four
        completions; and of the additions, as :func:`merges`, ``size`` and ``kept``.
    """
    words, rows, test = table_to_text.drawn(seed, scale)
    model, trained = tuned(words, rows, seed)
    found, texts = {}, {}
    measured, lines = table_to_text.measured(model, words, test)
    found["apart"], texts["apart"] = trained | measured, lines[:SHOWN]
    merged, sizes = merges(model)
    for name, one in merged.items():
        found[name], lines = table_to_text.measured(one, words, test)
        texts[name] = lines[:SHOWN]
    return {"short": run_short(seed), "ways": found, "texts": texts, **sizes}


def reference(scale: Scale = TABLE) -> dict[str, Any]:
    """Measure what rounding does before anything is learnt.

    Args:
        scale: how many records are tested on.

    Returns:
        ``nats`` per token, of the ``float`` weights and of ``nf4``.
    """
    words, _, test = table_to_text.drawn(SEEDS[0], scale)
    models = {"float": PromptedDecoder(decoder.pretrained_decoder(), None), "nf4": rounded()}
    pairs = table_to_text.pairs(words, test)
    return {
        "nats": {
            name: completion.nats_per_token(model, pairs, MANY) for name, model in models.items()
        }
    }


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live: two steps on eight records.

    Args:
        seed: as for :func:`run`.

    Returns:
        The ``late_loss`` of the second step, and ``nats`` per token on four records to test on.
    """
    words, rows, test = table_to_text.drawn(seed, SHORT)
    model, found = tuned(words, rows, seed)
    nats = completion.nats_per_token(model, table_to_text.pairs(words, test), MANY)
    return {"late_loss": found["late_loss"], "nats": nats}


def tuned(
    words: PreTrainedTokenizerFast, rows: Sequence[Airport], seed: int
) -> tuple[PromptedDecoder, dict[str, float]]:
    """Tune LoRA beside the decoder in 4 bits.

    Args:
        words: the tokenizer.
        rows: records to learn from.
        seed: of the order of the rows and of what starts at random.

    Returns:
        The model; and ``trainable`` numbers, ``late_loss`` in the last half of the steps, in nats
        per token, ``seconds`` of a step, and whether the ``frozen`` tensors stayed the same.
    """
    generator = torch.Generator().manual_seed(seed + 20_000)
    model, way = rounded(), WAYS["lora"]
    put = inject(model.decoder, PAIR, lambda layer: QLoRALinear(layer, RANK, 2 * RANK, generator))
    before = put.digest()
    pairs = table_to_text.pairs(words, rows)
    course = completion.fit(model, pairs, Setting(1, way.batch, way.rate), seed + 30_000)
    return model, {
        "trainable": count(model)[0],
        "late_loss": fmean(course.losses[len(course.losses) // 2 :]),
        "seconds": course.seconds,
        "frozen": float(put.digest() == before),
    }


def merges(model: PromptedDecoder) -> tuple[dict[str, PromptedDecoder], dict[str, float]]:
    """Put what was learnt into weights, in three ways.

    Args:
        model: with QLoRA's layers, not merged; merged afterwards.

    Returns:
        ``again``, the model with decoded weights and additions quantized again; ``float``, the
        decoder as the package has it with the additions in its weights; and ``float again``, that
        with all maps quantized. And ``size``, of the additions over the decoded weights, and
        ``kept``, the share of them that is left in ``again``, both as means over the maps.
    """
    learnt = additions(model.decoder)
    kept = merge_all(model.decoder).values()
    found = {"again": model}
    for name in ("float", "float again"):
        found[name] = PromptedDecoder(decoder.pretrained_decoder(), None)
        add_to(found[name].decoder, learnt)
    inject(found["float again"].decoder, MAPS, doubly)
    return found, {"size": fmean(x.size for x in kept), "kept": fmean(x.share for x in kept)}
