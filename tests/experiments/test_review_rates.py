"""The choice of step sizes: what is tried, on which sentences, and what is reported of it."""

import pytest
import torch

from gradbook import records
from gradbook.experiments import review_rates as experiment
from gradbook.experiments import review_tuning
from gradbook.language import reviews, splits


@pytest.fixture
def untested(monkeypatch, sentences):
    """Sentences about films without any to test on."""
    split = splits.Split(sentences(60, 1), sentences(30, 2), None)
    monkeypatch.setattr(splits, "movies", lambda: split)
    monkeypatch.setattr(review_tuning, "SMALL", review_tuning.Scale(32, 1))
    return split


def test_a_tiny_run_has_all_its_parts(untested, tiny_encoder):
    found = experiment.run(1_000)
    assert list(found) == list(experiment.TRIED)
    for family, (_, rates) in experiment.TRIED.items():
        assert set(found[family]) == {"rates", "accuracy", "log_loss"}
        assert found[family]["rates"] == list(rates)
        assert all(0 <= share <= 1 for share in found[family]["accuracy"])
        # Three rates end at three places.
        assert len(set(found[family]["log_loss"])) == 3
    assert experiment.run(1_000) == found


def test_a_rate_is_that_of_its_row_and_the_rows_are_those_of_the_seed(untested, monkeypatch):
    calls = []

    def tuned(*arguments):
        calls.append(arguments)
        rate = arguments[4]
        return None, {"accuracy": 1 - rate, "log_loss": 2 * rate, "seconds": 5.0}

    monkeypatch.setattr(review_tuning, "tuned", tuned)
    found = experiment.run(1_001)
    for family, (_, rates) in experiment.TRIED.items():
        assert found[family] == {
            "rates": list(rates),
            "accuracy": [1 - rate for rate in rates],
            "log_loss": [2 * rate for rate in rates],
        }
    expected = splits.drawn(untested.pool, 32, 11_001)
    tried = [(name, rate) for name, rates in experiment.TRIED.values() for rate in rates]
    for (name, rows, measured, seed, rate, epochs), pair in zip(calls, tried, strict=True):
        assert torch.equal(rows.tokens.ids, expected.tokens.ids)
        assert torch.equal(rows.labels, expected.labels)
        assert measured is untested.choosing
        assert (name, rate) == pair
        assert (seed, epochs) == (1_001, 1)


def test_the_rates_of_the_ways_are_among_those_tried():
    assert set(experiment.TRIED) == set(review_tuning.RATES)
    for family, (name, rates) in experiment.TRIED.items():
        assert review_tuning.WAYS[name].family == family
        assert review_tuning.RATES[family] in rates
        assert list(rates) == sorted(set(rates))
        assert len(rates) == 3


def test_a_rate_has_the_best_mean_accuracy_of_the_record():
    record = records.load("review_rates")
    for family, (_, rates) in experiment.TRIED.items():
        assert records.across_seeds(record, family, "rates").tolist() == [list(rates)] * 2
        accuracies = records.across_seeds(record, family, "accuracy").mean(0)
        assert review_tuning.RATES[family] == rates[accuracies.argmax()]


def test_no_seed_of_the_choice_is_one_of_the_comparison():
    assert not set(experiment.SEEDS) & set(review_tuning.SEEDS)
    assert len(set(experiment.SEEDS)) == len(experiment.SEEDS) == 2
    # Nor do the seeds that are made from them meet: of rows, of weights, of orders.
    made = [
        {seed + offset for seed in seeds for offset in (10_000, 20_000, 30_000)}
        for seeds in (experiment.SEEDS, review_tuning.SEEDS)
    ]
    assert not made[0] & made[1]


def test_the_record_depends_on_the_file_about_films():
    assert experiment.data_digest() == reviews.SHA256["movie"]
