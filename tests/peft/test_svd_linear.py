"""The layer of AdaLoRA: formula, start, merging, peft's outputs, orthogonality, ranks and pruning."""

import copy

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradbook.peft import svd_linear
from gradbook.peft.injection import inject
from gradbook.peft.lora import LoRALinear
from gradbook.peft.selection import named

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def stir(module, seed=0):
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed + i))
    return module


def linear(inputs=5, outputs=4):
    return nn.Linear(inputs, outputs, dtype=torch.float64)


def conv(inputs=5, outputs=4):
    return Conv1D(outputs, inputs).double()


def stirred(make=linear, rank=3, alpha=2.0, seed=0):
    """A layer with nothing left at zero."""
    return stir(svd_linear.SVDLinear(make(), rank, alpha, generator(seed)), seed)


def by_hand(module, x):
    layer = module.layer
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    rank = len(module.E)
    triplets = [module.E[i] * torch.outer(module.P[:, i], module.Q[i]) for i in range(rank)]
    return x @ (weight + 2.0 / rank * sum(triplets)).T + layer.bias


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_value_and_gradients_are_those_of_the_formula(make, rank):
    module, x = stirred(make, rank), normal(2, 3, 5, seed=7).requires_grad_()
    cotangent = normal(2, 3, 4, seed=8)
    results = []
    for output in (module(x), by_hand(module, x)):
        wanted = (module.P, module.E, module.Q, x)
        slopes = torch.autograd.grad((output * cotangent).sum(), wanted)
        results.append((output.detach(), *slopes))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_the_start_is_the_layer_to_the_bit_and_only_e_has_a_slope():
    layer, x = linear(), normal(6, 5, seed=3)
    module = svd_linear.SVDLinear(layer, 3, 16.0, generator())
    assert torch.equal(module(x), layer(x))
    assert module.scaling == 16 / 3
    assert svd_linear.ranks(module) == {"": 0}
    module(x).square().sum().backward()
    assert (module.E.grad != 0).all()
    assert (module.P.grad == 0).all()
    assert (module.Q.grad == 0).all()


def test_p_and_q_are_normal_with_deviation_002_drawn_in_this_order():
    module = svd_linear.SVDLinear(nn.Linear(100, 80), 40, 1.0, generator())
    draws = generator()
    for ours, shape in ((module.P, (80, 40)), (module.Q, (40, 100))):
        expected = 0.02 * torch.randn(shape, generator=draws, dtype=torch.float64)
        torch.testing.assert_close(ours.detach(), expected.float(), rtol=1e-6, atol=1e-8)
        scaled = (ours.detach().double() / 0.02).flatten().numpy()
        assert stats.kstest(scaled, "norm").pvalue > stats.norm.sf(4.5)


def test_draws_come_from_the_generator_alone():
    layer, state = linear(), torch.get_rng_state()
    one, two, other = (svd_linear.SVDLinear(layer, 2, 1.0, generator(s)) for s in (0, 0, 1))
    assert torch.equal(one.P, two.P)
    assert not torch.equal(one.P, other.P)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("make", [linear, conv])
def test_merging_keeps_the_outputs_and_unmerging_restores_the_weights(make):
    module, x = stirred(make), normal(6, 5, seed=9)
    before, weight = module(x), module.layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"^unmerge: "):
        module.unmerge()
    module.merge()
    assert module.merged
    assert torch.equal(module(x), module.layer(x))
    torch.testing.assert_close(module(x), before, **EXACT)
    merged = module.layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"^merge: "):
        module.merge()
    assert torch.equal(module.layer.weight, merged)
    module.unmerge()
    torch.testing.assert_close(module.layer.weight, weight, **EXACT)
    torch.testing.assert_close(module(x), before, **EXACT)


def librarys(layer, rank, alpha, transposed):
    """A model of one layer by peft, in float64."""
    config = peft.AdaLoraConfig(
        target_modules=["0"],
        init_r=rank,
        target_r=1,
        total_step=10,
        lora_alpha=alpha,
        fan_in_fan_out=transposed,
    )
    return peft.get_peft_model(nn.Sequential(copy.deepcopy(layer)), config).double()


@pytest.mark.parametrize(("make", "transposed"), [(linear, False), (conv, True)])
@pytest.mark.parametrize("rank", [1, 3])
def test_outputs_gradients_merged_weights_and_penalty_are_those_of_peft(make, transposed, rank):
    layer = stir(make())
    ours = svd_linear.SVDLinear(layer, rank, 5.0, generator(), scale=svd_linear.over_guarded_rank)
    for i, weight in enumerate((ours.P, ours.E, ours.Q)):
        weight.data = normal(*weight.shape, seed=20 + i)
    theirs = librarys(layer, rank, 5.0, transposed)
    inner = next(m for m in theirs.modules() if isinstance(m, peft.tuners.adalora.SVDLinear))
    p, e, q = (d["default"] for d in (inner.lora_B, inner.lora_E, inner.lora_A))
    with torch.no_grad():
        p.copy_(ours.P)
        e.copy_(ours.E[:, None])
        q.copy_(ours.Q)
    x, cotangent = normal(6, 5, seed=1).requires_grad_(), normal(6, 4, seed=2)
    results = []
    for model, weights in ((ours, (ours.P, ours.E, ours.Q)), (theirs, (p, e, q))):
        output = model(x)
        at_x, at_p, at_e, at_q = torch.autograd.grad((output * cotangent).sum(), (x, *weights))
        results.append((output.detach(), at_x, at_p, at_e.flatten(), at_q))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, **EXACT)
    ours.merge()
    inner.merge()
    torch.testing.assert_close(layer.weight, inner.get_base_layer().weight, **EXACT)


