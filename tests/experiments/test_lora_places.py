"""LoRA at other places: each with its own rate, on the rows and seeds of the other ways."""

import pytest
import torch

from gradbook import records
from gradbook.experiments import lora_place_rates
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


def test_the_rates_are_those_of_the_best_accuracy():
    record = records.load("lora_place_rates")
    assert set(experiment.RATES) == set(lora_place_rates.PLACES)
    for name, rate in experiment.RATES.items():
        accuracy = records.across_seeds(record, name, "accuracy").mean(0)
        assert lora_place_rates.RATES[int(accuracy.argmax())] == rate
