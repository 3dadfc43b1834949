"""Six ways to steer, on a tiny encoder: what each trains, where it starts, and what is measured."""

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F

from gradbook.experiments import prompt_rates
from gradbook.experiments import prompt_reviews as experiment
from gradbook.language import encoder, reviews, splits, tuning
from gradbook.language.encoder import Classifier
from gradbook.language.sentence_classes import (
    PromptedReader,
    Reader,
    SentenceClassifier,
    class_vectors,
)
from gradbook.language.splits import Rows
from gradbook.peft import prompt_starts
from gradbook.peft.injection import count
from gradbook.peft.lora import LoRALinear
from gradbook.peft.prefix import PrefixSelfAttention
from gradbook.peft.prefix_encoder import ReparameterizedSelfAttention

TINY, REAL = 16, 384
COLUMNS = {
    "trainable",
    "kept",
    "accuracy",
    "log_loss",
    "start",
    "late_loss",
    "seconds",
    "frozen",
}
# The prefix by a small network is a way of the other experiments.
WAYS = experiment.WAYS | {"mlp": prompt_rates.TRIED["mlp"][0]}
# Read once for all tests; every call of the library's sets its own padding.
TOKENIZER = functools.cache(encoder.tokenizer)
PIECES = ["it", "was", "terrible", ".", "it", "was", "great", "."]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def counts(d, n=12, h=96):
    """What every way trains, as a formula."""
    prefix = 2 * 6 * n * d
    # Two directions with four gates, each with two vectors of biases; then two linear layers.
    lstm = 2 * 4 * h * (d + h + 2) + 2 * 4 * h * (2 * h + h + 2)
    return {
        "prompt": n * d,
        "p-tuning": n * d + lstm + (2 * h + 1) * 2 * h + (2 * h + 1) * d,
        "lora 1": 6 * 2 * d,
        "prefix": prefix,
        "deep": prefix + 2 * d + 2,
        "lora 6": 6 * 2 * 6 * 2 * d,
        "mlp": n * d + (d + 1) * h + (h + 1) * 2 * 6 * d,
    }


def built(name, seed=0):
    """A classifier on the encoder, as a way leaves it before training."""
    return WAYS[name].build(encoder.pretrained_encoder(), generator(seed))


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def states(model):
    return {name: part.clone() for name, part in model.state_dict().items()}