def test_the_norm_is_what_peft_adds_to_the_loss():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(linear(5, 4), linear(4, 3))

        def forward(self, x):
            return type("Outputs", (), {"loss": self.layers(x).sum() * 0})()

    config = peft.AdaLoraConfig(
        target_modules=["0", "1"], init_r=2, target_r=1, total_step=10, orth_reg_weight=1.0
    )
    theirs = peft.get_peft_model(Loss(), config).double()
    ours = nn.Sequential(stirred(lambda: linear(5, 4), 2), stirred(lambda: linear(4, 3), 2, seed=9))
    inner = [m for m in theirs.modules() if isinstance(m, peft.tuners.adalora.SVDLinear)]
    with torch.no_grad():
        for layer, module in zip(inner, ours, strict=True):
            layer.lora_B["default"].copy_(module.P)
            layer.lora_A["default"].copy_(module.Q)
    # peft adds it in this model, which its wrapper passes by unless it is told a task.
    expected = theirs.base_model(normal(2, 5)).loss
    assert theirs(normal(2, 5)).loss.item() == 0
    torch.testing.assert_close(svd_linear.orthogonality_norm(ours), expected, **EXACT)


def test_orthogonality_is_the_mean_over_matrices_and_has_the_known_slope():
    model = nn.ModuleList([stirred(rank=2), stirred(lambda: linear(7, 6), 3, seed=4)])
    terms, norms, slopes = [], [], []
    for module in model:
        for rows in (module.P.detach().T, module.Q.detach()):
            gap = rows @ rows.T - torch.eye(len(rows)).double()
            total = sum(float(g) ** 2 for g in gap.flatten())
            terms.append(total)
            norms.append(total**0.5)
            slopes.append(4 * gap @ rows / 4)
    value = svd_linear.orthogonality(model)
    assert value.item() == pytest.approx(sum(terms) / 4, rel=1e-12)
    norm = svd_linear.orthogonality_norm(model)
    assert norm.item() == pytest.approx(sum(norms) / 4, rel=1e-12)
    value.backward()
    for module, (p, q) in zip(model, zip(slopes[::2], slopes[1::2], strict=True), strict=True):
        torch.testing.assert_close(module.P.grad, p.T, **EXACT)
        torch.testing.assert_close(module.Q.grad, q, **EXACT)


@pytest.mark.parametrize("measure", [svd_linear.orthogonality, svd_linear.orthogonality_norm])
def test_orthogonal_matrices_cost_nothing_and_their_slope_is_finite(measure):
    module = stirred(rank=3)
    with torch.no_grad():
        module.P.copy_(torch.eye(4, 3))
        module.Q.copy_(torch.eye(5)[[4, 0, 2]])
    value = measure(module)
    value.backward()
    assert value.item() == 0
    assert (module.P.grad == 0).all()
    assert (module.Q.grad == 0).all()


def test_the_penalty_at_the_start_has_its_expected_value():
    # E|P'P - I|^2 with n numbers of variance v in each of r columns.
    def expected(n, r, v=0.02**2):
        return r * ((1 - n * v) ** 2 + 2 * n * v**2) + r * (r - 1) * n * v**2

    n, r = 768, 12
    layer, draws = nn.Linear(n, n, dtype=torch.float64), generator()
    modules = [svd_linear.SVDLinear(layer, r, 1.0, draws) for _ in range(20)]
    values = torch.stack([svd_linear.orthogonality(m) for m in modules]).detach()
    error = values.std() / 20**0.5
    assert abs(values.mean() - expected(n, r)) < 4.5 * error
    assert error < 0.01 * expected(n, r)


def small():
    """Three layers in a row, with ranks 2, 0 and 1 in use."""
    model = nn.Sequential(linear(5, 4), linear(4, 6), linear(6, 3))
    inject(
        model, lambda name, _: True, lambda layer: svd_linear.SVDLinear(layer, 3, 2.0, generator())
    )
    stir(model)
    with torch.no_grad():
        for module, mask in zip(model, ([1, 0, 1], [0, 0, 0], [0, 1, 0]), strict=True):
            module.E.mul_(torch.tensor(mask))
    return model


def test_ranks_count_what_is_not_zero():
    assert svd_linear.ranks(small()) == {"0": 2, "1": 0, "2": 1}


