"""Adapters: the formula, the start, the places, what is trained, and counts to the number."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.nn import functional

from gradbook.peft import adapters
from gradbook.peft.injection import count
from gradbook.peft.selection import named

WIDTH, LAYERS, SIZE = 8, 2, 3
PLACEMENTS = {
    "houlsby": (adapters.houlsby, 2),
    "pfeiffer": (adapters.pfeiffer, 1),
    "parallel": (adapters.parallel, 1),
}
GPT2 = {"attention": named(r".*attn\.c_proj"), "feed_forward": named(r".*mlp\.c_proj")}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def bottleneck(width=WIDTH, size=SIZE, seed=0, **options):
    """Far from the identity, with biases."""
    made = adapters.Bottleneck(width, size, generator(), dtype=torch.float64, **options)
    randomize(made, seed)
    return made


def randomize(module, seed=0):
    """Large numbers for everything that is trained."""
    draws = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=draws)


def hidden(model, ids):
    found = model(ids)
    return found if isinstance(found, torch.Tensor) else found[0]


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.LayerNorm)]


@settings(max_examples=20)
@given(width=st.integers(1, 6), size=st.integers(1, 6), seed=st.integers(0, 1000))
def test_a_bottleneck_is_its_formula_coordinate_by_coordinate(width, size, seed):
    made = bottleneck(width, size, seed, activation=torch.tanh)
    (h,) = normal(1, width, seed=seed)
    down, b, up, c = (getattr(made, n) for n in ("down", "down_bias", "up", "up_bias"))
    inner = [torch.tanh(b[j] + sum(h[i] * down[i, j] for i in range(width))) for j in range(size)]
    added = torch.stack(
        [c[i] + sum(inner[j] * up[j, i] for j in range(size)) for i in range(width)]
    )
    torch.testing.assert_close(made.branch(h), added, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made(h), h + added, rtol=1e-12, atol=1e-12)


def test_the_activation_is_gelu_by_default():
    made, h = bottleneck(), normal(4, WIDTH)
    layers = functional.linear, functional.gelu
    inner = layers[1](layers[0](h, made.down.T, made.down_bias))
    expected = h + layers[0](inner, made.up.T, made.up_bias)
    torch.testing.assert_close(made(h), expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    made = bottleneck()
    h = normal(2, WIDTH, seed=1).requires_grad_()
    names = [name for name, _ in made.named_parameters()]

    def call(h, *values):
        return torch.func.functional_call(made, dict(zip(names, values, strict=True)), (h,))

    assert torch.autograd.gradcheck(call, (h, *made.parameters()))


@settings(max_examples=20)
@given(width=st.integers(1, 40), size=st.integers(1, 40))
def test_the_count_is_the_formula(width, size):
    made = adapters.Bottleneck(width, size, generator())
    formula = adapters.bottleneck_parameters(width, size)
    assert formula == 2 * size * width + width + size
    assert count(made) == (formula, formula)


def test_counts_of_bert_large():
    """24 blocks of two: 6.34 million numbers of size 64, and 25.2 million of size 256."""
    assert 48 * adapters.bottleneck_parameters(1024, 64) == 6_343_680
    assert 48 * adapters.bottleneck_parameters(1024, 256) == 25_227_264


def test_the_start_is_a_cut_normal_and_zero_biases():
    std = 0.03
    made = adapters.Bottleneck(100, 80, generator(), std=std, dtype=torch.float64)
    for weights in (made.down, made.up):
        scaled = weights.detach().flatten().numpy() / std
        assert 1.99 < abs(scaled).max() <= 2
        assert stats.kstest(scaled, stats.truncnorm(-2, 2).cdf).pvalue > stats.norm.sf(4.5)
    assert not torch.equal(made.down, made.up.T)
    assert (made.down_bias == 0).all()
    assert (made.up_bias == 0).all()
    assert adapters.Bottleneck(5, 4, generator()).down.abs().max() <= 0.02


def test_the_start_moves_a_state_by_little():
    """Each weight is at most 0.02, and gelu moves nothing away from zero: d m 0.0004 |h|."""
    made = adapters.Bottleneck(WIDTH, SIZE, generator(), dtype=torch.float64)
    h = normal(50, WIDTH)
    moved = (made(h) - h).abs().max(-1).values
    assert (moved > 0).all()
    assert (moved <= SIZE * 0.02 * 0.02 * h.abs().sum(-1)).all()
    exact = adapters.Bottleneck(WIDTH, SIZE, generator(), std=0, dtype=torch.float64)
    assert torch.equal(exact(h), h)


def test_every_type_starts_from_the_same_numbers():
    double, single, half = (
        adapters.Bottleneck(WIDTH, SIZE, generator(), dtype=dtype)
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    )
    for name, parameter in double.named_parameters():
        assert torch.equal(parameter.float(), getattr(single, name))
        assert torch.equal(parameter.bfloat16(), getattr(half, name))


def test_defaults_of_the_caller_change_nothing():
    expected = adapters.Bottleneck(WIDTH, SIZE, generator())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            made = adapters.Bottleneck(WIDTH, SIZE, generator())
    finally:
        torch.set_default_dtype(before)
    for one, two in zip(made.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, two)
        assert one.dtype == torch.float32
    again = adapters.Bottleneck(WIDTH, SIZE, generator(1))
    assert not torch.equal(again.down, made.down)


def test_the_global_generator_is_not_touched(tiny_bert):
    before = torch.random.get_rng_state()
    adapters.houlsby(tiny_bert, SIZE, generator())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_serial_is_the_adapter_of_the_layer():
    layer, made = nn.Linear(5, WIDTH, dtype=torch.float64), bottleneck()
    x = normal(4, 5)
    assert torch.equal(adapters.Serial(layer, made)(x), made(layer(x)))


class Output(nn.Module):
    """As BERT's, with its own random dropout."""

    def __init__(self, dropout):
        super().__init__()
        self.dense = nn.Linear(5, WIDTH, dtype=torch.float64)
        self.dropout = dropout
        self.LayerNorm = nn.LayerNorm(WIDTH, dtype=torch.float64)

    def forward(self, hidden, residual):
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class Halves(nn.Module):
    def forward(self, h):
        return h / 2


