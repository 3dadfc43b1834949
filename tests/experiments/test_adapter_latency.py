"""The cost of adapters: counts without noise, and times by a clock of our own."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gradbook.experiments import adapter_latency as experiment
from gradbook.language import encoder
from gradbook.peft import adapter_drop, adapters

KINDS = ["plain", "two a block", "one a block", "two, upper half"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self):
        self.now, self.read = 100.0, 0

    def __call__(self):
        self.read += 1
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Takes the place of the process's own time."""
    made = Clock()
    monkeypatch.setattr(experiment.time, "process_time", made)
    return made


def taking(clock, durations, calls, name):
    """A model that takes these times, one after the other."""
    left = iter(durations)

    def model(tokens):
        calls.append(name)
        clock.now += next(left)

    return model


def test_products_are_those_of_the_layers_and_the_adapters(tiny_encoder):
    """Six matrices in each of six blocks, and two in each of 12, 6 and 6 adapters."""
    found = experiment.run_short(0)
    assert found == dict(zip(KINDS, (36.0, 60.0, 48.0, 48.0), strict=True))


def test_a_product_counts_once_with_bias_or_without_and_attentions_own_does_not():
    x = torch.ones(2, 3, 4)
    models = {
        "linear": (nn.Linear(4, 5), 1),
        "without bias": (nn.Linear(4, 5, bias=False), 1),
        "matrix": (lambda x: x @ torch.ones(4, 2), 1),
        "two": (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1)), 2),
        "attention": (lambda x: nn.functional.scaled_dot_product_attention(x, x, x), 0),
        "batched": (lambda x: x @ x.mT, 0),
        "norm": (nn.LayerNorm(4), 0),
    }
    with torch.no_grad():
        for model, count in models.values():
            assert experiment.products(model, x) == count


def test_kinds_are_what_their_names_say(tiny_encoder):
    models, tokens = experiment.built(3), experiment.ids(2, 5)
    assert list(models) == KINDS
    expected = {kind: tiny_encoder() for kind in KINDS}
    adapters.houlsby(expected["two a block"], 64, generator(3))
    adapters.pfeiffer(expected["one a block"], 64, generator(3))
    upper = expected["two, upper half"]
    adapters.houlsby(upper, 64, generator(3))
    with torch.no_grad():
        for adapter in adapters.adapters_of(upper)[:6]:
            adapter.up.zero_()
            adapter.up_bias.zero_()
        found = {kind: model(tokens) for kind, model in models.items()}
        for kind, model in expected.items():
            assert torch.equal(found[kind], model(tokens).last_hidden_state)
    assert len({states.sum().item() for states in found.values()}) == 4
    assert experiment.DROPPED == 3


def test_a_forward_pass_takes_no_gradients_and_evaluates(tiny_encoder):
    model = tiny_encoder().train()
    found = experiment.runner(model)(experiment.ids(2, 0))
    assert found.shape == (2, 32, 16)
    assert not found.requires_grad
    assert not model.training


def test_the_upper_half_is_the_model_without_its_first_adapters(tiny_encoder):
    model, tokens = encoder.pretrained_encoder().eval(), experiment.ids(1, 0)
    adapters.houlsby(model, experiment.SIZE, torch.Generator().manual_seed(0))
    with torch.no_grad(), adapter_drop.dropped(model, 3):
        expected = model(tokens).last_hidden_state
    with torch.no_grad():
        assert not torch.equal(model(tokens).last_hidden_state, expected)
    assert torch.equal(experiment.built(0)["two, upper half"](tokens), expected)


def test_the_least_of_the_rounds_counts_and_the_first_call_does_not(clock):
    calls = []
    models = {
        "a": taking(clock, [0.5, 4.0, 2.0, 3.0], calls, "a"),
        "b": taking(clock, [0.25, 8.0, 16.0, 7.0], calls, "b"),
    }
    found = experiment.least(models, torch.zeros(1, 2, dtype=torch.int64), 3)
    assert found == {"a": 2.0, "b": 7.0}
    # Once to warm up, then all kinds in every round.
    assert calls == ["a", "b"] * 4
    assert clock.read == 2 * 2 * 3


def test_on_a_gpu_the_clock_is_read_when_all_work_is_done(clock, monkeypatch):
    wall = Clock()
    monkeypatch.setattr(experiment.time, "perf_counter", wall)

    def finish():
        wall.now += 10.0

    monkeypatch.setattr(torch.cuda, "synchronize", finish)
    tokens = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    found = experiment.least({"a": taking(wall, [1.0] * 3, [], "a")}, tokens, 2)
    assert found == {"a": 11.0}
    assert clock.read == 0


def test_ratios_are_to_the_plain_encoder_at_the_same_batch(clock, tiny_encoder, monkeypatch):
    seen = []

    def built(seed):
        def taking(factor):
            def model(tokens):
                seen.append(tokens)
                clock.now += factor * len(tokens)

            return model

        return {kind: taking(factor) for kind, factor in zip(KINDS, (2, 3, 4, 5), strict=True)}

    monkeypatch.setattr(experiment, "built", built)
    monkeypatch.setattr(experiment, "ROUNDS", 2)
    found = experiment.run(4)
    assert set(found) == {"short", "plain", "ratios"}
    assert found["plain"] == {"1": 2.0, "4": 8.0, "16": 32.0, "64": 128.0}
    assert found["ratios"] == {
        kind: dict.fromkeys(("1", "4", "16", "64"), ratio)
        for kind, ratio in zip(KINDS[1:], (1.5, 2.0, 2.5), strict=True)
    }
    assert set(found["short"]) == set(KINDS)
    for batch, start in zip(experiment.BATCHES, (0, 12, 24, 36), strict=True):
        assert all(torch.equal(x, experiment.ids(batch, 4)) for x in seen[start : start + 12])


def test_a_tiny_run_is_of_finite_times(tiny_encoder, monkeypatch):
    monkeypatch.setattr(experiment, "BATCHES", (1, 2))
    monkeypatch.setattr(experiment, "ROUNDS", 1)
    found = experiment.run(0)
    assert list(found["ratios"]) == KINDS[1:]
    values = [
        *found["plain"].values(),
        *(x for row in found["ratios"].values() for x in row.values()),
    ]
    assert all(0 < value < float("inf") for value in values)
    assert found["short"] == experiment.run_short(0)


def test_ids_are_drawn_from_their_seed_on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    found = experiment.ids(7, 3)
    assert (found.shape, found.dtype) == ((7, 32), torch.int64)
    torch.randn(3)
    with torch.device("meta"):
        assert torch.equal(experiment.ids(7, 3), found)
    assert not torch.equal(experiment.ids(7, 4), found)
    many = experiment.ids(2_000, 0)
    # No piece that marks an end, pads or is unknown; none beyond MiniLM's 30 522.
    assert 1_000 <= many.min() < 1_010
    assert 29_990 <= many.max() < 30_000


def test_a_record_depends_on_no_data():
    assert experiment.data_digest() == "no data"
    assert experiment.SEEDS == (0, 1, 2)
