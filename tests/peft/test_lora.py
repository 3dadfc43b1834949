"""LoRA: the formula and its gradients, the start, merging and unmerging, and the library's outputs."""

import copy

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradbook.peft import lora
from gradbook.peft.injection import inject
from gradbook.peft.selection import named

WIDTH, LAYERS = 8, 2
QUERY_VALUE = named(r"encoder\.layer\.\d+\.attention\.self\.(query|value)")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def filled(layer):
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=i))
    return layer


def linear(inputs=5, outputs=3):
    return filled(nn.Linear(inputs, outputs, dtype=torch.float64))


def conv(inputs=5, outputs=3):
    return filled(Conv1D(outputs, inputs).double())


def stirred(make=linear, rank=2, alpha=3.0, seed=0):
    """A layer whose B is not zero."""
    module = lora.LoRALinear(make(), rank, alpha, generator(seed))
    with torch.no_grad():
        module.b.copy_(normal(*module.b.shape, seed=seed + 1))
    return module


def by_hand(module, x):
    layer = module.layer
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    rank = len(module.a)
    extra = sum(torch.outer(module.b[:, i], module.a[i]) for i in range(rank))
    return x @ (weight + 3.0 / rank * extra).T + layer.bias


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("rank", [1, 2, 7])
def test_value_and_gradients_are_those_of_the_formula(make, rank):
    module, x = stirred(make, rank), normal(2, 4, 5, seed=7).requires_grad_()
    cotangent = normal(2, 4, 3, seed=8)
    results = []
    for output in (module(x), by_hand(module, x)):
        slopes = torch.autograd.grad((output * cotangent).sum(), (module.a, module.b, x))
        results.append((output.detach(), *slopes))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_start_is_the_layer_to_the_bit():
    layer, x = linear(), normal(4, 5, seed=3)
    module = lora.LoRALinear(layer, 2, 16.0, generator())
    assert torch.equal(module(x), layer(x))
    assert (module.b == 0).all()
    assert (module.a != 0).all()
    assert module.scaling == 8.0


def test_a_is_uniform_with_kaimings_bound():
    module = lora.LoRALinear(nn.Linear(64, 3), 128, 1.0, generator())
    a = module.a.detach()
    assert 0.124 < a.abs().max() <= 0.125
    scaled = (a.flatten().double() * 8 + 1) / 2
    assert stats.kstest(scaled.numpy(), "uniform").pvalue > stats.norm.sf(4.5)
    expected = torch.empty(128, 64)
    nn.init.kaiming_uniform_(expected, a=5**0.5, generator=generator())
    torch.testing.assert_close(a, expected, rtol=1e-6, atol=1e-7)


def test_draws_come_from_the_generator_alone():
    layer, state = linear(), torch.get_rng_state()
    one, two, other = (lora.LoRALinear(layer, 2, 1.0, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.a, two.a)
    assert not torch.equal(one.a, other.a)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("make", [linear, conv])
@settings(max_examples=15)
@given(rank=st.integers(1, 6), alpha=st.floats(0.1, 32), seed=st.integers(0, 1000))
def test_merging_keeps_the_outputs_and_unmerging_restores_the_weights(make, rank, alpha, seed):
    module, x = stirred(make, rank, alpha, seed), normal(6, 5, seed=seed)
    before, weight = module(x), module.layer.weight.detach().clone()
    module.merge()
    assert module.merged
    assert torch.equal(module(x), module.layer(x))
    torch.testing.assert_close(module(x), before, rtol=1e-10, atol=1e-10)
    assert not torch.equal(module.layer.weight, weight)
    module.unmerge()
    assert not module.merged
    torch.testing.assert_close(module.layer.weight, weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module(x), before, rtol=1e-10, atol=1e-10)


def test_merging_twice_is_refused_and_changes_nothing():
    module = stirred()
    with pytest.raises(RuntimeError, match=r"^unmerge: "):
        module.unmerge()
    module.merge()
    weight = module.layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"^merge: "):
        module.merge()
    assert torch.equal(module.layer.weight, weight)


