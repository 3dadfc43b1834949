"""DoRA: norms without the product, the two gradients, merging and unmerging, and peft's results."""

import copy

import peft
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradbook.peft import dora
from gradbook.peft.injection import inject, matrix
from gradbook.peft.lora import over_root
from gradbook.peft.selection import named

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


def bare(inputs=5, outputs=4):
    return filled(nn.Linear(inputs, outputs, bias=False, dtype=torch.float64))


def conv(inputs=5, outputs=4):
    return filled(Conv1D(outputs, inputs).double())


def stirred(make=linear, rank=2, alpha=3.0, seed=0, **options):
    """A layer whose B is not zero and whose lengths are not those of W."""
    module = dora.DoRALinear(make(), rank, alpha, generator(seed), **options)
    with torch.no_grad():
        module.B.copy_(normal(*module.B.shape, seed=seed + 1))
        module.magnitude.mul_(normal(len(module.B), seed=seed + 2).exp())
    return module


def close(ours, theirs, tolerance=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def slopes(output, module, x, cotangent):
    wanted = (module.A, module.B, module.magnitude, x)
    return torch.autograd.grad((output * cotangent).sum(), wanted)


def by_hand(module, x, norms):
    """The paper's formula; ``norms`` takes the matrix V."""
    rows = matrix(module.layer) + module.scaling * module.B @ module.A
    output = x @ (module.magnitude / norms(rows) * rows.T)
    return output if module.layer.bias is None else output + module.layer.bias


@settings(max_examples=20)
@given(
    outputs=st.integers(1, 5),
    inputs=st.integers(1, 5),
    rank=st.integers(1, 4),
    scaling=st.floats(0.1, 8),
)
def test_norms_and_their_gradients_are_those_of_the_matrix(outputs, inputs, rank, scaling):
    shapes = ((outputs, inputs), (rank, inputs), (outputs, rank))
    parts = [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    weight, a, b = parts
    ours = dora.row_norms(weight, a, b, scaling)
    theirs = torch.linalg.norm(weight + scaling * b @ a, dim=1)
    # A row that nearly cancels loses digits: 1e-16 of the largest square, over the norm.
    assume(theirs.min() > 1e-2)
    close(ours, theirs, 1e-9)
    cotangent = normal(outputs, seed=9)
    both = [torch.autograd.grad((n * cotangent).sum(), parts) for n in (ours, theirs)]
    for one, other in zip(*both, strict=True):
        close(one, other, 1e-8)
    constant = dora.constant_norms(weight, a, b, scaling)
    assert torch.equal(constant, ours)
    assert not constant.requires_grad


def test_norms_of_halves_are_summed_in_single_precision():
    weight = torch.full((1, 4096), 16.0, dtype=torch.float16)
    a, b = torch.zeros(1, 4096, dtype=torch.float16), torch.zeros(1, 1, dtype=torch.float16)
    assert dora.row_norms(weight, a, b, 1.0).item() == 1024  # The square, 2^20, is no half.
    assert dora.row_norms(weight, a, b, 1.0).dtype == torch.float16


def test_products_of_halves_are_summed_in_single_precision_too():
    """Each of the two is 406 * 150 = 60900, a half; their sum is none."""
    half = {"dtype": torch.float16, "device": "cpu"}
    weight, b = torch.full((1, 2), 128.0, **half), torch.full((1, 2), 150.0, **half)
    norm = dora.row_norms(weight, torch.eye(2, **half), b, 1.0)
    assert norm.item() == torch.tensor(278 * 2**0.5, **half).item()


def test_rows_that_are_cancelled_have_norms_near_zero_and_not_nan():
    weight = normal(64, 5)
    identity = torch.eye(64, dtype=torch.float64, device="cpu")
    norms = dora.row_norms(weight, weight, -identity, 1.0)
    # Rounding of the squares leaves the root of 1e-16, on either side of zero.
    assert (norms < 1e-6).all()
    assert (norms == 0).any()
    assert (norms > 0).any()


@pytest.mark.parametrize("make", [linear, bare, conv])
def test_the_start_is_the_layer_up_to_rounding(make):
    layer, x = make(), normal(6, 5, seed=3)
    module = dora.DoRALinear(layer, 2, 16.0, generator())
    assert (module.factor() == 1).all()
    close(module.magnitude.detach(), matrix(layer).norm(dim=1), 1e-15)
    close(module(x), layer(x), 1e-14)
    assert module.scaling == 8.0
    assert dora.DoRALinear(layer, 4, 16.0, generator(), over_root).scaling == 8.0


def constant(rows):
    return rows.detach().norm(dim=1)


def full(rows):
    return rows.norm(dim=1)


@pytest.mark.parametrize("make", [linear, bare, conv])
@pytest.mark.parametrize(
    ("norms", "expected"), [(dora.constant_norms, constant), (dora.row_norms, full)]
)
def test_value_and_gradients_are_those_of_the_formula(make, norms, expected):
    module, x = stirred(make, norms=norms), normal(2, 3, 5, seed=7).requires_grad_()
    cotangent = normal(2, 3, 4, seed=8)
    ours, theirs = module(x), by_hand(module, x, expected)
    close(ours, theirs)
    both = [slopes(output, module, x, cotangent) for output in (ours, theirs)]
    for one, other in zip(*both, strict=True):
        close(one, other, 1e-11)


def test_a_constant_norm_adds_what_lies_along_the_rows_to_the_gradient():
    x, cotangent = normal(6, 5, seed=7).requires_grad_(), normal(6, 4, seed=8)
    found = {}
    for norms in (dora.constant_norms, dora.row_norms):
        module = stirred(norms=norms)
        found[norms] = slopes(module(x), module, x, cotangent)
    part, whole = found[dora.constant_norms], found[dora.row_norms]
    close(part[2:], whole[2:])
    rows = matrix(module.layer) + module.scaling * module.B @ module.A
    # The gradient of V along a row is m dm / n^2 times the row, dm being the slope of m.
    along = (module.magnitude * whole[2] / rows.square().sum(1))[:, None] * rows
    close(part[0] - whole[0], module.scaling * module.B.T @ along, 1e-11)
    close(part[1] - whole[1], module.scaling * along @ module.A.T, 1e-11)
    assert (part[1] - whole[1]).abs().max() > 0.1


class Holder(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.proj = layer

    def forward(self, x):
        return self.proj(x)


def theirs_of(module, rank, alpha):
    transposed = isinstance(module.layer, Conv1D)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_dora=True,
        target_modules=["proj"],
        fan_in_fan_out=transposed,
    )
    layer = peft.get_peft_model(Holder(copy.deepcopy(module.layer)), config).double().eval()
    layer = layer.base_model.model.proj
    parts = (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector)
    found = [part["default"].weight for part in parts]
    ours = (module.A, module.B, module.magnitude)
    with torch.no_grad():
        for one, other in zip(found, ours, strict=True):
            one.copy_(other)
    return layer, found


@pytest.mark.parametrize("make", [linear, bare, conv])
@pytest.mark.parametrize("rank", [1, 3])
def test_outputs_gradients_and_merged_weights_are_those_of_peft(make, rank):
    module, x = stirred(make, rank), normal(2, 3, 5, seed=7).requires_grad_()
    layer, parts = theirs_of(module, rank, 3.0)
    cotangent = normal(2, 3, 4, seed=8)
    ours, other = module(x), layer(x)
    close(ours, other)
    expected = torch.autograd.grad((other * cotangent).sum(), (*parts, x))
    for one, two in zip(slopes(ours, module, x, cotangent), expected, strict=True):
        close(one, two)
    before = layer.base_layer.weight.detach().clone()
    module.merge()
    layer.merge()
    close(module.layer.weight, layer.base_layer.weight)
    close(module(x), ours)
    module.unmerge()
    close(module.layer.weight, before)


def test_a_layer_that_is_refused_is_not_frozen():
    layer = with_row(0.0).requires_grad_(True)
    with pytest.raises(ValueError, match="^layer: "):
        dora.DoRALinear(layer, 1, 1.0)
    assert layer.weight.requires_grad
    assert layer.bias.requires_grad


def test_a_start_has_the_magnitudes_of_peft():
    module = dora.DoRALinear(conv(), 2, 1.0, generator())
    config = peft.LoraConfig(r=2, use_dora=True, target_modules=["proj"], fan_in_fan_out=True)
    model = peft.get_peft_model(Holder(conv()), config)
    theirs = model.base_model.model.proj.lora_magnitude_vector["default"].weight
    close(module.magnitude, theirs)


@pytest.mark.parametrize("make", [linear, conv])
@settings(max_examples=15)
@given(rank=st.integers(1, 4), alpha=st.floats(0.1, 8), seed=st.integers(0, 1000))
def test_merging_keeps_the_outputs_and_unmerging_restores_the_weights(make, rank, alpha, seed):
    module, x = stirred(make, rank, alpha, seed), normal(6, 5, seed=seed)
    before, weight = module(x), module.layer.weight.detach().clone()
    norms = dora.constant_norms(matrix(module.layer), module.A, module.B, module.scaling)
    module.merge()
    assert torch.equal(module(x), module.layer(x))
    # The sum loses digits where a row nearly cancels.
    tolerance = 1e-11 / min(1, norms.min().item()) * max(1, alpha)
    close(module(x), before, tolerance)
    lengths = matrix(module.layer).norm(dim=1)
    close(lengths, module.magnitude.detach().abs(), tolerance * lengths.max().item())
    module.unmerge()
    close(module.layer.weight, weight, tolerance)


def test_unmerging_restores_the_weights_although_the_lengths_moved():
    module = stirred()
    weight = module.layer.weight.detach().clone()
    module.merge()
    with torch.no_grad():
        module.magnitude.zero_()
    module.unmerge()
    close(module.layer.weight, weight)
    assert module.merged_factor is None


def test_merging_twice_is_refused_and_changes_nothing():
    module = stirred()
    with pytest.raises(RuntimeError, match=r"^unmerge: "):
        module.unmerge()
    module.merge()
    weight = module.layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"^merge: "):
        module.merge()
    assert torch.equal(module.layer.weight, weight)


@pytest.mark.parametrize("length", [0.0, float("inf"), float("nan")])
def test_a_merge_that_could_not_be_undone_is_refused_and_changes_nothing(length):
    module = stirred()
    with torch.no_grad():
        module.magnitude[1] = length
    weight = module.layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r"^magnitude: "):
        module.merge()
    assert not module.merged
    assert torch.equal(module.layer.weight, weight)


