"""VeRA: the formula, what is shared and frozen, the start, merging and unmerging, peft's results."""

import copy

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradbook.peft import vera
from gradbook.peft.injection import count, inject, matrix
from gradbook.peft.selection import named

WIDTH, LAYERS = 8, 2
QUERY_VALUE = named(r"encoder\.layer\.\d+\.attention\.self\.(query|value)")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def filled(layer):
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=i))
    return layer.requires_grad_(False)


def linear(inputs=5, outputs=4):
    return filled(nn.Linear(inputs, outputs, dtype=torch.float64))


def conv(inputs=5, outputs=4):
    return filled(Conv1D(outputs, inputs).double())


def drawn(outputs=4, inputs=5, rank=3, seed=0):
    return vera.projections(outputs, inputs, rank, generator(seed), torch.float64)


def stir(module, seed=0):
    with torch.no_grad():
        module.d.copy_(normal(len(module.d), seed=seed))
        module.b.copy_(normal(len(module.b), seed=seed + 1))
    return module


def stirred(make=linear, shared=None, seed=0):
    return stir(vera.VeRALinear(make(), shared or drawn()), seed)


def close(ours, theirs, tolerance=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def by_hand(module, x):
    a, b = module.A[:, :5], module.B[:4]
    added = torch.diag(module.b) @ b @ torch.diag(module.d) @ a
    return x @ (matrix(module.layer) + added).T + module.layer.bias


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("sizes", [(4, 5, 3), (4, 5, 9), (6, 7, 2)])
def test_value_and_gradients_are_those_of_the_formula(make, sizes):
    module, x = stirred(make, drawn(*sizes)), normal(2, 3, 5, seed=7).requires_grad_()
    cotangent = normal(2, 3, 4, seed=8)
    results = []
    for output in (module(x), by_hand(module, x)):
        slopes = torch.autograd.grad((output * cotangent).sum(), (module.d, module.b, x))
        results.append((output.detach(), *slopes))
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs, 1e-11)


def test_a_is_drawn_before_b():
    shared, draws = drawn(4, 5, 3), generator()
    for part, shape, bound in zip(shared, ((3, 5), (4, 3)), (6 / 5, 6 / 3), strict=True):
        expected = torch.rand(shape, generator=draws, dtype=torch.float64)
        close(part, bound**0.5 * (2 * expected - 1))


def test_the_start_is_the_layer_to_the_bit():
    layer, x = linear(), normal(6, 5, seed=3)
    module = vera.VeRALinear(layer, drawn())
    assert torch.equal(module(x), layer(x))
    assert module.d.tolist() == [0.1] * 3
    assert module.b.tolist() == [0.0] * 4
    assert vera.VeRALinear(layer, drawn(), 2.0).d.tolist() == [2.0] * 3


def test_at_the_start_b_has_a_gradient_and_d_has_none():
    module, x = vera.VeRALinear(linear(), drawn()), normal(6, 5, seed=3)
    d, b = torch.autograd.grad(module(x).square().sum(), (module.d, module.b))
    assert (d == 0).all()
    assert (b != 0).all()


def test_projections_are_uniform_within_hes_bounds():
    a, b = vera.projections(500, 100, 40, generator(), torch.float64)
    for values, bound in ((a, (6 / 100) ** 0.5), (b, (6 / 40) ** 0.5)):
        assert 0.99 * bound < values.abs().max() <= bound
        scaled = (values.flatten() / bound + 1) / 2
        assert stats.kstest(scaled.numpy(), "uniform").pvalue > stats.norm.sf(4.5)
        expected = nn.init.kaiming_uniform_(
            torch.empty_like(values), generator=generator(), nonlinearity="relu"
        )
        close(values.abs().max(), expected.abs().max(), 0.01)


def test_projections_come_from_the_generator_alone_and_are_frozen():
    state = torch.get_rng_state()
    one, two, other = drawn(), drawn(), drawn(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.A, two.A)
    assert torch.equal(one.B, two.B)
    assert not torch.equal(one.A, other.A)
    assert not any(part.requires_grad for part in one)
    single = vera.projections(4, 5, 3, generator())
    assert torch.equal(single.A, one.A.float())
    assert torch.equal(single.B, one.B.float())


