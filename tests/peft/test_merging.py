"""What all mergeable layers share: a frozen layer, merging once, saving, loading and copying."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradbook.peft.dora import DoRALinear
from gradbook.peft.lora import LoRALinear, LowRank
from gradbook.peft.lora_embedding import LoRAEmbedding
from gradbook.peft.lora_fused import FusedLoRALinear
from gradbook.peft.merging import Mergeable, add_to, additions
from gradbook.peft.svd_linear import SVDLinear
from gradbook.peft.vera import VeRALinear, projections

INPUTS, OUTPUTS = 5, 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def vera(layer):
    return VeRALinear(layer, projections(OUTPUTS, INPUTS, 3, generator(5), torch.float64))


MAKES = {
    "lora": lambda layer: LoRALinear(layer, 2, 3.0, generator()),
    "fused": lambda layer: FusedLoRALinear(layer, (2, 2), (1,), 2, 3.0, generator()),
    "dora": lambda layer: DoRALinear(layer, 2, 3.0, generator()),
    "svd": lambda layer: SVDLinear(layer, 2, 3.0, generator()),
    "vera": vera,
    "embedding": lambda layer: LoRAEmbedding(layer, 2, 3.0, generator()),
}


def base(name):
    if name == "embedding":
        layer = nn.Embedding(INPUTS, OUTPUTS, dtype=torch.float64)
    else:
        layer = nn.Linear(INPUTS, OUTPUTS, dtype=torch.float64)
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=i))
    return layer


def stirred(name, seed=0):
    """A module whose addition is not zero."""
    module = MAKES[name](base(name))
    with torch.no_grad():
        for i, parameter in enumerate(trained(module)):
            parameter.add_(0.3 * normal(*parameter.shape, seed=seed + 10 + i))
    return module


def trained(module):
    return [p for p in module.parameters() if p.requires_grad]


def inputs(name):
    return torch.tensor([0, 3, 3]) if name == "embedding" else normal(3, INPUTS, seed=7)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MAKES)
def test_the_layer_is_frozen_and_the_rest_is_trained(name):
    layer = base(name)
    assert all(p.requires_grad for p in layer.parameters())
    module = MAKES[name](layer)
    assert isinstance(module, Mergeable)
    assert not any(p.requires_grad for p in layer.parameters())
    inside = {id(p) for p in layer.parameters()}
    shared = {"A", "B"} if name == "vera" else set()
    for key, parameter in module.named_parameters():
        assert parameter.requires_grad == (id(parameter) not in inside and key not in shared)
    module(inputs(name)).sum().backward()
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize("name", MAKES)
def test_what_refuses_its_arguments_freezes_nothing(name):
    layer = base(name)
    bad = {
        "fused": lambda: FusedLoRALinear(layer, (2, 2), (1,), 2, 0.0, generator()),
        "vera": lambda: VeRALinear(layer, projections(1, 1, 1, generator(), torch.float64)),
    }
    kinds = {"lora": LoRALinear, "dora": DoRALinear, "svd": SVDLinear, "embedding": LoRAEmbedding}
    with pytest.raises(ValueError, match=r"^alpha: |^shared: "):
        bad[name]() if name in bad else kinds[name](layer, 2, 0.0, generator())
    if name not in bad:
        with pytest.raises(ValueError, match="^scaling: must be positive"):
            kinds[name](layer, 2, 1.0, generator(), lambda *_: 0.0)
    assert all(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("name", MAKES)
def test_merging_happens_once_and_unmerging_restores(name):
    module, x = stirred(name), inputs(name)
    before, weight = module(x).detach(), module.weights().clone()
    with pytest.raises(RuntimeError, match="^unmerge: the layer is not merged"):
        module.unmerge()
    module.merge()
    merged = module.weights().clone()
    assert (merged - weight).abs().max() > 1e-3
    close(module(x), before)
    with pytest.raises(RuntimeError, match="^merge: the layer is merged already"):
        module.merge()
    assert torch.equal(module.weights(), merged)
    module.unmerge()
    assert not module.merged
    close(module.weights(), weight)
    close(module(x), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", MAKES)
def test_an_addition_that_is_not_finite_is_refused_and_changes_nothing(name, bad):
    module = stirred(name)
    weight = module.weights().clone()
    with torch.no_grad():
        trained(module)[0].view(-1)[0] = bad
    # DoRA's lengths are the first to see it.
    with pytest.raises(ValueError, match="^delta: must be finite|^magnitude: "):
        module.merge()
    assert torch.equal(module.weights(), weight)
    assert not module.merged


@pytest.mark.parametrize("name", MAKES)
def test_a_merged_state_is_neither_saved_nor_overwritten(name):
    module = stirred(name)
    holder = nn.Sequential(module)
    state = copy.deepcopy(holder.state_dict())
    module.merge()
    weight = module.weights().clone()
    with pytest.raises(RuntimeError, match="^merged: unmerge before saving"):
        holder.state_dict()
    with pytest.raises(RuntimeError, match="^merged: unmerge before loading"):
        holder.load_state_dict(state)
    assert torch.equal(module.weights(), weight)
    module.unmerge()
    for key, value in holder.state_dict().items():
        close(value, state[key])


@pytest.mark.parametrize("name", MAKES)
def test_a_saved_state_gives_the_same_module_again(name):
    module, x = stirred(name), inputs(name)
    other = stirred(name, seed=50)
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", MAKES)
def test_a_copy_of_a_merged_module_is_merged_and_apart(name, again):
    module, x = stirred(name), inputs(name)
    before, weight = module(x).detach(), module.weights().clone()
    module.merge()
    merged = module.weights().clone()
    twin = again(module)
    with pytest.raises(RuntimeError, match="^merged: unmerge before saving"):
        twin.state_dict()
    twin.unmerge()
    close(twin.weights(), weight)
    close(twin(x), before)
    twin.load_state_dict(twin.state_dict())
    assert torch.equal(module.weights(), merged)
    with pytest.raises(RuntimeError, match="^merged: unmerge before saving"):
        module.state_dict()


def test_what_adds_nothing_is_no_module():
    with pytest.raises(TypeError, match="abstract"):
        Mergeable(nn.Linear(2, 2))
    assert LowRank(nn.Linear(2, 2), torch.ones(1, 2), torch.ones(2, 1), 1.0).scaling == 1.0


# What was learnt, carried from one model to another


def families():
    """A model with a layer of each family, at two depths, and a layer without an addition."""
    inner = {name: stirred(name) for name in MAKES if name != "lora"}
    model = nn.ModuleDict({"lora": stirred("lora"), "inside": nn.ModuleDict(inner)})
    model["plain"] = base("lora")
    return model


def twin():
    """Linear layers under three names, and with other weights than those of the families."""
    linear = [nn.Linear(INPUTS, OUTPUTS, dtype=torch.float64) for _ in range(2)]
    model = nn.ModuleDict(
        {"a": linear[0], "inside": nn.ModuleDict({"b": linear[1]}), "c": Conv1D(OUTPUTS, INPUTS)}
    ).double()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            # Whole numbers, whose sums are exact.
            parameter.copy_((10 * normal(*parameter.shape, seed=40 + i)).round())
    return model


def whole(seed):
    return (10 * normal(OUTPUTS, INPUTS, seed=seed)).round()


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_additions_are_what_a_merge_adds():
    model = families()
    found = additions(model)
    layers = {"lora": model["lora"]} | {f"inside.{k}": m for k, m in model["inside"].items()}
    assert list(found) == list(layers)
    before = {name: layer.weights().clone() for name, layer in layers.items()}
    for name, layer in layers.items():
        assert not found[name].requires_grad
        assert found[name].shape == layer.weights().shape
        layer.merge()
        close(before[name] + found[name], layer.weights())
        assert found[name].abs().max() > 1e-3


def test_what_dora_cannot_merge_cannot_be_moved():
    module = stirred("dora")
    with torch.no_grad():
        module.magnitude[1] = 0
    with pytest.raises(ValueError, match="^magnitude: must be finite and not zero"):
        additions(nn.Sequential(module))


def test_additions_of_lora_in_closed_form():
    module = LoRALinear(base("lora"), 2, 3.0)
    with torch.no_grad():
        module.A.copy_(torch.arange(10.0).view(2, 5))
        module.B.copy_(torch.tensor([[1.0, 0], [0, 1], [2, 0], [0, -2]]))
    rows = torch.arange(10.0, dtype=torch.float64).view(2, 5)
    wanted = 1.5 * torch.stack([rows[0], rows[1], 2 * rows[0], -2 * rows[1]])
    found = additions(nn.Sequential(nn.ReLU(), module))
    assert list(found) == ["1"]
    assert torch.equal(found["1"], wanted)
    # A layer that stands alone has no name; its own may be added to another one.
    other = base("lora")
    before = other.weight.detach().clone()
    add_to(other, additions(module))
    assert torch.equal(other.weight, before + wanted)


def test_additions_leave_the_model_as_it_was_and_are_no_part_of_it():
    model = families()
    before = state(model)
    found = additions(model)
    for addition in found.values():
        addition.add_(1)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(m.merged for m in model.modules() if isinstance(m, Mergeable))


def test_a_merged_layer_has_no_addition_any_more():
    model = families()
    model["inside"]["svd"].merge()
    with pytest.raises(RuntimeError, match=r"^additions: inside\.svd is merged already"):
        additions(model)
    model["inside"]["svd"].unmerge()
    assert "inside.svd" in additions(model)
    with pytest.raises(ValueError, match="^model: must have layers with additions, has none"):
        additions(nn.Sequential(base("lora")))


def test_what_is_added_is_added_exactly_and_to_these_layers_alone():
    model, learnt = twin(), {"c": whole(1), "inside.b": whole(2)}
    before = state(model)
    kept = {name: delta.clone() for name, delta in learnt.items()}
    add_to(model, learnt)
    # Conv1D keeps its weights as [in, out].
    wanted = before | {
        "c.weight": before["c.weight"] + learnt["c"].T,
        "inside.b.weight": before["inside.b.weight"] + learnt["inside.b"],
    }
    after = model.state_dict()
    assert set(after) == set(wanted)
    assert all(torch.equal(after[name], value) for name, value in wanted.items())
    assert all(torch.equal(learnt[name], value) for name, value in kept.items())
    assert all(p.requires_grad and p.grad_fn is None for p in model.parameters())
    add_to(model, {name: -delta for name, delta in learnt.items()})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    add_to(model, {})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_two_models_and_what_one_learnt():
    here = nn.ModuleDict({"a": stirred("lora"), "b": stirred("svd")})
    there = nn.ModuleDict({"a": base("lora"), "b": base("lora")})
    before = {name: module(inputs("lora")).detach() for name, module in here.items()}
    add_to(there, additions(here))
    for name, module in there.items():
        close(module(inputs("lora")).detach(), before[name])


@pytest.mark.parametrize(
    ("name", "delta", "kind", "says"),
    [
        ("inside.d", whole(1), AttributeError, "d"),
        ("inside", whole(1), ValueError, "layer: must be linear, got ModuleDict"),
        ("c", whole(1).T, ValueError, r"^c: must be \[4, 5\], floating, got \[5, 4\]"),
        # One row would be added to every one.
        (
            "inside.b",
            whole(1)[:1],
            ValueError,
            r"^inside\.b: must be \[4, 5\], floating, got \[1, 5\]",
        ),
        ("inside.b", whole(1) * 1j, ValueError, r"^inside\.b: must be \[4, 5\], floating"),
        ("inside.b", whole(1) * float("nan"), ValueError, r"^inside\.b: must be finite"),
        ("c", whole(1) / 0, ValueError, "^c: must be finite"),
    ],
)
def test_what_is_refused_adds_nothing_anywhere(name, delta, kind, says):
    model = twin()
    before = state(model)
    for learnt in ({"a": whole(3), name: delta}, {name: delta, "a": whole(3)}):
        with pytest.raises(kind, match=says):
            add_to(model, learnt)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_addition_beside_an_addition_is_refused():
    model = nn.ModuleDict({"a": base("lora"), "b": stirred("lora")})
    before = state(model)
    with pytest.raises(ValueError, match="layer: must be linear, got LoRALinear"):
        add_to(model, {"a": whole(1), "b": whole(2)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
