"""The choice of step sizes by place: what is tried, on which sentences, and what is reported."""

import pytest
import torch

from gradbook.experiments import lora_place_rates as experiment
from gradbook.experiments import lora_reviews
from gradbook.experiments.lora_reviews import WAYS
from gradbook.language import splits


@pytest.fixture
def calls(monkeypatch, tiny_movies):
    """Keeps the arguments of every training in the place of training."""
    seen = []

    def tuned(*arguments):
        seen.append(arguments)
        rate = arguments[4]
        return None, {"accuracy": 1 - rate, "log_loss": 2 * rate, "few": 0.5}

    monkeypatch.setattr(lora_reviews, "tuned", tuned)
    return seen


def test_both_rates_of_every_place_are_tried_on_the_sentences_set_aside(calls, tiny_movies):
    rows = experiment.ROWS
    assert rows == 480
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "ROWS", 32)
        found = experiment.run(1_001)
    expected = splits.drawn(tiny_movies.pool, 32, 11_001)
    tried = [(n, r) for n in experiment.PLACES for r in experiment.RATES]
    for (way, got, measured, seed, rate, epochs), (name, wanted) in zip(calls, tried, strict=True):
        assert (way, seed, rate, epochs) == (WAYS[name], 1_001, wanted, experiment.EPOCHS)
        assert torch.equal(got.labels, expected.labels)
        assert measured is tiny_movies.choosing
    for name in experiment.PLACES:
        assert found[name] == {
            "rates": list(experiment.RATES),
            "accuracy": [1 - rate for rate in experiment.RATES],
            "log_loss": [2 * rate for rate in experiment.RATES],
        }
