"""One task, six ways to steer a frozen encoder: the sentiment of sentences about films, by MiniLM.

A text is put to the class whose own sentence it lies nearest to. Hard prompts change the words
around the text and the sentences of the classes, and learn nothing. All else learns 800 sentences
in 100 steps: a seed draws them, their order, and what starts at random; all ways of a seed share
them. Deep prompts alone train a new head besides, as P-tuning v2 does.

The rates are, family by family, those of the least loss of three on sentences neither trained nor
tested on, with other seeds: see :mod:`gradbook.experiments.prompt_rates`, and for the prefix
:mod:`gradbook.experiments.prefix_rates`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertModel

from gradbook.experiments.review_tuning import frozen
from gradbook.language import encoder, splits, tuning
from gradbook.language.sentence_classes import (
    PromptedReader,
    Reader,
    SentenceClassifier,
    class_vectors,
)
from gradbook.language.splits import Rows
from gradbook.peft import prefix, prefix_encoder, prefix_starts, prompt_starts, selection
from gradbook.peft.injection import count, inject
from gradbook.peft.lora import LoRALinear
from gradbook.peft.prompt_encoders import LSTMPromptEncoder
from gradbook.peft.prompts import SoftPrompt

SEEDS = tuple(range(5))
LAYERS, WIDTH = 6, 384
LENGTH, HIDDEN = 12, 96
ROWS, EPOCHS, BATCH = 800, 2, 16
SHORT_ROWS = 160
# Around the text, and for the classes: negative, then positive. The first of each is used below.
TEMPLATES = (
    "{}",
    "this film review says: {}",
    "the sentiment of the review is: {}",
    "{} all in all, the film was",
    "{} it was [MASK].",
)
CLASSES = (
    ("it was terrible.", "it was great."),
    ("a bad film.", "a good film."),
    ("this film is boring and bad.", "this film is exciting and good."),
    ("i hated it", "i loved it"),
    ("a negative review of a film", "a positive review of a film"),
    ("negative", "positive"),
    ("terrible", "great"),
    ("bad", "good"),
)
# Before this id BERT's vocabulary has marks, unused places and characters; behind it stand frequent
# pieces, most of them whole words in lower case.
FIRST_WORD = 1996

data_digest = splits.data_digest
Build = Callable[[BertModel, torch.Generator], nn.Module]


class Way(NamedTuple):
    """A way to steer.

    Attributes:
        family: whose rate it has.
        build: of an encoder, changed in place, and a generator of the CPU, makes a classifier in
            which what shall be trained is trainable.
        kept: numbers that are kept for a task after the training.
    """

    family: str
    build: Build
    kept: int


def with_prompt(start: Callable[[BertModel, torch.Generator], Tensor]) -> Build:
    """Put vectors in front of the text."""

    def build(model: BertModel, generator: torch.Generator) -> nn.Module:
        classes = class_vectors(model, CLASSES[0])
        model.requires_grad_(False)
        prompt = SoftPrompt(start(model, generator)).to(model.device)
        return SentenceClassifier(PromptedReader(model, prompt), classes)

    return build


def random_vectors(model: BertModel, generator: torch.Generator) -> Tensor:
    """Draw 12 vectors as large as a word's, which know nothing of the vocabulary."""
    table = model.get_input_embeddings().weight
    std = table.detach().std().item()
    return prompt_starts.random_start(LENGTH, WIDTH, generator, std)


def vocabulary(length: int) -> Callable[[BertModel, torch.Generator], Tensor]:
    """Sample vectors of frequent words."""

    def start(model: BertModel, generator: torch.Generator) -> Tensor:
        words = model.get_input_embeddings().weight[FIRST_WORD:]
        return prompt_starts.vocabulary_start(words, length, generator)

    return start


def class_words(model: BertModel, _: torch.Generator) -> Tensor:
    """Start from the word pieces of the classes' sentences, over and over."""
    table = model.get_input_embeddings().weight
    return prompt_starts.word_start(table, _word_ids(), LENGTH)


def injected(put: Callable[[BertModel, torch.Generator], object]) -> Build:
    """Put modules into the layers, and read texts as they are."""

    def build(model: BertModel, generator: torch.Generator) -> nn.Module:
        classes = class_vectors(model, CLASSES[0])
        put(model, generator)
        return SentenceClassifier(Reader(model), classes)

    return build


def deep(model: BertModel, generator: torch.Generator) -> nn.Module:
    """Put a prefix into every layer, and train a new linear head with it."""
    prefix.prefix(model, LENGTH, generator)
    return encoder.with_head(model, 2, generator)


