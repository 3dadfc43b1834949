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
from gradbook.peft.injection import inject, matrix
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
        module.B.copy_(normal(*module.B.shape, seed=seed + 1))
    return module


def by_hand(module, x):
    layer = module.layer
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    rank = len(module.A)
    extra = sum(torch.outer(module.B[:, i], module.A[i]) for i in range(rank))
    return x @ (weight + 3.0 / rank * extra).T + layer.bias


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_value_and_gradients_are_those_of_the_formula(make, rank):
    module, x = stirred(make, rank), normal(2, 4, 5, seed=7).requires_grad_()
    cotangent = normal(2, 4, 3, seed=8)
    results = []
    for output in (module(x), by_hand(module, x)):
        slopes = torch.autograd.grad((output * cotangent).sum(), (module.A, module.B, x))
        results.append((output.detach(), *slopes))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_start_is_the_layer_to_the_bit():
    layer, x = linear(), normal(4, 5, seed=3)
    module = lora.LoRALinear(layer, 2, 16.0, generator())
    assert torch.equal(module(x), layer(x))
    assert (module.B == 0).all()
    assert (module.A != 0).all()
    assert module.scaling == 8.0


def test_a_is_uniform_with_kaimings_bound():
    module = lora.LoRALinear(nn.Linear(64, 128), 64, 1.0, generator())
    a = module.A.detach()
    assert 0.124 < a.abs().max() <= 0.125
    scaled = (a.flatten().double() * 8 + 1) / 2
    assert stats.kstest(scaled.numpy(), "uniform").pvalue > stats.norm.sf(4.5)
    expected = torch.empty(64, 64)
    nn.init.kaiming_uniform_(expected, a=5**0.5, generator=generator())
    torch.testing.assert_close(a, expected, rtol=1e-6, atol=1e-7)


def test_draws_come_from_the_generator_alone():
    layer, state = linear(), torch.get_rng_state()
    one, two, other = (lora.LoRALinear(layer, 2, 1.0, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.A, two.A)
    assert not torch.equal(one.A, other.A)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("make", [linear, conv])
@settings(max_examples=15)
@given(rank=st.integers(1, 3), alpha=st.floats(0.1, 32), seed=st.integers(0, 1000))
def test_merging_keeps_the_outputs_and_unmerging_restores_the_weights(make, rank, alpha, seed):
    module, x = stirred(make, rank, alpha, seed), normal(6, 5, seed=seed)
    before, weight = module(x), module.layer.weight.detach().clone()
    shifted = matrix(module.layer).detach() + module.delta()
    module.merge()
    torch.testing.assert_close(module.weights(), shifted, rtol=1e-15, atol=1e-15)
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
            module.B.copy_(normal(*module.B.shape, seed=i))
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
            layer.lora_A["default"].weight.copy_(module.A)
            layer.lora_B["default"].weight.copy_(module.B)
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


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("stable", [False, True])
def test_factor_outputs_gradients_and_merged_weights_are_the_librarys(make, stable):
    scale = lora.over_root if stable else lora.over_rank
    module = filled(lora.LoRALinear(make(9, 8), 5, 3.0, generator(), scale))
    config = peft.LoraConfig(
        r=5,
        lora_alpha=3,
        target_modules=["0"],
        use_rslora=stable,
        fan_in_fan_out=make is conv,
    )
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(module.layer)), config).double()
    layer = theirs.base_model.model[0]
    others = [part["default"].weight for part in (layer.lora_A, layer.lora_B)]
    with torch.no_grad():
        for one, other in zip((module.A, module.B), others, strict=True):
            other.copy_(one)
    assert module.scaling == layer.scaling["default"] == 3 / (5**0.5 if stable else 5)
    x, cotangent, results = normal(4, 9, seed=3).requires_grad_(), normal(4, 8, seed=4), []
    for made, parameters, inner in (
        (module, (module.A, module.B), module.layer),
        (layer, others, layer.base_layer),
    ):
        output = made(x)
        slopes = torch.autograd.grad((output * cotangent).sum(), (x, *parameters))
        made.merge()
        results.append((output.detach(), *slopes, inner.weight.detach()))
    for ours, other in zip(*results, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-12)


