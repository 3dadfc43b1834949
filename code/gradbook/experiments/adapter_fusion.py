"""Adapters of two tasks help a third: AdapterFusion on sentences about films and about goods.

The sources are the sentiment of sentences about films, and how strong it is. The target is the
sentiment of sentences about goods, with few rows or many. Everything stands in one pretrained
encoder, MiniLM, with one adapter in every block; every task has a linear head of its own.
"""

from typing import Any, NamedTuple

import torch

from gradbook.devices import device
from gradbook.language import encoder, reviews, splits, tuning
from gradbook.language.encoder import Classifier
from gradbook.language.splits import Rows
from gradbook.peft import adapters, fusion
from gradbook.peft.adapters import Bottleneck
from gradbook.peft.fusion import Fusion

SEEDS = tuple(range(5))
SIZE, BATCH = 16, 16
# Step sizes: of heads and adapters as in review_tuning; of what fuses, smaller, since it starts
# from matrices of order one. It was not tuned.
RATES = {"head": 1e-2, "adapter": 3e-3, "fusion": 3e-4}
STRONG, WEAK = 2.0, 1.0
TEST = 400


class Scale(NamedTuple):
    """How much there is to learn from.

    Attributes:
        source: sentences of each source, and passes over them.
        targets: sentences of the target and passes over them, few first.
    """

    source: tuple[int, int]
    targets: tuple[tuple[int, int], ...]


SMALL = Scale((500, 2), ((80, 12), (400, 2)))
FULL = Scale((7_500, 4), ((80, 12), (1_200, 4)))
SHORT = Scale((64, 1), ((48, 1),))


def data_digest() -> str:
    """Join the digests of the texts about films and about goods."""
    return f"{reviews.SHA256['movie']} {reviews.SHA256['amazon']}"


def run(seed: int, scale: Scale = SMALL) -> dict[str, Any]:
    """Train the sources' adapters, and use them for the target in several ways.

    Args:
        seed: of the sentences to learn from, their order, and what starts at random.
        scale: how much to learn from.

    Returns:
        ``short``, as :func:`run_short`; ``targets``, by number of rows, as :func:`compared`.
    """
    return {"short": run_short(seed), "targets": targets(seed, scale)}


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: as for :func:`run`.

    Returns:
        How much an untrained fusion of two adapters, which were trained on 64 sentences each, listens
        to the first, as a mean over 48 sentences and all blocks; and how far the logits of the fused
        model are from those of the encoder without adapters, as a root mean square.
    """
    banks = sources(seed, SHORT)
    rows = splits.drawn(goods()[0], SHORT.targets[0][0], seed + 10_000)
    generator = torch.Generator().manual_seed(seed + 20_000)
    model = encoder.classifier(2, generator)
    with torch.no_grad():
        plain = model(*rows.tokens)
        fusion.fuse(model.encoder, banks, generator)
        apart = (model(*rows.tokens) - plain).square().mean().sqrt()
    return {"first": listened(model, rows)[0], "apart": apart.item()}


def goods() -> tuple[Rows, Rows]:
    """Read the sentences about goods with a clear sentiment.

    Returns:
        The first part of the file to learn from, and its last 400 rows to test on: a review's
        sentences stand together, so that hardly one is in both.
    """
    found = reviews.sentiment(reviews.reviews("amazon"))
    every = Rows(encoder.encode(found.texts), found.labels.to(device()))
    order = torch.arange(len(found.labels))
    return every.at(order[:-TEST]), every.at(order[-TEST:])


def strengths() -> Rows:
    """Read the sentences about films whose score is far from 0, labelled 1, or near it."""
    found = reviews.reviews("movie")
    size = found.scores.abs()
    kept = ((size >= STRONG) | (size <= WEAK)).nonzero().flatten()
    texts = [found.texts[i] for i in kept.tolist()]
    return Rows(encoder.encode(texts), (size[kept] >= STRONG).long().to(device()))


def sources(seed: int, scale: Scale) -> list[list[Bottleneck]]:
    """Train the adapters of both sources.

    Args:
        seed: of all.
        scale: how much to learn from.

    Returns:
        Those of the films' sentiment, and those of its strength, block by block.
    """
    banks = []
    for i, pool in enumerate((splits.movies().pool, strengths())):
        rows = splits.drawn(pool, scale.source[0], seed + 10_000 + i)
        banks.append(adapters.adapters_of(adapted(rows, scale.source[1], seed + 1000 * i).encoder))
    return banks


def adapted(rows: Rows, epochs: int, seed: int) -> Classifier:
    """Train one task's adapters and head."""
    generator = torch.Generator().manual_seed(seed + 20_000)
    model = encoder.classifier(2, generator)
    adapters.pfeiffer(model.encoder, SIZE, generator)
    _fit(model, rows, epochs, "adapter", seed)
    return model


