"""Lengths, starts and ensembles of prompts, on a tiny encoder: what is trained, and what is said."""

import functools

import pytest
import torch

from gradbook.experiments import prompt_reviews
from gradbook.experiments import prompt_sweeps as experiment
from gradbook.language import encoder, reviews, splits, tuning
from gradbook.peft.injection import count

TINY, REAL = 16, 384
# Read once for all tests.
TOKENIZER = functools.cache(encoder.tokenizer)
LENGTHS = {"prompt 1": 1, "prompt 48": 48, "prefix 1": 1, "prefix 12": 12, "prefix 48": 48}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def built(name, seed=0):
    return experiment.WAYS[name].build(encoder.pretrained_encoder(), generator(seed))


def numbers(name, d):
    """What a way keeps after the training."""
    length = LENGTHS.get(name, 12)
    return (2 * 6 if name.startswith("prefix") else 1) * length * d


@pytest.fixture
def tiny(monkeypatch, tiny_encoder):
    monkeypatch.setattr(prompt_reviews, "WIDTH", TINY)
    monkeypatch.setattr(encoder, "tokenizer", TOKENIZER)
    return tiny_encoder


@pytest.fixture
def few(monkeypatch, tiny, tiny_movies):
    """Besides, shortens the training to two steps."""
    monkeypatch.setattr(experiment, "ROWS", 16)
    monkeypatch.setattr(experiment, "TEST", 40)
    return tiny_movies


def test_the_ways_are_lengths_and_starts():
    starts = ["random", "vocabulary", "class words"]
    prefixes = ["prefix from words", "prefix by MLP"]
    assert list(experiment.STARTS) == starts
    assert list(experiment.WAYS) == [*starts, *LENGTHS, *prefixes]
    for name, way in experiment.WAYS.items():
        mlp, prefix = name == "prefix by MLP", name.startswith("prefix")
        assert way.family == ("mlp" if mlp else "prefix" if prefix else "prompt")
        assert way.family in prompt_reviews.RATES


@pytest.mark.parametrize("name", experiment.WAYS)
def test_a_way_keeps_what_it_trains_at_the_real_width(name, tiny):
    assert experiment.WAYS[name].kept == numbers(name, REAL)
    trained = count(built(name))[0]
    if name == "prefix by MLP":
        assert trained == 12 * TINY + (TINY + 1) * 96 + (96 + 1) * 2 * 6 * TINY
    else:
        assert trained == numbers(name, TINY)


def test_the_starts_are_those_of_their_names(tiny):
    for name, start in (
        ("random", prompt_reviews.random_vectors),
        ("vocabulary", prompt_reviews.vocabulary(12)),
        ("class words", prompt_reviews.class_words),
    ):
        assert torch.equal(built(name, 5).reader.prompt(), start(tiny(), generator(5)))
    # A longer prompt has the words of a shorter one.
    first, longer = built("vocabulary", 5).reader.prompt(), built("prompt 48", 5).reader.prompt()
    assert torch.equal(longer[:12], first)


def test_a_start_is_found_again(tiny, sentences, monkeypatch):
    monkeypatch.setattr(tuning, "fit", lambda *_: tuning.Course([1.0], 0.0))
    for way in experiment.STARTS.values():
        model, _ = prompt_reviews.tuned(way, sentences(4), sentences(4), 3, 1e-2)
        start = experiment._start(way, 3)
        assert torch.equal(start, model.reader.prompt())
        assert not start.requires_grad


def test_neighbours_by_hand(tiny):
    """One is three times a word, one went away from a word, one from a word to another."""
    way = prompt_reviews.with_prompt(prompt_reviews.vocabulary(3))
    model = way(encoder.pretrained_encoder(), generator())
    table = model.reader.encoder.embeddings.word_embeddings.weight.detach()
    ids = TOKENIZER().convert_tokens_to_ids(["film", "good", "bad"])
    film, good, bad = table[ids]
    away = torch.randn(TINY, generator=generator(1))
    away -= (away @ good) / (good @ good) * good
    away *= 0.1 * good.norm() / away.norm()
    with torch.no_grad():
        model.reader.prompt.vectors.copy_(torch.stack([3 * film, good + away, bad]))
    found = experiment.neighbours(model, torch.stack([film, good, good]))
    assert set(found) == {"nearest", "cosine", "moved"}
    assert found["nearest"] == ["film", "good", "bad"]
    assert found["cosine"] == pytest.approx([1, 1.01**-0.5, 1], rel=1e-5)
    moved = [2, 0.1, ((bad - good).norm() / good.norm()).item()]
    assert found["moved"] == pytest.approx(moved, rel=1e-5)


def test_a_tiny_run_has_all_its_parts(few, monkeypatch):
    kept, models, tuned = [], {}, prompt_reviews.tuned

    def noted(way, *arguments):
        kept.append((way, *arguments))
        model, measured = tuned(way, *arguments)
        models.update({name: model for name, start in experiment.STARTS.items() if start is way})
        return model, measured

    monkeypatch.setattr(prompt_reviews, "tuned", noted)
    found = experiment.run(1)
    assert set(found) == {"ways", "together", "nearest"}
    assert list(found["ways"]) == list(experiment.WAYS)
    assert all(way["frozen"] == 1.0 for way in found["ways"].values())
    assert len({way["log_loss"] for way in found["ways"].values()}) == len(experiment.WAYS)
    rows, test = splits.drawn(few.pool, 16, 10_001), few.test.at(torch.arange(40))
    for (way, learnt, measured, seed, rate), expected in zip(
        kept, experiment.WAYS.values(), strict=True
    ):
        assert way is expected
        assert torch.equal(learnt.tokens.ids, rows.tokens.ids)
        assert torch.equal(learnt.labels, rows.labels)
        assert torch.equal(measured.tokens.ids, test.tokens.ids)
        assert torch.equal(measured.labels, test.labels)
        assert (seed, rate) == (1, prompt_reviews.RATES[way.family])
    _require_together(found["together"], models, test)
    assert list(found["nearest"]) == list(models) == list(experiment.STARTS)
    for name, model in models.items():
        start = built(name, 20_001).reader.prompt()
        assert found["nearest"][name] == experiment.neighbours(model, start.detach())
        assert min(found["nearest"][name]["moved"]) > 0


def _require_together(found, models, test):
    """The mean of three probabilities, text by text."""
    right, losses = [], []
    for i, label in enumerate(test.labels.tolist()):
        n = test.tokens.mask[i].sum()
        ids = test.tokens.ids[i : i + 1, :n]
        with torch.no_grad():
            said = [model(ids, torch.ones_like(ids)).softmax(1)[0] for model in models.values()]
        mean = sum(said) / 3
        right.append(mean.argmax().item() == label)
        losses.append(-mean[label].log().item())
    assert set(found) == {"accuracy", "log_loss"}
    assert found["accuracy"] == pytest.approx(sum(right) / 40, abs=1e-12)
    # In float32.
    assert found["log_loss"] == pytest.approx(sum(losses) / 40, rel=1e-5)


def test_the_record_says_what_it_depends_on():
    assert experiment.SEEDS == (0, 1, 2, 3, 4)
    assert experiment.data_digest() == reviews.SHA256["movie"]
    # 40 steps.
    assert experiment.ROWS * prompt_reviews.EPOCHS == 40 * prompt_reviews.BATCH
    assert (experiment.LENGTHS, experiment.TEST) == ((1, 12, 48), 400)
