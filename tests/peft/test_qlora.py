"""QLoRA: LoRA beside a layer in 4 bits, and what a merge back into 4 bits loses."""

import copy

import pytest
import torch
from torch import nn

from gradbook.peft.injection import count, inject
from gradbook.peft.lora import LoRALinear, over_root
from gradbook.peft.nf4_linear import DoubleScales, NF4Linear, Scales
from gradbook.peft.qlora import QLoRALinear, merge_loss

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
