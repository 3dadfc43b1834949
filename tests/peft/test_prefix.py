"""Prefixes: attention's formula, the share of a prefix, BERT with one, and the library's outputs."""

import copy

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from gradbook.peft import prefix
from gradbook.peft.injection import count

WIDTH, HEADS, LAYERS, LENGTH = 8, 2, 2, 3
# PEFT asks the model for something that transformers has renamed.
DEPRECATED = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def some_mask(*shape, seed=0):
    """A random mask in which every query sees the first position at least."""
    mask = torch.rand(shape, generator=generator(seed)) < 0.6
    mask[..., 0] = True
    return mask


def close(a, b, bound=1e-12):
    torch.testing.assert_close(a, b, rtol=bound, atol=bound)


SIZES = {
    "groups": st.integers(1, 3),
    "heads": st.integers(1, 2),
    "queries": st.integers(1, 4),
    "n": st.integers(1, 4),
    "content": st.integers(1, 5),
    "d": st.integers(1, 4),
    "seed": st.integers(0, 1000),
}


def some(groups, heads, queries, n, content, d, seed):
    """Queries, keys and values of prefix and content for two texts, and a mask of the content."""
    sizes = [(groups * heads, queries), (heads, n), (heads, n), (heads, content), (heads, content)]
    tensors = [normal(2, *size, d, seed=seed + i) for i, size in enumerate(sizes)]
    return *tensors, some_mask(2, 1, queries, content, seed=seed)