CASES = {"tiny_bert": (QUERY_VALUE, ["query", "value"]), "tiny_gpt2": (named(r".*\.c_attn"), None)}


@pytest.mark.parametrize("name", CASES)
def test_models_give_the_outputs_and_counts_of_peft(name, ids, request):
    model = request.getfixturevalue(name)
    where, targets = CASES[name]
    # A query's bias is zero in a new model; the test would not see what becomes of it.
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * normal(*parameter.shape, seed=i))
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        use_dora=True,
        target_modules=targets or ["c_attn"],
        fan_in_fan_out=targets is None,
    )
    theirs = peft.get_peft_model(copy.deepcopy(model), config).double()
    draws = generator(4)
    done = inject(model, where, lambda layer: dora.DoRALinear(layer, 3, 5.0, draws))
    added = [module for module in model.modules() if isinstance(module, dora.DoRALinear)]
    assert theirs.get_nb_trainable_parameters() == done.report[:2]
    layers = [m for m in theirs.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    with torch.no_grad():
        for i, (layer, module) in enumerate(zip(layers, added, strict=True)):
            module.B.copy_(normal(*module.B.shape, seed=i))
            module.magnitude.mul_(1.5)
            layer.lora_A["default"].weight.copy_(module.A)
            layer.lora_B["default"].weight.copy_(module.B)
            layer.lora_magnitude_vector["default"].weight.copy_(module.magnitude)
    close(model(ids)[0], theirs(ids)[0], 1e-10)


def test_gpt2_gets_the_lengths_beside_lora():
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    done = inject(model, named(r".*\.c_attn"), lambda m: dora.DoRALinear(m, 8, 8.0, generator()))
    assert done.report.trainable == 294_912 + 12 * 2304 == 322_560


def test_training_moves_what_was_added_alone(plain, ids):
    done = inject(plain, QUERY_VALUE, lambda m: dora.DoRALinear(m, 3, 5.0, generator()))
    module = next(m for m in plain.modules() if isinstance(m, dora.DoRALinear))
    with torch.no_grad():
        module.B.copy_(normal(*module.B.shape))
    digest, parts = done.digest(), (module.A, module.B, module.magnitude)
    before = [part.detach().clone() for part in parts]
    optimizer = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], 0.1)
    plain(ids)[..., 0].square().sum().backward()
    optimizer.step()
    assert done.digest() == digest
    assert not any(torch.equal(part, old) for part, old in zip(parts, before, strict=True))


