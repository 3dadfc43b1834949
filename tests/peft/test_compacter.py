"""Compacter: Kronecker sums against torch.kron, the shared factors, the start, and counts."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from gradbook.peft import adapters, compacter
from gradbook.peft.injection import count
from gradbook.peft.selection import named

WIDTH, SIZE, N, LAYERS = 8, 4, 2, 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def factors(n=N, seed=0, dtype=torch.float64):
    return compacter.shared_factors(n, generator(seed), dtype)


def layer(inputs=WIDTH, outputs=SIZE, n=N, rank=1, seed=0):
    """Far from its start, with a bias."""
    made = compacter.PHM(inputs, outputs, factors(n, seed), generator(), rank)
    draws = generator(seed)
    with torch.no_grad():
        for parameter in (made.left, made.right, made.bias):
            parameter.normal_(generator=draws)
    return made


def hidden(model, ids):
    found = model(ids)
    return found if isinstance(found, torch.Tensor) else found[0]


@settings(max_examples=25)
@given(shape=st.tuples(*[st.integers(1, 4)] * 5), seed=st.integers(0, 1000))
def test_the_kronecker_sum_is_torchs(shape, seed):
    n, p, q, r, s = shape
    a, b = normal(n, p, q, seed=seed), normal(n, r, s, seed=seed + 1)
    expected = sum(torch.kron(a_i, b_i) for a_i, b_i in zip(a, b, strict=True))
    found = compacter.kronecker_sum(a, b)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=25)
@given(
    n=st.integers(1, 3),
    sides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    rank=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_the_layer_is_its_formula(n, sides, rank, seed):
    inputs, outputs = (n * side for side in sides)
    made = layer(inputs, outputs, n, rank, seed)
    products = [
        torch.kron(
            made.shared[i],
            sum(torch.outer(made.left[i, :, k], made.right[i, k]) for k in range(rank)),
        )
        for i in range(n)
    ]
    torch.testing.assert_close(made.weight(), sum(products), rtol=1e-12, atol=1e-12)
    x = normal(3, inputs, seed=seed)
    torch.testing.assert_close(made(x), x @ sum(products) + made.bias, rtol=1e-11, atol=1e-11)


def test_one_factor_of_one_is_a_matrix_of_rank_r():
    made = layer(6, 5, 1, 2)
    with torch.no_grad():
        made.shared.fill_(1)
    torch.testing.assert_close(made.weight(), made.left[0] @ made.right[0], rtol=1e-12, atol=1e-12)
    assert torch.linalg.matrix_rank(made.weight()) == 2


def test_quaternions_are_one_choice_of_the_factors():
    """n = 4: the product of quaternions x and w is the row x times a matrix of this kind."""
    index = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]])
    sign = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, -1, -1, 1], [1, 1, -1, -1]])
    shared = torch.zeros(4, 4, 4, dtype=torch.float64)
    for i in range(4):
        for a in range(4):
            shared[i, a, index[a, i]] = sign[a, i]
    x, w = normal(4), normal(4, seed=1)
    made = compacter.kronecker_sum(shared, w[:, None, None])
    (a, b), (c, d) = x.split([1, 3]), w.split([1, 3])
    exact = torch.cat([a * c - b @ d, a * d + c * b + torch.linalg.cross(b, d)])
    torch.testing.assert_close(x @ made, exact, rtol=1e-12, atol=1e-12)


def test_gradients_reach_every_factor():
    made = layer()
    names = ["shared", "left", "right", "bias"]
    values = tuple(getattr(made, name) for name in names)
    x = normal(2, WIDTH).requires_grad_()

    def call(x, *values):
        return torch.func.functional_call(made, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values))


@pytest.mark.parametrize("rank", [1, 3])
def test_entries_start_with_the_standard_deviation_of_a_bottleneck(rank):
    """Mean squares of many draws: the entries of one W are not independent, the draws are."""
    squares = torch.stack(
        [
            compacter.PHM(8, 8, factors(2, seed), generator(seed + 5000), rank, 0.03)
            .weight()
            .square()
            .mean()
            for seed in range(2000)
        ]
    ).detach()
    error = squares.std() / len(squares) ** 0.5
    assert error < 0.05 * 0.03**2
    assert abs(squares.mean() - 0.03**2) < 4.5 * error


def test_shared_factors_have_variance_one_over_n():
    drawn = compacter.shared_factors(25, generator())
    assert drawn.dtype == torch.float32
    n = drawn.numel()
    assert drawn.square().mean().item() == pytest.approx(1 / 25, abs=4.5 / 25 * (2 / n) ** 0.5)
    assert drawn.mean().item() == pytest.approx(0, abs=4.5 / 5 / n**0.5)
    assert torch.equal(drawn, compacter.shared_factors(25, generator()))
    assert torch.equal(drawn.double(), factors(25).float().double())


def test_a_start_of_zero_is_zero():
    made = compacter.PHM(WIDTH, SIZE, factors(), generator(), std=0)
    assert torch.equal(made(normal(3, WIDTH)), torch.zeros(3, SIZE).double())


def test_defaults_of_the_caller_change_nothing():
    expected = compacter.PHM(WIDTH, SIZE, compacter.shared_factors(N, generator()), generator())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            shared = compacter.shared_factors(N, generator())
            made = compacter.PHM(WIDTH, SIZE, shared, generator())
    finally:
        torch.set_default_dtype(before)
    for one, two in zip(made.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, two)
        assert one.dtype == torch.float32


def test_an_adapter_is_two_layers_and_a_skip():
    shared = factors()
    made = compacter.PHMBottleneck(WIDTH, SIZE, shared, generator())
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.normal_(generator=generator(i))
    h = normal(3, WIDTH)
    inner = functional.gelu(h @ made.down.weight() + made.down.bias)
    added = inner @ made.up.weight() + made.up.bias
    torch.testing.assert_close(made.branch(h), added, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made(h), h + added, rtol=1e-12, atol=1e-12)
    assert made.down.shared is made.up.shared is shared
    tanh = compacter.PHMBottleneck(WIDTH, SIZE, shared, generator(), activation=torch.tanh)
    tanh.load_state_dict(made.state_dict())
    inner = torch.tanh(h @ made.down.weight() + made.down.bias)
    added = inner @ made.up.weight() + made.up.bias
    torch.testing.assert_close(tanh.branch(h), added, rtol=1e-12, atol=1e-12)


@settings(max_examples=20)
@given(n=st.integers(1, 4), a=st.integers(1, 4), b=st.integers(1, 4), rank=st.integers(1, 3))
def test_counts_are_the_formula(n, a, b, rank):
    d, m = n * a, n * b
    shared = factors(n)
    made = torch.nn.ModuleList(
        compacter.PHMBottleneck(d, m, shared, generator(), rank) for _ in range(3)
    )
    formula = n**3 + 3 * (2 * rank * (d + m) + d + m)
    assert count(made)[0] == compacter.compacter_parameters(d, m, n, 3, rank) == formula
    own = count(compacter.PHM(d, m, shared, generator(), rank))[0] - n**3
    assert own == compacter.phm_parameters(d, m, n, rank) == rank * (d + m) + m


@pytest.mark.parametrize("fixture", ["plain", "tiny_bert"])
def test_places_and_what_is_trained(fixture, request, ids):
    model = request.getfixturevalue(fixture)
    before, total = hidden(model, ids), count(model)[1]
    injection = compacter.compacter(model, SIZE, N, generator())
    added = compacter.compacter_parameters(WIDTH, SIZE, N, 2 * LAYERS)
    assert injection.report[:2] == count(model) == (added, total + added)
    ends = ("attention.output.dense", "output.dense")
    layers = tuple(f"encoder.layer.{i}.{end}" for i in range(LAYERS) for end in ends)
    assert injection.report.layers == layers
    start = hidden(model, ids)
    assert 0 < (start - before).abs().max() < 0.05
    start[..., 0].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("adapter" in name)
        assert (parameter.grad is not None) == ("adapter" in name)
    injection.undo()
    assert torch.equal(hidden(model, ids), before)


def test_all_layers_share_one_parameter_and_nothing_else(tiny_bert):
    compacter.compacter(tiny_bert, SIZE, N, generator())
    made = adapters.adapters_of(tiny_bert)
    parts = [part for adapter in made for part in (adapter.down, adapter.up)]
    assert len({id(part.shared) for part in parts}) == 1
    assert parts[0].shared.requires_grad
    assert len({part.left.sum().item() for part in parts}) == len(parts)
    assert len({part.right.sum().item() for part in parts}) == len(parts)


def test_the_same_numbers_come_again(tiny_bert, ids):
    injection = compacter.compacter(tiny_bert, SIZE, N, generator())
    first = hidden(tiny_bert, ids)
    injection.undo()
    state = torch.random.get_rng_state()
    compacter.compacter(tiny_bert, SIZE, N, generator())
    assert torch.equal(hidden(tiny_bert, ids), first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_counts_on_the_shape_of_minilm():
    """0.07 percent of the model; the matrices of Houlsby's adapters would have 590,000 numbers."""
    config = transformers.BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    with torch.device("meta"):
        model = transformers.BertModel(config)
    report = compacter.compacter(model, 64, 4, generator()).report
    assert report.trainable == 4**3 + 12 * (3 * 384 + 3 * 64) == 16_192
    assert report.total == 22_713_216 + 16_192


