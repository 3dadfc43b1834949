"""Layers: their starting laws, their type and place, and that they draw from nobody else's generator."""

import pytest
import torch
from scipy import stats

from gradbook.priors import layers


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def every_layer():
    g = generator()
    return {
        "linear": layers.linear(40, 60, 0.3, g),
        "convolution": layers.convolution(20, 40, (2, 3), g),
        "table": torch.nn.ParameterList([layers.table(50, 40, 0.7, g)]),
        "norm": layers.norm(8),
    }


@pytest.mark.parametrize(
    ("name", "std"), [("linear", 0.3), ("convolution", 120**-0.5), ("table", 0.7)]
)
def test_weights_start_normal(name, std):
    weight = next(every_layer()[name].parameters())
    values = weight.detach().double().flatten() / std
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-5


def test_biases_and_norms_start_plain():
    found = every_layer()
    for name in ("linear", "convolution", "norm"):
        assert (found[name].bias == 0).all()
    assert (found["norm"].weight == 1).all()


def test_shapes_are_those_asked_for():
    found = every_layer()
    assert found["linear"](torch.zeros(3, 40)).shape == (3, 60)
    assert found["convolution"](torch.zeros(3, 20, 5, 5)).shape == (3, 40, 4, 3)
    assert found["norm"](torch.zeros(3, 8)).shape == (3, 8)
    assert next(found["table"].parameters()).shape == (50, 40)


def test_a_page_may_have_other_defaults(monkeypatch):
    before = torch.random.get_rng_state()
    plain = every_layer()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            other = every_layer()
    finally:
        torch.set_default_dtype(torch.float32)
    for name, layer in other.items():
        for one, two in zip(plain[name].parameters(), layer.parameters(), strict=True):
            assert (two.dtype, two.device.type) == (torch.float32, "cpu")
            assert torch.equal(one, two)
    assert torch.equal(before, torch.random.get_rng_state())