def test_parallel_adds_before_dropout_residual_and_norm():
    output, made = Output(Halves()), bottleneck()
    x, residual = normal(4, 5), normal(4, WIDTH, seed=1)
    both = adapters.Parallel(output, made, 3.0)
    inner = functional.gelu(residual @ made.down + made.down_bias)
    beside = inner @ made.up + made.up_bias
    total = (output.dense(x) + 3 * beside) / 2 + residual
    expected = functional.layer_norm(total, (WIDTH,))
    torch.testing.assert_close(both(x, residual), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PLACEMENTS)
@pytest.mark.parametrize("fixture", ["plain", "tiny_bert"])
def test_places_and_counts(name, fixture, request, ids):
    model = request.getfixturevalue(fixture)
    total = count(model)[1]
    place, per_block = PLACEMENTS[name]
    report = place(model, SIZE, generator()).report
    added = LAYERS * per_block * adapters.bottleneck_parameters(WIDTH, SIZE)
    trained = added + (sum(2 * WIDTH for _ in norms(model)) if name == "houlsby" else 0)
    assert report[:2] == count(model) == (trained, total + added)
    ends = {
        "houlsby": ("attention.output.dense", "output.dense"),
        "pfeiffer": ("output.dense",),
        "parallel": ("output",),
    }[name]
    layers = tuple(f"encoder.layer.{i}.{end}" for i in range(LAYERS) for end in ends)
    assert report.layers == layers
    assert len(adapters.adapters_of(model)) == LAYERS * per_block
    hidden(model, ids).square().sum().backward()
    for key, parameter in model.named_parameters():
        ours = "adapter" in key or (name == "houlsby" and "LayerNorm" in key)
        assert parameter.requires_grad == ours
        assert (parameter.grad is not None) == ours


@pytest.mark.parametrize(("name", "norms"), [("houlsby", 13), ("pfeiffer", 0), ("parallel", 0)])
def test_counts_on_the_shape_of_minilm(name, norms):
    """6 layers of width 384, with 2 norms each and one after the embeddings."""
    config = transformers.BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    with torch.device("meta"):
        model = transformers.BertModel(config)
    total = count(model)[1]
    place, per_block = PLACEMENTS[name]
    report = place(model, 64, generator()).report
    added = 6 * per_block * (2 * 64 * 384 + 384 + 64)
    assert report[:2] == (added + norms * 2 * 384, total + added)