def test_training_moves_no_frozen_number(tiny_bert, ids):
    injection = compacter.compacter(tiny_bert, SIZE, N, generator())
    digest = injection.digest()
    trained = [p for p in tiny_bert.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    hidden(tiny_bert, ids)[..., 0].sum().backward()
    torch.optim.Adam(trained, 0.1).step()
    assert injection.digest() == digest
    assert all(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))


def test_layers_of_other_types_get_adapters_of_their_own_type(tiny_bert):
    tiny_bert.encoder.layer[1].bfloat16()
    compacter.compacter(tiny_bert, SIZE, N, generator())
    made = adapters.adapters_of(tiny_bert)
    types = [adapter.down.shared.dtype for adapter in made]
    assert types == [torch.float64] * 2 + [torch.bfloat16] * 2
    assert [adapter.up.left.dtype for adapter in made] == types


def test_gpt2_has_other_names_and_layers(tiny_gpt2, ids):
    names = {"attention": named(r".*attn\.c_proj"), "feed_forward": named(r".*mlp\.c_proj")}
    before = tiny_gpt2(ids).logits
    report = compacter.compacter(tiny_gpt2, SIZE, N, generator(), **names).report
    assert report.trainable == compacter.compacter_parameters(WIDTH, SIZE, N, 2 * LAYERS)
    assert 0 < (tiny_gpt2(ids).logits - before).abs().max() < 0.05


