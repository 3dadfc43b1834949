"""A layer in 4 bits: outputs, exact gradients, and nothing in full between the passes."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradbook.live_memory import LiveBytes, total_bytes
from gradbook.peft import nf4
from gradbook.peft.injection import inject
from gradbook.peft.nf4_linear import DoubleScales, NF4Linear, Scales

KINDS = pytest.mark.parametrize("kind", [Scales, DoubleScales])


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def linear(inputs=12, outputs=8, seed=0, dtype=torch.float64):
    made = nn.Linear(inputs, outputs, dtype=dtype)
    with torch.no_grad():
        made.weight.copy_(normal(outputs, inputs, seed=seed))
        made.bias.copy_(normal(outputs, seed=seed + 1))
    return made


@KINDS
def test_the_output_is_that_of_the_decoded_weights(kind):
    given = linear()
    layer, x = NF4Linear(given, 16, kind), normal(5, 3, 12, seed=2)
    packed, absmax = nf4.quantize_nf4(given.weight.detach(), 16)
    assert torch.equal(layer.packed, packed)
    assert torch.equal(layer.scales(), kind(absmax)())
    decoded = nf4.dequantize_nf4(packed, layer.scales(), (8, 12))
    assert torch.equal(layer.decoded(), decoded)
    expected = nn.functional.linear(x, decoded, given.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert 0 < (decoded - given.weight).abs().max() < 0.5
    made = layer.linear()
    assert torch.equal(made(x), expected)
    assert not any(p.requires_grad for p in made.parameters())


@KINDS
def test_the_gradient_of_the_input_is_exact(kind):
    layer = NF4Linear(linear(), 16, kind)
    x, slope = normal(5, 3, 12, seed=2).requires_grad_(), normal(5, 3, 8, seed=3)
    ours = torch.autograd.grad(layer(x), x, slope)[0]
    torch.testing.assert_close(ours, slope @ layer.decoded(), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(layer, x[0, :2].detach().requires_grad_())
    assert torch.autograd.gradgradcheck(layer, x[0, :2].detach().requires_grad_())


def test_nothing_is_trained_and_the_given_layer_is_neither_kept_nor_changed():
    given = linear()
    before = copy.deepcopy(given.state_dict())
    layer = NF4Linear(given, 16)
    assert not list(layer.parameters())
    assert not layer(normal(2, 12)).requires_grad
    with torch.no_grad():
        given.bias.zero_()
    assert torch.equal(layer.bias, before["bias"])
    assert torch.equal(given.weight, before["weight"])
    mine = {id(tensor.untyped_storage()) for tensor in layer.buffers()}
    assert not mine & {id(p.untyped_storage()) for p in given.parameters()}


def test_nothing_of_full_size_lives_between_the_passes_or_twice_within_one():
    side, full = 512, 512 * 512 * 4
    layers = [NF4Linear(linear(side, side, seed, torch.float32), 64, Scales) for seed in range(4)]
    model = nn.Sequential(*layers)
    x = normal(2, side, dtype=torch.float32).requires_grad_()
    meter = LiveBytes()
    kept = []
    with (
        meter,
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        with meter.phase("forward"):
            y = model(x).sum()
        assert meter.current < full / 100
        with meter.phase("backward"):
            y.backward()
    assert not kept
    # One matrix in full, and the parts in which it is decoded.
    for name in ("forward", "backward"):
        assert full < meter.peaks[name] < 2.6 * full
    assert total_bytes(model.buffers()) < full


def test_a_backward_pass_decodes_what_its_forward_pass_did():
    layer, x = NF4Linear(linear(), 16), normal(2, 12, seed=2).requires_grad_()
    y, before = layer(x), layer.decoded()
    layer.quantize(normal(8, 12, seed=9))
    y.sum().backward()
    torch.testing.assert_close(x.grad, before.sum(0).expand(2, -1), rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.packed, nf4.quantize_nf4(normal(8, 12, seed=9), 16)[0])


def test_short_floats_and_autocast_give_short_outputs():
    layer = NF4Linear(linear(dtype=torch.bfloat16), 16)
    x = normal(2, 12, dtype=torch.bfloat16).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == layer.decoded().dtype == torch.bfloat16
    assert torch.equal(y, layer.linear()(x))
    longer = NF4Linear(linear(dtype=torch.float32), 16)
    x = normal(2, 12, dtype=torch.float32).requires_grad_()
    # One after the other: within one autocast torch 2.6 gives the second layer the first one's cast of x,
    # which was made where no gradient is recorded.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = longer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = longer.linear()(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    ours, theirs = (torch.autograd.grad(out.sum(), x)[0] for out in (y, expected))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_it_takes_the_place_of_layers_of_bert_and_gpt2(tiny_bert, tiny_gpt2, ids):
    def dense(name, module):
        return "att" in name and isinstance(module, nn.Linear | Conv1D)

    for model in (tiny_bert, tiny_gpt2):
        plain = copy.deepcopy(model)
        made = inject(model, dense, lambda module: NF4Linear(module, 8))
        assert made.report.trainable == 0
        ours = model(input_ids=ids)[0]
        for name in made.report.layers:
            plain.set_submodule(name, model.get_submodule(name).linear())
        torch.testing.assert_close(ours, plain(input_ids=ids)[0], rtol=1e-12, atol=1e-12)


@KINDS
def test_a_saved_state_is_all_there_is(kind):
    layer, other = NF4Linear(linear(), 16, kind), NF4Linear(linear(seed=5), 16, kind)
    assert not torch.equal(layer.decoded(), other.decoded())
    other.load_state_dict(layer.state_dict())
    x = normal(2, 12)
    assert torch.equal(layer(x), other(x))
    assert torch.equal(layer(x), copy.deepcopy(layer)(x))


def test_a_layer_without_bias():
    given = nn.Linear(8, 4, bias=False, dtype=torch.float64)
    layer = NF4Linear(given, 8)
    x = normal(3, 8)
    torch.testing.assert_close(layer(x), x @ layer.decoded().T, rtol=1e-12, atol=1e-12)
    assert layer.linear().bias is None


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="layer: must be linear"):
        NF4Linear(nn.Conv2d(2, 2, 1))
    with pytest.raises(ValueError, match="block_size: must divide the count 96"):
        NF4Linear(linear())
    layer = NF4Linear(linear(), 16)
    for bad in (normal(2, 11), normal(2, 1), torch.tensor(1.0, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"x: must be \[\.\.\., 12\]"):
            layer(bad)
    with pytest.raises(ValueError, match="x: must be torch.float64, is torch.float32"):
        layer(normal(2, 12, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"weight: must be \[8, 12\]"):
        layer.quantize(normal(12, 8))
    with pytest.raises(ValueError, match=r"absmax: must be \[n\], float32 or float64"):
        copy.deepcopy(layer).half()(normal(2, 12))
