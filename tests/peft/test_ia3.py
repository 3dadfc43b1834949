"""IA3: the identity at the start, gradients of the explicit formula, merging, and the library's counts."""

import copy

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradbook.peft import ia3
from gradbook.peft.selection import named

WIDTH, INNER, LAYERS = 8, 12, 2
KEY_VALUE = named(r"encoder\.layer\.\d+\.attention\.self\.(key|value)")
FEED_FORWARD = named(r"encoder\.layer\.\d+\.output\.dense")
GPT2 = named(r".*\.c_attn"), named(r".*\.mlp\.c_proj")


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def filled(layer):
    """Draws weights and bias; Conv1D's bias is zero otherwise, and hides mistakes."""
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=i))
    return layer


def linear(inputs=5, outputs=3):
    return filled(nn.Linear(inputs, outputs, dtype=torch.float64))


def conv(inputs=5, outputs=3):
    return filled(Conv1D(outputs, inputs).double())


def without_bias():
    return filled(nn.Linear(5, 3, bias=False, dtype=torch.float64))


LAYERS_OF = [linear, conv, without_bias]


def by_hand(kind, layer, scale, x):
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    bias = 0 if layer.bias is None else layer.bias
    if kind is ia3.Scaled:
        return (
            torch.stack([scale[o] * (x @ weight[o]) for o in range(len(weight))], -1) + bias * scale
        )
    return torch.einsum("oi,i,...i->...o", weight, scale, x) + bias


def scaled_model(model, where, seed=0):
    """Puts vectors far from 1 into a model."""
    done = ia3.ia3(model, *where)
    added = [m for m in model.modules() if isinstance(m, (ia3.Scaled, ia3.ScaledInput))]
    with torch.no_grad():
        for i, module in enumerate(added):
            module.scale.copy_(1 + 0.5 * normal(len(module.scale), seed=seed + i))
    return done, added


@pytest.mark.parametrize("kind", [ia3.Scaled, ia3.ScaledInput])
@pytest.mark.parametrize("make", LAYERS_OF)
def test_value_and_gradients_are_those_of_the_formula(kind, make):
    layer, x, cotangent = make(), normal(2, 4, 5, seed=7).requires_grad_(), normal(2, 4, 3, seed=8)
    module = kind(layer)
    size = 3 if kind is ia3.Scaled else 5
    assert module.scale.shape == (size,)
    with torch.no_grad():
        module.scale.copy_(normal(size, seed=9))
    results = []
    for output in (module(x), by_hand(kind, layer, module.scale, x)):
        slopes = torch.autograd.grad((output * cotangent).sum(), (module.scale, x, layer.weight))
        results.append((output.detach(), *slopes))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [ia3.Scaled, ia3.ScaledInput])
@pytest.mark.parametrize("make", LAYERS_OF)
def test_outputs_gradients_and_merged_weights_are_the_librarys(kind, make):
    layer, feed_forward = make(), ["0"] if kind is ia3.ScaledInput else []
    config = peft.IA3Config(
        target_modules=["0"], feedforward_modules=feed_forward, fan_in_fan_out=make is conv
    )
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(layer)), config).double()
    other, module = theirs.base_model.model[0], kind(layer)
    with torch.no_grad():
        module.scale.copy_(normal(len(module.scale), seed=9))
        other.ia3_l["default"].copy_(module.scale.view_as(other.ia3_l["default"]))
    x, cotangent, results = normal(4, 5, seed=7).requires_grad_(), normal(4, 3, seed=8), []
    for made, scale, inner in (
        (module, module.scale, layer),
        (other, other.ia3_l["default"], other.base_layer),
    ):
        output = made(x)
        by_x, by_scale = torch.autograd.grad((output * cotangent).sum(), (x, scale))
        made.merge()
        left = [part.detach() for part in inner.parameters()]
        results.append((output.detach(), by_x, by_scale.flatten(), *left))
    for ours, its in zip(*results, strict=True):
        torch.testing.assert_close(ours, its, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [ia3.Scaled, ia3.ScaledInput])
@pytest.mark.parametrize("make", LAYERS_OF)
@settings(max_examples=15)
@given(seed=st.integers(0, 1000))
def test_merged_layer_gives_the_same_outputs(kind, make, seed):
    module, x = kind(make()), normal(6, 5, seed=seed)
    with torch.no_grad():
        module.scale.copy_(normal(len(module.scale), seed=seed + 1))
    before = module(x)
    layer = module.merge()
    assert layer is module.layer
    assert (module.scale == 1).all()
    torch.testing.assert_close(layer(x), before, rtol=1e-12, atol=1e-12)
    assert torch.equal(module(x), layer(x))


@pytest.mark.parametrize(
    ("model", "where"), [("plain", (KEY_VALUE, FEED_FORWARD)), ("tiny_gpt2", GPT2)]
)
def test_the_start_is_the_identity_to_the_bit(model, where, ids, request):
    model = request.getfixturevalue(model)
    before = model(ids)[0]
    done = ia3.ia3(model, *where)
    assert torch.equal(model(ids)[0], before)
    done.undo()
    assert torch.equal(model(ids)[0], before)


def test_outputs_of_keys_and_values_and_inputs_of_the_second_layer_are_scaled(tiny_bert):
    done = ia3.ia3(tiny_bert, KEY_VALUE, FEED_FORWARD)
    assert len(done.report.layers) == 3 * LAYERS
    for layer in tiny_bert.encoder.layer:
        attention = layer.attention.self
        assert isinstance(attention.key, ia3.Scaled)
        assert isinstance(attention.value, ia3.Scaled)
        assert isinstance(layer.output.dense, ia3.ScaledInput)
        assert layer.output.dense.scale.shape == (INNER,)
        assert isinstance(attention.query, nn.Linear)
        assert isinstance(layer.attention.output.dense, nn.Linear)
    assert done.report.trainable == LAYERS * (2 * WIDTH + INNER)


