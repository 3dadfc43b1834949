"""PiSSA: what moves from W into A and B, the start and the way back, the conversion, peft's results."""

import copy

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradbook.peft import lora, pissa
from gradbook.peft.dora import DoRALinear
from gradbook.peft.injection import inject, matrix
from gradbook.peft.selection import named


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def filled(layer):
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=i))
    return layer.requires_grad_(False)


def linear(inputs=7, outputs=6):
    return filled(nn.Linear(inputs, outputs, dtype=torch.float64))


def conv(inputs=7, outputs=6):
    return filled(Conv1D(outputs, inputs).double())


def new(make=linear, rank=2, alpha=3.0):
    return lora.LoRALinear(make(), rank, alpha, generator())


def close(ours, theirs, tolerance=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("make", [linear, conv])
@settings(max_examples=15)
@given(rank=st.integers(1, 6), alpha=st.floats(0.1, 32))
def test_the_largest_triplets_move_and_the_outputs_stay(make, rank, alpha):
    module, x = new(make, rank, alpha), normal(5, 7, seed=3)
    weight, before = matrix(module.layer).clone(), module.layer(x)
    assert pissa.principal(module) is module
    product = module.scaling * module.B @ module.A
    # Eckart and Young: by the eigenvalues of W^T W, another way to the same matrix.
    _, vectors = torch.linalg.eigh(weight.T @ weight)
    top = vectors[:, -rank:]
    close(product.detach(), weight @ top @ top.T, 1e-10)
    close(matrix(module.layer), weight - weight @ top @ top.T, 1e-10)
    close(module(x), before, 1e-11)
    values = torch.linalg.svdvals(weight)
    close(torch.linalg.svdvals(matrix(module.layer))[: 6 - rank], values[rank:], 1e-10)


@pytest.mark.parametrize("make", [linear, conv])
def test_both_sides_carry_the_roots_of_the_values(make):
    module = new(make, 3, 6.0)
    values = torch.linalg.svdvals(matrix(module.layer))[:3] / 2.0
    pissa.principal(module)
    close(module.A.detach() @ module.A.detach().T, values.diag(), 1e-11)
    close(module.B.detach().T @ module.B.detach(), values.diag(), 1e-11)


@pytest.mark.parametrize("make", [linear, conv])
def test_a_merge_at_the_start_restores_the_weights(make):
    module = new(make)
    weight = module.layer.weight.clone()
    pissa.principal(module)
    assert (module.layer.weight - weight).abs().max() > 0.1
    module.merge()
    close(module.layer.weight, weight)


def test_both_matrices_have_a_gradient_at_the_start_and_lora_has_one():
    x = normal(5, 7, seed=3)
    slopes = []
    for module in (new(), pissa.principal(new())):
        slopes.append(torch.autograd.grad(module(x).square().sum(), (module.A, module.B)))
    assert (slopes[0][0] == 0).all()
    assert all((part != 0).all() for part in (slopes[0][1], *slopes[1]))


def test_a_triplet_of_zero_does_not_move():
    layer = linear()
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0] = 4.0
    module = pissa.principal(lora.LoRALinear(layer, 2, 2.0, generator()))
    assert (layer.weight == 0).all()
    x = normal(5, 7)
    a, b = torch.autograd.grad(module(x).square().sum(), (module.A, module.B))
    assert (a[1] == 0).all()
    assert (b[:, 1] == 0).all()
    assert (a[0] != 0).any()


def test_halves_are_decomposed_in_single_precision():
    layer = nn.Linear(7, 6, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(normal(6, 7))
    weight = layer.weight.detach().clone()
    module = pissa.principal(lora.LoRALinear(layer, 3, 3.0, generator()))
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    module.merge()
    # Three roundings of eight bits, of numbers below 4.
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=0.01, atol=0.05)


class Holder(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.proj = make()

    def forward(self, x):
        return self.proj(x)


def theirs_of(make, rank=2, alpha=3.0):
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        init_lora_weights="pissa",
        target_modules=["proj"],
        fan_in_fan_out=make is conv,
    )
    # It refuses float64.
    return peft.get_peft_model(Holder(make).float(), config)


@pytest.mark.parametrize("make", [linear, conv])
def test_the_start_is_that_of_peft(make):
    module = pissa.principal(new(make))
    layer = theirs_of(make).base_model.model.proj
    a, b = (part["default"].weight.double() for part in (layer.lora_A, layer.lora_B))
    # Rounding of float32; the signs of the vectors are free.
    close(module.B @ module.A, b @ a, 1e-5)
    close(module.layer.weight, layer.base_layer.weight.double(), 1e-5)
    close((module.A * a).sum(1).abs(), a.square().sum(1), 1e-5)


