"""Prefixes in Llama: real tokens as one, the share, padding, the cache, the library, and bad input."""

import copy

import peft
import pytest
import torch
import transformers
from torch import nn

from gradbook.peft import prefix, prefix_decoder, prefix_encoder
from gradbook.peft.grouped_attention import prefix_share, split_heads
from gradbook.peft.injection import count
from gradbook.peft.prompts import positions

VOCABULARY, HIDDEN, HEADS, SHARED, SIZE, LAYERS, LENGTH = 17, 24, 6, 2, 4, 2, 3
WIDTH = SHARED * SIZE
# PEFT asks the model for something that transformers has renamed.
DEPRECATED = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def close(a, b, bound=1e-12):
    torch.testing.assert_close(a, b, rtol=bound, atol=bound)


def config(kind=transformers.LlamaConfig, **options):
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": SHARED,
        "head_dim": SIZE,
        "intermediate_size": 12,
        "max_position_embeddings": 64,
        # Larger weights than usual, so that attention is far from even.
        "initializer_range": 0.5,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return kind(**sizes | options)


@pytest.fixture
def llama():
    """A tiny Llama whose six heads of queries share the keys of two; ``llama(ids).logits``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config())
    return model.double().eval()


@pytest.fixture
def ids():
    return torch.randint(1, VOCABULARY, (3, 7), generator=generator(1))


def behind_the_prefix(count, n=LENGTH):
    """The position ids of a text for which a prefix counts."""
    return torch.arange(n, n + count)[None]


def rows_of(model, ids):
    """The keys and values that a model computes for one text, [L, 2, n, d]."""
    cache = model(ids, use_cache=True).past_key_values
    parts = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    return torch.stack(parts).transpose(2, 3).flatten(3).detach()


def tables(model):
    added = [m for m in model.modules() if hasattr(m, "learnt")]
    return torch.stack([torch.stack(m.learnt()) for m in added]).detach()


@pytest.mark.parametrize("n", [1, 3, 6])
def test_real_tokens_as_a_prefix_are_those_tokens(llama, ids, n):
    whole, rows = llama(ids[:1]).logits, rows_of(llama, ids[:1, :n])
    done = prefix.put(llama, rows)
    assert torch.equal(tables(llama), rows)
    assert done.report.layers == tuple(f"model.layers.{i}.self_attn" for i in range(LAYERS))
    rest = llama(ids[:1, n:], position_ids=behind_the_prefix(7 - n, n)).logits
    close(rest, whole[:, n:])


def masked(kind):
    """A mask [3, 1, 5, 5] in which some see nothing, or none."""
    seen = (torch.rand(3, 1, 5, 5, generator=generator(4)) < 0.6).tril()
    seen[1, :, :3] = False
    least = torch.finfo(torch.float64).min
    added = torch.zeros(3, 1, 5, 5, dtype=torch.float64).masked_fill(~seen, least)
    return {"none": None, "boolean": seen, "added": added}[kind]


@pytest.mark.parametrize("kind", ["none", "boolean", "added"])
def test_a_layer_is_the_explicit_computation(llama, kind):
    layer, x, mask = llama.model.layers[1].self_attn, normal(3, 5, HIDDEN), masked(kind)
    angles = llama.model.rotary_emb(x, torch.arange(2, 7)[None])
    p_k, p_v = normal(LENGTH, WIDTH, seed=1), normal(LENGTH, WIDTH, seed=2)
    module = prefix.PrefixSelfAttention(layer, p_k, p_v)
    ours, shares = module(x, angles, mask)
    close(shares.sum(-1), torch.ones(3, HEADS, 5).double())
    seen = torch.ones(5, 5).bool().tril().expand(3, 1, 5, 5) if mask is None else masked("boolean")
    outputs = []
    for b in range(3):
        for h in range(HEADS):
            group = slice(h // 3 * SIZE, (h // 3 + 1) * SIZE)
            q = layer.q_proj(x[b])[:, h * SIZE : (h + 1) * SIZE]
            k, v = layer.k_proj(x[b])[:, group], layer.v_proj(x[b])[:, group]
            q, k = (turned(y, *(angle[0] for angle in angles)) for y in (q, k))
            exps = (q @ torch.cat([p_k[:, group], k]).T / SIZE**0.5).exp()
            exps[:, LENGTH:] *= seen[b, 0]
            weights = exps / exps.sum(-1, keepdim=True)
            close(shares[b, h], weights)
            outputs.append(weights @ torch.cat([p_v[:, group], v]))
    mixed = torch.stack(outputs).unflatten(0, (3, HEADS)).transpose(1, 2).flatten(2)
    close(ours, layer.o_proj(mixed))


def turned(x, cos, sin):
    """The rotation as a product of complex numbers."""
    half = SIZE // 2
    angle = torch.complex(cos[:, :half], sin[:, :half])
    z = torch.complex(x[:, :half], x[:, half:]) * angle
    return torch.cat([z.real, z.imag], -1)


def test_rotation_is_the_librarys():
    q, k = normal(2, 6, 5, 4), normal(2, 2, 5, 4, seed=1)
    cos, sin = normal(2, 5, 4, seed=2), normal(2, 5, 4, seed=3)
    theirs = transformers.models.llama.modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
    for x, expected in zip((q, k), theirs, strict=True):
        assert torch.equal(prefix_decoder.rotated(x, cos[:, None], sin[:, None]), expected)


def test_outputs_are_mixed_by_the_share_of_the_prefix(llama):
    layer, x = llama.model.layers[0].self_attn, normal(2, 5, HIDDEN)
    angles = llama.model.rotary_emb(x, torch.arange(5)[None])
    content, _ = layer(x, angles, None)
    p_k, p_v = normal(LENGTH, WIDTH, seed=1), normal(LENGTH, WIDTH, seed=2)
    ours, shares = prefix.PrefixSelfAttention(layer, p_k, p_v)(x, angles)
    cos, sin = (angle[:, None] for angle in angles)
    q, k = (split_heads(f(x), SIZE) for f in (layer.q_proj, layer.k_proj))
    q, k = (prefix_decoder.rotated(y, cos, sin) for y in (q, k))
    heads = split_heads(p_k, SIZE).expand(2, -1, -1, -1)
    share = prefix_share(q, heads, k, torch.ones(5, 5).bool().tril())
    close(shares[..., :LENGTH].sum(-1), share)
    # One value in the whole prefix: attention over it alone is that value.
    same = p_v[:1].expand(LENGTH, -1)
    ours, _ = prefix.PrefixSelfAttention(layer, p_k, same)(x, angles)
    alone = split_heads(same[:1], SIZE).repeat_interleave(3, 0)
    difference = alone - split_heads(_before_the_output(layer, x, angles), SIZE)
    moved = (share[..., None] * difference).transpose(1, 2).flatten(2)
    close(ours, content + moved @ layer.o_proj.weight.T)


def _before_the_output(layer, x, angles):
    """What the plain layer computes before its last projection."""
    found = []
    hook = layer.o_proj.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    layer(x, angles, None)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_its_single_texts(llama, ids, attention, side):
    llama.set_attn_implementation(attention)
    prefix.prefix(llama, LENGTH, generator(), std=1.0)
    lengths, mask = (7, 4, 1), torch.zeros_like(ids)
    parts = [slice(7 - n, 7) if side == "left" else slice(0, n) for n in lengths]
    for row, part in enumerate(parts):
        mask[row, part] = 1
    together = llama(ids, attention_mask=mask, position_ids=positions(mask)).logits
    assert together.isfinite().all()
    for row, part in enumerate(parts):
        alone = llama(ids[row : row + 1, part]).logits[0]
        close(together[row, part], alone)


def test_no_token_sees_what_comes_behind_it(llama, ids):
    prefix.prefix(llama, LENGTH, generator(), std=1.0)
    before = llama(ids).logits
    other = ids.clone()
    other[:, 4] = (other[:, 4] + 1) % VOCABULARY
    after = llama(other).logits
    assert torch.equal(after[:, :4], before[:, :4])
    assert (after[:, 4:] - before[:, 4:]).abs().amax((0, 2)).min() > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
def test_what_is_generated_with_a_cache_is_what_is_without(llama, ids, attention, padded):
    llama.set_attn_implementation(attention)
    plain = greedy(llama, ids, torch.ones_like(ids))
    prefix.prefix(llama, LENGTH, generator(), std=2.0)
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :4] = 0
    cached = greedy(llama, ids, mask)
    assert cached.shape == (3, 15)
    assert torch.equal(cached, greedy(llama, ids, mask, use_cache=False))
    assert not torch.equal(cached, plain)
    text, seen = ids, mask
    for _ in range(8):
        logits = llama(text, attention_mask=seen, position_ids=positions(seen)).logits
        text = torch.cat([text, logits[:, -1:].argmax(-1)], 1)
        seen = torch.cat([seen, seen[:, :1] * 0 + 1], 1)
    assert torch.equal(cached, text)


def greedy(model, ids, mask, **options):
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False, **options
    )


def test_the_cache_holds_the_text_alone_and_may_be_filled_in_parts(llama, ids):
    prefix.prefix(llama, LENGTH, generator(), std=1.0)
    whole = llama(ids).logits
    cache, parts = transformers.DynamicCache(config=llama.config), []
    for part in (ids[:, :3], ids[:, 3:6], ids[:, 6:]):
        parts.append(llama(part, past_key_values=cache).logits)
    close(torch.cat(parts, 1), whole)
    assert [layer.keys.shape for layer in cache.layers] == [(3, SHARED, 7, SIZE)] * LAYERS


@pytest.mark.filterwarnings(DEPRECATED)
@pytest.mark.parametrize("projection", [False, True])
def test_outputs_and_counts_are_the_librarys(llama, ids, projection):
    options = {"prefix_projection": True, "encoder_hidden_size": 5} if projection else {}
    chosen = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, **options)
    theirs = peft.get_peft_model(copy.deepcopy(llama), chosen).double().eval()
    encoder = theirs.prompt_encoder["default"]
    if projection:
        made = source()
        done = prefix_encoder.put_reparameterized(llama, made)
        ours = made.embedding, made.inner.T, made.inner_bias, made.outer.T, made.outer_bias
    else:
        done = prefix.prefix(llama, LENGTH, generator(), std=1.0)
        ours = [tables(llama).permute(2, 0, 1, 3).flatten(1)]
        assert done.report.trainable == prefix.prefix_parameters(LAYERS, LENGTH, WIDTH)
    assert theirs.get_nb_trainable_parameters() == done.report[:2]
    with torch.no_grad():
        for theirs_, ours_ in zip(encoder.parameters(), ours, strict=True):
            theirs_.copy_(ours_)
    mask = torch.ones_like(ids)
    for _ in range(2):
        # The library counts positions from n on, what is padded included.
        got = llama(ids, attention_mask=mask, position_ids=behind_the_prefix(7)).logits
        expected = theirs(input_ids=ids, attention_mask=mask).logits
        close(got[mask > 0], expected[mask > 0])
        mask[1, :3] = 0


def source(layers=LAYERS, length=LENGTH, width=WIDTH, hidden=5, dtype=torch.float64):
    made = prefix_encoder.Reparameterized(layers, length, width, hidden, generator(3), dtype=dtype)
    with torch.no_grad():
        made.inner_bias.copy_(normal(hidden, seed=4))
        made.outer_bias.copy_(normal(2 * layers * width, seed=5))
    return made


def test_a_folded_prefix_gives_the_same_outputs(llama, ids):
    made, plain = source(), llama(ids).logits
    done = prefix_encoder.put_reparameterized(llama, made)
    ours = llama(ids).logits
    assert (ours - plain).abs().max() > 1e-2
    done.undo()
    prefix.put(llama, made.folded())
    close(llama(ids).logits, ours)


@pytest.mark.parametrize("reparameterized", [False, True])
def test_training_moves_the_prefix_alone_and_undoing_restores(llama, ids, reparameterized):
    before, modules = llama(ids).logits, list(llama.named_modules())
    if reparameterized:
        done = prefix_encoder.put_reparameterized(llama.train(), source())
    else:
        done = prefix.prefix(llama.train(), LENGTH, generator(), std=1.0)
    digest, start = done.digest(), tables(llama)
    trained = [p for p in llama.parameters() if p.requires_grad]
    assert count(llama)[0] == sum(p.numel() for p in trained) == done.report.trainable
    llama(ids, labels=ids).loss.backward()
    assert all(p.grad is None for p in llama.parameters() if not p.requires_grad)
    torch.optim.SGD(trained, 0.1).step()
    assert done.digest() == digest
    assert (tables(llama) != start).flatten(2).any(-1).all()
    done.undo()
    assert torch.equal(llama(ids).logits, before)
    assert list(llama.named_modules()) == modules


def test_gradients_are_differences(llama):
    # Of a layer: the model's norms are computed in float32, too coarse for differences.
    layer, x = llama.model.layers[0].self_attn, normal(1, 3, HIDDEN)
    angles = llama.model.rotary_emb(x, torch.arange(3)[None])
    rows = [normal(2, WIDTH, seed=i).requires_grad_() for i in (1, 2)]
    assert torch.autograd.gradcheck(
        lambda k, v: prefix_decoder.llama_attention(layer, k, v, x, angles), rows
    )


def test_draws_have_the_width_of_the_keys(llama):
    prefix.prefix(llama, 5, generator())
    drawn = generator()
    for layer in tables(llama):
        x = torch.randn(2, 5, WIDTH, generator=drawn, dtype=torch.float64)
        assert torch.equal(layer, 0.02 * x)


def test_the_counts_of_a_model_of_135_million():
    sizes = {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    }
    with torch.device("meta"):
        model = transformers.LlamaModel(config(**sizes))
    report = prefix.prefix(model, 10, generator()).report
    assert report.trainable == prefix.prefix_parameters(30, 10, 192) == 115_200


X = normal(2, 5, HIDDEN)
ANGLES = normal(2, 5, SIZE), normal(2, 5, SIZE)
BAD_CALLS = [
    ((X[..., :2], ANGLES), "hidden_states: must be \\["),
    ((X.float(), ANGLES), "hidden_states: must be torch.float64"),
    ((X,), "position_embeddings: must be given"),
    ((X, (ANGLES[0], ANGLES[1][:, :4])), "position_embeddings: must be \\["),
    ((X, (ANGLES[0][..., :2], ANGLES[1])), "position_embeddings: must be \\["),
    ((X[:1], ANGLES), "position_embeddings: must be \\["),
    ((X, ANGLES, torch.ones(2, 1, 5, 8).bool()), "attention_mask: must be \\["),
    ((X, ANGLES, torch.ones(2, 5).bool()), "attention_mask: must be \\["),
    ((X, ANGLES, torch.ones(2, 1, 5, 5).long()), "attention_mask: must be boolean"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_CALLS)
def test_bad_calls_are_named(llama, inputs, message):
    rows = normal(LENGTH, WIDTH)
    module = prefix.PrefixSelfAttention(llama.model.layers[0].self_attn, rows, rows)
    with pytest.raises(ValueError, match=f"^{message}"):
        module(*inputs)


@torch.no_grad()
def test_several_tokens_behind_others_need_a_mask(llama):
    rows = normal(LENGTH, WIDTH)
    module = prefix.PrefixSelfAttention(llama.model.layers[0].self_attn, rows, rows)
    cache = transformers.DynamicCache(config=llama.config)
    module(X, ANGLES, past_key_values=cache)
    one, _ = module(X[:, :1], [a[:, :1] for a in ANGLES], past_key_values=copy.deepcopy(cache))
    seen = torch.ones(2, 1, 1, 6).bool()
    again = copy.deepcopy(cache)
    close(one, module(X[:, :1], [a[:, :1] for a in ANGLES], seen, past_key_values=again)[0])
    with pytest.raises(ValueError, match=r"^attention_mask: must be given for 5 of 10 tokens"):
        module(X, ANGLES, past_key_values=cache)


START = normal(LAYERS, 2, LENGTH, WIDTH)
WIDE = normal(LAYERS, 2, LENGTH, HIDDEN)
BAD_MODELS = [
    (lambda m: prefix.prefix(m, 0, generator()), "length: must be at least 1"),
    (lambda m: prefix.prefix(m, 1, generator(), prefix.named("nothing")), "where: "),
    (lambda m: prefix.put(m, START[:1]), "start: has 1 layers, the model 2"),
    (lambda m: prefix.put(m, WIDE), "prefix_keys: must be \\[n, 8\\]"),
    (lambda m: prefix.put(m, START.float()), "prefix_keys: must be torch.float64"),
    (lambda m: prefix_encoder.put_reparameterized(m, source(width=HIDDEN)), "source: must be of"),
    (lambda m: prefix_encoder.put_reparameterized(m, source(layers=1)), "source: has 1 layers"),
]


@pytest.mark.parametrize(("call", "message"), BAD_MODELS)
def test_what_does_not_fit_is_named_and_changes_nothing(llama, call, message):
    modules = list(llama.named_modules())
    with pytest.raises(ValueError, match=f"^{message}"):
        call(llama)
    assert list(llama.named_modules()) == modules
    assert all(p.requires_grad for p in llama.parameters())


def test_a_second_prefix_is_refused(llama):
    prefix.prefix(llama, 1, generator())
    with pytest.raises(ValueError, match=r"^layer: must have query, .*, or q_proj"):
        prefix.prefix(llama, 1, generator())


def test_attention_that_only_looks_like_llamas_is_refused():
    """Qwen3 normalizes its queries, Cohere rotates neighbours; the parts have the same names."""
    kinds = [
        (transformers.Qwen3Config, transformers.Qwen3Model),
        (transformers.CohereConfig, transformers.CohereModel),
    ]
    for kind, build in kinds:
        with torch.device("meta"):
            model = build(config(kind))
        with pytest.raises(ValueError, match=r"^layer: must be a LlamaAttention, got (Qwen3|Coh)"):
            prefix.prefix(model, 1, generator())


def test_a_layer_that_sees_ahead_or_drops_weights_is_refused(llama):
    layer = llama.model.layers[1].self_attn
    layer.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"^layer: must not drop weights, got 0.1"):
        prefix.prefix(llama, 1, generator())
    layer.attention_dropout, layer.is_causal = 0.0, False
    with pytest.raises(ValueError, match=r"^layer: must be causal"):
        prefix.prefix(llama, 1, generator())
    layer.is_causal, layer.k_proj = True, nn.Identity()
    with pytest.raises(ValueError, match=r"^layer: must be linear"):
        prefix.prefix(llama, 1, generator())