@pytest.mark.parametrize("make", [linear, conv])
@settings(max_examples=15)
@given(rank=st.integers(1, 9), seed=st.integers(0, 1000))
def test_merging_keeps_the_outputs_and_unmerging_restores_the_weights(make, rank, seed):
    module, x = stirred(make, drawn(6, 7, rank), seed), normal(6, 5, seed=seed)
    before, weight = module(x), module.layer.weight.detach().clone()
    module.merge()
    assert torch.equal(module(x), module.layer(x))
    close(module(x), before, 1e-11)
    assert not torch.equal(module.layer.weight, weight)
    module.unmerge()
    close(module.layer.weight, weight)
    close(module(x), before, 1e-11)


def test_merging_twice_is_refused_and_changes_nothing():
    module = stirred()
    with pytest.raises(RuntimeError, match=r"^unmerge: "):
        module.unmerge()
    module.merge()
    weight = module.layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"^merge: "):
        module.merge()
    assert torch.equal(module.layer.weight, weight)


def added_to(model, where, shared):
    done = inject(model, where, lambda layer: vera.VeRALinear(layer, shared))
    return done, [module for module in model.modules() if isinstance(module, vera.VeRALinear)]


def test_all_layers_have_one_pair_that_is_counted_once_and_survives_a_move(plain):
    total = count(plain)[1]
    shared = drawn(WIDTH, WIDTH, 16)
    done, added = added_to(plain, QUERY_VALUE, shared)
    assert done.report.trainable == vera.vera_parameters(2 * LAYERS, WIDTH, 16)
    assert done.report.total == total + done.report.trainable + 2 * 16 * WIDTH
    plain.float()
    assert {id(m.A) for m in added} == {id(shared.A)}
    assert len({m.B.data_ptr() for m in added}) == 1
    copied = copy.deepcopy(plain)
    assert len({id(m.A) for m in copied.modules() if isinstance(m, vera.VeRALinear)}) == 1


def test_counts_are_those_of_the_paper():
    # RoBERTa base at rank 1024 and large at rank 256, queries and values; GPT-3 at rank 1.
    assert vera.vera_parameters(24, 768, 1024) == 43_008
    assert vera.vera_parameters(48, 1024, 256) == 61_440
    assert vera.vera_parameters(192, 12_288, 1) == 2_359_488


class Two(nn.Module):
    """Two layers of different sizes, for both of which one pair must do."""

    def __init__(self, make):
        super().__init__()
        self.first, self.second = make(5, 7), make(7, 4)

    def forward(self, x):
        return self.second(self.first(x).tanh())


@pytest.mark.parametrize("make", [linear, conv])
def test_outputs_gradients_and_merged_weights_are_those_of_peft(make):
    model = Two(make)
    config = peft.VeraConfig(
        r=3, target_modules=["first", "second"], fan_in_fan_out=make is conv, projection_prng_key=5
    )
    theirs = peft.get_peft_model(copy.deepcopy(model), config).double().eval()
    layers = [theirs.base_model.model.first, theirs.base_model.model.second]
    shared = drawn(7, 7, 3)
    done, added = added_to(model, named("first|second"), shared)
    # Their buffers do not count.
    assert theirs.get_nb_trainable_parameters()[0] == done.report.trainable == 2 * 3 + 7 + 4
    parts = []
    for i, (layer, module) in enumerate(zip(layers, added, strict=True)):
        layer.vera_A["default"], layer.vera_B["default"] = shared
        mine = layer.vera_lambda_d["default"], layer.vera_lambda_b["default"]
        close(mine[0], module.d, 1e-7)  # Theirs was a float32.
        close(mine[1], module.b)
        stir(module, i)
        with torch.no_grad():
            for one, two in zip(mine, (module.d, module.b), strict=True):
                one.copy_(two)
        parts += mine
    x, cotangent = normal(3, 5, seed=7).requires_grad_(), normal(3, 4, seed=8)
    outputs = model(x), theirs(x)
    close(*outputs)
    ours = [part for module in added for part in (module.d, module.b)]
    grads = [
        torch.autograd.grad((output * cotangent).sum(), (*wanted, x))
        for output, wanted in zip(outputs, (ours, parts), strict=True)
    ]
    for one, two in zip(*grads, strict=True):
        close(one, two)
    for layer, module in zip(layers, added, strict=True):
        layer.merge()
        module.merge()
        close(module.layer.weight, layer.base_layer.weight)


