"""AdapterFusion: weights, cases with known answers, what is trained, and banks in a model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradbook.peft import adapters, fusion
from gradbook.peft.compacter import PHMBottleneck, shared_factors
from gradbook.peft.injection import count
from gradbook.peft.selection import named

WIDTH, SIZE, LAYERS = 8, 3, 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def bottleneck(seed=0, width=WIDTH, size=SIZE, dtype=torch.float64):
    made = adapters.Bottleneck(width, size, generator(), dtype=dtype)
    draws = generator(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=draws)
    return made


def random(n=3, seed=0, width=WIDTH):
    """A fusion with large random Q, K and V of adapters of sizes 1 to n."""
    made = [bottleneck(seed + i, width, 1 + i) for i in range(n)]
    fused = fusion.Fusion(made, generator(seed))
    for i, name in enumerate(("query", "key", "value")):
        getattr(fused, name).data = normal(width, width, seed=seed + 50 + i)
    return fused


@settings(max_examples=20)
@given(n=st.integers(1, 4), width=st.integers(1, 5), seed=st.integers(0, 1000))
def test_the_output_is_the_papers_formula_position_by_position(n, width, seed):
    fused = random(n, seed, width)
    h = normal(2, 3, width, seed=seed)
    out, weights = fused(h), fused.weights(h)
    for b, t in ((b, t) for b in range(2) for t in range(3)):
        x = h[b, t]
        z = [adapter(x) - x for adapter in fused.adapters]
        scores = [torch.dot(x @ fused.query, z_n @ fused.key) for z_n in z]
        s = torch.stack(scores).softmax(0)
        expected = x + sum(s_n * (z_n @ fused.value) for s_n, z_n in zip(s, z, strict=True))
        torch.testing.assert_close(weights[b, t], s, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(out[b, t], expected, rtol=1e-9, atol=1e-12)


def test_one_einsum_gives_the_same():
    fused, h = random(), normal(2, 4, WIDTH)
    z = torch.stack([a.branch(h) for a in fused.adapters], 2)
    scores = torch.einsum("btd,de,btnf,fe->btn", h, fused.query, z, fused.key)
    added = torch.einsum("btn,btnd,de->bte", scores.softmax(-1), z, fused.value)
    torch.testing.assert_close(fused(h), h + added, rtol=1e-10, atol=1e-10)


def test_the_skip_within_the_keys_would_change_no_weight():
    """The reason why the residual may stand outside: adapter(h) K in place of f(h) K."""
    fused, h = random(), normal(5, WIDTH)
    z = torch.stack([a(h) for a in fused.adapters], 1)
    scores = torch.einsum("td,tnd->tn", h @ fused.query, z @ fused.key)
    torch.testing.assert_close(fused.weights(h), scores.softmax(-1), rtol=1e-9, atol=1e-12)


def test_the_residual_does_not_pass_through_v():
    fused, h = random(), normal(5, WIDTH)
    fused.value.data.zero_()
    assert torch.equal(fused(h), h)


def test_equal_adapters_give_that_adapter_whatever_q_and_k():
    one, h = bottleneck(), normal(5, WIDTH)
    fused = fusion.Fusion([one, bottleneck(), one], generator())
    fused.query.data, fused.key.data = normal(WIDTH, WIDTH), normal(WIDTH, WIDTH, seed=1)
    torch.testing.assert_close(fused(h), one(h), rtol=1e-12, atol=1e-12)


def test_one_adapter_is_that_adapter():
    one, h = bottleneck(), normal(5, WIDTH)
    fused = fusion.Fusion([one], generator())
    assert torch.equal(fused.weights(h), torch.ones(5, 1).double())
    assert torch.equal(fused(h), one(h))


def test_a_sharp_query_listens_to_one_adapter_alone():
    """The keys of the adapters are 0 and e_1; a query of 1000 e_1 picks the second."""
    first, second = (
        adapters.Bottleneck(2, 1, generator(), std=0, dtype=torch.float64) for _ in range(2)
    )
    second.up_bias.data = torch.tensor([1.0, 0.0]).double()
    fused = fusion.Fusion([first, second], generator())
    fused.query.data = 1000 * torch.eye(2).double()
    fused.key.data = torch.eye(2).double()
    h = torch.tensor([[1.0, 5.0], [-1.0, 5.0], [0.0, 5.0]]).double()
    exact = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]).double()
    assert torch.equal(fused.weights(h), exact)
    moved = torch.tensor([[2.0, 5.0], [-1.0, 5.0], [0.5, 5.0]]).double()
    assert torch.equal(fused(h), moved)


@settings(max_examples=20)
@given(n=st.integers(1, 5), seed=st.integers(0, 1000))
def test_weights_are_positive_and_sum_to_one(n, seed):
    fused = random(n, seed)
    fused.query.data /= 100
    weights = fused.weights(normal(4, WIDTH, seed=seed))
    assert weights.shape == (4, n)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(4).double(), rtol=1e-12, atol=0)


def test_the_start_is_nearly_the_mean_of_the_adapters():
    made = [bottleneck(i) for i in range(3)]
    fused = fusion.Fusion(made, generator(), std=1e-9)
    h = normal(5, WIDTH)
    mean = torch.stack([a(h) for a in made]).mean(0)
    torch.testing.assert_close(fused(h), mean, rtol=1e-9, atol=1e-9)
    assert torch.equal(fused.value, torch.eye(WIDTH).double())


def test_q_and_k_start_as_small_normals():
    wide = adapters.Bottleneck(200, 1, generator())
    fused = fusion.Fusion([wide], generator())
    for part in (fused.query, fused.key):
        assert part.dtype == torch.float32
        # The standard error of a standard deviation of 40,000 normals is 0.02 / sqrt(80,000).
        assert part.std().item() == pytest.approx(0.02, abs=4.5 * 0.02 / 80_000**0.5)
        assert part.mean().item() == pytest.approx(0, abs=4.5 * 0.02 / 200)
    assert not torch.equal(fused.query, fused.key)
    again = fusion.Fusion([wide], generator())
    assert torch.equal(again.query, fused.query)


def test_gradients_reach_q_k_v_and_the_input_and_never_the_adapters():
    fused = random()
    h = normal(4, WIDTH).requires_grad_()
    fused(h).square().sum().backward()
    for part in (fused.query, fused.key, fused.value):
        assert part.grad.abs().max() > 0
    assert h.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in fused.adapters.parameters())
    names = ("query", "key", "value")
    values = tuple(getattr(fused, name) for name in names)

    def call(h, *values):
        return torch.func.functional_call(fused, dict(zip(names, values, strict=True)), (h,))

    assert torch.autograd.gradcheck(call, (h, *values))


def test_adapters_are_copies():
    original = bottleneck()
    fused = fusion.Fusion([original], generator())
    h = normal(3, WIDTH)
    before = fused(h)
    assert original.up.requires_grad
    original.up.data.zero_()
    assert torch.equal(fused(h), before)


def test_the_count_is_three_squares():
    assert count(random())[0] == fusion.fusion_parameters(WIDTH) == 3 * 64
    assert fusion.fusion_parameters(384) == 442_368


def banks(model, tasks=3):
    """Adapters of several tasks, each placed, made different, and taken back."""
    found = []
    for task in range(tasks):
        injection = adapters.pfeiffer(model, SIZE, generator(task))
        bank = adapters.adapters_of(model)
        for i, adapter in enumerate(bank):
            adapter.load_state_dict(bottleneck(10 * task + i).state_dict())
        found.append(bank)
        injection.undo()
    return found


def hidden(model, ids):
    found = model(ids)
    return found if isinstance(found, torch.Tensor) else found[0]


@pytest.mark.parametrize("fixture", ["plain", "tiny_bert"])
def test_fuse_puts_the_tasks_of_each_layer_together(fixture, request, ids):
    model = request.getfixturevalue(fixture)
    untouched, total = hidden(model, ids), count(model)[1]
    tasks = banks(model)
    injection = fusion.fuse(model, tasks, generator())
    fused = adapters.adapters_of(model)
    assert [type(f) for f in fused] == [fusion.Fusion] * LAYERS
    for layer, each in enumerate(fused):
        for task, adapter in enumerate(each.adapters):
            assert torch.equal(adapter.down, tasks[task][layer].down)
    assert not torch.equal(fused[0].query, fused[1].query)
    own = LAYERS * fusion.fusion_parameters(WIDTH)
    held = LAYERS * len(tasks) * adapters.bottleneck_parameters(WIDTH, SIZE)
    assert injection.report[:2] == count(model) == (own, total + own + held)
    hidden(model, ids)[..., 0].sum().backward()
    reached = {n.rsplit(".", 1)[1] for n, p in model.named_parameters() if p.grad is not None}
    assert reached == {"query", "key", "value"}
    injection.undo()
    assert torch.equal(hidden(model, ids), untouched)


def test_a_fusion_of_one_task_is_that_tasks_model(tiny_bert, ids):
    (bank,) = banks(tiny_bert, 1)
    injection = fusion.fuse(tiny_bert, [bank], generator())
    fused = hidden(tiny_bert, ids)
    injection.undo()
    adapters.pfeiffer(tiny_bert, SIZE, generator())
    for placed, theirs in zip(adapters.adapters_of(tiny_bert), bank, strict=True):
        placed.load_state_dict(theirs.state_dict())
    assert torch.equal(hidden(tiny_bert, ids), fused)


def test_single_adapters_that_stand_there_are_replaced(tiny_bert, ids):
    tasks = banks(tiny_bert)
    injection = fusion.fuse(tiny_bert, tasks, generator())
    expected = hidden(tiny_bert, ids)
    injection.undo()
    first = adapters.pfeiffer(tiny_bert, SIZE, generator(7))
    second = adapters.pfeiffer(tiny_bert, SIZE, generator(8))
    single = hidden(tiny_bert, ids)
    third = fusion.fuse(tiny_bert, tasks, generator())
    assert torch.equal(hidden(tiny_bert, ids), expected)
    assert len(adapters.adapters_of(tiny_bert)) == LAYERS
    third.undo()
    assert torch.equal(hidden(tiny_bert, ids), single)
    second.undo()
    first.undo()


def test_the_adapters_in_use_may_be_a_bank(tiny_bert, ids):
    adapters.pfeiffer(tiny_bert, SIZE, generator(7))
    bank = adapters.adapters_of(tiny_bert)
    single = hidden(tiny_bert, ids)
    injection = fusion.fuse(tiny_bert, [bank], generator())
    assert torch.equal(hidden(tiny_bert, ids), single)
    assert injection.report.trainable == LAYERS * 3 * WIDTH**2


def test_other_places_and_layers_can_be_fused(tiny_gpt2, ids):
    where = named(r".*(attn|mlp)\.c_proj")
    before = tiny_gpt2(ids).logits
    bank = [bottleneck(i) for i in range(2 * LAYERS)]
    fusion.fuse(tiny_gpt2, [bank, bank], generator(), where)
    assert len(adapters.adapters_of(tiny_gpt2)) == 2 * LAYERS
    assert not torch.equal(tiny_gpt2(ids).logits, before)


def test_training_moves_no_frozen_number(tiny_bert, ids):
    tasks = banks(tiny_bert)
    injection = fusion.fuse(tiny_bert, tasks, generator())
    digest = injection.digest()
    optimizer = torch.optim.Adam([p for p in tiny_bert.parameters() if p.requires_grad], 0.1)
    hidden(tiny_bert, ids)[..., 0].sum().backward()
    optimizer.step()
    assert injection.digest() == digest
    for layer, fused in enumerate(adapters.adapters_of(tiny_bert)):
        assert not torch.equal(fused.value, torch.eye(WIDTH).double())
        for task, adapter in enumerate(fused.adapters):
            assert torch.equal(adapter.up, tasks[task][layer].up)


def test_an_empty_batch_gives_an_empty_result():
    none = torch.empty(0, 4, WIDTH).double()
    assert random()(none).shape == (0, 4, WIDTH)
    assert random(3).weights(none).shape == (0, 4, 3)


def phm():
    shared = shared_factors(1, generator(), torch.float64)
    return PHMBottleneck(WIDTH, SIZE, shared, generator())


BAD = [
    (lambda: fusion.Fusion([], generator()), "adapters: must not be empty"),
    (lambda: fusion.Fusion([nn.Identity()], generator()), "adapters: must be Bottlenecks"),
    (lambda: fusion.Fusion([bottleneck(), phm()], generator()), "adapters: must be Bottlenecks"),
    (
        lambda: fusion.Fusion([bottleneck(), bottleneck(width=7)], generator()),
        "adapters: must have",
    ),
    (
        lambda: fusion.Fusion([bottleneck(), bottleneck(dtype=torch.float32)], generator()),
        "adapters: must have one width, type",
    ),
    (lambda: fusion.Fusion([bottleneck()], generator(), std=-1.0), "std: "),
    (lambda: fusion.Fusion([bottleneck()], generator(), std=float("nan")), "std: "),
    (lambda: random()(normal(3, WIDTH + 1)), "h: "),
    (lambda: random().weights(normal(3, WIDTH + 1)), "h: "),
    (lambda: fusion.fusion_parameters(0), "width: "),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_a_fusion_stands_where_its_adapters_are():
    away = adapters.Bottleneck(WIDTH, SIZE, generator(), dtype=torch.float64, device="meta")
    made = fusion.Fusion([away], generator())
    assert {part.device.type for part in made.parameters()} == {"meta"}
    with pytest.raises(ValueError, match="^adapters: must have one width, type and device"):
        fusion.Fusion([bottleneck(), away], generator())


def several(n):
    return [bottleneck(i) for i in range(n)]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "banks: must not be empty"),
        ([several(2), several(1)], r"banks: must be equally long, got \[2, 1\]"),
        ([several(1)], "banks: 1 adapters for more places"),
        ([several(3)], "banks: 3 adapters for 2 places"),
        ([[]], "banks: 0 adapters for more places"),
        (
            [[bottleneck(width=7)] * 2],
            "banks: must have the layer's width 8, type torch.float64, device cpu",
        ),
        ([[bottleneck(dtype=torch.float32)] * 2], "banks: must have the layer's"),
    ],
)
def test_banks_that_do_not_fit_leave_the_model_alone(tasks, message, plain):
    modules = list(plain.named_modules())
    with pytest.raises(ValueError, match=f"^{message}"):
        fusion.fuse(plain, tasks, generator())
    assert list(plain.named_modules()) == modules
    assert all(p.requires_grad for p in plain.parameters())
