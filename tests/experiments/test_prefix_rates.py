"""Larger step sizes for the prefix: what is tried, on which sentences, and which one is the best."""

import pytest
import torch

from gradbook import records
from gradbook.experiments import prefix_rates as experiment
from gradbook.experiments import prompt_rates, prompt_reviews
from gradbook.language import reviews, splits


@pytest.fixture
def untested(monkeypatch, sentences):
    """Sentences about films without any to test on."""
    split = splits.Split(sentences(60, 1), sentences(30, 2), None)
    monkeypatch.setattr(splits, "movies", lambda: split)
    monkeypatch.setattr(prompt_rates, "ROWS", 16)
    return split


def test_a_tiny_run_has_all_its_parts(untested, tiny_encoder):
    found = experiment.run(1_000)
    assert set(found) == {"rates", "accuracy", "log_loss"}
    assert found["rates"] == list(experiment.RATES)
    assert all(0 <= share <= 1 for share in found["accuracy"])
    # Three rates end at three places.
    assert len(set(found["log_loss"])) == 3


def test_a_rate_is_that_of_its_row_and_the_rows_are_those_of_the_seed(untested, monkeypatch):
    calls = []

    def tuned(*arguments):
        calls.append(arguments)
        rate = arguments[4]
        return None, {"accuracy": 1 - rate, "log_loss": 2 * rate, "seconds": 5.0}

    monkeypatch.setattr(prompt_reviews, "tuned", tuned)
    rates = experiment.RATES
    assert experiment.run(1_001) == {
        "rates": list(rates),
        "accuracy": [1 - rate for rate in rates],
        "log_loss": [2 * rate for rate in rates],
    }
    expected = splits.drawn(untested.pool, 16, 11_001)
    for (way, rows, measured, seed, rate), asked in zip(calls, rates, strict=True):
        assert way is prompt_reviews.WAYS["prefix"]
        assert torch.equal(rows.tokens.ids, expected.tokens.ids)
        assert torch.equal(rows.labels, expected.labels)
        assert measured is untested.choosing
        assert (seed, rate) == (1_001, asked)


def test_these_are_larger_rates_than_those_that_were_tried_with_the_same_seeds():
    _, smaller = prompt_rates.TRIED["prefix"]
    assert min(experiment.RATES) > max(smaller)
    assert list(experiment.RATES) == sorted(set(experiment.RATES))
    assert experiment.SEEDS == prompt_rates.SEEDS


def test_the_rate_has_the_least_mean_loss_of_both_records():
    found = records.load("prompt_rates"), ("prefix",)
    larger = records.load("prefix_rates"), ()
    rates, losses = [], []
    for record, keys in (found, larger):
        rates += records.across_seeds(record, *keys, "rates")[0].tolist()
        losses += records.across_seeds(record, *keys, "log_loss").mean(0).tolist()
    assert rates == [*prompt_rates.TRIED["prefix"][1], *experiment.RATES]
    assert prompt_reviews.RATES["prefix"] == rates[losses.index(min(losses))]


def test_the_record_depends_on_the_file_about_films():
    assert experiment.data_digest() == reviews.SHA256["movie"]