@settings(max_examples=25)
@given(**SIZES)
def test_attention_is_its_formula_and_torchs(**sizes):
    q, _, _, k, v, mask = some(**sizes)
    group = sizes["groups"]
    expected = functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    ours = prefix.attention(q, k, v, mask)
    close(ours, expected)
    for head in range(q.shape[1]):
        key, value = k[0, head // group], v[0, head // group]
        weights = (q[0, head, 0] @ key.T / sizes["d"] ** 0.5).exp() * mask[0, 0, 0]
        close(ours[0, head, 0], weights @ value / weights.sum())
    close(prefix.attention(q, k, v), prefix.attention(q, k, v, torch.ones_like(mask)))


@settings(max_examples=60)
@given(**SIZES)
def test_attention_over_both_is_mixed_by_the_share_of_the_prefix(**sizes):
    q, k_prefix, v_prefix, k, v, mask = some(**sizes)
    share = prefix.prefix_share(q, k_prefix, k, mask)
    assert share.shape == q.shape[:-1]
    seen = torch.cat([torch.ones(*mask.shape[:-1], sizes["n"], dtype=torch.bool), mask], -1)
    keys, values = torch.cat([k_prefix, k], -2), torch.cat([v_prefix, v], -2)
    content = prefix.attention(q, k, v, mask)
    alone = prefix.attention(q, k_prefix, v_prefix)
    share = share[..., None]
    mixed = (1 - share) * content + share * alone
    close(prefix.attention(q, keys, values, seen), mixed, 1e-14)


def test_the_share_does_not_overflow():
    q = torch.tensor([[[1.0]]], dtype=torch.float64)
    zero, one = q - 1, q
    for factor in (1e6, -1e6):
        expected = functional.softmax(torch.tensor([0.0, 2.0], dtype=torch.float64), 0)[1]
        close(prefix.prefix_share(q, factor * one + 2, factor * one).item(), expected.item(), 1e-9)
    assert prefix.prefix_share(q, 1e6 * one, zero) == 1
    assert prefix.prefix_share(q, -1e6 * one, zero) == 0
    assert prefix.prefix_share(q, one, one, torch.zeros(1, 1, dtype=torch.bool)) == 1


def test_a_prefix_leaves_the_proportions_within_the_content(tiny_bert):
    layer, x = tiny_bert.encoder.layer[0].attention.self, normal(2, 5, WIDTH)
    tiny_bert.set_attn_implementation("eager")
    _, before = layer(x)
    module = prefix.PrefixSelfAttention(layer, normal(3, WIDTH, seed=1), normal(3, WIDTH, seed=2))
    _, after = module(x)
    content = after[..., 3:]
    close(content / content.sum(-1, keepdim=True), before)
    q, k = (module._heads(f(x)) for f in (layer.query, layer.key))
    close(after[..., :3].sum(-1), prefix.prefix_share(q, module._heads(module.keys), k))


MASKS = {
    "none": lambda: None,
    "boolean": lambda: some_mask(2, 1, 1, 5),
    "boolean of every query": lambda: some_mask(2, 1, 5, 5),
    "added": lambda: normal(2, 1, 5, 5, seed=9),
    "nothing seen": lambda: torch.full(
        (2, 1, 1, 5), torch.finfo(torch.float64).min, dtype=torch.float64
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_layer_is_the_explicit_computation(tiny_bert, name):
    layer, x, mask = tiny_bert.encoder.layer[0].attention.self, normal(2, 5, WIDTH), MASKS[name]()
    p_k, p_v = normal(3, WIDTH, seed=1), normal(3, WIDTH, seed=2)
    ours, weights = prefix.PrefixSelfAttention(layer, p_k, p_v)(x, mask)
    assert ours.shape == (2, 5, WIDTH)
    close(weights.sum(-1), torch.ones(2, HEADS, 5).double())
    d = WIDTH // HEADS
    for b in range(2):
        k, v = torch.cat([p_k, layer.key(x[b])]), torch.cat([p_v, layer.value(x[b])])
        rows = torch.zeros(5, 8).double()
        if mask is not None:
            added = mask.double().log() if mask.dtype == torch.bool else mask
            rows[:, 3:] = added[b, 0]
        for h in range(HEADS):
            part = slice(h * d, (h + 1) * d)
            scores = layer.query(x[b])[:, part] @ k[:, part].T / d**0.5 + rows
            close(ours[b, :, part], scores.softmax(-1) @ v[:, part])


def tables(model):
    """The prefixes of a model's layers, [L, 2, n, d]."""
    added = [m for m in model.modules() if hasattr(m, "learnt")]
    return torch.stack([torch.stack(m.learnt()) for m in added]).detach()


def half_padded(ids):
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    return mask


def library(model, **options):
    config = peft.PrefixTuningConfig(
        task_type="FEATURE_EXTRACTION", num_virtual_tokens=LENGTH, **options
    )
    return peft.get_peft_model(copy.deepcopy(model), config).double().eval()


@pytest.mark.filterwarnings(DEPRECATED)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_outputs_and_counts_are_the_librarys(tiny_bert, ids, attention):
    tiny_bert.set_attn_implementation(attention)
    theirs, plain = library(tiny_bert), tiny_bert(ids)[0]
    done = prefix.prefix(tiny_bert, LENGTH, generator(), std=1.0)
    assert theirs.get_nb_trainable_parameters() == done.report[:2]
    rows = tables(tiny_bert).permute(2, 0, 1, 3).flatten(1)
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(rows)
    # The library counts positions from n on.
    positions = torch.arange(LENGTH, LENGTH + 5)[None]
    for mask in (torch.ones_like(ids), half_padded(ids)):
        ours = tiny_bert(ids, attention_mask=mask, position_ids=positions)[0]
        close(ours, theirs(input_ids=ids, attention_mask=mask)[0])
        assert (ours - plain).abs().max() > 0.1


def source(layers=LAYERS, length=LENGTH, width=WIDTH, hidden=5, **options):
    to = {"dtype": torch.float64} | options
    made = prefix.Reparameterized(layers, length, width, hidden, generator(3), **to)
    with torch.no_grad():
        made.inner_bias.copy_(normal(hidden, seed=4))
        made.outer_bias.copy_(normal(2 * layers * width, seed=5))
    return made


@pytest.mark.filterwarnings(DEPRECATED)
def test_a_reparameterized_prefix_is_the_librarys(tiny_bert):
    theirs = library(tiny_bert, prefix_projection=True, encoder_hidden_size=5)
    encoder, made = theirs.prompt_encoder["default"], source()
    values = [made.embedding, made.inner.T, made.inner_bias, made.outer.T, made.outer_bias]
    with torch.no_grad():
        for theirs_, ours in zip(encoder.parameters(), values, strict=True):
            theirs_.copy_(ours)
    assert count(encoder) == count(made)
    expected = encoder(torch.arange(LENGTH)).unflatten(-1, (LAYERS, 2, WIDTH))
    close(made.folded(), expected.permute(1, 2, 0, 3).detach())


def test_a_folded_prefix_gives_the_same_outputs(tiny_bert, ids):
    made, mask = source(), half_padded(ids)
    done = prefix.put_reparameterized(tiny_bert, made)
    inner = LENGTH * WIDTH + WIDTH * 5 + 5 + (5 + 1) * 2 * LAYERS * WIDTH
    assert done.report.trainable == count(made)[0] == inner
    ours = tiny_bert(ids, attention_mask=mask)[0]
    done.undo()
    assert (ours - tiny_bert(ids, attention_mask=mask)[0]).abs().max() > 1e-3
    done = prefix.put(tiny_bert, made.folded())
    assert done.report.trainable == prefix.prefix_parameters(LAYERS, LENGTH, WIDTH)
    close(tiny_bert(ids, attention_mask=mask)[0], ours)
    assert not made.folded().requires_grad


def test_the_start_of_the_reparameterization():
    made = prefix.Reparameterized(2, 500, 16, 64, generator(), dtype=torch.float64)
    assert abs(made.embedding.std().item() - 1) < 0.05
    assert 0.24 < made.inner.abs().max() <= 0.25
    assert 0.12 < made.outer.abs().max() <= 0.125
    assert not made.inner_bias.any()
    assert not made.outer_bias.any()


def test_counts():
    assert prefix.prefix_parameters(24, 10, 1024) == 491_520
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    with torch.device("meta"):
        model = transformers.BertModel(config)
    before = count(model)[1]
    report = prefix.prefix(model, 20, generator()).report
    assert report.trainable == prefix.prefix_parameters(6, 20, 384) == 92_160
    assert report.total == before + 92_160
    assert report.layers == tuple(f"encoder.layer.{i}.attention.self" for i in range(6))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_padded_batch_is_its_single_texts(tiny_bert, ids, attention):
    tiny_bert.set_attn_implementation(attention)
    prefix.prefix(tiny_bert, LENGTH, generator(), std=1.0)
    lengths, mask = (5, 3, 1), torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    together = tiny_bert(ids, attention_mask=mask)[0]
    for row, length in enumerate(lengths):
        alone = tiny_bert(ids[row : row + 1, :length])[0][0]
        close(together[row, :length], alone)


@pytest.mark.parametrize("reparameterized", [False, True])
def test_training_moves_the_prefix_alone(tiny_bert, ids, reparameterized):
    if reparameterized:
        done = prefix.put_reparameterized(tiny_bert, source())
    else:
        done = prefix.prefix(tiny_bert, LENGTH, generator(), std=1.0)
    digest, before = done.digest(), tables(tiny_bert)
    trained = [p for p in tiny_bert.parameters() if p.requires_grad]
    old = [p.detach().clone() for p in trained]
    optimizer = torch.optim.SGD(trained, 0.1)
    tiny_bert(ids)[0][..., 0].square().sum().backward()
    optimizer.step()
    assert done.digest() == digest
    assert all(not torch.equal(p, o) for p, o in zip(trained, old, strict=True))
    changed = (tables(tiny_bert) != before).flatten(2).any(-1)
    assert changed.shape == (LAYERS, 2)
    assert changed.all()


def test_undoing_restores_the_model(tiny_bert, ids):
    before, modules = tiny_bert(ids)[0], list(tiny_bert.named_modules())
    done = prefix.prefix(tiny_bert, LENGTH, generator())
    assert (tiny_bert(ids)[0] - before).abs().max() > 1e-4
    done.undo()
    assert torch.equal(tiny_bert(ids)[0], before)
    assert list(tiny_bert.named_modules()) == modules
    assert all(p.requires_grad for p in tiny_bert.parameters())


def test_draws_are_normal_and_come_from_the_generator_alone(tiny_bert):
    state, found = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        done = prefix.prefix(tiny_bert, 400, generator(seed))
        found.append(tables(tiny_bert))
        done.undo()
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert abs(found[0].std().item() / 0.02 - 1) < 0.03
    expected = 0.02 * normal(2, 400, WIDTH)
    assert torch.equal(found[0][0], expected)


def test_weights_are_dropped_in_training_alone(tiny_bert):
    layer = tiny_bert.encoder.layer[0].attention.self
    layer.dropout = nn.Dropout(1.0)
    module, x = (
        prefix.PrefixSelfAttention(layer, normal(1, WIDTH), normal(1, WIDTH)),
        normal(2, 5, 8),
    )
    assert module.train()(x)[0].eq(0).all()
    assert module.eval()(x)[0].ne(0).all()


def test_additions_have_the_type_of_the_layer_and_are_copies(tiny_bert):
    prefix.prefix(tiny_bert.bfloat16(), LENGTH, generator())
    assert tables(tiny_bert).dtype == torch.bfloat16
    layer = tiny_bert.double().encoder.layer[0].attention.self.layer
    start = normal(1, WIDTH)
    module = prefix.PrefixSelfAttention(layer, start, start)
    with torch.no_grad():
        module.keys.add_(1)
    assert torch.equal(module.values, normal(1, WIDTH))
    assert torch.equal(start, normal(1, WIDTH))


def test_default_types_and_devices_change_nothing(tiny_bert):
    other = copy.deepcopy(tiny_bert)
    prefix.prefix(tiny_bert, LENGTH, generator())
    expected, made = tables(tiny_bert), source(dtype=torch.float32)
    with torch.device("meta"):
        prefix.prefix(other, LENGTH, generator())
        again = prefix.Reparameterized(LAYERS, LENGTH, WIDTH, 5, generator(3))
    assert torch.equal(tables(other), expected)
    assert torch.equal(again.embedding, made.embedding)
    assert {(p.dtype, p.device.type) for p in again.parameters()} == {(torch.float32, "cpu")}


def test_an_empty_batch_gives_an_empty_result(tiny_bert):
    layer = tiny_bert.encoder.layer[0].attention.self
    module = prefix.PrefixSelfAttention(layer, normal(1, WIDTH), normal(1, WIDTH))
    assert module(torch.empty(0, 5, WIDTH).double())[0].shape == (0, 5, WIDTH)
    k = normal(0, 2, 3, 4)
    assert prefix.attention(normal(0, 4, 5, 4), k, k).shape == (0, 4, 5, 4)


A = normal(2, 3, 4)
NAN = torch.full((2, 3, 4), torch.nan).double()
SEEN = torch.ones(3, 3, dtype=torch.bool)
BAD = [
    (lambda: prefix.attention(A[0], A, A), "q: must be \\["),
    (lambda: prefix.attention(A, A[..., :2], A), "k: must be \\["),
    (lambda: prefix.attention(A, A[:, :0], A[:, :0]), "k: must be \\["),
    (lambda: prefix.attention(A[:1], A, A), "k: must have heads that divide 1"),
    (lambda: prefix.attention(A, A.float(), A), "k: must be torch.float64"),
    (lambda: prefix.attention(A, A, A[:, :2]), "v: must have the heads and positions"),
    (lambda: prefix.attention(NAN, A, A), "q: must be finite"),
    (lambda: prefix.attention(A, A, A, SEEN.double()), "mask: must be boolean"),
    (lambda: prefix.attention(A, A, A, SEEN[:2]), "mask: must be \\["),
    (lambda: prefix.attention(A, A, A, ~SEEN), "mask: every query must see"),
    (lambda: prefix.prefix_share(A, NAN, A), "k_prefix: must be finite"),
    (lambda: prefix.prefix_share(A, A, A, SEEN[:, :2]), "mask: must be \\["),
    (lambda: prefix.prefix_parameters(0, 1, 1), "layers: "),
    (lambda: prefix.prefix_parameters(1, 0, 1), "length: "),
    (lambda: prefix.prefix_parameters(1, 1, 0), "width: "),
    (lambda: source(hidden=0), "hidden: "),
    (lambda: source(length=0), "length: "),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


T = normal(3, WIDTH)
BAD_STARTS = [
    ((T[:0], T), "prefix_keys: must be \\["),
    ((T, T[:, :2]), "prefix_values: must be \\["),
    ((T, T[:2]), "prefix_values: must be as long"),
    ((T.float(), T), "prefix_keys: must be torch.float64"),
    ((T, torch.full_like(T, torch.inf)), "prefix_values: must be finite"),
]


@pytest.mark.parametrize(("start", "message"), BAD_STARTS)
def test_bad_starts_are_named(tiny_bert, start, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        prefix.PrefixSelfAttention(tiny_bert.encoder.layer[0].attention.self, *start)


X = normal(2, 5, WIDTH)
BAD_CALLS = [
    ((X[..., :2],), "hidden_states: must be \\["),
    ((X.float(),), "hidden_states: must be torch.float64"),
    ((X, torch.ones(2, 1, 1, 8).bool()), "attention_mask: must be \\["),
    ((X, torch.ones(2, 5).bool()), "attention_mask: must be \\["),
    ((X, torch.ones(2, 1, 1, 5).long()), "attention_mask: must be boolean or floating"),
    ((X, None, object()), "past_key_values: "),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_CALLS)
def test_bad_calls_are_named(tiny_bert, inputs, message):
    module = prefix.PrefixSelfAttention(tiny_bert.encoder.layer[0].attention.self, T, T)
    with pytest.raises(ValueError, match=f"^{message}"):
        module(*inputs)


START = normal(LAYERS, 2, LENGTH, WIDTH)
BAD_MODELS = [
    (lambda m: prefix.prefix(m, 0, generator()), "length: "),
    (lambda m: prefix.prefix(m, 1, generator(), std=-1.0), "std: must not be negative"),
    (lambda m: prefix.prefix(m, 1, generator(), std=float("nan")), "std: must be finite"),
    (lambda m: prefix.prefix(m, 1, generator(), lambda *_: False), "where: "),
    (lambda m: prefix.put(m, START, lambda *_: False), "where: "),
    (lambda m: prefix.prefix(m.encoder, 1, generator(), prefix.named("layer")), "layer: must have"),
    (lambda m: prefix.put(m, START[:1]), "start: has 1 layers"),
    (lambda m: prefix.put(m, START[0]), "start: must be \\["),
    (lambda m: prefix.put(m, START.float()), "prefix_keys: must be torch.float64"),
    (lambda m: prefix.put_reparameterized(m, source(layers=3)), "source: has 3 layers"),
    (lambda m: prefix.put_reparameterized(m, source(width=4)), "source: must be of width 8"),
    (lambda m: prefix.put_reparameterized(m, source(dtype=torch.float32)), "source: must be of"),
]


@pytest.mark.parametrize(("call", "message"), BAD_MODELS)
def test_what_does_not_fit_the_model_is_named_and_changes_nothing(tiny_bert, call, message):
    modules = list(tiny_bert.named_modules())
    with pytest.raises(ValueError, match=f"^{message}"):
        call(tiny_bert)
    assert list(tiny_bert.named_modules()) == modules
    assert all(p.requires_grad for p in tiny_bert.parameters())


def test_models_without_the_expected_attention_are_refused(plain, tiny_gpt2, tiny_bert):
    with pytest.raises(ValueError, match=r"^layer: must have query, key"):
        prefix.prefix(plain, 1, generator())
    with pytest.raises(ValueError, match=r"^where: "):
        prefix.prefix(tiny_gpt2, 1, generator())
    prefix.prefix(tiny_bert, 1, generator())
    with pytest.raises(ValueError, match=r"^layer: must have query, key"):
        prefix.prefix(tiny_bert, 1, generator())


def test_a_causal_bert_is_refused():
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, is_decoder=True
    )
    with torch.device("meta"):
        model = transformers.BertModel(config)
    with pytest.raises(ValueError, match=r"^layer: must not be causal"):
        prefix.prefix(model, 1, generator())


@pytest.mark.parametrize("index", [-1, LAYERS])
def test_an_index_outside_the_source_is_refused(tiny_bert, index):
    layer = tiny_bert.encoder.layer[0].attention.self
    with pytest.raises(ValueError, match=r"^index: must be from 0 to 1"):
        prefix.ReparameterizedSelfAttention(layer, source(), index)
