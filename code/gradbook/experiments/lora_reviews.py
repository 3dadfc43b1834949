"""One task, the family of LoRA: the sentiment of sentences about films, by a pretrained encoder.

All is as in :mod:`gradbook.experiments.review_tuning`: the encoder, the sentences that a seed
draws, their order, the head, the number of steps and the sentences to test on. So a way of there
and one of here may be compared seed by seed. Alpha is 8 whatever the rank. The rates are those of
the best accuracy in :mod:`gradbook.experiments.lora_rates`.
"""

from collections.abc import Callable
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from gradbook.devices import device
from gradbook.experiments.review_tuning import BATCH, FEW, SHORT, TABLE, Scale, frozen
from gradbook.language import encoder, splits, tuning
from gradbook.language.encoder import Classifier
from gradbook.language.splits import Rows
from gradbook.language.tuning import Course, Setting
from gradbook.peft import adalora, lora_plus, subspaces
from gradbook.peft.dora import DoRALinear
from gradbook.peft.injection import count, inject, matrix
from gradbook.peft.lora import LoRALinear, over_root
from gradbook.peft.pissa import principal
from gradbook.peft.selection import named
from gradbook.peft.svd_linear import SVDLinear, orthogonality, ranks
from gradbook.peft.vera import VeRALinear, projections

SEEDS = tuple(range(5))
ALPHA = 8.0
# Of the step sizes of B and A.
RATIO = 16.0
# AdaLoRA's triplets of a map before any is taken away, and the weight of their orthogonality.
ADALORA_FIRST, PENALTY = 6, 0.1
WIDTH, WIDE = 384, 256

data_digest = splits.data_digest

QUERY, VALUE = r"attention\.self\.query", r"attention\.self\.value"
ATTENTION = r"attention\.(self\.(query|key|value)|output\.dense)"
INNER = r"(intermediate|output)\.dense"
ALL = f"({ATTENTION}|{INNER})"
BOTH = f"({QUERY}|{VALUE})"

Make = Callable[[torch.Generator], Callable[[nn.Module], nn.Module]]
Train = Callable[[Classifier, Rows, Setting, int], Course]


def plain(model: Classifier, rows: Rows, setting: Setting, seed: int) -> Course:
    """Train all at one rate."""
    return tuning.fit(model, *rows, setting, seed)


def faster_b(model: Classifier, rows: Rows, setting: Setting, seed: int) -> Course:
    """Train B at sixteen times the rate of everything else."""
    return tuning.fit(
        model, *rows, setting, seed, optimizer=lambda m, rate: lora_plus.adamw(m, rate, RATIO)
    )


