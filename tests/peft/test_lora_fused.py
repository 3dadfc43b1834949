"""Separate products for the parts of one layer: against split layers, and what one product shares."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradbook.peft.injection import count, inject
from gradbook.peft.lora import LoRALinear, over_root
from gradbook.peft.lora_fused import FusedLoRALinear
from gradbook.peft.selection import named

INPUTS, SIZES = 5, (4, 2, 3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def linear():
    layer = nn.Linear(INPUTS, sum(SIZES), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(normal(sum(SIZES), INPUTS, seed=8))
        layer.bias.copy_(normal(sum(SIZES), seed=9))
    return layer


def conv():
    layer = Conv1D(sum(SIZES), INPUTS).double()
    with torch.no_grad():
        layer.weight.copy_(linear().weight.T)
        layer.bias.copy_(linear().bias)
    return layer


def fused(make=linear, adapted=(0, 2), rank=2, alpha=3.0, seed=0, **options):
    """Products that are not zero."""
    module = FusedLoRALinear(make(), SIZES, adapted, rank, alpha, generator(seed), **options)
    with torch.no_grad():
        module.B.copy_(normal(*module.B.shape, seed=seed + 1))
    return module


def apart(module):
    """The same as layers of their own: a LoRALinear for an adapted part."""
    weights = linear().weight.split(SIZES), linear().bias.split(SIZES)
    products = {part: (first, second) for part, first, second in module.products()}
    layers = []
    for part, (weight, bias) in enumerate(zip(*weights, strict=True)):
        layer = nn.Linear(INPUTS, len(weight), dtype=torch.float64)
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        if part in products:
            layer = LoRALinear(layer, len(products[part][0]), 3.0)
            layer.A, layer.B = (nn.Parameter(each.detach()) for each in products[part])
        layers.append(layer)
    return layers


def close(ours, theirs, tolerance=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("adapted", [(0,), (1,), (0, 2), (1, 2), (0, 1, 2)])
def test_value_and_gradients_are_those_of_layers_of_their_own(make, adapted):
    module = fused(make, adapted)
    x, cotangent = normal(2, 4, INPUTS, seed=5).requires_grad_(), normal(2, 4, 9, seed=6)
    layers = apart(module)
    out, expected = module(x), torch.cat([layer(x) for layer in layers], -1)
    close(out, expected)
    by_a, by_b, by_x = torch.autograd.grad((out * cotangent).sum(), (module.A, module.B, x))
    (expected * cotangent).sum().backward()
    split = [layer for layer in layers if isinstance(layer, LoRALinear)]
    close(by_a, torch.cat([layer.A.grad for layer in split]))
    close(by_b, torch.cat([layer.B.grad for layer in split]))
    close(by_x, x.grad)


def test_the_start_is_the_layer_to_the_bit():
    layer, x = linear(), normal(4, INPUTS)
    module = FusedLoRALinear(layer, SIZES, (0, 2), 2, 16.0, generator())
    assert torch.equal(module(x), layer(x))
    assert module.A.shape == (4, INPUTS)
    assert module.B.shape == (7, 2)
    assert (module.B == 0).all()
    assert 0 < module.A.abs().min() < module.A.abs().max() <= INPUTS**-0.5
    assert module.scaling == 8.0
    assert fused(alpha=3.0, scale=over_root).scaling == 3.0 / 2**0.5
    assert not torch.equal(*(first for _, first, _ in module.products()))


def test_one_part_that_is_the_whole_is_lora_and_is_drawn_alike():
    whole = FusedLoRALinear(linear(), (9,), (0,), 3, 2.0, generator(4))
    single = LoRALinear(linear(), 3, 2.0, generator(4))
    assert torch.equal(whole.A, single.A)
    with torch.no_grad():
        for module in (whole, single):
            module.B.copy_(normal(9, 3))
    x = normal(4, INPUTS, seed=3)
    assert torch.equal(whole(x), single(x))


def test_equal_first_factors_make_it_lora_of_the_whole_matrix():
    module, single = fused(adapted=(0, 1, 2)), LoRALinear(linear(), 2, 3.0, generator(7))
    with torch.no_grad():
        module.A.copy_(single.A.repeat(3, 1))
        single.B.copy_(module.B)
    close(module.delta(), single.delta())


def test_separate_products_reach_a_rank_that_one_product_does_not():
    module = fused(adapted=(0, 1, 2), rank=1)
    single = LoRALinear(linear(), 1, 3.0, generator())
    with torch.no_grad():
        single.B.fill_(1.0)
    assert torch.linalg.matrix_rank(module.delta()) == 3
    assert torch.linalg.matrix_rank(single.delta()) == 1


@pytest.mark.parametrize("make", [linear, conv])
@settings(max_examples=10)
@given(rank=st.integers(1, 2), alpha=st.floats(0.1, 32), seed=st.integers(0, 1000))
def test_merging_keeps_the_outputs_and_leaves_other_parts_alone(make, rank, alpha, seed):
    module, x = fused(make, (0, 2), rank, alpha, seed), normal(6, INPUTS, seed=seed)
    before, weight = module(x), module.weights().detach().clone()
    module.merge()
    assert torch.equal(module(x), module.layer(x))
    close(module(x), before, 1e-10)
    q, k, v = (module.weights() != weight).split(SIZES)
    assert q.any(1).all()
    assert v.any(1).all()
    assert not k.any()
    module.unmerge()
    close(module.weights(), weight, 1e-11)
    close(module(x), before, 1e-10)


def test_counts_and_places_in_gpt2(tiny_gpt2, ids):
    before, width, rank = tiny_gpt2(ids).logits, 8, 2
    done = inject(
        tiny_gpt2,
        named(r".*\.c_attn"),
        lambda layer: FusedLoRALinear(layer, [width] * 3, (0, 2), rank, 1.0, generator()),
    )
    assert done.report.trainable == 2 * (2 * rank * (width + width))
    assert torch.equal(tiny_gpt2(ids).logits, before)
    digest = done.digest()
    tiny_gpt2(ids).logits.square().sum().backward()
    for block in tiny_gpt2.transformer.h:
        assert block.attn.c_attn.B.grad.abs().min() > 0
    assert done.digest() == digest


def test_every_part_costs_its_own_numbers():
    one, two, three = (
        FusedLoRALinear(nn.Linear(8, 24), (8, 8, 8), range(n), 2, 1.0) for n in (1, 2, 3)
    )
    whole = LoRALinear(nn.Linear(8, 24), 2, 1.0)
    base = count(nn.Linear(8, 24))[1]
    sizes = [count(module)[1] - base for module in (one, two, three, whole)]
    # In r d: 2 for a part with a matrix of its own, 1 + 3 for the whole.
    assert sizes == [2 * 16, 4 * 16, 6 * 16, 4 * 16]


def test_draws_come_from_the_generator_alone():
    layer, state = linear(), torch.get_rng_state()
    one, two, other = (
        FusedLoRALinear(layer, SIZES, (0, 2), 2, 1.0, generator(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one.A, two.A)
    assert not torch.equal(one.A, other.A)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_empty_batch_gives_an_empty_result():
    assert fused()(normal(0, INPUTS)).shape == (0, 9)


def bad(sizes=SIZES, adapted=(0, 2), rank=1, alpha=1.0, layer=None):
    return lambda: FusedLoRALinear(layer or linear(), sizes, adapted, rank, alpha)


BAD = [
    (bad(sizes=(4, 2)), "sizes: must sum to 9"),
    (bad(sizes=(4, 5, 0)), r"sizes\[2\]: must be a positive integer"),
    (bad(sizes=()), "sizes: must sum to 9"),
    (bad(adapted=()), "adapted: "),
    (bad(adapted=(3,)), "adapted: "),
    (bad(adapted=(-1,)), "adapted: "),
    (bad(adapted=(0, 0)), "adapted: "),
    (bad(adapted=(2, 0)), "adapted: "),
    (bad(adapted=(False, True)), "adapted: "),
    (bad(rank=0), "rank: "),
    (bad(rank=4), "rank: must be at most 3"),
    (bad(rank=3, adapted=(0, 1)), "rank: must be at most 2"),
    (bad(alpha=0.0), "alpha: must be positive"),
    (bad(alpha=float("inf")), "alpha: must be finite"),
    (bad(layer=nn.Embedding(2, 9)), "layer: must be linear"),
    (lambda: fused()(normal(2, 1)), "x: must be \\["),
    (lambda: fused()(normal(2, INPUTS).float()), "x: must be torch.float64"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