def test_weights_that_are_loaded_later_are_what_the_norms_are_of():
    module, other = stirred(), dora.DoRALinear(filled(nn.Linear(5, 4)).double(), 2, 3.0)
    x = normal(3, 5)
    with torch.no_grad():
        module.layer.weight.mul_(2.0)
    other.load_state_dict(module.state_dict())
    close(other(x), module(x))
    close(module(x), by_hand(module, x, full))


def test_additions_have_the_type_and_device_of_the_layer():
    half = dora.DoRALinear(nn.Linear(2, 3, dtype=torch.bfloat16), 1, 1.0, generator())
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    with torch.device("meta"):
        module = dora.DoRALinear(nn.Linear(2, 3, device="cpu"), 1, 1.0, generator())
    assert {p.device.type for p in module.parameters()} == {"cpu"}
    meta = dora.DoRALinear(nn.Linear(2, 3, device="meta"), 1, 1.0, generator())
    assert {p.device.type for p in meta.parameters()} == {"meta"}


@pytest.mark.parametrize("make", [linear, bare])
def test_autocast_gives_the_type_of_the_layer(make):
    module, x = stirred(make).float(), normal(3, 5).float()
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x)
        assert output.dtype == module.layer(x).dtype == torch.bfloat16
    # Four roundings of eight bits.
    torch.testing.assert_close(output.float(), module(x), rtol=0.03, atol=0.1)


def test_an_empty_batch_gives_an_empty_result():
    assert stirred()(torch.empty(0, 5).double()).shape == (0, 4)


def with_row(value):
    layer = linear()
    with torch.no_grad():
        layer.weight[2] = value
    return layer


BAD = [
    (lambda: dora.DoRALinear(linear(), 0, 1.0), "rank: "),
    (lambda: dora.DoRALinear(linear(), 5, 1.0), "rank: "),
    (lambda: dora.DoRALinear(linear(), 1, 0.0), "alpha: "),
    (lambda: dora.DoRALinear(nn.Embedding(2, 3), 1, 1.0), "layer: must be linear"),
    (lambda: dora.DoRALinear(with_row(0.0), 1, 1.0), "layer: must have rows of"),
    (lambda: dora.DoRALinear(with_row(float("nan")), 1, 1.0), "layer: must have rows of"),
    (lambda: dora.DoRALinear(with_row(float("inf")), 1, 1.0), "layer: must have rows of"),
    (lambda: stirred()(normal(2, 5).float()), "x: must be torch.float64"),
    (lambda: stirred()(normal(2, 1)), "x: must be \\["),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