def injected(model, where, rank=3, alpha=5.0):
    draws = generator(4)
    done = inject(model, where, lambda layer: lora.LoRALinear(layer, rank, alpha, draws))
    added = [module for module in model.modules() if isinstance(module, lora.LoRALinear)]
    with torch.no_grad():
        for i, module in enumerate(added):
            module.b.copy_(normal(*module.b.shape, seed=i))
    return done, added


CASES = {
    "tiny_bert": (QUERY_VALUE, ["query", "value"], False, LAYERS * 2 * 3 * (WIDTH + WIDTH)),
    "tiny_gpt2": (named(r".*\.c_attn"), ["c_attn"], True, LAYERS * 3 * (WIDTH + 3 * WIDTH)),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_counts_are_the_librarys(name, ids, request):
    model = request.getfixturevalue(name)
    where, targets, transposed, expected = CASES[name]
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, fan_in_fan_out=transposed)
    theirs = peft.get_peft_model(copy.deepcopy(model), config).double()
    start = model(ids)[0]
    done, added = injected(model, where)
    assert theirs.get_nb_trainable_parameters() == done.report[:2]
    assert done.report.trainable == expected
    layers = [m for m in theirs.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    with torch.no_grad():
        for layer, module in zip(layers, added, strict=True):
            layer.lora_A["default"].weight.copy_(module.a)
            layer.lora_B["default"].weight.copy_(module.b)
    ours, other = model(ids)[0], theirs(ids)[0]
    assert (ours - start).abs().max() > 1e-3
    torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-10)
    theirs = theirs.merge_and_unload()
    for module in added:
        module.merge()
    done.undo()
    torch.testing.assert_close(model(ids)[0], ours, rtol=1e-10, atol=1e-10)
    for one, two in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_lora_of_rank_8_adds_294912_numbers_to_gpt2():
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    done = inject(model, named(r".*\.c_attn"), lambda m: lora.LoRALinear(m, 8, 8.0, generator()))
    assert done.report.trainable == 12 * 8 * (768 + 2304) == 294_912


def test_training_moves_a_and_b_alone(plain, ids):
    done, added = injected(plain, QUERY_VALUE)
    digest = done.digest()
    before = [(m.a.detach().clone(), m.b.detach().clone()) for m in added]
    optimizer = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], 0.1)
    plain(ids)[..., 0].square().sum().backward()
    optimizer.step()
    assert done.digest() == digest
    for module, (a, b) in zip(added, before, strict=True):
        assert not torch.equal(module.a, a)
        assert not torch.equal(module.b, b)


def test_additions_have_the_type_and_device_of_the_layer():
    half = lora.LoRALinear(nn.Linear(2, 3, dtype=torch.bfloat16), 1, 1.0, generator())
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    meta = lora.LoRALinear(nn.Linear(2, 3, device="meta"), 1, 1.0, generator())
    assert {p.device.type for p in meta.parameters()} == {"meta"}


def test_a_default_device_changes_nothing():
    with torch.device("meta"):
        module = lora.LoRALinear(nn.Linear(2, 3, device="cpu"), 1, 1.0, generator())
    assert {p.device.type for p in module.parameters()} == {"cpu"}


def test_an_empty_batch_gives_an_empty_result():
    assert stirred()(torch.empty(0, 5).double()).shape == (0, 3)


BAD = [
    (lambda: lora.LoRALinear(linear(), 0, 1.0, generator()), "rank: "),
    (lambda: lora.LoRALinear(linear(), 1, 0.0, generator()), "alpha: must be positive"),
    (lambda: lora.LoRALinear(linear(), 1, -1.0, generator()), "alpha: must be positive"),
    (lambda: lora.LoRALinear(linear(), 1, float("nan"), generator()), "alpha: must be finite"),
    (lambda: lora.LoRALinear(linear(), 1, float("inf"), generator()), "alpha: must be finite"),
    (lambda: lora.LoRALinear(nn.Embedding(2, 3), 1, 1.0, generator()), "layer: must be linear"),
    (lambda: stirred()(normal(2, 5).float()), "x: must be torch.float64"),
    (lambda: stirred()(normal(2, 1)), "x: must be \\["),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
