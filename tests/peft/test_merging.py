"""What all mergeable layers share: a frozen layer, merging once, saving, loading and copying."""

import copy
import pickle

import pytest
import torch
from torch import nn

from gradbook.peft.dora import DoRALinear
from gradbook.peft.lora import LoRALinear, LowRank
from gradbook.peft.lora_embedding import LoRAEmbedding
from gradbook.peft.lora_fused import FusedLoRALinear
from gradbook.peft.merging import Mergeable
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
