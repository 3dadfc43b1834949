"""QLoRA: LoRA beside a layer in 4 bits, and what a merge back into 4 bits loses."""

import copy

import pytest
import torch
from torch import nn

from gradbook.peft.injection import count, inject
from gradbook.peft.lora import LoRALinear, over_root
from gradbook.peft.nf4 import nf4_code
from gradbook.peft.nf4_linear import DoubleScales, NF4Linear, Scales
from gradbook.peft.qlora import Kept, QLoRALinear, merge_all, merge_loss

INPUTS, OUTPUTS, RANK = 12, 8, 2


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def base(kind=Scales):
    linear = nn.Linear(INPUTS, OUTPUTS, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(normal(OUTPUTS, INPUTS))
        linear.bias.copy_(normal(OUTPUTS, seed=1))
    return NF4Linear(linear, 16, kind)


def adapted(size=1.0, kind=Scales):
    made = QLoRALinear(base(kind), RANK, 4, torch.Generator().manual_seed(3))
    with torch.no_grad():
        made.B.copy_(size * normal(OUTPUTS, RANK, seed=4))
    return made


def test_it_is_lora_on_the_decoded_layer():
    ours, x = adapted(), normal(5, 3, INPUTS, seed=2)
    theirs = LoRALinear(ours.layer.linear(), RANK, 4, torch.Generator().manual_seed(3))
    assert torch.equal(ours.A, theirs.A)
    with torch.no_grad():
        theirs.B.copy_(ours.B)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    slope = normal(5, 3, OUTPUTS, seed=5)
    for mine, its in zip(
        torch.autograd.grad(ours(x), [ours.A, ours.B], slope),
        torch.autograd.grad(theirs(x), [theirs.A, theirs.B], slope),
        strict=True,
    ):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)
    assert torch.equal(ours.weights(), ours.layer.decoded())


def test_it_starts_as_the_layer_and_only_the_addition_is_trained():
    layer, x = base(), normal(5, INPUTS, seed=2)
    made = QLoRALinear(layer, RANK, 4, scale=over_root)
    assert made.layer is layer
    assert torch.equal(made(x), layer(x))
    assert made.scaling == 4 / RANK**0.5
    assert {name for name, _ in made.named_parameters()} == {"A", "B"}
    assert count(made) == (RANK * (INPUTS + OUTPUTS),) * 2