def allocated(model: Classifier, rows: Rows, setting: Setting, seed: int) -> Course:
    """Train triplets, and take away the least important third of them on the way."""
    steps = setting.epochs * -(-len(rows.labels) // setting.batch)
    first = len(model.encoder.encoder.layer) * 6 * ADALORA_FIRST
    schedule = adalora.Schedule(
        last=first * 2 // 3,
        warm_up=steps // 5,
        final=steps * 2 // 5,
        total=steps,
    )
    with adalora.Allocator(model, schedule) as allocator:
        return tuning.fit(
            model,
            *rows,
            setting,
            seed,
            penalty=lambda: PENALTY * orthogonality(model),
            after=allocator.step,
        )


class Way(NamedTuple):
    """A way to tune.

    Attributes:
        family: whose rate it has.
        where: the maps of a layer that get an addition, a regular expression.
        make: of a generator, what puts the addition around a map.
        train: trains the classifier.
    """

    family: str
    where: str
    make: Make
    train: Train = plain


def low_rank(rank: int) -> Make:
    """Add a product of a rank, scaled by alpha / r."""
    return lambda generator: lambda layer: LoRALinear(layer, rank, ALPHA, generator)


def stabilized(rank: int) -> Make:
    """Add a product of a rank, scaled such that rank 4 is as above: by alpha / (2 sqrt r)."""
    return lambda generator: lambda layer: LoRALinear(layer, rank, ALPHA / 2, generator, over_root)


def principal_start(rank: int) -> Make:
    """Let the product start as the largest singular triplets of the map."""
    return lambda generator: lambda layer: principal(LoRALinear(layer, rank, ALPHA, generator))


def by_direction(rank: int) -> Make:
    """Learn norms of the rows apart from their directions."""
    return lambda generator: lambda layer: DoRALinear(layer, rank, ALPHA, generator)


def triplets(rank: int) -> Make:
    """Add triplets like singular ones, which may be pruned."""
    return lambda generator: lambda layer: SVDLinear(layer, rank, ALPHA, generator)


def shared(rank: int) -> Make:
    """Share frozen random matrices between all maps, and learn two vectors for each."""

    def maker(generator: torch.Generator) -> Callable[[nn.Module], nn.Module]:
        pair = projections(WIDTH, WIDTH, rank, generator, device=device())
        return lambda layer: VeRALinear(layer, pair)

    return maker


# What the ways are called, and in which order they stand in a table.
WAYS = {
    "lora 1": Way("lora", BOTH, low_rank(1)),
    "lora 4": Way("lora", BOTH, low_rank(4)),
    "lora 16": Way("lora", BOTH, low_rank(16)),
    "rs 16": Way("lora", BOTH, stabilized(16)),
    "query 8": Way("lora", QUERY, low_rank(8)),
    "value 8": Way("lora", VALUE, low_rank(8)),
    "attention 2": Way("lora", ATTENTION, low_rank(2)),
    "inner 2": Way("lora", INNER, low_rank(2)),
    "all 1": Way("lora", ALL, low_rank(1)),
    "all 4": Way("lora", ALL, low_rank(4)),
    "adalora 4": Way("adalora", ALL, triplets(ADALORA_FIRST), allocated),
    "dora 4": Way("dora", BOTH, by_direction(4)),
    "pissa 4": Way("pissa", BOTH, principal_start(4)),
    "plus 4": Way("plus", BOTH, low_rank(4), faster_b),
    "vera 256": Way("vera", BOTH, shared(WIDE)),
}
# Of each family: of those tried by lora_rates, the one of the best accuracy.
RATES = {
    "lora": 1e-2,
    "dora": 1e-2,
    "adalora": 1e-2,
    "pissa": 1e-2,
    "plus": 1e-3,
    "vera": 1e-1,
}


def run(seed: int, scale: Scale = TABLE) -> dict[str, Any]:
    """Tune in every way, and measure on the test sentences.

    Args:
        seed: of the sentences to learn from, their order, and what starts at random.
        scale: how much to learn from.

    Returns:
        ``short``, as :func:`run_short`; by way, as :func:`tuned`, the ``ways``; ``ranks``, by map,
        that AdaLoRA left; and ``directions``, as :func:`directions`.
    """
    data, found, models = splits.movies(), {}, {}
    rows = splits.drawn(data.pool, scale.rows, seed + 10_000)
    for name, way in WAYS.items():
        rate = RATES[way.family]
        model, found[name] = tuned(way, rows, data.test, seed, rate, scale.epochs)
        if name == "adalora 4":
            left = ranks(model)
        if name in ("lora 4", "lora 16"):
            models[name] = model
        del model
    return {
        "short": run_short(seed),
        "ways": found,
        "ranks": left,
        "directions": directions(models["lora 4"], models["lora 16"]),
    }


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed of every family, as a page does live.

    Args:
        seed: as for :func:`run`.

    Returns:
        By family, after one pass over 160 sentences with the first of its ways, the loss of the
        last five of ten steps.
    """
    data = splits.movies()
    rows = splits.drawn(data.pool, SHORT.rows, seed + 10_000)
    test = data.test.at(torch.arange(4 * BATCH))
    found = {}
    for way in WAYS.values():
        if way.family not in found:
            rate = RATES[way.family]
            found[way.family] = tuned(way, rows, test, seed, rate, SHORT.epochs)[1]["late_loss"]
    return found


def tuned(
    way: Way, rows: Rows, test: Rows, seed: int, rate: float, epochs: int
) -> tuple[Classifier, dict[str, Any]]:
    """Tune in one way, and measure.

    Args:
        way: what is added, and where.
        rows: tokens and labels to learn from.
        test: tokens and labels to measure on.
        seed: of the order of the rows and of what starts at random.
        rate: the largest step size.
        epochs: passes over the rows.

    Returns:
        The tuned classifier; and ``trainable`` numbers without the head's, ``accuracy`` and
        ``log_loss`` in nats on the test rows, ``few``, the accuracy on the first 500 of them,
        ``late_loss`` in the last half of the steps, ``seconds`` of a step, and whether the
        ``frozen`` numbers of the encoder stayed the same.
    """
    generator = torch.Generator().manual_seed(seed + 20_000)
    model = encoder.classifier(2, generator)
    where = named(rf"encoder\.layer\.\d+\.{way.where}")
    inject(model.encoder, where, way.make(generator))
    before = frozen(model)
    head = sum(p.numel() for p in model.head.parameters())
    trainable = count(model)[0] - head
    course = way.train(model, rows, Setting(epochs, BATCH, rate), seed + 30_000)
    half = course.losses[len(course.losses) // 2 :]
    return model, {
        "trainable": trainable,
        **measured(model, test),
        "late_loss": fmean(half),
        "seconds": course.seconds,
        "frozen": float(all(torch.equal(a, b) for a, b in zip(before, frozen(model), strict=True))),
    }


def measured(model: Classifier, test: Rows) -> dict[str, float]:
    """Measure, in one pass: ``accuracy``, ``log_loss`` in nats, and ``few`` of :func:`tuned`."""
    logits = tuning.predicted(model, test.tokens, 2 * BATCH)
    right = (logits.argmax(1) == test.labels).double()
    return {
        "accuracy": right.mean().item(),
        "log_loss": F.cross_entropy(logits.double(), test.labels).item(),
        "few": right[:FEW].mean().item(),
    }


def directions(small: Classifier, large: Classifier) -> dict[str, Any]:
    """Compare what two trainings of LoRA changed, and what they changed with what was there.

    Args:
        small: with LoRA of rank 4 for queries and values.
        large: with LoRA of rank 16 at the same maps, another training.

    Returns:
        As means over the twelve maps: ``similar``, for i = 1, ..., 4, how far the i directions of
        the input that the small change reads most lie among the four of the large; ``share`` and
        ``amplified``, for the small change: its norm over that of the map, and over what the map
        has in the directions of the change.
    """
    similar, share, amplified = [], [], []
    for one, two in zip(_additions(small), _additions(large), strict=True):
        a, b = (x.scaling * (x.B @ x.A).detach().double() for x in (one, two))
        similar.append([subspaces.similarity(a.T, b.T, i, 4) for i in range(1, 5)])
        weight = matrix(one.layer).double()
        share.append((a.norm() / weight.norm()).item())
        amplified.append(subspaces.amplification(a, weight, 4))
    return {
        "similar": [fmean(column) for column in zip(*similar, strict=True)],
        "share": fmean(share),
        "amplified": fmean(amplified),
    }


def _additions(model: Classifier) -> list[LoRALinear]:
    return [module for module in model.modules() if isinstance(module, LoRALinear)]