def targets(seed: int, scale: Scale) -> dict[str, Any]:
    """Compare the ways to use the sources' adapters, by number of the target's rows."""
    banks, (pool, test) = sources(seed, scale), goods()
    return {
        str(n): compared(banks, splits.drawn(pool, n, seed + 10_000), epochs, test, seed)
        for n, epochs in scale.targets
    }


def compared(
    banks: list[list[Bottleneck]], rows: Rows, epochs: int, test: Rows, seed: int
) -> dict[str, Any]:
    """Tune for the target in five ways, each with a new head.

    Args:
        banks: of the sources.
        rows: of the target.
        epochs: passes over them.
        test: rows to measure on.
        seed: of all.

    Returns:
        ``accuracy`` on the test rows: of the ``head`` alone; of the head on the films' adapters, as
        they are, ``films``; of the target's ``own`` adapters; of the sources' adapters, ``fused``;
        and of theirs and the own, ``fused_with_own``. And how much the last two listen to each
        adapter, ``weights``.
    """
    own = adapted(rows, epochs, seed + 100)
    found = {"own": own, "head": _headed([], rows, epochs, seed)}
    found["films"] = _headed(banks[:1], rows, epochs, seed)
    ours = [*banks, adapters.adapters_of(own.encoder)]
    for name, bank in (("fused", banks), ("fused_with_own", ours)):
        generator = torch.Generator().manual_seed(seed + 40_000)
        model = encoder.classifier(2, generator)
        fusion.fuse(model.encoder, bank, generator)
        _fit(model, rows, epochs, "fusion", seed)
        found[name] = model
    return {
        "accuracy": {key: tuning.accuracy(m, *test, 2 * BATCH) for key, m in found.items()},
        "weights": {key: listened(found[key], test) for key in ("fused", "fused_with_own")},
    }


@torch.no_grad()
def listened(model: Classifier, rows: Rows) -> list[float]:
    """Measure how much the fusions listen to each adapter.

    Args:
        model: with a fusion in every block.
        rows: of texts; the first 200 are read.

    Returns:
        For each adapter the mean weight over all pieces of all texts and all blocks.
    """
    kept: list[torch.Tensor] = []
    few = rows.at(torch.arange(min(200, len(rows.labels))))
    seen = few.tokens.mask.bool()

    def keep(module: Fusion, inputs: tuple[torch.Tensor]) -> None:
        kept.append(module.weights(*inputs)[seen].mean(0))

    places = [m for m in model.modules() if isinstance(m, Fusion)]
    hooks = [place.register_forward_pre_hook(keep) for place in places]
    model(*few.tokens)
    for hook in hooks:
        hook.remove()
    return torch.stack(kept).mean(0).tolist()


def _headed(banks: list[list[Bottleneck]], rows: Rows, epochs: int, seed: int) -> Classifier:
    generator = torch.Generator().manual_seed(seed + 40_000)
    model = encoder.classifier(2, generator)
    if banks:
        # A fusion of one adapter whose V is the identity is that adapter.
        fusion.fuse(model.encoder, banks, generator)
    model.encoder.requires_grad_(False)
    _fit(model, rows, epochs, "head", seed)
    return model


def _fit(model: Classifier, rows: Rows, epochs: int, kind: str, seed: int) -> None:
    tuning.fit(model, *rows, tuning.Setting(epochs, BATCH, RATES[kind]), seed + 30_000)
