"""Prefixes in BERT: one layer's computation, the library's outputs, padding, training, bad input."""

import copy

import peft
import pytest
import torch
import transformers
from torch import nn

from gradbook.peft import prefix
from gradbook.peft.grouped_attention import prefix_share, split_heads
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


def test_a_prefix_leaves_the_proportions_within_the_content(tiny_bert):
    layer, x = tiny_bert.encoder.layer[0].attention.self, normal(2, 5, WIDTH)
    tiny_bert.set_attn_implementation("eager")
    _, before = layer(x)
    module = prefix.PrefixSelfAttention(layer, normal(3, WIDTH, seed=1), normal(3, WIDTH, seed=2))
    _, after = module(x)
    content = after[..., 3:]
    close(content / content.sum(-1, keepdim=True), before)
    rows = layer.query(x), module.keys, layer.key(x)
    share = prefix_share(*(split_heads(r, WIDTH // HEADS) for r in rows))
    close(after[..., :3].sum(-1), share)


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


def test_training_moves_the_prefix_alone(tiny_bert, ids):
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
    expected = tables(tiny_bert)
    with torch.device("meta"):
        prefix.prefix(other, LENGTH, generator())
    assert torch.equal(tables(other), expected)


def test_an_empty_batch_gives_an_empty_result(tiny_bert):
    layer = tiny_bert.encoder.layer[0].attention.self
    module = prefix.PrefixSelfAttention(layer, normal(1, WIDTH), normal(1, WIDTH))
    assert module(torch.empty(0, 5, WIDTH).double())[0].shape == (0, 5, WIDTH)


BAD = [
    (lambda: prefix.prefix_parameters(0, 1, 1), "layers: "),
    (lambda: prefix.prefix_parameters(1, 0, 1), "length: "),
    (lambda: prefix.prefix_parameters(1, 1, 0), "width: "),
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
]


@pytest.mark.parametrize(("call", "message"), BAD_MODELS)
def test_what_does_not_fit_the_model_is_named_and_changes_nothing(tiny_bert, call, message):
    modules = list(tiny_bert.named_modules())
    with pytest.raises(ValueError, match=f"^{message}"):
        call(tiny_bert)
    assert list(tiny_bert.named_modules()) == modules
    assert all(p.requires_grad for p in tiny_bert.parameters())


def test_models_without_the_expected_attention_are_refused(plain, tiny_gpt2, tiny_bert):
    with pytest.raises(ValueError, match=r"^layer: must have query, key, .*, or q_proj, "):
        prefix.prefix(plain, 1, generator())
    with pytest.raises(ValueError, match=r"^where: "):
        prefix.prefix(tiny_gpt2, 1, generator())
    prefix.prefix(tiny_bert, 1, generator())
    with pytest.raises(ValueError, match=r"^layer: must have query, key"):
        prefix.prefix(tiny_bert, 1, generator())


def test_an_attention_with_the_parts_of_bert_is_refused():
    # It rotates queries and keys by their positions, which it is given besides.
    config = transformers.RoFormerConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    with torch.device("meta"):
        model = transformers.RoFormerModel(config)
    layer = model.encoder.layer[0].attention.self
    assert all(hasattr(layer, part) for part in prefix.BERT_PARTS)
    message = r"^layer: must be a BertSelfAttention, got RoFormerSelfAttention"
    with pytest.raises(ValueError, match=message):
        prefix.prefix(model, 1, generator())


def test_layers_are_numbered_as_they_are_replaced(tiny_bert):
    # Holds for the first layer's attention and for a part of it, which stays inside.
    where = prefix.named(r"encoder\.layer\.(0\.attention\.self(\.query)?|1\.attention\.self)")
    order = prefix.layer_order(tiny_bert, where)
    layers = [layer.attention.self for layer in tiny_bert.encoder.layer]
    assert list(order.items()) == [(layers[0], 0), (layers[1], 1)]
    prefix.put(tiny_bert, START, where)
    assert torch.equal(tables(tiny_bert), START)


def test_a_layer_in_two_places_has_one_number(tiny_bert):
    layers = tiny_bert.encoder.layer
    layers[1].attention.self = layers[0].attention.self
    assert prefix.layer_order(tiny_bert, prefix.IS_SELF_ATTENTION) == {layers[0].attention.self: 0}


def test_a_causal_bert_is_refused():
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, is_decoder=True
    )
    with torch.device("meta"):
        model = transformers.BertModel(config)
    with pytest.raises(ValueError, match=r"^layer: must not be causal"):
        prefix.prefix(model, 1, generator())
