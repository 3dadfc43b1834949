"""LoRA at other places: each with its own rate, on the rows and seeds of the other ways."""

import pytest
import torch

from gradbook import records
from gradbook.experiments import lora_place_rates, lora_reviews
from gradbook.experiments import lora_places as experiment
from gradbook.experiments.lora_reviews import WAYS
from gradbook.experiments.review_tuning import SHORT, TABLE
from gradbook.language import splits


@pytest.fixture
def calls(monkeypatch, tiny_movies):
    """Keeps the arguments of every training in the place of training."""
    seen = []

    def tuned(*arguments):
        seen.append(arguments)
        rate = arguments[4]
        return None, {"late_loss": rate, "accuracy": 1 - rate, "log_loss": 2 * rate, "few": 0.5}

    monkeypatch.setattr(experiment, "tuned", tuned)
    monkeypatch.setattr(lora_reviews, "tuned", tuned)
    return seen


def test_every_place_is_tuned_as_there_but_at_its_own_rate(calls, tiny_movies, monkeypatch):
    monkeypatch.setattr(experiment, "RATES", {"all 1": 1e-3, "inner 2": 3e-3})
    scale = TABLE._replace(rows=32, epochs=3)
    short = SHORT._replace(rows=16)
    monkeypatch.setattr(experiment, "SHORT", short)
    found = experiment.run(4, scale)
    assert list(found["ways"]) == ["all 1", "inner 2"]
    assert found["ways"]["inner 2"]["late_loss"] == 3e-3
    assert found["short"] == {"late_loss": 1e-3}
    rows = splits.drawn(tiny_movies.pool, 32, 10_004)
    for (way, got, test, seed, rate, epochs), name in zip(calls, found["ways"], strict=False):
        assert (way, seed, rate, epochs) == (WAYS[name], 4, experiment.RATES[name], 3)
        assert torch.equal(got.tokens.ids, rows.tokens.ids)
        assert test is tiny_movies.test
    way, got, test, seed, rate, epochs = calls[-1]
    few = splits.drawn(tiny_movies.pool, 16, 10_004)
    assert (way, seed, rate, epochs) == (WAYS["all 1"], 4, 1e-3, short.epochs)
    assert torch.equal(got.tokens.ids, few.tokens.ids)
    assert len(test.labels) == 64


def test_both_rates_of_every_place_are_tried_on_the_sentences_set_aside(calls, tiny_movies):
    rows = lora_place_rates.ROWS
    assert rows == 480
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora_place_rates, "ROWS", 32)
        found = lora_place_rates.run(1_001)
    expected = splits.drawn(tiny_movies.pool, 32, 11_001)
    tried = [(n, r) for n in lora_place_rates.PLACES for r in lora_place_rates.RATES]
    for (way, got, measured, seed, rate, epochs), (name, wanted) in zip(calls, tried, strict=True):
        assert (way, seed, rate, epochs) == (WAYS[name], 1_001, wanted, lora_place_rates.EPOCHS)
        assert torch.equal(got.labels, expected.labels)
        assert measured is tiny_movies.choosing
    for name in lora_place_rates.PLACES:
        assert found[name] == {
            "rates": list(lora_place_rates.RATES),
            "accuracy": [1 - rate for rate in lora_place_rates.RATES],
            "log_loss": [2 * rate for rate in lora_place_rates.RATES],
        }


def test_the_rates_are_those_of_the_best_accuracy():
    record = records.load("lora_place_rates")
    assert set(experiment.RATES) == set(lora_place_rates.PLACES)
    for name, rate in experiment.RATES.items():
        accuracy = records.across_seeds(record, name, "accuracy").mean(0)
        assert lora_place_rates.RATES[int(accuracy.argmax())] == rate
