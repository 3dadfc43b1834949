"""Selections: which parameters are trained, counted exactly, and names that match as a whole."""

import pytest
import torch
import transformers
from torch import nn

from gradbook.peft import selection
from gradbook.peft.injection import count, inject

WIDTH, INNER, LAYERS = 8, 12, 2


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_bitfit_trains_the_biases_of_bert(tiny_bert):
    total = sum(p.numel() for p in tiny_bert.parameters())
    report = selection.train_only(tiny_bert, selection.biases)
    # Query, key, value, output, two in the feed-forward network, two norms; embeddings, pooler.
    assert report.trainable == LAYERS * (4 * WIDTH + INNER + WIDTH + 2 * WIDTH) + 2 * WIDTH
    assert report.total == total
    assert count(tiny_bert) == report[:2]
    assert set(report.layers) == trained(tiny_bert)
    assert all(name.endswith(".bias") for name in report.layers)
    assert len(report.layers) == LAYERS * 8 + 2


def test_bitfit_trains_102144_numbers_of_gpt2():
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    report = selection.train_only(model, selection.biases)
    width, layers = 768, 12
    assert report.trainable == layers * (3 + 1 + 4 + 1 + 2) * width + width == 102_144
    assert report.total == 124_439_808


def test_biases_of_torchs_attention_count_too():
    attention = nn.MultiheadAttention(4, 2, add_bias_kv=False)
    report = selection.train_only(attention, selection.biases)
    assert report.layers == ("in_proj_bias", "out_proj.bias")
    assert report.trainable == 3 * 4 + 4


def test_only_the_last_part_of_a_name_makes_a_bias():
    weight = nn.Parameter(torch.ones(2))
    assert not selection.biases("relative_attention_bias.weight", weight)
    assert not selection.biases("bias.weight", weight)
    assert selection.biases("bias", weight)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("wrapped", [False, True])
def test_top_layers_of_bert(tiny_bert, n, wrapped):
    model = nn.ModuleDict({"encoder": tiny_bert}) if wrapped else tiny_bert
    report = selection.train_only(model, selection.top_layers(n, LAYERS))
    linears = 4 * (WIDTH * WIDTH + WIDTH) + (2 * WIDTH * INNER + INNER + WIDTH)
    assert report.trainable == n * (linears + 4 * WIDTH)
    last = tuple(f"encoder.layer.{i}." for i in range(LAYERS - n, LAYERS))
    prefix = "encoder." if wrapped else ""
    names = {name for name, _ in model.named_parameters()}
    assert set(report.layers) == {m for m in names if m.removeprefix(prefix).startswith(last)}


def test_layer_one_is_not_layer_eleven():
    chosen = selection.top_layers(11, 12)
    weight = nn.Parameter(torch.ones(2))
    assert [i for i in range(13) if chosen(f"encoder.layer.{i}.x", weight)] == list(range(1, 12))
    assert not chosen("decoder.layer.5.x", weight)


def test_all_others_are_frozen_whatever_they_were(plain):
    plain.requires_grad_(False)
    plain.embeddings.requires_grad_(True)
    selection.train_only(plain, lambda name, _: name == "encoder.layer.0.output.dense.weight")
    assert trained(plain) == {"encoder.layer.0.output.dense.weight"}


def test_a_choice_may_look_at_the_parameter(plain):
    report = selection.train_only(plain, lambda _, parameter: parameter.shape == (INNER, WIDTH))
    assert report.trainable == LAYERS * INNER * WIDTH


@pytest.mark.parametrize("name", ["lm_head.weight", "transformer.wte.weight"])
def test_a_tied_tensor_is_found_by_either_name(tiny_gpt2, name):
    report = selection.train_only(tiny_gpt2, lambda other, _: other == name)
    assert report.layers == (name,)
    assert report.trainable == 17 * WIDTH
    assert tiny_gpt2.lm_head.weight.requires_grad


def test_gradients_reach_the_chosen_alone(tiny_bert, ids):
    report = selection.train_only(tiny_bert, selection.top_layers(1, LAYERS))
    tiny_bert(ids).last_hidden_state.square().sum().backward()
    reached = {name for name, p in tiny_bert.named_parameters() if p.grad is not None}
    assert reached == set(report.layers)


def test_a_name_matches_as_a_whole(plain):
    where = selection.named(r"encoder\.layer\.1\.output")
    assert inject(plain, where, nn.Sequential).report.layers == ("encoder.layer.1.output",)
    layer = nn.Identity()
    assert where("encoder.layer.1.output", layer) is True
    assert where("encoder.layer.1.output.dense", layer) is False
    assert where("encoder.encoder.layer.1.output", layer) is False


BAD = [
    (lambda: selection.top_layers(0, 2), "n: must be from 1 to 2, got 0"),
    (lambda: selection.top_layers(3, 2), "n: must be from 1 to 2, got 3"),
    (lambda: selection.named("("), "pattern: "),
    (lambda: selection.train_only(nn.Linear(2, 2), lambda *_: False), "where: "),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_a_refused_choice_freezes_nothing(plain):
    before = trained(plain)
    with pytest.raises(ValueError, match=r"^where: "):
        selection.train_only(plain, lambda *_: False)
    assert trained(plain) == before != set()