def test_pruning_keeps_the_outputs_and_leaves_exact_ranks():
    model, x = small().eval(), normal(7, 5)
    before, base = model(x), model[1].layer
    assert svd_linear.prune(model) == {"0": 2, "1": 0, "2": 1}
    torch.testing.assert_close(model(x), before, **EXACT)
    assert model[1] is base
    assert [tuple(model[i].A.shape) for i in (0, 2)] == [(2, 5), (1, 6)]
    assert all(isinstance(model[i], LoRALinear) and not model[i].training for i in (0, 2))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["0.A", "0.B", "2.A", "2.B"]
    for i in (0, 2):
        model[i].merge()
    torch.testing.assert_close(model(x), before, **EXACT)


def test_pruning_treats_a_shared_layer_once():
    shared, state = stirred(), torch.get_rng_state()
    shared.E.data[1] = 0
    model = nn.ModuleDict({"a": shared, "b": shared})
    assert svd_linear.prune(model) == {"a": 2, "b": 2}
    assert model["a"] is model["b"]
    assert torch.equal(torch.get_rng_state(), state)


def test_pruning_refuses_merged_layers_and_changes_nothing():
    model = small()
    model[2].merge()
    with pytest.raises(RuntimeError, match=r"^prune: 2 is merged"):
        svd_linear.prune(model)
    assert svd_linear.ranks(model) == {"0": 2, "1": 0, "2": 1}


def test_counts_and_gradients_inside_a_model(tiny_gpt2, ids):
    done = inject(
        tiny_gpt2, named(r".*\.c_attn"), lambda m: svd_linear.SVDLinear(m, 2, 4.0, generator())
    )
    assert done.report.trainable == 2 * 2 * (8 + 24 + 1)
    digest, start = done.digest(), tiny_gpt2(ids).logits
    optimizer = torch.optim.SGD([p for p in tiny_gpt2.parameters() if p.requires_grad], 0.1)
    start.square().sum().backward()
    optimizer.step()
    assert done.digest() == digest
    assert set(svd_linear.ranks(tiny_gpt2).values()) == {2}
    assert not torch.equal(tiny_gpt2(ids).logits, start)
    done.undo()


def test_adalora_of_rank_12_adds_442512_numbers_to_gpt2s_attention():
    layer = nn.Linear(768, 2304, device="meta")
    module = svd_linear.SVDLinear(layer, 12, 1.0, generator())
    added = sum(p.numel() for p in (module.P, module.E, module.Q))
    assert 12 * added == 442_512
    assert {p.device.type for p in module.parameters()} == {"meta"}


def test_additions_have_the_type_and_device_of_the_layer_whatever_the_default():
    with torch.device("meta"):
        layer = nn.Linear(2, 3, dtype=torch.bfloat16, device="cpu")
        module = svd_linear.SVDLinear(layer, 1, 1.0, generator())
        measure = svd_linear.orthogonality(module)
    assert {(p.dtype, p.device.type) for p in module.parameters()} == {(torch.bfloat16, "cpu")}
    assert measure.device.type == "cpu"


@settings(max_examples=20)
@given(st.floats(0.1, 100), st.integers(1, 512))
def test_the_guarded_factor_is_lower_by_a_hundred_thousandth_of_the_rank(alpha, rank):
    ours = svd_linear.over_guarded_rank(alpha, rank)
    assert ours * (rank + 1e-5) == pytest.approx(alpha, rel=1e-15)
    assert ours < alpha / rank


@pytest.mark.parametrize("trained", [(), ("P",), ("E",), ("Q",), ("P", "E", "Q")])
def test_pruning_trains_what_was_trained(trained):
    module = stirred()
    for name in ("P", "E", "Q"):
        getattr(module, name).requires_grad_(name in trained)
    with torch.no_grad():
        module.E[1] = 0
    model = nn.Sequential(module)
    svd_linear.prune(model)
    assert model[0].A.requires_grad == ("Q" in trained)
    assert model[0].B.requires_grad == ("P" in trained or "E" in trained)


def test_an_empty_batch_gives_an_empty_result():
    assert stirred()(torch.empty(0, 5).double()).shape == (0, 4)


BAD = [
    (lambda: svd_linear.SVDLinear(linear(), 0, 1.0, generator()), "rank: "),
    (lambda: svd_linear.SVDLinear(linear(), 5, 1.0, generator()), "rank: must be at most 4"),
    (lambda: svd_linear.SVDLinear(linear(), 1, 0.0, generator()), "alpha: "),
    (lambda: svd_linear.SVDLinear(linear(), 1, float("nan"), generator()), "alpha: "),
    (lambda: svd_linear.SVDLinear(linear(), 1, 1.0, scale=lambda *_: 0.0), "scaling: "),
    (lambda: svd_linear.SVDLinear(nn.Embedding(2, 3), 1, 1.0, generator()), "layer: "),
    (lambda: stirred()(normal(2, 5).float()), "x: must be torch.float64"),
    (lambda: stirred()(normal(2, 1)), "x: must be \\["),
    (lambda: svd_linear.ranks(linear()), "model: "),
    (lambda: svd_linear.orthogonality(linear()), "model: "),
    (lambda: svd_linear.orthogonality_norm(linear()), "model: "),
    (lambda: svd_linear.prune(nn.Sequential(linear())), "where: "),
    (lambda: svd_linear.prune(stirred()), "where: "),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