def moved(before, after):
    assert set(before) == set(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


def equal(a, b):
    return set(a) == set(b) and not moved(a, b)


def words(pieces):
    table = encoder.pretrained_encoder().embeddings.word_embeddings.weight.detach()
    return table[TOKENIZER().convert_tokens_to_ids(pieces)]


@pytest.fixture
def tiny(monkeypatch, tiny_encoder):
    """Stands in for the encoder, and for its width."""
    monkeypatch.setattr(experiment, "WIDTH", TINY)
    monkeypatch.setattr(encoder, "tokenizer", TOKENIZER)
    return tiny_encoder


@pytest.fixture
def few(monkeypatch, tiny, tiny_movies):
    """Besides, shortens the training to four steps, and the short one to two."""
    monkeypatch.setattr(experiment, "ROWS", 32)
    monkeypatch.setattr(experiment, "SHORT_ROWS", 16)
    return tiny_movies


@pytest.fixture
def fits(monkeypatch):
    """Keeps the arguments of every training in the place of training."""
    seen = []

    def fit(model, *arguments):
        seen.append((model, *arguments))
        return tuning.Course([4.0, 1.0, 2.0, 6.0], 0.25)

    monkeypatch.setattr(tuning, "fit", fit)
    return seen


@pytest.fixture(scope="module")
def real():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADBOOK_DEVICE", "cpu")
        return encoder.pretrained_encoder()


# What a way is


@pytest.mark.parametrize("name", WAYS)
def test_a_way_trains_as_many_numbers_as_its_formula_says(name, tiny):
    assert count(built(name))[0] == counts(TINY)[name]


@pytest.mark.parametrize("name", WAYS)
def test_what_is_kept_is_what_is_trained_or_what_comes_of_it(name, real, monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    monkeypatch.setattr(encoder, "pretrained_encoder", lambda: copy.deepcopy(real))
    monkeypatch.setattr(encoder, "tokenizer", TOKENIZER)
    model = built(name)
    assert count(model)[0] == counts(REAL)[name]
    if name == "p-tuning":
        kept = model.reader.prompt.folded().numel()
    elif name == "mlp":
        layer = model.reader.encoder.encoder.layer[0].attention.self
        kept = layer.source.folded().numel()
    else:
        kept = count(model)[0]
    assert WAYS[name].kept == kept


def test_sizes_agree_where_they_are_compared():
    found = counts(REAL)
    assert found["prompt"] == found["lora 1"] == experiment.INPUT == 4_608
    assert found["prefix"] == found["lora 6"] == experiment.EVERY == 55_296
    assert found["deep"] == 55_296 + 770
    assert experiment.WAYS["p-tuning"].kept == found["prompt"]


def test_a_way_puts_the_right_things_in_the_right_places(tiny):
    def found(name):
        kinds = PrefixSelfAttention, ReparameterizedSelfAttention, LoRALinear
        modules = built(name).named_modules()
        return {place: module for place, module in modules if isinstance(module, kinds)}

    every = [f"encoder.layer.{i}.attention.self" for i in range(6)]
    for name, rank, parts in (("lora 1", 1, ["value"]), ("lora 6", 6, ["query", "value"])):
        layers = found(name)
        assert list(layers) == [f"reader.encoder.{p}.{part}" for p in every for part in parts]
        assert all(layer.A.shape == (rank, TINY) for layer in layers.values())
        assert {layer.scaling for layer in layers.values()} == {1.0}
    for name, reader in (("prefix", "reader.encoder."), ("deep", "encoder.")):
        layers = found(name)
        assert list(layers) == [reader + place for place in every]
        assert all(layer.keys.shape == (12, TINY) for layer in layers.values())
    assert [layer.index for layer in found("mlp").values()] == list(range(6))
    assert not found("prompt") | found("p-tuning")
    assert isinstance(built("deep"), Classifier)


def test_vectors_stand_in_front_or_on_both_sides_of_a_text_and_a_full_stop(tiny):
    front, both = built("prompt").reader, built("p-tuning").reader
    assert type(front) is type(both) is PromptedReader
    assert len(front.prompt()) == len(both.prompt()) == 12
    assert (front.front, front.anchors) == (None, ())
    assert (both.front, both.anchors) == (6, (TOKENIZER()(".")["input_ids"][1],))


def test_all_ways_but_one_compare_with_the_same_classes(tiny):
    plain = class_vectors(encoder.pretrained_encoder(), ("it was terrible.", "it was great."))
    for name in WAYS.keys() - {"deep"}:
        # As the encoder was before anything was put into it.
        torch.testing.assert_close(built(name).classes, F.normalize(plain, dim=-1))


def test_lora_changes_nothing_at_the_start(tiny, sentences):
    tokens = sentences(5).tokens
    model = encoder.pretrained_encoder()
    plain = SentenceClassifier(Reader(model), class_vectors(model, experiment.CLASSES[0]))
    for name in ("lora 1", "lora 6"):
        assert torch.equal(built(name)(*tokens), plain(*tokens))
    for name in WAYS.keys() - {"lora 1", "lora 6", "deep"}:
        assert (built(name)(*tokens) - plain(*tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("name", WAYS)
def test_the_encoder_is_frozen_and_as_it_was(name, tiny):
    model = built(name)
    first = {part.numpy().tobytes() for part in tiny().state_dict().values()}
    assert first <= {p.detach().numpy().tobytes() for p in model.parameters()}
    for p in model.parameters():
        assert not (p.requires_grad and p.detach().numpy().tobytes() in first)


# Where it starts


@pytest.mark.parametrize("name", WAYS)
def test_a_start_depends_on_its_seed_alone(name, tiny):
    first = {key: p.detach() for key, p in trained(built(name)).items()}
    torch.randn(3)
    assert equal({key: p.detach() for key, p in trained(built(name)).items()}, first)
    other = {key: p.detach() for key, p in trained(built(name, 1)).items()}
    assert equal(other, first) == (name == "prompt")


def test_a_prompt_starts_from_the_words_of_the_classes(tiny):
    assert torch.equal(built("prompt").reader.prompt(), words(PIECES + PIECES[:4]))


def test_a_random_prompt_is_as_large_as_a_word(tiny):
    model = tiny()
    found = experiment.random_vectors(model, generator(4))
    std = model.embeddings.word_embeddings.weight.std().item()
    assert torch.equal(found, prompt_starts.random_start(12, TINY, generator(4), std))


@pytest.mark.parametrize("length", [1, 12])
def test_a_prompt_of_the_vocabulary_is_made_of_different_whole_words(length, tiny):
    model = tiny()
    found = experiment.vocabulary(length)(model, generator(4))
    table = model.embeddings.word_embeddings.weight.detach()
    hits = (found[:, None] == table).all(-1)
    assert hits.sum(1).tolist() == [1] * length
    ids = hits.long().argmax(1)
    assert len(set(ids.tolist())) == length
    assert ids.min() >= experiment.FIRST_WORD
    assert ids.max() < experiment.FIRST_WORD + prompt_starts.COMMON


def test_whole_words_begin_where_they_are_said_to():
    table = TOKENIZER().convert_ids_to_tokens(range(30_522))
    assert table[experiment.FIRST_WORD] == "the"
    # All before it are marks or single characters, perhaps inside a word.
    before = table[: experiment.FIRST_WORD]
    assert all(t.startswith("[") or len(t.removeprefix("##")) == 1 for t in before)
    # And of those after it that are sampled from nearly all are whole words.
    sampled = table[experiment.FIRST_WORD :][: prompt_starts.COMMON]
    assert sum(t.isalnum() for t in sampled) > 0.9 * prompt_starts.COMMON


def test_a_prefix_starts_from_the_words_of_the_classes(tiny):
    model = tiny()
    ids = torch.tensor(TOKENIZER().convert_tokens_to_ids(PIECES + PIECES[:4]))[None]
    hidden = model(ids, output_hidden_states=True).hidden_states
    parts = [
        torch.cat([layer.attention.self.key(x), layer.attention.self.value(x)])
        for layer, x in zip(model.encoder.layer, hidden[:-1], strict=True)
    ]
    experiment.from_words(model, None)
    for layer, expected in zip(model.encoder.layer, parts, strict=True):
        attention = layer.attention.self
        torch.testing.assert_close(torch.stack([attention.keys, attention.values]), expected)


# One training


@pytest.mark.parametrize("name", WAYS)
def test_training_moves_what_trains_and_nothing_else(name, tiny, sentences):
    rows, test = sentences(40, 1), sentences(20, 2)
    start = built(name, 20_003)
    model, found = experiment.tuned(WAYS[name], rows, test, 3, 1e-2)
    changed = moved(states(start), states(model))
    names = {key for key, p in start.named_parameters(remove_duplicate=False) if p.requires_grad}
    # A of LoRA moves from the second step on, when B is no longer zero.
    assert changed == names
    assert set(found) == COLUMNS
    assert found["frozen"] == 1.0
    assert found["trainable"] == counts(TINY)[name]
    assert found["kept"] == WAYS[name].kept
    assert found["accuracy"] == tuning.accuracy(model, *test, 32)
    assert found["log_loss"] == tuning.log_loss(model, *test, 32)
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("name", WAYS)
def test_a_frozen_number_that_moves_is_seen(name, tiny, sentences, monkeypatch):
    parts = [part for part, p in built(name).named_parameters() if not p.requires_grad]
    for chosen in (parts[0], parts[-1]):

        def fit(model, *_, chosen=chosen):
            with torch.no_grad():
                model.get_parameter(chosen).view(-1)[-1] += 1e-3
            return tuning.Course([1.0], 0.0)

        monkeypatch.setattr(tuning, "fit", fit)
        found = experiment.tuned(WAYS[name], sentences(4), sentences(4), 0, 1e-3)[1]
        assert found["frozen"] == 0.0


def test_a_training_has_its_rows_its_setting_and_the_order_of_its_seed(fits, tiny, sentences):
    rows, test = sentences(8, 1), sentences(4, 2)
    for name in WAYS:
        model, found = experiment.tuned(WAYS[name], rows, test, 3, 2e-3)
        fitted, tokens, labels, setting, seed = fits.pop()
        assert fitted is model
        assert (tokens, labels) == (rows.tokens, rows.labels)
        assert setting == tuning.Setting(experiment.EPOCHS, experiment.BATCH, 2e-3)
        assert seed == 30_003
        # The first step, the last half of the steps, and what the course says of a step.
        assert [found[key] for key in ("start", "late_loss", "seconds")] == [4.0, 4.0, 0.25]
        # Nothing was trained: as it is built from the seed.
        assert equal(states(model), states(built(name, 20_003)))


def test_a_seed_is_all_that_a_training_depends_on(tiny, sentences):
    rows, test = sentences(16, 1), sentences(20, 2)

    def tuned(name, seed):
        found = experiment.tuned(WAYS[name], rows, test, seed, 1e-2)[1]
        return {key: value for key, value in found.items() if key != "seconds"}

    for name in ("prompt", "p-tuning"):
        first = tuned(name, 0)
        torch.randn(3)
        assert tuned(name, 0) == first
        # A prompt of words has no draws, but an order.
        assert tuned(name, 1) != first


# A run


def test_every_family_has_a_rate():
    assert {way.family for way in WAYS.values()} == set(experiment.RATES)
    assert all(0 < rate <= 1 for rate in experiment.RATES.values())


def test_a_tiny_run_has_all_its_parts(few, monkeypatch):
    kept, tuned = [], experiment.tuned

    def noted(*arguments):
        kept.append(arguments)
        return tuned(*arguments)

    monkeypatch.setattr(experiment, "tuned", noted)
    found = experiment.run(1)
    assert set(found) == {"short", "ways"}
    assert list(found["ways"]) == list(experiment.WAYS)
    assert all(set(way) == COLUMNS for way in found["ways"].values())
    assert all(way["frozen"] == 1.0 for way in found["ways"].values())
    # Every way came to another place.
    assert len({way["log_loss"] for way in found["ways"].values()}) == len(experiment.WAYS)
    rows = splits.drawn(few.pool, 32, 10_001)
    *ways, _ = kept
    for (way, learnt, test, seed, rate), expected in zip(
        ways, experiment.WAYS.values(), strict=True
    ):
        assert way is expected
        assert torch.equal(learnt.tokens.ids, rows.tokens.ids)
        assert torch.equal(learnt.labels, rows.labels)
        assert test is few.test
        assert rate == experiment.RATES[way.family]
        assert seed == 1
    assert found["short"] == experiment.run_short(1)


def test_a_short_run(few, fits, monkeypatch):
    measured = []
    monkeypatch.setattr(tuning, "accuracy", lambda model, *rows: measured.append(rows) or 0.75)
    assert experiment.run_short(2) == {"late_loss": 4.0, "accuracy": 0.75}
    model, tokens, labels, setting, seed = fits.pop()
    assert trained(model).keys() == trained(built("prefix")).keys()
    assert torch.equal(tokens.ids, splits.drawn(few.pool, 16, 10_002).tokens.ids)
    assert (len(labels), setting) == (16, tuning.Setting(2, 16, experiment.RATES["prefix"]))
    assert seed == 30_002
    ((test, labels, _),) = measured
    assert torch.equal(test.ids, few.test.tokens.ids[:200])
    assert torch.equal(labels, few.test.labels[:200])


def test_a_short_run_has_twenty_steps():
    assert experiment.EPOCHS * experiment.SHORT_ROWS == 20 * experiment.BATCH
    assert experiment.EPOCHS * experiment.ROWS == 100 * experiment.BATCH


# Without learning


@pytest.fixture
def written(monkeypatch, tiny):
    """Texts of our own to choose by and to test on, with labels that have no meaning."""
    kinds = ("choosing", 9), ("test", 14)
    raw = {kind: tuple(f"{kind} film number {i} {'x' * i}" for i in range(n)) for kind, n in kinds}
    parts = {
        kind: Rows(encoder.encode(texts), torch.arange(len(texts)) % 2)
        for kind, texts in raw.items()
    }
    monkeypatch.setattr(splits, "movies", lambda: splits.Split(None, **parts))
    monkeypatch.setattr(splits, "movie_texts", lambda: splits.Texts((), **raw))
    return raw, parts


def test_hard_prompts_are_measured_with_every_template_and_every_pair(written):
    raw, parts = written
    found = experiment.reference()
    assert set(found) == {"choosing", "test", "log_loss"}
    model = encoder.pretrained_encoder()
    for kind, texts in raw.items():
        assert len(found[kind]) == 5
        assert all(len(row) == 8 for row in found[kind])
        for row, around in zip(found[kind], experiment.TEMPLATES, strict=True):
            tokens = encoder.encode([around.replace("{}", text) for text in texts], 56)
            for share, pair in zip(row, experiment.CLASSES, strict=True):
                judge = SentenceClassifier(Reader(model), class_vectors(model, pair))
                assert share == tuning.accuracy(judge, tokens, parts[kind].labels, 32)
    # Templates and pairs make a difference even here.
    assert len({tuple(row) for row in found["test"]}) > 1
    assert len({share for row in found["test"] for share in row}) > 2
    plain = SentenceClassifier(Reader(model), class_vectors(model, experiment.CLASSES[0]))
    assert found["log_loss"] == tuning.log_loss(plain, *parts["test"], 32)


def test_templates_and_classes_are_what_is_said_of_them():
    assert experiment.TEMPLATES[0] == "{}"
    assert all(around.count("{}") == 1 for around in experiment.TEMPLATES)
    assert all(len(pair) == 2 for pair in experiment.CLASSES)
    pieces = TOKENIZER().tokenize(" ".join(experiment.CLASSES[0]))
    assert pieces == PIECES
    # A template adds no more than what there is room for.
    longest = max(len(TOKENIZER().tokenize(t.replace("{}", ""))) for t in experiment.TEMPLATES)
    assert longest <= 56 - 40


def test_the_record_says_what_it_depends_on():
    assert experiment.SEEDS == (0, 1, 2, 3, 4)
    assert experiment.data_digest() == reviews.SHA256["movie"]