@pytest.mark.parametrize("name", PLACEMENTS)
@pytest.mark.parametrize("fixture", ["plain", "tiny_bert"])
def test_adapters_of_zero_leave_the_model_as_it_was(name, fixture, request, ids):
    model = request.getfixturevalue(fixture)
    before = hidden(model, ids)
    PLACEMENTS[name][0](model, SIZE, generator())
    start = hidden(model, ids)
    assert 0 < (start - before).abs().max() < 0.05
    with torch.no_grad():
        for adapter in adapters.adapters_of(model):
            adapter.up.zero_()
    assert torch.equal(hidden(model, ids), before)


def by_hand(model, ids, name):
    """The layers of the plain transformer one by one, with the adapters where the papers say."""
    made = iter(adapters.adapters_of(model))
    x = model.embeddings(ids)
    for layer in model.encoder["layer"]:
        context = layer.attention["self"](x)
        output = layer.attention["output"]
        h = linear(output.dense, context)
        h = next(made)(h) if name == "houlsby" else h
        x = output.LayerNorm(h + x)
        inner = functional.gelu(layer.intermediate["dense"](x))
        output = layer.output.branch if name == "parallel" else layer.output
        h = linear(output.dense, inner)
        made_one = next(made)
        h = h + 4 * made_one.branch(x) if name == "parallel" else made_one(h)
        x = output.LayerNorm(h + x)
    return x