def test_the_bounds_are_those_of_peft():
    config = peft.VeraConfig(r=20, target_modules=["first", "second"])
    theirs = peft.get_peft_model(Two(lambda i, o: nn.Linear(100 * i, 100 * o)), config)
    layer = theirs.base_model.model.first
    ours = vera.projections(700, 700, 20, generator())
    for one, two in zip(ours, (layer.vera_A["default"], layer.vera_B["default"]), strict=True):
        assert one.shape == two.shape
        close(one.abs().max(), two.abs().max(), 0.01)


def test_training_moves_the_vectors_alone(plain, ids):
    shared = drawn(WIDTH, WIDTH)
    done, added = added_to(plain, QUERY_VALUE, shared)
    digest, before = done.digest(), [part.clone() for part in shared]
    optimizer = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        plain(ids)[..., 0].square().sum().backward()
        optimizer.step()
    assert done.digest() == digest
    assert all(torch.equal(part, old) for part, old in zip(shared, before, strict=True))
    for module in added:
        assert (module.b != 0).all()
        assert (module.d != 0.1).all()


def test_additions_have_the_type_and_device_of_the_layer():
    half = vera.projections(3, 2, 1, generator(), torch.bfloat16)
    module = vera.VeRALinear(nn.Linear(2, 3, dtype=torch.bfloat16), half)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    with torch.device("meta"):
        shared = vera.projections(3, 2, 1, generator())
        module = vera.VeRALinear(nn.Linear(2, 3, device="cpu"), shared)
    assert {p.device.type for p in module.parameters()} == {"cpu"}


def test_autocast_gives_the_type_of_the_layer():
    module, x = stirred().float(), normal(3, 5).float()
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x)
        assert output.dtype == module.layer(x).dtype == torch.bfloat16
    # Four roundings of eight bits.
    torch.testing.assert_close(output.float(), module(x), rtol=0.03, atol=0.1)


def test_an_empty_batch_gives_an_empty_result():
    assert stirred()(torch.empty(0, 5).double()).shape == (0, 4)


def made(shared, start=0.1):
    return vera.VeRALinear(linear(), shared, start)


def trained():
    return vera.Projections(*(nn.Parameter(part.clone()) for part in drawn()))


BAD = [
    (lambda: vera.projections(0, 5, 3, generator()), "outputs: "),
    (lambda: vera.projections(4, 0, 3, generator()), "inputs: "),
    (lambda: vera.projections(4, 5, 0, generator()), "rank: "),
    (lambda: vera.vera_parameters(0, 5, 3), "layers: "),
    (lambda: vera.vera_parameters(1, 0, 3), "outputs: "),
    (lambda: vera.vera_parameters(1, 5, 0), "rank: "),
    (lambda: vera.VeRALinear(nn.Embedding(2, 3), drawn()), "layer: must be linear"),
    (lambda: made(drawn(3, 5)), "shared: must have 5 inputs and 4 outputs"),
    (lambda: made(drawn(4, 4)), "shared: must have 5 inputs and 4 outputs"),
    (lambda: made(vera.Projections(drawn().A, drawn(rank=2).B)), "shared: must be \\["),
    (lambda: made(vera.Projections(drawn().A[0], drawn().B)), "shared: must be \\["),
    (lambda: made(vera.projections(4, 5, 3, generator())), "shared: must be torch.float64"),
    (lambda: made(trained()), "shared: must be frozen"),
    (lambda: made(vera.Projections(drawn().A.detach(), drawn().B)), "shared: must be frozen"),
    (lambda: made(drawn(), 0.0), "start: must not be zero"),
    (lambda: made(drawn(), float("nan")), "start: must be finite"),
    (lambda: stirred()(normal(2, 5).float()), "x: must be torch.float64"),
    (lambda: stirred()(normal(2, 1)), "x: must be \\["),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