def train(parts, forward, steps=3):
    x = normal(5, 7, seed=3).to(parts[0].dtype)
    optimizer = torch.optim.SGD(parts, 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        forward(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("scale", [lora.over_rank, lora.over_root])
def test_a_converted_module_is_a_lora_on_the_first_weights(make, scale):
    module = lora.LoRALinear(make(), 2, 3.0, generator(), scale)
    weight, x = module.layer.weight.clone(), normal(5, 7, seed=4)
    pissa.principal(module)
    first, second = module.A.detach().clone(), module.B.detach().clone()
    train([module.A, module.B], module)
    trained = module(x).detach()
    assert (module.A - first).abs().max() > 1e-3
    state = torch.get_rng_state()
    after = pissa.converted(module, first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(after) is lora.LoRALinear
    assert (after.A.shape, after.B.shape) == ((4, 7), (6, 4))
    assert after.scaling == module.scaling
    close(after.layer.weight, weight)
    close(after(x), trained, 1e-11)
    after.merge()
    close(after(x), trained, 1e-11)
    after.unmerge()
    close(after.layer.weight, weight)


def test_a_converted_module_is_spent_and_gives_the_first_layer():
    module, weight, x = new(), linear().weight, normal(5, 7, seed=4)
    pissa.principal(module)
    first, second = module.A.detach().clone(), module.B.detach().clone()
    train([module.A, module.B], module)
    after = pissa.converted(module, first, second)
    assert torch.equal(module(x), module.layer(x))
    close(module.layer.weight, weight)
    again = after.layer.weight.clone()
    with pytest.raises(ValueError, match="^module: must not be merged"):
        pissa.converted(module, first, second)
    assert torch.equal(after.layer.weight, again)


@pytest.mark.parametrize("frozen", ["A", "B"])
def test_a_conversion_trains_what_was_trained_in_the_mode_it_had(frozen):
    module = pissa.principal(new()).eval()
    getattr(module, frozen).requires_grad_(False)
    after = pissa.converted(module, module.A.detach(), module.B.detach())
    assert (after.A.requires_grad, after.B.requires_grad) == (frozen == "B", frozen == "A")
    assert not after.layer.weight.requires_grad
    assert not after.training


def test_an_untrained_module_becomes_a_lora_of_zero():
    module = pissa.principal(new())
    after = pissa.converted(module, module.A.detach(), module.B.detach())
    close(after.delta(), torch.zeros(6, 7, dtype=torch.float64), 1e-14)


def test_a_conversion_is_that_of_peft(tmp_path):
    theirs, module = theirs_of(linear), pissa.principal(new())
    layer = theirs.base_model.model.proj
    with torch.no_grad():
        module.A.copy_(layer.lora_A["default"].weight)
        module.B.copy_(layer.lora_B["default"].weight)
    first, second = module.A.detach().clone(), module.B.detach().clone()
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    train([p for p in theirs.parameters() if p.requires_grad], theirs)
    train([module.A, module.B], module)
    theirs.peft_config["default"].init_lora_weights = "pissa"
    theirs.save_pretrained(
        tmp_path / "end", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    found = load_file(tmp_path / "end" / "adapter_model.safetensors")
    config = peft.LoraConfig.from_pretrained(tmp_path / "end")
    ours = pissa.converted(module, first, second)
    assert (config.r, config.lora_alpha / config.r) == (len(ours.A), ours.scaling)
    for name, part in (("A", ours.A), ("B", ours.B)):
        other = found[f"base_model.model.proj.lora_{name}.weight"].double()
        # Three steps in float32.
        close(part.detach(), other, 1e-4)


def test_a_model_keeps_its_outputs(tiny_gpt2, ids):
    before = tiny_gpt2(ids).logits
    draws = generator()

    def make(layer):
        return pissa.principal(lora.LoRALinear(layer, 3, 5.0, draws))

    done = inject(tiny_gpt2, named(r".*\.c_attn"), make)
    close(tiny_gpt2(ids).logits, before, 1e-11)
    assert done.report.trainable == 2 * 3 * (8 + 24)


def merged():
    module = new()
    module.merge()
    return module


def converted(rank=2, part=None, first=None, second=None):
    module = pissa.principal(new(rank=rank))
    first = module.A.detach() if first is None else first
    second = module.B.detach() if second is None else second
    return pissa.converted(part or module, first, second)


def broken():
    layer = linear()
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    return layer


BAD = [
    (lambda: pissa.principal(merged()), "module: must not be merged"),
    (lambda: pissa.principal(pissa.principal(new())), "module: must be new"),
    (lambda: pissa.principal(DoRALinear(linear(), 2, 1.0)), "module: must be a LoRALinear"),
    (lambda: pissa.principal(linear()), "module: must be a LoRALinear, got Linear"),
    (
        lambda: pissa.principal(lora.LoRALinear(broken(), 2, 1.0)),
        "module: must have a layer of finite",
    ),
    (lambda: converted(part=merged()), "module: must not be merged"),
    (lambda: converted(part=DoRALinear(linear(), 2, 1.0)), "module: must be a LoRALinear"),
    (lambda: converted(rank=4), "rank: must be at most 6, got 8"),
    (lambda: converted(first=normal(1, 7)), "first: must be \\[2, 7\\]"),
    (lambda: converted(second=normal(6, 3)), "second: must be \\[6, 2\\]"),
    (lambda: converted(first=normal(2, 7).float()), "first: must be \\[2, 7\\] torch.float64"),
    (lambda: converted(first=normal(2, 7) / 0), "first: must be finite"),
    (lambda: converted(second=normal(6, 2) / 0), "second: must be finite"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_a_conversion_that_is_refused_changes_nothing():
    module = pissa.principal(new(rank=4))
    kept = copy.deepcopy(module)
    with pytest.raises(ValueError, match=r"^rank: "):
        pissa.converted(module, module.A.detach(), module.B.detach())
    for one, two in zip(module.parameters(), kept.parameters(), strict=True):
        assert torch.equal(one, two)
