"""One task, thirteen ways to tune: the sentiment of sentences about films, by a pretrained encoder.

Every way starts from the same encoder, MiniLM, and trains a new linear head besides what it says.
A seed draws 1000 sentences to learn from, their order, and what starts at random; all ways of a
seed share them. The rates are, family by family, the most accurate of three on sentences neither
trained nor tested on, with other seeds: see :mod:`gradbook.experiments.review_rates`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradbook import delta_svd
from gradbook.language import encoder, splits, tuning
from gradbook.language.encoder import Classifier
from gradbook.language.splits import Rows
from gradbook.peft import adapter_drop, adapters, compacter, selection
from gradbook.peft.ia3 import ia3
from gradbook.peft.injection import count

SEEDS = tuple(range(5))
LAYERS = 6
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
BATCH = 16
# Of the test sentences, where one network is measured many times.
FEW = 500

data_digest = splits.data_digest


class Scale(NamedTuple):
    """How much there is to learn from, and how often it is seen.

    Attributes:
        rows: sentences.
        epochs: passes over them.
    """

    rows: int
    epochs: int


# The rates were chosen with the larger of the first two.
SMALL, TABLE = Scale(1_600, 2), Scale(1_000, 2)
FULL = Scale(7_500, 4)
SHORT = Scale(160, 1)


class Way(NamedTuple):
    """A way to tune.

    Attributes:
        family: whose rate it has.
        prepare: freezes a classifier's encoder, adds what is to be added, and leaves trainable what
            is to be trained; given the classifier and a generator of the CPU.
    """

    family: str
    prepare: Callable[[Classifier, torch.Generator], object]


def head_and(where: Callable[[str, nn.Parameter], bool]) -> Callable[..., object]:
    """Train the head and some of the encoder's own parameters."""

    def prepare(model: Classifier, _: torch.Generator) -> object:
        return selection.train_only(
            model, lambda name, p: name.startswith("head.") or where(name, p)
        )

    return prepare


def put_in(place: Callable[..., object], *sizes: int) -> Callable[..., object]:
    """Put new modules into the encoder, of the sizes that the placement asks for."""
    return lambda model, generator: place(model.encoder, *sizes, generator)


def scaled(model: Classifier, _: torch.Generator) -> object:
    """Scale keys, values and the inner states of the feed-forward branches."""
    inner = selection.named(r"encoder\.layer\.\d+\.output\.dense")
    pair = selection.named(r"encoder\.layer\.\d+\.attention\.self\.(key|value)")
    return ia3(model.encoder, pair, inner)


# What the ways are called, and in which order they stand in a table.
WAYS = {
    "head": Way("head", head_and(lambda name, p: False)),
    "top 1": Way("layers", head_and(selection.top_layers(1, LAYERS))),
    "top 2": Way("layers", head_and(selection.top_layers(2, LAYERS))),
    "all": Way("layers", head_and(lambda name, p: True)),
    "biases": Way("biases", head_and(selection.biases)),
    "ia3": Way("ia3", scaled),
    "adapters 4": Way("adapters", put_in(adapters.houlsby, 4)),
    "adapters 16": Way("adapters", put_in(adapters.houlsby, 16)),
    "adapters 64": Way("adapters", put_in(adapters.houlsby, 64)),
    "one adapter 16": Way("adapters", put_in(adapters.pfeiffer, 16)),
    "parallel 16": Way("adapters", put_in(adapters.parallel, 16)),
    "compacter 16": Way("compacter", put_in(compacter.compacter, 16, 4)),
    "dropping 16": Way("adapters", put_in(adapters.houlsby, 16)),
}
# Of each family: of those tried by review_rates, the one of the best accuracy.
RATES = {
    "head": 1e-2,
    "layers": 1e-4,
    "biases": 3e-3,
    "ia3": 1e-2,
    "adapters": 3e-3,
    "compacter": 1e-2,
}