def test_one_of_a_given_a_and_b_has_copies_of_them_and_draws_nothing():
    layer, a, b = linear(), normal(2, 5, seed=1), normal(3, 2, seed=2).requires_grad_()
    state, x = torch.get_rng_state(), normal(4, 5, seed=3)
    module = lora.LoRALinear.of(layer, a, b, 0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(module) is lora.LoRALinear
    assert module.layer is layer
    assert not layer.weight.requires_grad
    assert (module.A.requires_grad, module.B.requires_grad) == (False, True)
    expected = x @ (layer.weight + 0.5 * b @ a).T + layer.bias
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    a.zero_()
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_a_class_upon_lora_is_not_made_of_a_and_b():
    class More(lora.LoRALinear):
        pass

    with pytest.raises(TypeError, match="^of: makes a LoRALinear, not a More"):
        More.of(linear(), normal(2, 5), normal(3, 2), 1.0)


def test_without_a_generator_a_comes_from_torchs_own_state():
    layer = linear()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        ours, other = (lora.LoRALinear(layer, 2, 1.0) for _ in range(2))
    assert torch.equal(ours.A, lora.LoRALinear(layer, 2, 1.0, generator(5)).A)
    assert not torch.equal(ours.A, other.A)


def test_at_the_start_only_b_has_a_gradient_and_it_is_that_of_the_paper():
    module, x, g = lora.LoRALinear(linear(), 2, 3.0, generator()), normal(4, 5), normal(4, 3)
    by_a, by_b = torch.autograd.grad((module(x) * g).sum(), (module.A, module.B))
    assert (by_a == 0).all()
    torch.testing.assert_close(by_b, 1.5 * g.T @ (x @ module.A.T), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_a_rank_goes_up_to_the_smaller_side(shape):
    weight = torch.empty(shape)
    lora.require_rank(1, weight)
    lora.require_rank(3, weight)
    for rank in (0, -1, 4, 2.0, True):
        with pytest.raises(ValueError, match=r"^rank: "):
            lora.require_rank(rank, weight)


@settings(max_examples=15)
@given(rank=st.integers(1, 3), seed=st.integers(0, 1000))
def test_the_addition_has_the_rank(rank, seed):
    assert torch.linalg.matrix_rank(stirred(rank=rank, seed=seed).delta()) == rank


def test_training_moves_a_and_b_alone(plain, ids):
    done, added = injected(plain, QUERY_VALUE)
    digest = done.digest()
    before = [(m.A.detach().clone(), m.B.detach().clone()) for m in added]
    optimizer = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], 0.1)
    plain(ids)[..., 0].square().sum().backward()
    optimizer.step()
    assert done.digest() == digest
    for module, (a, b) in zip(added, before, strict=True):
        assert not torch.equal(module.A, a)
        assert not torch.equal(module.B, b)


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


def of_scale(value):
    return lora.LoRALinear(linear(), 1, 1.0, generator(), lambda alpha, rank: value)


def made_of(first, second, scaling=1.0):
    return lora.LoRALinear.of(linear(), first, second, scaling)


BAD = [
    (lambda: lora.LoRALinear(linear(), 0, 1.0, generator()), "rank: "),
    (lambda: lora.LoRALinear(linear(), 4, 1.0, generator()), "rank: must be at most 3, got 4"),
    (lambda: lora.LoRALinear(linear(), 1.0, 1.0, generator()), "rank: must be a positive integer"),
    (lambda: lora.LoRALinear(linear(), 1, 0.0, generator()), "alpha: must be positive"),
    (lambda: lora.LoRALinear(linear(), 1, -1.0, generator()), "alpha: must be positive"),
    (lambda: lora.LoRALinear(linear(), 1, float("nan"), generator()), "alpha: must be finite"),
    (lambda: lora.LoRALinear(linear(), 1, float("inf"), generator()), "alpha: must be finite"),
    (lambda: lora.LoRALinear(nn.Embedding(2, 3), 1, 1.0, generator()), "layer: must be linear"),
    (lambda: of_scale(0.0), "scaling: must be positive, got 0.0"),
    (lambda: of_scale(-1.0), "scaling: must be positive, got -1.0"),
    (lambda: of_scale(float("nan")), "scaling: must be finite"),
    (lambda: of_scale(float("inf")), "scaling: must be finite"),
    (lambda: made_of(normal(2, 4), normal(3, 2)), "first: must be \\[2, 5\\]"),
    (lambda: made_of(normal(2, 5), normal(2, 3)), "second: must be \\[3, 2\\]"),
    (
        lambda: made_of(normal(2, 5).float(), normal(3, 2)),
        "first: must be \\[2, 5\\] torch.float64",
    ),
    (lambda: made_of(normal(4, 5), normal(3, 4)), "rank: must be at most 3, got 4"),
    (lambda: made_of(normal(), normal(3, 4)), "first: must be"),
    (lambda: made_of(normal(2, 5), normal(3, 2), 0.0), "scaling: must be positive"),
    (lambda: stirred()(normal(2, 5).float()), "x: must be torch.float64"),
    (lambda: stirred()(normal(2, 1)), "x: must be \\["),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
