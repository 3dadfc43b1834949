"""LoRA beside an embedding: the formula, the start, padding, merging, and the library's outputs."""

import copy

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from gradbook.peft.injection import inject
from gradbook.peft.lora import over_root
from gradbook.peft.lora_embedding import LoRAEmbedding
from gradbook.peft.selection import named

WORDS, WIDTH = 7, 4
IDS = torch.tensor([[1, 6, 1], [0, 3, 6]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def table(**options):
    return nn.Embedding(WORDS, WIDTH, _weight=normal(WORDS, WIDTH), dtype=torch.float64, **options)


def stirred(rank=2, alpha=3.0, seed=0, **options):
    """An addition that is not zero."""
    module = LoRAEmbedding(table(**options), rank, alpha, generator(seed))
    with torch.no_grad():
        module.A.copy_(normal(rank, WORDS, seed=seed + 1))
    return module


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_value_and_gradients_are_those_of_one_hot_rows_through_a_linear_layer():
    module, cotangent = stirred(3, 6.0), normal(2, 3, WIDTH, seed=5)
    module.layer.requires_grad_(True)
    rows = nn.functional.one_hot(IDS, WORDS).double()
    expected = rows @ (module.layer.weight.T + 2.0 * module.B @ module.A).T
    parameters = module.A, module.B, module.layer.weight
    ours, theirs = (
        (out, *torch.autograd.grad((out * cotangent).sum(), parameters))
        for out in (module(IDS), expected)
    )
    for one, two in zip(ours, theirs, strict=True):
        close(one, two)


def test_the_start_is_the_embedding_to_the_bit_and_b_is_standard_normal():
    module = LoRAEmbedding(nn.Embedding(64, 128), 64, 16.0, generator())
    ids = torch.arange(64)
    assert torch.equal(module(ids), module.layer(ids))
    assert module.A.shape == (64, 64)
    assert (module.A == 0).all()
    assert module.scaling == 0.25
    values = module.B.detach().flatten().double().numpy()
    assert stats.kstest(values, "norm").pvalue > stats.norm.sf(4.5)


def test_draws_come_from_the_generator_alone_and_without_one_from_torchs_state():
    state = torch.get_rng_state()
    one, two, other = (LoRAEmbedding(table(), 2, 1.0, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.B, two.B)
    assert not torch.equal(one.B, other.B)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert torch.equal(LoRAEmbedding(table(), 2, 1.0).B, other.B)


def test_words_that_do_not_come_keep_their_vectors():
    module = LoRAEmbedding(table(), 2, 1.0, generator())
    optimizer = torch.optim.AdamW([module.A, module.B], 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(IDS).square().sum().backward()
        optimizer.step()
    moved = (module(torch.arange(WORDS)) != module.layer.weight).any(1)
    assert moved.nonzero().flatten().tolist() == [0, 1, 3, 6]


def test_padding_gets_no_gradient():
    module = stirred(padding_idx=6)
    module.layer.requires_grad_(True)
    module(IDS).sum().backward()
    for slope in (module.A.grad.T, module.layer.weight.grad):
        assert (slope != 0).any(1).nonzero().flatten().tolist() == [0, 1, 3]


def test_frequent_words_get_smaller_gradients_where_the_embedding_does_so():
    plain, scaled = stirred(), stirred(scale_grad_by_freq=True)
    for module in (plain, scaled):
        module(IDS).sum().backward()
    counts = IDS.flatten().bincount(minlength=WORDS).clamp(min=1)
    close(scaled.A.grad, plain.A.grad / counts)


@settings(max_examples=15)
@given(st.integers(1, WIDTH), st.floats(0.1, 32), st.integers(0, 1000))
def test_merging_keeps_the_outputs_and_unmerging_restores_the_table(rank, alpha, seed):
    module = stirred(rank, alpha, seed)
    before, weight = module(IDS), module.layer.weight.detach().clone()
    module.merge()
    assert torch.equal(module(IDS), module.layer(IDS))
    torch.testing.assert_close(module(IDS), before, rtol=1e-10, atol=1e-10)
    module.unmerge()
    torch.testing.assert_close(module.layer.weight, weight, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(module(IDS), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("stable", "padding"), [(False, None), (True, 6)])
def test_values_gradients_and_the_merged_table_are_the_librarys(stable, padding):
    options = {"scale": over_root} if stable else {}
    base = table(padding_idx=padding)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"], use_rslora=stable)
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(base)), config).double()
    layer = theirs.base_model.model[0]
    module = LoRAEmbedding(base, 2, 3.0, generator(), **options)
    with torch.no_grad():
        module.A.copy_(normal(2, WORDS, seed=3))
        layer.lora_embedding_A["default"].copy_(module.A)
        layer.lora_embedding_B["default"].copy_(module.B)
    pairs = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    results = []
    for made, parameters in ((module, (module.A, module.B)), (layer, pairs)):
        out = made(IDS)
        slopes = torch.autograd.grad(out.pow(3).sum(), parameters)
        made.merge()
        results.append((out, *slopes, made(torch.arange(WORDS))))
    for ours, other in zip(*results, strict=True):
        close(ours, other)


def test_the_start_is_the_librarys():
    config = peft.LoraConfig(r=2, target_modules=["0"])
    layer = peft.get_peft_model(nn.Sequential(nn.Embedding(500, 400)), config).base_model.model[0]
    assert (layer.lora_embedding_A["default"] == 0).all()
    assert layer.lora_embedding_A["default"].shape == (2, 500)
    # Of 800 standard normals; the standard error of their deviation is 0.025.
    assert abs(layer.lora_embedding_B["default"].std() - 1) < 4.5 * 0.025


def test_a_shared_output_layer_changes_by_the_merge_alone(tiny_gpt2, ids):
    where = named(r"transformer\.wte")
    head = tiny_gpt2.lm_head.weight
    inject(tiny_gpt2, where, lambda layer: LoRAEmbedding(layer, 2, 2.0, generator()))
    module = tiny_gpt2.transformer.wte
    with torch.no_grad():
        module.A.copy_(normal(*module.A.shape, seed=2))
    before, hidden = head.clone(), tiny_gpt2.transformer(ids)[0]
    close(tiny_gpt2(ids).logits, hidden @ before.T)
    module.merge()
    close(tiny_gpt2.transformer(ids)[0], hidden)
    close(tiny_gpt2(ids).logits, hidden @ (before + module.delta().T).T)


def test_additions_have_the_type_and_device_of_the_table():
    half = LoRAEmbedding(nn.Embedding(3, 2, dtype=torch.bfloat16), 1, 1.0, generator())
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    meta = LoRAEmbedding(nn.Embedding(3, 2, device="meta"), 1, 1.0, generator())
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    with torch.device("meta"):
        here = LoRAEmbedding(nn.Embedding(3, 2, device="cpu"), 1, 1.0, generator())
    assert {p.device.type for p in here.parameters()} == {"cpu"}


def test_no_words_give_no_vectors():
    assert stirred()(torch.empty(2, 0, dtype=torch.int64)).shape == (2, 0, WIDTH)


def whole_numbers():
    layer = table()
    layer.weight = nn.Parameter(torch.ones(WORDS, WIDTH, dtype=torch.int64), requires_grad=False)
    return layer


class Scaled(nn.Embedding):
    def forward(self, ids):
        return 2 * super().forward(ids)


BAD = [
    (lambda: LoRAEmbedding(table(), 0, 1.0), "rank: "),
    (lambda: LoRAEmbedding(table(), WIDTH + 1, 1.0), "rank: must be at most 4"),
    (lambda: LoRAEmbedding(table(), 1, 0.0), "alpha: must be positive"),
    (lambda: LoRAEmbedding(table(), 1, float("nan")), "alpha: must be finite"),
    (lambda: LoRAEmbedding(nn.Linear(2, 3), 1, 1.0), "embedding: must be a torch.nn.Embedding"),
    (lambda: LoRAEmbedding(Scaled(7, 4), 1, 1.0), "embedding: must be a torch.nn.Embedding"),
    (lambda: LoRAEmbedding(whole_numbers(), 1, 1.0), "embedding: must have floating weights"),
    (lambda: LoRAEmbedding(table(), 1, 1.0, scale=lambda *_: 0.0), "scaling: must be positive"),
    (lambda: LoRAEmbedding(table(max_norm=1.0), 1, 1.0), "embedding: must have neither"),
    (lambda: LoRAEmbedding(table(sparse=True), 1, 1.0), "embedding: must have neither"),
    (lambda: stirred()(torch.tensor([WORDS])), "ids: "),
    (lambda: stirred()(torch.tensor([-1])), "ids: "),
    (lambda: stirred()(torch.tensor([1.0])), "ids: "),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