class Dropping(nn.Module):
    """A classifier that passes over the adapters of its first layers, as many as it draws.

    Args:
        model: with adapters.
        generator: of the CPU.
    """

    def __init__(self, model: Classifier, generator: torch.Generator):
        super().__init__()
        self.model, self.generator = model, generator

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Classify texts, [B, T] ids and mask, with a fresh draw."""
        layers = adapter_drop.drawn_layers(LAYERS, self.generator)
        with adapter_drop.dropped(self.model.encoder, layers):
            return self.model(ids, mask)


def run(seed: int, scale: Scale = TABLE) -> dict[str, Any]:
    """Tune in every way, and measure on the test sentences.

    Args:
        seed: of the sentences to learn from, their order, and what starts at random.
        scale: how much to learn from.

    Returns:
        ``short``, as :func:`run_short`; by way, as :func:`tuned`, the ``ways``; on the
        first 500 of the test sentences ``svd``, as :func:`by_rank`, and ``dropped``, by way, the
        accuracies without the adapters of the first 0, 1, ..., 6 layers.
    """
    data, found = splits.movies(), {}
    rows = splits.drawn(data.pool, scale.rows, seed + 10_000)
    drops, few = {}, data.test.at(torch.arange(FEW))
    for name, way in WAYS.items():
        model, found[name] = tuned(name, rows, data.test, seed, RATES[way.family], scale.epochs)
        if name == "all":
            svd = by_rank(model, few)
        if name in ("adapters 16", "dropping 16"):
            drops[name] = by_dropped(model, few)
        del model
    return {"short": run_short(seed), "ways": found, "svd": svd, "dropped": drops}


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: as for :func:`run`.

    Returns:
        After one pass over 160 sentences with adapters of 16 numbers, the loss of the last five of
        ten steps, ``late_loss``, and the accuracy on 200 test sentences.
    """
    data = splits.movies()
    rows = splits.drawn(data.pool, SHORT.rows, seed + 10_000)
    test = data.test.at(torch.arange(200))
    model, found = tuned("adapters 16", rows, test, seed, RATES["adapters"], SHORT.epochs)
    return {"late_loss": found["late_loss"], "accuracy": found["accuracy"]}


def tuned(
    name: str,
    rows: Rows,
    test: Rows,
    seed: int,
    rate: float,
    epochs: int,
) -> tuple[Classifier, dict[str, Any]]:
    """Tune in one way, and measure.

    Args:
        name: of the way.
        rows: tokens and labels to learn from.
        test: tokens and labels to measure on.
        seed: of the order of the rows and of what starts at random.
        rate: the largest step size.
        epochs: passes over the rows.

    Returns:
        The tuned classifier; and ``trainable`` numbers without the head's, ``accuracy`` and
        ``log_loss`` in nats on the test rows, ``late_loss`` in the last half of the steps,
        ``seconds`` of a step, and whether the ``frozen`` numbers of the encoder stayed the same.
    """
    generator = torch.Generator().manual_seed(seed + 20_000)
    model = encoder.classifier(2, generator)
    WAYS[name].prepare(model, generator)
    before = frozen(model)
    head = sum(p.numel() for p in model.head.parameters())
    trained = Dropping(model, generator) if name.startswith("dropping") else model
    course = tuning.fit(trained, *rows, tuning.Setting(epochs, BATCH, rate), seed + 30_000)
    half = course.losses[len(course.losses) // 2 :]
    return model, {
        "trainable": count(model)[0] - head,
        "accuracy": tuning.accuracy(model, *test, 2 * BATCH),
        "log_loss": tuning.log_loss(model, *test, 2 * BATCH),
        "late_loss": sum(half) / len(half),
        "seconds": course.seconds,
        "frozen": float(all(torch.equal(a, b) for a, b in zip(before, frozen(model), strict=True))),
    }


def frozen(model: nn.Module) -> list[Tensor]:
    """Copy what is not trained of a model."""
    return [p.detach().clone() for p in model.parameters() if not p.requires_grad]


def by_rank(model: Classifier, test: Rows) -> dict[str, Any]:
    """Truncate what tuning changed in every matrix of the encoder, and measure.

    Args:
        model: all of it was tuned.
        test: tokens and labels.

    Returns:
        By ``ranks``: the ``accuracy``, embeddings truncated too, and the relative ``error`` of the
        changes, as means over the 36 matrices of the layers; ``exact``, the accuracy with whole
        changes; ``norms``, of those 36 changes over their matrices, the least and the largest.
    """
    first, tuned_weights = encoder.pretrained_encoder().state_dict(), model.encoder.state_dict()
    kept = {key: value.clone() for key, value in tuned_weights.items()}
    deltas = {
        key: kept[key] - first[key]
        for key, value in kept.items()
        if value.ndim == 2 and key.startswith("encoder.layer.")
    }
    accuracies, errors = [], []
    for rank in RANKS:
        model.encoder.load_state_dict(delta_svd.compressed(first, kept, rank))
        accuracies.append(tuning.accuracy(model, *test, 2 * BATCH))
        errors.append(_mean([delta_svd.error(delta, rank) for delta in deltas.values()]))
    model.encoder.load_state_dict(kept)
    norms = [(delta.norm() / first[key].norm()).item() for key, delta in deltas.items()]
    return {
        "ranks": list(RANKS),
        "accuracy": accuracies,
        "error": errors,
        "exact": tuning.accuracy(model, *test, 2 * BATCH),
        "norms": [min(norms), max(norms)],
    }


def by_dropped(model: Classifier, test: Rows) -> list[float]:
    """Measure without the adapters of the first layers.

    Args:
        model: with adapters.
        test: tokens and labels.

    Returns:
        The accuracy, for 0, 1, ..., 6 layers without.
    """
    found = []
    for layers in range(LAYERS + 1):
        with adapter_drop.dropped(model.encoder, layers):
            found.append(tuning.accuracy(model, *test, 2 * BATCH))
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
