"""LoRA on a rounded encoder: the sentiment of sentences about films, by codes of 4, 3 and 2 bits.

All but the base is as for the way "all 4" of :mod:`gradbook.experiments.lora_places`, seed by seed:
sentences, order, head, LoRA of rank 4 at all six maps of a layer, what starts at random, and rate.
So that record holds the float base. Here the six maps are rounded before LoRA is put beside them;
embeddings and norms are not. With every base a head alone is trained, too, at the rate of
:mod:`gradbook.experiments.review_tuning`, whose record holds it on the float base.
"""

from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from gradbook.experiments import lora_places, review_tuning
from gradbook.experiments.lora_reviews import ALL, ALPHA, Way, measured, tuned
from gradbook.experiments.review_tuning import BATCH, SHORT, TABLE, Scale
from gradbook.language import encoder, splits, tuning
from gradbook.language.encoder import Classifier
from gradbook.language.splits import Rows
from gradbook.language.tuning import Setting
from gradbook.peft.four_bit_codes import int4_code, rounded
from gradbook.peft.injection import inject, matrix
from gradbook.peft.lora import LoRALinear
from gradbook.peft.merging import add_to, additions
from gradbook.peft.nf4 import end_offset, quantile_code
from gradbook.peft.nf4_linear import DoubleScales, NF4Linear, Scales
from gradbook.peft.qlora import QLoRALinear, merge_all
from gradbook.peft.selection import named, train_only

SEEDS = tuple(range(5))
RANK, BLOCK, LARGE = 4, 64, 4096
RATE = lora_places.RATES["all 4"]
MAPS = named(rf"encoder\.layer\.\d+\.{ALL}")

data_digest = splits.data_digest

Base = Callable[[nn.Module], nn.Module]


def doubly(layer: nn.Module) -> NF4Linear:
    """Keep a map in NF4, with scales in bytes, as QLoRA does."""
    return NF4Linear(layer, BLOCK, DoubleScales)


def in_large_blocks(layer: nn.Module) -> NF4Linear:
    """Keep a map in NF4 with one scale for 4096 weights."""
    return NF4Linear(layer, LARGE, Scales)


def rounded_to(code: Callable[[], Tensor]) -> Base:
    """Round a map to a code in blocks of 64, whose scales are not rounded; its type stays."""

    def base(layer: nn.Module) -> nn.Module:
        weight = matrix(layer)
        with torch.no_grad():
            weight.copy_(rounded(code())(weight, BLOCK).view_as(weight))
        return layer

    return base


def quantiles(positive: int, negative: int) -> Tensor:
    """Place levels by the rule of NF4, with fewer of them."""
    return quantile_code(positive, negative, end_offset(positive, negative), torch.float64)


# What the bases are called, and in which order they stand in a table.
BASES = {
    "nf4": doubly,
    "nf4 4096": in_large_blocks,
    "int4": rounded_to(int4_code),
    "nf3": rounded_to(lambda: quantiles(4, 3)),
    "nf2": rounded_to(lambda: quantiles(2, 1)),
}


def beside(layer: nn.Module, generator: torch.Generator) -> LoRALinear:
    """Put LoRA of rank 4 beside a map, whichever way it is kept."""
    kind = QLoRALinear if isinstance(layer, NF4Linear) else LoRALinear
    return kind(layer, RANK, ALPHA, generator)


def low_rank(base: Base) -> Way:
    """Round all maps, and add a product to each."""
    return Way("lora", ALL, lambda generator: lambda layer: beside(base(layer), generator))


def run(seed: int, scale: Scale = TABLE) -> dict[str, Any]:
    """Tune on every base, and measure on the test sentences.

    Args:
        seed: of the sentences to learn from, their order, and what starts at random.
        scale: how much to learn from.

    Returns:
        ``short``, as :func:`run_short`; by base, ``ways``, as
        :func:`gradbook.experiments.lora_reviews.tuned`, and whether the ``base`` is as rounding
        makes it, and ``heads``, as :func:`head_alone`; and ``merges``, as :func:`merges`, of NF4
        in blocks of 64.
    """
    data = splits.movies()
    rows = splits.drawn(data.pool, scale.rows, seed + 10_000)
    found, heads = {}, {}
    for name, base in BASES.items():
        heads[name] = head_alone(base, rows, data.test, seed, scale.epochs)
        model, found[name] = tuned(low_rank(base), rows, data.test, seed, RATE, scale.epochs)
        found[name]["base"] = float(untouched(model, base))
        if name == "nf4":
            merged = merges(model, data.test)
        del model
    return {"short": run_short(seed), "ways": found, "heads": heads, "merges": merged}


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed on NF4 in blocks of 64, as a page does live.

    Args:
        seed: as for :func:`run`.

    Returns:
        After one pass over 160 sentences, the loss of the last five of ten steps, ``late_loss``.
    """
    data = splits.movies()
    rows = splits.drawn(data.pool, SHORT.rows, seed + 10_000)
    test = data.test.at(torch.arange(4 * BATCH))
    _, found = tuned(low_rank(BASES["nf4"]), rows, test, seed, RATE, SHORT.epochs)
    return {"late_loss": found["late_loss"]}


def head_alone(base: Base, rows: Rows, test: Rows, seed: int, epochs: int) -> dict[str, float]:
    """Train nothing but a head behind an encoder whose maps are rounded.

    Args:
        base: rounds a map.
        rows: tokens and labels to learn from.
        test: tokens and labels to measure on.
        seed: of the order of the rows and of the head.
        epochs: passes over the rows.

    Returns:
        What :func:`gradbook.experiments.lora_reviews.measured` says.
    """
    model = encoder.classifier(2, torch.Generator().manual_seed(seed + 20_000))
    inject(model.encoder, MAPS, base)
    train_only(model, lambda name, _: name.startswith("head."))
    rate = review_tuning.RATES["head"]
    tuning.fit(model, *rows, Setting(epochs, BATCH, rate), seed + 30_000)
    return measured(model, test)


def untouched(model: Classifier, base: Base) -> bool:
    """Say whether the maps beside which LoRA stands are those of the encoder, rounded."""
    fresh = encoder.pretrained_encoder()
    inject(fresh, MAPS, lambda layer: beside(base(layer), torch.Generator()))
    kept = [m.weights() for m in fresh.modules() if isinstance(m, LoRALinear)]
    now = [m.weights() for m in model.modules() if isinstance(m, LoRALinear)]
    return all(torch.equal(*pair) for pair in zip(now, kept, strict=True))


def merges(model: Classifier, test: Rows) -> dict[str, Any]:
    """Put what was learnt into weights, in three ways.

    Args:
        model: with QLoRA's layers, not merged; merged afterwards.
        test: tokens and labels to measure on.

    Returns:
        ``size``, of the additions over the decoded weights, and ``kept``, the share of them that is
        left when decoded weights and additions are quantized again, both as means over the maps;
        what :func:`gradbook.experiments.lora_reviews.measured` says of these, ``again``; of the
        additions on the float weights of the encoder, ``float``; and of those quantized,
        ``float again``.
    """
    learnt = additions(model.encoder)
    kept = merge_all(model.encoder).values()
    found = {
        "size": fmean(x.size for x in kept),
        "kept": fmean(x.share for x in kept),
        "again": measured(model, test),
    }
    other = Classifier(encoder.pretrained_encoder(), model.head)
    add_to(other.encoder, learnt)
    found["float"] = measured(other, test)
    inject(other.encoder, MAPS, doubly)
    return found | {"float again": measured(other, test)}