def test_training_moves_the_addition_and_leaves_the_codes(ids, plain):
    def dense(name, module):
        return isinstance(module, nn.Linear)

    inject(plain, dense, lambda module: NF4Linear(module, 8))
    generator = torch.Generator().manual_seed(0)
    made = inject(
        plain,
        lambda name, module: isinstance(module, NF4Linear),
        lambda layer: QLoRALinear(layer, RANK, 4, generator),
    )
    before, target = made.digest(), normal(3, 5, 8, seed=7)
    optimizer = torch.optim.Adam([p for p in plain.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(20):
        loss = (plain(ids) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert made.digest() == before


def test_an_ordinary_layer_of_the_sum_gives_the_same_output():
    ours, x = adapted(), normal(5, INPUTS, seed=2)
    made = ours.merged_linear()
    torch.testing.assert_close(made(x), ours(x), rtol=1e-12, atol=1e-12)
    assert not made.weight.requires_grad
    assert not ours.merged


@pytest.mark.parametrize("kind", [Scales, DoubleScales])
def test_a_merge_quantizes_the_sum(kind):
    ours, x = adapted(kind=kind), normal(5, INPUTS, seed=2)
    wanted, loss = ours.merged_linear(), merge_loss(ours)
    expected = NF4Linear(wanted, 16, kind)
    ours.merge()
    assert torch.equal(ours.layer.packed, expected.packed)
    assert torch.equal(ours.layer.scales(), expected.scales())
    assert torch.equal(ours(x), expected(x))
    assert torch.equal(ours.merged_linear().weight, expected.decoded())
    error = (ours.layer.decoded() - wanted.weight).square().mean().sqrt().item()
    assert loss.error == pytest.approx(error, rel=1e-12)
    assert loss.addition == pytest.approx(ours.delta().square().mean().sqrt().item(), rel=1e-12)
    for again in (ours.merge, lambda: merge_loss(ours)):
        with pytest.raises(RuntimeError, match="is merged already"):
            again()
    with pytest.raises(RuntimeError, match="unmerge: "):
        ours.unmerge()


def test_no_addition_loses_nothing_and_a_tiny_one_is_lost_where_no_code_changes():
    ours = adapted(0.0)
    assert merge_loss(ours) == (0, 0)
    small = adapted(1e-4)
    codes, addition = small.layer.packed.clone(), small.delta()
    before = small.layer.decoded()
    small.merge()
    assert torch.equal(small.layer.packed, codes)
    # The codes stay, so a block only moves as its largest weight does.
    change = (small.layer.decoded() - before).view(-1, 16)
    ratio = change / before.view(-1, 16)
    kept = before.view(-1, 16) != 0
    for block, seen in zip(ratio, kept, strict=True):
        torch.testing.assert_close(block[seen], block[seen][:1].expand(seen.sum()))
    assert (change - addition.view(-1, 16)).square().mean() > 0.5 * addition.square().mean()


def test_a_merge_of_a_copy_leaves_the_first_alone():
    ours = adapted()
    kept = copy.deepcopy(ours)
    before = kept.layer.decoded()
    ours.merge()
    assert torch.equal(kept.layer.decoded(), before)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="layer: must be NF4Linear, got Linear"):
        QLoRALinear(nn.Linear(4, 4), 1, 1)
    with pytest.raises(ValueError, match="rank: must be at most 8, got 9"):
        QLoRALinear(base(), 9, 1)
    with pytest.raises(ValueError, match="alpha: must be positive"):
        QLoRALinear(base(), 1, 0)
    with pytest.raises(ValueError, match=r"x: must be \[\.\.\., 12\]"):
        adapted()(normal(3, 8))


# Merging a whole model


def on_levels(scale, addition):
    """A row that is the 16 levels times a scale, so that 4 bits keep it, and an addition to it."""
    linear = nn.Linear(16, 1, bias=False, dtype=torch.float64)
    code = nf4_code(torch.float64).cpu()
    with torch.no_grad():
        linear.weight.copy_(scale * code)
    made = QLoRALinear(NF4Linear(linear, 16), 1, 1.0, torch.Generator().manual_seed(3))
    with torch.no_grad():
        made.A.copy_(addition(code))
        made.B.fill_(1.0)
    assert torch.equal(made.weights()[0], scale * code)
    return made


def one(index, share):
    """Move one weight towards the next level, by a share of the way."""

    def addition(code):
        return share * (code[index + 1] - code[index]) * (torch.arange(16) == index)

    return addition


def test_what_is_kept_in_closed_form():
    layers = {
        # All weights are doubled: the scale is, and no code changes.
        "doubled": on_levels(1.0, lambda code: code),
        "halved": on_levels(4.0, lambda code: -2 * code),
        "none": on_levels(1.0, lambda code: 0 * code),
        # Below half the way a weight stays where it is; above, it goes all of it.
        "lost": on_levels(1.0, one(3, 0.4)),
        "more": on_levels(1.0, one(9, 0.8)),
    }
    model = nn.ModuleDict({"plain": nn.Linear(2, 2), "inside": nn.ModuleDict(layers)})
    found = merge_all(model)
    assert list(found) == [f"inside.{name}" for name in layers]
    assert all(type(kept) is Kept for kept in found.values())
    assert found["inside.doubled"] == (1.0, 1.0)
    assert found["inside.halved"] == (0.5, 1.0)
    assert found["inside.none"] == (0.0, 0.0)
    code = nf4_code(torch.float64).cpu()
    for name, index, share in (("lost", 3, 0.4), ("more", 9, 0.8)):
        gap = share * (code[index + 1] - code[index])
        assert found[f"inside.{name}"].size == pytest.approx((gap / code.norm()).item(), rel=1e-12)
    assert found["inside.lost"].share == 0.0
    # float64, of a difference of two weights
    assert found["inside.more"].share == pytest.approx(1 / 0.8, rel=1e-12)
    assert all(layer.merged for layer in layers.values())


@pytest.mark.parametrize("kind", [Scales, DoubleScales])
def test_what_is_kept_of_all_layers_by_another_computation(kind):
    sizes = {"small": 0.01, "middle": 0.1, "large": 1.0}
    model = nn.ModuleDict({name: adapted(size, kind) for name, size in sizes.items()})
    alone = copy.deepcopy(model)
    found = merge_all(model)
    assert list(found) == list(model)
    for name, layer in alone.items():
        before, delta = layer.layer.decoded(), layer.scaling * layer.B.detach() @ layer.A.detach()
        layer.merge()
        assert torch.equal(model[name].layer.packed, layer.layer.packed)
        assert torch.equal(model[name].layer.scales(), layer.layer.scales())
        change = layer.layer.decoded() - before
        size = (delta.square().sum() / before.square().sum()).sqrt().item()
        share = torch.linalg.lstsq(delta.view(-1, 1), change.view(-1, 1)).solution.item()
        # float64; of a share, sums of 96 products
        assert found[name].size == pytest.approx(size, rel=1e-12)
        assert found[name].share == pytest.approx(share, rel=1e-9, abs=1e-12)
    # A large addition is rounded as little as the weights are.
    assert found["large"].share == pytest.approx(1, abs=0.05)
    with pytest.raises(RuntimeError, match="is merged already"):
        merge_all(model)


def test_one_merged_layer_keeps_all_others_from_a_merge():
    model = nn.ModuleDict({name: adapted() for name in "abc"})
    model["b"].merge()
    before = {name: module.layer.packed.clone() for name, module in model.items()}
    with pytest.raises(RuntimeError, match="^additions: b is merged already"):
        merge_all(model)
    assert [module.merged for module in model.values()] == [False, True, False]
    assert all(torch.equal(module.layer.packed, before[name]) for name, module in model.items())


def test_a_model_without_additions_has_nothing_to_merge():
    with pytest.raises(ValueError, match="^model: must have layers with additions, has none"):
        merge_all(nn.Sequential(base()))


def test_nothing_is_merged_where_one_addition_is_not_finite_or_another_kind():
    model = nn.ModuleDict({name: adapted() for name in "abc"})
    with torch.no_grad():
        model["c"].B[0, 0] = torch.inf
    with pytest.raises(ValueError, match="^c: must be finite"):
        merge_all(model)
    model["c"] = LoRALinear(nn.Linear(INPUTS, OUTPUTS, dtype=torch.float64), RANK, 4)
    with pytest.raises(ValueError, match="^model: c must be QLoRALinear"):
        merge_all(model)
    assert not any(module.merged for module in model.values())


def test_what_is_kept_of_short_numbers_is_not_lost_in_their_squares():
    linear = nn.Linear(64, 64, dtype=torch.float16)
    with torch.no_grad():
        # Its square, 1e-8, is below float16's least number.
        linear.weight.fill_(1e-4)
    made = QLoRALinear(NF4Linear(linear), 1, 1)
    with torch.no_grad():
        made.A.fill_(1)
        made.B.fill_(1e-4)
    (found,) = merge_all(nn.Sequential(made)).values()
    # Doubled; float16 has eleven bits.
    assert found == pytest.approx((1, 1), rel=1e-3)


def test_nothing_is_merged_where_a_sum_overflows():
    model = nn.ModuleDict({"a": adapted(), "b": adapted()})
    with torch.no_grad():
        model["b"].layer.scales.absmax.fill_(1.5e308)
        model["b"].B.fill_(1e308)
    with pytest.raises(ValueError, match="^b: must be finite"):
        merge_all(model)
    assert not any(module.merged for module in model.values())