def linear(layer, x):
    inside = adapters.innermost(layer)
    return functional.linear(x, inside.weight, inside.bias)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_model_with_adapters_is_the_blocks_by_hand(name, plain, ids):
    PLACEMENTS[name][0](plain, SIZE, generator())
    randomize(plain)
    expected = by_hand(plain, ids, name)
    torch.testing.assert_close(plain(ids), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_each_adapter_has_weights_of_its_own_from_the_generator(name, tiny_bert):
    place = PLACEMENTS[name][0]
    injection = place(tiny_bert, SIZE, generator())
    first = [a.down for a in adapters.adapters_of(tiny_bert)]
    assert len({a.sum().item() for a in first}) == len(first)
    injection.undo()
    assert adapters.adapters_of(tiny_bert) == []
    place(tiny_bert, SIZE, generator())
    again = [a.down for a in adapters.adapters_of(tiny_bert)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", PLACEMENTS)
def test_training_moves_no_frozen_number(name, tiny_bert, ids):
    injection = PLACEMENTS[name][0](tiny_bert, SIZE, generator())
    digest = injection.digest()
    trained = [p for p in tiny_bert.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    optimizer = torch.optim.Adam(trained, 0.1)
    tiny_bert(ids).last_hidden_state[..., 0].sum().backward()
    optimizer.step()
    assert injection.digest() == digest
    assert all(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))


def test_undo_freezes_no_norm_that_was_trained(tiny_bert, ids):
    tiny_bert.embeddings.LayerNorm.requires_grad_(False)
    before = [p.requires_grad for p in tiny_bert.parameters()]
    out = hidden(tiny_bert, ids)
    adapters.houlsby(tiny_bert, SIZE, generator()).undo()
    assert [p.requires_grad for p in tiny_bert.parameters()] == before
    assert torch.equal(hidden(tiny_bert, ids), out)


def test_adapters_take_the_type_of_the_layer(tiny_bert):
    tiny_bert.encoder.layer[1].bfloat16()
    for place, _ in PLACEMENTS.values():
        injection = place(tiny_bert, SIZE, generator())
        types = [a.down.dtype for a in adapters.adapters_of(tiny_bert)]
        half = len(types) // 2
        assert types == [torch.float64] * half + [torch.bfloat16] * half
        injection.undo()


def test_gpt2_has_other_names_and_layers(tiny_gpt2, ids):
    before = tiny_gpt2(ids).logits
    injection = adapters.houlsby(tiny_gpt2, SIZE, generator(), **GPT2)
    ends = ("attn.c_proj", "mlp.c_proj")
    layers = tuple(f"transformer.h.{i}.{end}" for i in range(LAYERS) for end in ends)
    assert injection.report.layers == layers
    assert 0 < (tiny_gpt2(ids).logits - before).abs().max() < 0.05
    injection.undo()
    adapters.pfeiffer(tiny_gpt2, SIZE, generator(), GPT2["feed_forward"])
    assert count(tiny_gpt2)[0] == LAYERS * adapters.bottleneck_parameters(WIDTH, SIZE)


def test_a_second_adapter_follows_the_first(tiny_bert, ids):
    first = adapters.pfeiffer(tiny_bert, SIZE, generator())
    once = hidden(tiny_bert, ids)
    second = adapters.pfeiffer(tiny_bert, SIZE + 1, generator(1))
    formula = adapters.bottleneck_parameters
    assert second.report.trainable == LAYERS * formula(WIDTH, SIZE + 1)
    outer, inner, *_ = adapters.adapters_of(tiny_bert)
    assert (outer.down.shape, inner.down.shape) == ((WIDTH, SIZE + 1), (WIDTH, SIZE))
    dense = tiny_bert.encoder.layer[0].output.dense
    x = normal(2, 12)
    assert torch.equal(dense(x), outer(inner(adapters.innermost(dense)(x))))
    second.undo()
    assert torch.equal(hidden(tiny_bert, ids), once)
    first.undo()


NAMES = {
    "encoder.layer.0.attention.output.dense": (True, False, False),
    "attention.output.dense": (True, False, False),
    "encoder.encoder.layer.11.output.dense": (False, True, False),
    "output.dense": (False, True, False),
    "encoder.layer.0.output": (False, False, True),
    "output": (False, False, True),
    "encoder.layer.0.attention.output": (False, False, False),
    "encoder.layer.0.crossattention.output.dense": (False, False, False),
    "encoder.layer.0.output.dense.layer": (False, False, False),
    "encoder.layer.0.intermediate.dense": (False, False, False),
    "encoder.layer.0.output.LayerNorm": (False, False, False),
    "pooler.dense": (False, False, False),
}


@pytest.mark.parametrize("name", NAMES)
def test_default_places_are_berts_names(name):
    chosen = adapters.ENDS_ATTENTION, adapters.ENDS_FEED_FORWARD, adapters.IS_FEED_FORWARD_OUTPUT
    assert tuple(where(name, nn.Identity()) for where in chosen) == NAMES[name]


@pytest.mark.parametrize("shape", [(0, WIDTH), (3, 0, WIDTH)])
def test_an_empty_batch_gives_an_empty_result(shape):
    assert bottleneck()(torch.empty(shape).double()).shape == shape


BAD = [
    (lambda: adapters.Bottleneck(0, 2, generator()), "width: must be positive"),
    (lambda: adapters.Bottleneck(2, 0, generator()), "size: must be positive"),
    (lambda: adapters.Bottleneck(2, 2, generator(), std=-1.0), "std: "),
    (lambda: adapters.Bottleneck(2, 2, generator(), std=math.nan), "std: "),
    (lambda: adapters.Bottleneck(2, 2, generator(), std=math.inf), "std: "),
    (lambda: adapters.bottleneck_parameters(0, 1), "width: "),
    (lambda: adapters.bottleneck_parameters(1, 0), "size: "),
    (lambda: bottleneck()(normal(3, WIDTH + 1)), "h: must be \\[..., 8\\], got \\[3, 9\\]"),
    (lambda: bottleneck().branch(normal(WIDTH, 1)), "h: "),
    (lambda: bottleneck()(normal(1)[0]), "h: "),
    (lambda: adapters.Parallel(nn.Linear(2, 2), bottleneck(), 1.0), "branch: "),
    (lambda: adapters.Parallel(Output(Halves()), bottleneck(), math.nan), "scale: must be finite"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda m: adapters.houlsby(m, 0, generator()), "size: "),
        (lambda m: adapters.pfeiffer(m, -1, generator()), "size: "),
        (lambda m: adapters.parallel(m, 0, generator()), "size: "),
        (lambda m: adapters.parallel(m, 2, generator(), math.inf), "scale: "),
        (lambda m: adapters.pfeiffer(m, 2, generator(), named("nothing")), "where: "),
        (lambda m: adapters.pfeiffer(m, 2, generator(), named("embeddings")), "layer: "),
        (lambda m: adapters.parallel(m, 2, generator(), 1.0, named("embeddings")), "layer: "),
        (lambda m: adapters.parallel(m, 2, generator(), 1.0, named(".*output.dense")), "branch: "),
    ],
)
def test_a_placement_that_is_refused_leaves_the_model_alone(place, message, plain):
    modules = list(plain.named_modules())
    with pytest.raises(ValueError, match=f"^{message}"):
        place(plain)
    assert list(plain.named_modules()) == modules
    assert all(p.requires_grad for p in plain.parameters())
