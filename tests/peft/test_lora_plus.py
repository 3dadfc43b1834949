"""Which numbers get which step size, the library's groups, and a training that keeps the ratio."""

import copy
import math

import peft
import peft.optimizers
import pytest
import torch
from torch import nn

from gradbook.language import descent
from gradbook.language.descent import Setting
from gradbook.language.schedule import share
from gradbook.peft import lora_plus
from gradbook.peft.dora import DoRALinear
from gradbook.peft.injection import inject
from gradbook.peft.lora import LoRALinear
from gradbook.peft.lora_embedding import LoRAEmbedding
from gradbook.peft.lora_fused import FusedLoRALinear


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def made(module):
    return LoRALinear(module, 2, 4.0, generator())


class Net(nn.Module):
    """Two linear layers and a head."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 5, dtype=torch.float64)
        self.two = nn.Linear(5, 4, dtype=torch.float64)
        self.head = nn.Linear(4, 3, dtype=torch.float64)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.normal_(generator=generator(i))

    def forward(self, x):
        return self.head(self.two(self.one(x).tanh()))


def tuned(make=made):
    """The net with additions to its two layers and a head that trains."""
    model = Net()
    inject(model, lambda name, _: name in ("one", "two"), make)
    model.head.requires_grad_(True)
    return model


def rates(model, groups):
    """Step size and decay by name."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_b_gets_the_ratio_and_everything_else_the_rate():
    model = tuned()
    for groups in (
        lora_plus.groups(model, 0.5, 16.0),
        lora_plus.adamw(model, 0.5, 16.0).param_groups,
    ):
        assert rates(model, groups) == {
            "one.A": (0.5, 0.01),
            "one.B": (8.0, 0.01),
            "two.A": (0.5, 0.01),
            "two.B": (8.0, 0.01),
            "head.weight": (0.5, 0.01),
            "head.bias": (0.5, 0.0),
        }
        assert all(group["params"] for group in groups)


def test_doras_b_and_that_of_fused_layers_are_fast_too():
    dora = tuned(lambda layer: DoRALinear(layer, 2, 4.0, generator()))
    found = rates(dora, lora_plus.groups(dora, 1.0, 4.0))
    assert {name for name, (rate, _) in found.items() if rate == 4} == {"one.B", "two.B"}
    assert found["one.magnitude"] == (1.0, 0.0)

    def fused(layer):
        return FusedLoRALinear(layer, (2, 2), (0,), 1, 4.0, generator())

    model = Net()
    inject(model, lambda name, _: name == "two", fused)
    assert rates(model, lora_plus.groups(model, 1.0, 4.0)) == {
        "two.A": (1.0, 0.01),
        "two.B": (4.0, 0.01),
    }


def test_an_embeddings_b_is_like_the_rest():
    table = LoRAEmbedding(nn.Embedding(6, 4), 2, 4.0, generator())
    model = nn.Sequential(table, made(nn.Linear(4, 3)))
    found = rates(model, lora_plus.groups(model, 1.0, 4.0))
    assert {name for name, (rate, _) in found.items() if rate == 4} == {"1.B"}
    with pytest.raises(ValueError, match="^model: must have a layer of LoRA"):
        lora_plus.groups(table, 1.0, 4.0)


def test_what_is_frozen_stays_out():
    model = tuned()
    model.one.B.requires_grad_(False)
    found = rates(model, lora_plus.groups(model, 1.0, 4.0))
    assert set(found) == {"one.A", "two.A", "two.B", "head.weight", "head.bias"}


def test_step_sizes_are_the_librarys():
    """But for vectors, which the library gives the larger one; here the biases are frozen."""
    model = tuned()
    model.head.bias.requires_grad_(False)
    ours = rates(model, lora_plus.groups(model, 1e-3, 16.0))
    config = peft.LoraConfig(r=2, target_modules=["one", "two"], modules_to_save=["head"])
    theirs = peft.get_peft_model(Net(), config)
    for name, part in theirs.named_parameters():
        if name.endswith("bias"):
            part.requires_grad_(False)
    optimizer = peft.optimizers.create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.01
    )
    found = rates(theirs, optimizer.param_groups)
    for name, other in (
        ("one.A", "one.lora_A.default"),
        ("one.B", "one.lora_B.default"),
        ("two.A", "two.lora_A.default"),
        ("two.B", "two.lora_B.default"),
        ("head.weight", "head.modules_to_save.default"),
    ):
        assert ours[name] == found[f"base_model.model.{other}.weight"]
    assert len(ours) == len(found) == 5


def trained(optimizer, steps=6):
    """Train on one batch; returns the model, and B's and A's step sizes of each step."""
    model, x, seen = tuned(), torch.randn(8, 4, generator=generator(), dtype=torch.float64), []
    built = optimizer(model)

    def step(rows):
        seen.append([group["lr"] for group in built.param_groups])
        return descent.descend(built, model(x).square().mean())

    descent.run(step, built, torch.ones(8), Setting(steps, 8, 0.01), 0)
    return model, seen


def test_a_ratio_of_1_is_lora():
    ours, _ = trained(lambda model: lora_plus.adamw(model, 0.01, 1.0))
    theirs, _ = trained(lambda model: descent.adamw(model, 0.01))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_training_keeps_the_ratio_from_step_to_step():
    model, seen = trained(lambda model: lora_plus.adamw(model, 0.01, 16.0))
    assert len(seen) == 6
    for i, (a, b, vectors) in enumerate(seen):
        assert a == vectors == pytest.approx(0.01 * share(i, 6), rel=1e-12)
        assert b == pytest.approx(16 * a, rel=1e-12)
    assert model.one.B.abs().max() > 0


def test_adams_first_step_moves_every_number_of_b_by_ratio_times_the_rate():
    model = tuned()
    before = copy.deepcopy(model)
    optimizer = lora_plus.adamw(model, 1e-3, 8.0)
    x = torch.randn(8, 4, generator=generator(), dtype=torch.float64)
    model(x).square().mean().backward()
    optimizer.step()
    for layer in ("one", "two"):
        # B starts at zero, so that nothing decays, and A gets no slope yet: it decays alone.
        change = getattr(model, layer).B.detach().abs()
        torch.testing.assert_close(change, torch.full_like(change, 8e-3), rtol=1e-4, atol=0)
        a, start = getattr(model, layer).A, getattr(before, layer).A
        torch.testing.assert_close(a, start * (1 - 1e-5), rtol=1e-12, atol=0)


BAD = [
    ({"rate": 0.0}, "rate: must be positive"),
    ({"rate": math.nan}, "rate: must be finite"),
    ({"ratio": 0.0}, "ratio: must be positive"),
    ({"ratio": -1.0}, "ratio: must be positive"),
    ({"ratio": math.inf}, "ratio: must be finite"),
    ({"model": Net()}, "model: must have a layer of LoRA whose B trains"),
    ({"model": tuned().requires_grad_(False)}, "model: must have a parameter"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_named(change, message):
    for call in (lora_plus.groups, lora_plus.adamw):
        with pytest.raises(ValueError, match=f"^{message}"):
            call(**{"model": tuned(), "rate": 1.0, "ratio": 2.0} | change)