def between(model: BertModel, generator: torch.Generator) -> nn.Module:
    """Compute vectors by an LSTM, six in front and six behind, with a full stop as anchor."""
    classes = class_vectors(model, CLASSES[0])
    model.requires_grad_(False)
    prompt = LSTMPromptEncoder(LENGTH, WIDTH, HIDDEN, generator, device=model.device)
    anchors = encoder.tokenizer().convert_tokens_to_ids(["."])
    return SentenceClassifier(PromptedReader(model, prompt, LENGTH // 2, anchors), classes)


def from_mlp(model: BertModel, generator: torch.Generator) -> object:
    """Compute a prefix by a small network while it is learnt."""
    shape = LAYERS, LENGTH, WIDTH, HIDDEN
    source = prefix_encoder.Reparameterized(*shape, generator, device=model.device)
    return prefix_encoder.put_reparameterized(model, source)


def from_words(model: BertModel, _: torch.Generator) -> object:
    """Start a prefix from the keys and values of the classes' sentences, over and over."""
    ids = _word_ids()
    ids = ids[torch.arange(LENGTH, device="cpu") % len(ids)].to(model.device)
    return prefix.put(model, prefix_starts.word_prefix(model, {"input_ids": ids[None]}))


def low_rank(rank: int, layers: str) -> Callable[[BertModel, torch.Generator], object]:
    """Put LoRA beside some of the linear maps of the attention, with alpha = r."""
    where = selection.named(rf"encoder\.layer\.\d+\.attention\.self\.{layers}")
    return lambda model, generator: inject(
        model, where, lambda layer: LoRALinear(layer, rank, rank, generator)
    )


def drawn(length: int) -> Callable[[BertModel, torch.Generator], object]:
    """Put a prefix of normal draws."""
    return lambda model, generator: prefix.prefix(model, length, generator)


INPUT, EVERY = LENGTH * WIDTH, prefix.prefix_parameters(LAYERS, LENGTH, WIDTH)
# What the ways are called, and in which order they stand in a table.
WAYS = {
    "prompt": Way("prompt", with_prompt(class_words), INPUT),
    "p-tuning": Way("p-tuning", between, INPUT),
    "lora 1": Way("lora", injected(low_rank(1, "value")), INPUT),
    "prefix": Way("prefix", injected(drawn(LENGTH)), EVERY),
    "deep": Way("prefix", deep, EVERY + 2 * WIDTH + 2),
    "lora 6": Way("lora", injected(low_rank(6, "(query|value)")), EVERY),
}
# Of each family: of those tried by prompt_rates or prefix_rates, the one of the least loss.
RATES = {"prompt": 1e-2, "p-tuning": 1e-3, "prefix": 3e-1, "lora": 3e-3, "mlp": 3e-3}


def run(seed: int) -> dict[str, Any]:
    """Steer in every way that learns, and measure on the test sentences.

    Args:
        seed: of the sentences to learn from, their order, and what starts at random.

    Returns:
        ``short``, as :func:`run_short`; by way, as :func:`tuned`, the ``ways``.
    """
    data = splits.movies()
    rows = splits.drawn(data.pool, ROWS, seed + 10_000)
    ways = {
        name: tuned(way, rows, data.test, seed, RATES[way.family])[1] for name, way in WAYS.items()
    }
    return {"short": run_short(seed), "ways": ways}


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: as for :func:`run`.

    Returns:
        After two passes over 160 sentences with a prefix: the loss of the later ten of twenty
        steps, ``late_loss``, and the accuracy on 200 test sentences.
    """
    data, way = splits.movies(), WAYS["prefix"]
    rows = splits.drawn(data.pool, SHORT_ROWS, seed + 10_000)
    test = data.test.at(torch.arange(200, device="cpu"))
    found = tuned(way, rows, test, seed, RATES[way.family])[1]
    return {key: found[key] for key in ("late_loss", "accuracy")}


def reference() -> dict[str, Any]:
    """Measure the hard prompts: every template with every pair of classes.

    Returns:
        ``choosing`` and ``test``, accuracies by template and then by pair, and ``log_loss`` on the
        test sentences of the first pair without a template, in nats.
    """
    model = encoder.pretrained_encoder()
    data, raw = splits.movies(), splits.movie_texts()
    classes = [class_vectors(model, pair) for pair in CLASSES]
    found: dict[str, Any] = {"choosing": [], "test": []}
    for template in TEMPLATES:
        for name, texts, rows in (
            ("choosing", raw.choosing, data.choosing),
            ("test", raw.test, data.test),
        ):
            tokens = encoder.encode([template.format(text) for text in texts], 56)
            vectors = tuning.predicted(Reader(model), tokens, 2 * BATCH)
            # The largest cosine: a text's own length changes no order.
            units = [nn.functional.normalize(pair, dim=-1) for pair in classes]
            right = [(vectors @ unit.T).argmax(1) == rows.labels for unit in units]
            found[name].append([r.double().mean().item() for r in right])
    first = SentenceClassifier(Reader(model), classes[0])
    found["log_loss"] = tuning.log_loss(first, *data.test, 2 * BATCH)
    return found


def tuned(
    way: Way, rows: Rows, test: Rows, seed: int, rate: float
) -> tuple[nn.Module, dict[str, Any]]:
    """Tune in one way, and measure.

    Args:
        way: to do it.
        rows: tokens and labels to learn from.
        test: tokens and labels to measure on.
        seed: of the order of the rows and of what starts at random.
        rate: the largest step size.

    Returns:
        The classifier; and ``trainable`` numbers, ``kept`` of them, ``accuracy`` and ``log_loss``
        in nats on the test rows, ``start`` and ``late_loss``, the losses of the first step and of
        the last half, ``seconds`` of a step, and whether the ``frozen`` numbers stayed the same.
    """
    generator = torch.Generator().manual_seed(seed + 20_000)
    model = way.build(encoder.pretrained_encoder(), generator)
    before = frozen(model)
    course = tuning.fit(model, *rows, tuning.Setting(EPOCHS, BATCH, rate), seed + 30_000)
    half = course.losses[len(course.losses) // 2 :]
    same = (torch.equal(a, b) for a, b in zip(before, frozen(model), strict=True))
    return model, {
        "trainable": count(model)[0],
        "kept": way.kept,
        "accuracy": tuning.accuracy(model, *test, 2 * BATCH),
        "log_loss": tuning.log_loss(model, *test, 2 * BATCH),
        "start": course.losses[0],
        "late_loss": sum(half) / len(half),
        "seconds": course.seconds,
        "frozen": float(all(same)),
    }


def _word_ids() -> Tensor:
    """Give the word pieces of the classes' sentences, without the marks of their ends."""
    found = encoder.tokenizer()(" ".join(CLASSES[0]), add_special_tokens=False)
    return torch.tensor(found["input_ids"], dtype=torch.int64, device="cpu")