def test_the_model_computes_what_the_library_computes_on_bert(tiny_bert, ids):
    """The default of peft for BERT scales the input of the attention's output too: not asked here."""
    config = peft.IA3Config(
        target_modules=r".*(attention\.self\.(key|value)|layer\.\d+\.output\.dense)",
        feedforward_modules=r".*layer\.\d+\.output\.dense",
    )
    theirs = peft.get_peft_model(copy.deepcopy(tiny_bert), config).double()
    done, added = scaled_model(tiny_bert, (KEY_VALUE, FEED_FORWARD))
    assert theirs.get_nb_trainable_parameters() == (done.report.trainable, done.report.total)
    vectors = [p for p in theirs.parameters() if p.requires_grad]
    with torch.no_grad():
        for vector, module in zip(vectors, added, strict=True):
            vector.copy_(module.scale.view_as(vector))
    ours, other = tiny_bert(ids).last_hidden_state, theirs(ids).last_hidden_state
    torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-10)


def test_the_librarys_default_for_bert_is_counted_too(tiny_bert):
    theirs = peft.get_peft_model(copy.deepcopy(tiny_bert), peft.IA3Config())
    done = ia3.ia3(tiny_bert, KEY_VALUE, named(r".*\.output\.dense"))
    assert theirs.get_nb_trainable_parameters() == done.report[:2]
    assert done.report.trainable == LAYERS * (2 * WIDTH + INNER + WIDTH)


def test_the_model_computes_what_the_library_computes_on_gpt2(tiny_gpt2, ids):
    config = peft.IA3Config(fan_in_fan_out=True)
    theirs = peft.get_peft_model(copy.deepcopy(tiny_gpt2), config).double()
    done, added = scaled_model(tiny_gpt2, GPT2)
    assert theirs.get_nb_trainable_parameters() == (done.report.trainable, done.report.total)
    assert done.report.trainable == LAYERS * (3 * WIDTH + INNER)
    vectors = [p for p in theirs.parameters() if p.requires_grad]
    with torch.no_grad():
        for vector, module in zip(vectors, added, strict=True):
            vector.copy_(module.scale.view_as(vector))
    torch.testing.assert_close(tiny_gpt2(ids).logits, theirs(ids).logits, rtol=1e-10, atol=1e-10)


def test_ia3_trains_64512_numbers_of_gpt2():
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    assert ia3.ia3(model, *GPT2).report.trainable == 12 * (2304 + 3072) == 64_512


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_gpt2"])
def test_a_merged_model_gives_the_same_outputs(model, ids, request):
    where = GPT2 if model == "tiny_gpt2" else (KEY_VALUE, FEED_FORWARD)
    model = request.getfixturevalue(model)
    start = model(ids)[0]
    done, added = scaled_model(model, where)
    before, digest = model(ids)[0], done.digest()
    assert (before - start).abs().max() > 1e-3
    for module in added:
        module.merge()
    assert done.digest() != digest
    done.undo()
    torch.testing.assert_close(model(ids)[0], before, rtol=1e-10, atol=1e-10)


def test_training_moves_the_vectors_alone(tiny_bert, ids):
    done = ia3.ia3(tiny_bert, KEY_VALUE, FEED_FORWARD)
    digest = done.digest()
    trained = [p for p in tiny_bert.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1)
    tiny_bert(ids).last_hidden_state[..., 0].square().sum().backward()
    optimizer.step()
    assert done.digest() == digest
    assert all((p != 1).any() for p in trained)


@pytest.mark.parametrize("kind", [ia3.Scaled, ia3.ScaledInput])
def test_vectors_have_the_type_of_the_layer(kind):
    layer = nn.Linear(2, 3, dtype=torch.bfloat16)
    assert kind(layer).scale.dtype == torch.bfloat16
    assert kind(nn.Linear(2, 3, device="meta")).scale.device.type == "meta"


@pytest.mark.parametrize("kind", [ia3.Scaled, ia3.ScaledInput])
def test_an_empty_batch_gives_an_empty_result(kind):
    assert kind(linear())(torch.empty(0, 5).double()).shape == (0, 3)


def nothing(name, module):
    return False


BAD = [
    (lambda model: ia3.ia3(model, nothing, FEED_FORWARD), "key_value: holds for no"),
    (lambda model: ia3.ia3(model, KEY_VALUE, nothing), "feed_forward: holds for no"),
    (lambda model: ia3.ia3(model, KEY_VALUE, KEY_VALUE), "feed_forward: holds for a module"),
    (lambda model: ia3.ia3(linear(), lambda *_: True, FEED_FORWARD), "key_value: holds for no"),
    (lambda model: ia3.ia3(model, named("embeddings"), FEED_FORWARD), "layer: must be linear"),
    (lambda model: ia3.Scaled(nn.Embedding(2, 3)), "layer: must be linear"),
    (lambda model: ia3.ScaledInput(nn.Conv1d(2, 3, 1)), "layer: must be linear"),
    (lambda model: ia3.Scaled(linear())(normal(2, 4)), "x: must be \\["),
    (lambda model: ia3.ScaledInput(linear())(normal(2, 1)), "x: must be \\["),
    (lambda model: ia3.ScaledInput(linear())(normal(2, 5).float()), "x: must be torch.float64"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message, plain):
    before = list(plain.named_modules())
    with pytest.raises(ValueError, match=f"^{message}"):
        call(plain)
    assert list(plain.named_modules()) == before
    assert all(p.requires_grad for p in plain.parameters())
