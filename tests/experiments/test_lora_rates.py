"""The choice of step sizes for LoRA's family: what is tried, on which sentences, what is found."""

import pytest
import torch

from gradbook import records
from gradbook.experiments import lora_rates as experiment
from gradbook.experiments import lora_reviews
from gradbook.language import reviews, splits


@pytest.fixture
def untested(monkeypatch, tiny_encoder, sentences):
    """Sentences about films without any to test on."""
    split = splits.Split(sentences(60, 1), sentences(30, 2), None)
    monkeypatch.setattr(splits, "movies", lambda: split)
    monkeypatch.setattr(experiment, "ROWS", 32)
    monkeypatch.setattr(lora_reviews, "WIDTH", 16)
    return split


def test_a_tiny_run_has_all_its_parts(untested):
    found = experiment.run(1_000)
    assert list(found) == list(experiment.TRIED)
    for family, (_, rates) in experiment.TRIED.items():
        assert set(found[family]) == {"rates", "accuracy", "log_loss"}
        assert found[family]["rates"] == list(rates)
        assert all(0 <= share <= 1 for share in found[family]["accuracy"])
        # Three rates end at three places.
        assert len(set(found[family]["log_loss"])) == 3


def test_a_rate_is_that_of_its_row_and_the_rows_are_those_of_the_seed(untested, monkeypatch):
    calls = []

    def tuned(*arguments):
        calls.append(arguments)
        rate = arguments[4]
        return None, {"accuracy": 1 - rate, "log_loss": 2 * rate, "seconds": 5.0}

    monkeypatch.setattr(lora_reviews, "tuned", tuned)
    found = experiment.run(1_001)
    for family, (_, rates) in experiment.TRIED.items():
        assert found[family] == {
            "rates": list(rates),
            "accuracy": [1 - rate for rate in rates],
            "log_loss": [2 * rate for rate in rates],
        }
    expected = splits.drawn(untested.pool, 32, 11_001)
    tried = [(name, rate) for name, rates in experiment.TRIED.values() for rate in rates]
    for (way, rows, measured, seed, rate, epochs), (name, wanted) in zip(calls, tried, strict=True):
        assert torch.equal(rows.tokens.ids, expected.tokens.ids)
        assert torch.equal(rows.labels, expected.labels)
        assert measured is untested.choosing
        assert way is lora_reviews.WAYS[name]
        assert (seed, rate, epochs) == (1_001, wanted, 2)


def test_three_rates_of_every_family_are_tried():
    assert set(experiment.TRIED) == set(lora_reviews.RATES)
    for family, (name, rates) in experiment.TRIED.items():
        assert lora_reviews.WAYS[name].family == family
        assert list(rates) == sorted(set(rates))
        assert len(rates) == 3


def test_every_choice_has_sixty_steps():
    assert experiment.EPOCHS * experiment.ROWS == 60 * lora_reviews.BATCH


def test_a_rate_has_the_best_mean_accuracy_of_the_record():
    record = records.load("lora_rates")
    for family, (_, rates) in experiment.TRIED.items():
        assert records.across_seeds(record, family, "rates").tolist() == [list(rates)] * 2
        accuracies = records.across_seeds(record, family, "accuracy").mean(0)
        assert lora_reviews.RATES[family] == rates[accuracies.argmax()]
        # No other rate does as well: the choice does not depend on the order of the rates.
        assert (accuracies == accuracies.max()).sum() == 1


def test_no_seed_of_the_choice_is_one_of_the_comparison():
    assert not set(experiment.SEEDS) & set(lora_reviews.SEEDS)
    assert len(set(experiment.SEEDS)) == len(experiment.SEEDS) == 2
    # Nor do the seeds that are made from them meet: of rows, of starts, of orders.
    made = [
        {seed + offset for seed in seeds for offset in (10_000, 20_000, 30_000)}
        for seeds in (experiment.SEEDS, lora_reviews.SEEDS)
    ]
    assert not made[0] & made[1]


def test_the_record_depends_on_the_file_about_films():
    assert experiment.data_digest() == reviews.SHA256["movie"]