def test_an_empty_batch_gives_an_empty_result():
    assert layer()(torch.empty(0, 3, WIDTH).double()).shape == (0, 3, SIZE)


BAD = [
    (lambda: compacter.kronecker_sum(normal(2, 2), normal(2, 2, 2)), "a: "),
    (lambda: compacter.kronecker_sum(normal(2, 2, 2), normal(2, 2)), "a: "),
    (lambda: compacter.kronecker_sum(normal(2, 2, 2), normal(3, 2, 2)), "a: "),
    (lambda: compacter.shared_factors(0, generator()), "n: must be positive"),
    (lambda: compacter.PHM(6, 4, factors(4), generator()), "n: must divide 6 and 4, got 4"),
    (lambda: compacter.PHM(4, 6, factors(4), generator()), "n: must divide"),
    (lambda: compacter.PHM(0, 4, factors(), generator()), "inputs: must be positive"),
    (lambda: compacter.PHM(4, 0, factors(), generator()), "outputs: must be positive"),
    (lambda: compacter.PHM(4, 4, factors(), generator(), 0), "rank: must be positive"),
    (lambda: compacter.PHM(4, 4, factors(), generator(), 1, math.nan), "std: "),
    (lambda: compacter.PHM(4, 4, factors(), generator(), 1, -1.0), "std: "),
    (lambda: compacter.PHM(4, 4, normal(2, 2), generator()), "shared: must be"),
    (lambda: compacter.PHM(4, 4, normal(2, 2, 1), generator()), "shared: must be"),
    (lambda: compacter.PHM(4, 4, normal(1)[0], generator()), "shared: must be"),
    (lambda: layer()(normal(3, WIDTH + 1)), "x: must be \\[..., 8\\], got \\[3, 9\\]"),
    (lambda: compacter.phm_parameters(4, 4, 0), "n: must be positive"),
    (lambda: compacter.compacter_parameters(4, 4, 2, 0), "adapters: must be positive"),
    (lambda: compacter.compacter_parameters(4, 3, 2, 1), "n: must divide"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda m: compacter.compacter(m, 3, 2, generator()), "n: must divide 8 and 3"),
        (lambda m: compacter.compacter(m, 6, 3, generator()), "n: must divide 8 and 6"),
        (lambda m: compacter.compacter(m, 0, 2, generator()), "outputs: "),
        (lambda m: compacter.compacter(m, 4, 0, generator()), "n: must be positive"),
        (lambda m: compacter.compacter(m, 4, 2, generator(), *[named("none")] * 2), "where: "),
        (lambda m: compacter.compacter(m, 4, 2, generator(), named("embeddings")), "layer: "),
    ],
)
def test_a_placement_that_is_refused_leaves_the_model_alone(place, message, plain):
    modules = list(plain.named_modules())
    with pytest.raises(ValueError, match=f"^{message}"):
        place(plain)
    assert list(plain.named_modules()) == modules
    assert all(p.requires_grad for p in plain.parameters())
