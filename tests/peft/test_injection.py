"""Injection: what is replaced, what is trained, what stays frozen to the bit, and the way back."""

import copy
import hashlib

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers.pytorch_utils import Conv1D

from gradbook.peft import injection
from gradbook.peft.selection import named

ATTENTION = r"(.*\.)?encoder\.layer\.\d+\.attention\.self\.(query|value)"


class Shifted(nn.Module):
    """A layer, and a learnt number added to its output."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, *inputs):
        return self.layer(*inputs) + self.shift


def linear(inputs=3, outputs=2, seed=0):
    layer = nn.Linear(inputs, outputs, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    return layer


def tensors(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def flags(model):
    return [(name, p.requires_grad) for name, p in model.named_parameters(remove_duplicate=False)]


def step(model, loss, rate=0.1):
    """One step of SGD on what is trained."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], rate)
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def test_matching_modules_are_wrapped_and_reported(plain):
    originals = dict(plain.named_modules())
    done = injection.inject(plain, named(ATTENTION), Shifted)
    names = tuple(
        f"encoder.layer.{i}.attention.self.{part}" for i in (0, 1) for part in ("query", "value")
    )
    assert done.report.layers == names
    for name in names:
        wrapper = plain.get_submodule(name)
        assert isinstance(wrapper, Shifted)
        assert wrapper.layer is originals[name]
    assert sum(isinstance(module, Shifted) for module in plain.modules()) == 4


def test_additions_alone_are_trainable_and_counted(plain, ids):
    before = sum(p.numel() for p in plain.parameters())
    done = injection.inject(plain, named(ATTENTION), Shifted)
    assert done.report[:2] == (4, before + 4) == injection.count(plain)
    plain(ids).square().sum().backward()
    for name, parameter in plain.named_parameters():
        added = name.endswith("shift")
        assert parameter.requires_grad == added
        assert (parameter.grad is not None) == added


def test_the_outermost_match_is_replaced_and_not_looked_into(plain):
    asked = []

    def where(name, module):
        asked.append(name)
        return name in ("encoder.layer.0.attention", "encoder.layer.0.attention.self")

    done = injection.inject(plain, where, Shifted)
    assert done.report.layers == ("encoder.layer.0.attention",)
    assert not any(name.startswith("encoder.layer.0.attention.") for name in asked)
    assert "" not in asked
    assert "encoder.layer.1.attention.self.query" in asked


def test_places_are_those_that_are_replaced_and_name_a_shared_module_twice(plain):
    layers = plain.encoder["layer"]
    layers[1].attention["self"] = layers[0].attention["self"]
    before = list(plain.named_modules(remove_duplicate=False))
    where = named(r".*\.attention(\.self)?(\.key)?|.*\.intermediate\.dense")
    found = injection.places(plain, where)
    assert [place.name for place in found] == [
        f"encoder.layer.{i}.{part}" for i in (0, 1) for part in ("attention", "intermediate.dense")
    ]
    for place in found:
        assert place.parent.get_submodule(place.key) is plain.get_submodule(place.name)
        assert place.module is plain.get_submodule(place.name)
    assert list(plain.named_modules(remove_duplicate=False)) == before
    shared = injection.places(plain, named(r".*\.self"))
    assert [place.name for place in shared] == [f"encoder.layer.{i}.attention.self" for i in (0, 1)]
    assert shared[0].module is shared[1].module
    done = injection.inject(plain, where, Shifted)
    assert done.report.layers == tuple(place.name for place in found)
    with pytest.raises(ValueError, match="^where: holds for no module"):
        injection.places(plain, lambda name, module: False)


def test_a_training_step_moves_no_frozen_bit(tiny_bert, ids):
    done = injection.inject(tiny_bert, named(ATTENTION), Shifted)
    frozen = {name: t.clone() for name, t in tensors(tiny_bert).items() if not t.requires_grad}
    digest = done.digest()
    for _ in range(2):
        step(tiny_bert, lambda: tiny_bert(ids).last_hidden_state[:, :, 0].sum())
    assert done.digest() == digest
    after = tensors(tiny_bert)
    assert all(torch.equal(after[name], old) for name, old in frozen.items())
    # A shift of all queries or all values of a head does move something here.
    assert any((p != 0).item() for name, p in tiny_bert.named_parameters() if "shift" in name)


def test_every_tensor_that_was_there_counts_in_the_digest(plain):
    """One number at a time is moved by one unit in the last place, and put back."""
    plain.register_buffer("seen", torch.tensor([3, 4]))
    plain.register_buffer("unsaved", torch.tensor(True), persistent=False)
    done = injection.inject(plain, named(ATTENTION), Shifted)
    digest = done.digest()
    looked_at = 0
    for tensor in tensors(plain).values():
        old = tensor.detach().clone()
        with torch.no_grad():
            flat = tensor.view(-1)
            if tensor.is_floating_point():
                flat[-1] = torch.nextafter(flat[-1], torch.tensor(torch.inf).double())
            else:
                flat[-1] = 1 - flat[-1].long()
        assert (done.digest() != digest) == (not tensor.requires_grad)
        tensor.detach().copy_(old)
        looked_at += 1
    assert done.digest() == digest
    assert looked_at == 1 + 2 * 16 + 4 + 2


def test_the_digest_is_that_of_types_shapes_and_bytes():
    model = nn.Sequential(linear())
    model.register_buffer("brief", torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
    model.register_buffer("empty", torch.empty(0, 3))
    done = injection.inject(model, named("0"), Shifted)
    expected = hashlib.sha256()
    expected.update(b"torch.bfloat16 (2,) " + bytes([0xC0, 0x3F, 0x00, 0xC0]))
    expected.update(b"torch.float32 (0, 3) ")
    layer = model[0].layer
    expected.update(b"torch.float64 (2, 3) " + layer.weight.detach().numpy().tobytes())
    expected.update(b"torch.float64 (2,) " + layer.bias.detach().numpy().tobytes())
    assert done.digest() == expected.hexdigest()


def test_the_digest_tells_shapes_and_types_apart():
    values = torch.arange(6.0)
    views = [values, values.view(2, 3), values.view(3, 2), values.view(torch.int32)]
    digests = set()
    for view in views:
        model = nn.Sequential(nn.Identity())
        model.register_buffer("values", view)
        digests.add(injection.inject(model, named("0"), nn.Sequential).digest())
    assert len(digests) == len(views)


def test_the_digest_reads_values_not_memory(plain):
    """A transposed copy holds other bytes in memory and the same values."""
    done = injection.inject(plain, named(ATTENTION), Shifted)
    digest = done.digest()
    weight = plain.encoder["layer"][0].intermediate["dense"].weight
    weight.data = weight.data.T.contiguous().T
    assert not weight.is_contiguous()
    assert done.digest() == digest


def test_a_number_that_was_cut_out_of_a_row_is_digested(plain):
    found = []
    for value in (torch.ones(8, 8)[:1, 0], torch.ones(1)):
        model = copy.deepcopy(plain)
        model.register_buffer("cut", value)
        found.append(
            injection.inject(
                model, lambda name, m: isinstance(m, nn.Linear), copy.deepcopy
            ).digest()
        )
    assert found[0] == found[1]


def test_the_digest_follows_a_buffer_that_is_exchanged(plain):
    plain.register_buffer("seen", torch.tensor([3, 4]))
    done = injection.inject(plain, named(ATTENTION), Shifted)
    digest = done.digest()
    plain.seen = torch.tensor([3, 4])
    assert done.digest() == digest
    plain.seen = torch.tensor([4, 3])
    assert done.digest() != digest


def test_what_is_trained_again_leaves_the_digest(plain):
    done = injection.inject(plain, named(ATTENTION), Shifted)
    digest = done.digest()
    norm = plain.encoder["layer"][0].output.LayerNorm
    norm.requires_grad_(True)
    without = done.digest()
    assert without != digest
    norm.weight.detach().add_(1)
    assert done.digest() == without


@pytest.mark.parametrize("model", ["plain", "tiny_bert", "tiny_gpt2"])
def test_undo_restores_modules_flags_and_answers(model, ids, request):
    model = request.getfixturevalue(model)
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 != 1)
    before, were = list(model.named_modules(remove_duplicate=False)), flags(model)
    answer = model(ids)[0].detach()
    done = injection.inject(model, lambda _, m: isinstance(m, (nn.Linear, Conv1D)), Shifted)
    assert flags(model) != were
    done.undo()
    assert list(model.named_modules(remove_duplicate=False)) == before
    assert flags(model) == were
    assert torch.equal(model(ids)[0], answer)


def test_undo_keeps_the_values_as_they_are(plain):
    done = injection.inject(plain, named(ATTENTION), Shifted)
    weight = plain.embeddings.weight
    weight.detach().fill_(3)
    done.undo()
    assert plain.embeddings.weight is weight
    assert (weight == 3).all()


def test_a_second_injection_freezes_the_first_and_reverse_order_restores(plain, ids):
    before, were = list(plain.named_modules()), flags(plain)
    first = injection.inject(plain, named(ATTENTION), Shifted)
    between, were_between = list(plain.named_modules()), flags(plain)
    second = injection.inject(plain, named(ATTENTION), Shifted)
    assert second.report.trainable == 4
    assert second.report.total == first.report.total + 4
    inner = plain.encoder["layer"][0].attention["self"].query.layer
    assert isinstance(inner, Shifted)
    assert not inner.shift.requires_grad
    ours, theirs = first.digest(), second.digest()
    step(plain, lambda: plain(ids)[:, :, 0].sum())
    assert (first.digest(), second.digest()) == (ours, theirs)
    inner.shift.detach().add_(1)
    assert first.digest() == ours
    assert second.digest() != theirs
    second.undo()
    assert list(plain.named_modules()) == between
    assert flags(plain) == were_between
    first.undo()
    assert list(plain.named_modules()) == before
    assert flags(plain) == were


@pytest.mark.parametrize("part", ["query", "key"])
def test_undo_refuses_another_order_and_a_second_time(plain, part):
    """Also where the two injections replaced different modules."""
    first = injection.inject(plain, named(r".*\.query"), Shifted)
    second = injection.inject(plain, named(rf".*\.{part}"), Shifted)
    modules, were = list(plain.named_modules()), flags(plain)
    with pytest.raises(RuntimeError, match=r"^undo: "):
        first.undo()
    assert list(plain.named_modules()) == modules
    assert flags(plain) == were
    second.undo()
    first.undo()
    with pytest.raises(RuntimeError, match=r"^undo: "):
        first.undo()


def test_a_shared_module_is_made_once_and_undone_in_all_its_places():
    shared = linear(3, 3)
    model = nn.ModuleDict({"one": shared, "two": shared, "three": linear(3, 3, seed=1)})
    done = injection.inject(model, lambda name, _: True, Shifted)
    assert model["one"] is model["two"]
    assert model["one"] is not model["three"]
    assert done.report == (2, 2 * 12 + 2, ("one", "two", "three"))
    done.undo()
    assert model["one"] is model["two"] is shared


def test_a_shared_module_may_be_replaced_in_one_place():
    shared = linear(3, 3)
    model = nn.ModuleDict({"one": shared, "two": shared})
    done = injection.inject(model, named("two"), Shifted)
    assert model["one"] is shared is model["two"].layer
    assert done.report == (1, 13, ("two",))


def test_tied_embeddings_count_once(tiny_gpt2):
    width, inner, vocabulary, positions = 8, 12, 17, 16
    linears = width * 3 * width + 3 * width + width * width + width
    linears += 2 * width * inner + inner + width
    expected = (vocabulary + positions) * width + 2 * (4 * width + linears) + 2 * width
    assert tiny_gpt2.lm_head.weight is tiny_gpt2.transformer.wte.weight
    assert injection.count(tiny_gpt2) == (expected, expected)
    tiny_gpt2.lm_head.requires_grad_(False)
    assert injection.count(tiny_gpt2) == (expected - vocabulary * width, expected)


def test_a_tied_tensor_is_digested_once_and_its_flag_comes_back(tiny_gpt2):
    done = injection.inject(tiny_gpt2, named(r".*\.c_attn"), Shifted)
    separate = copy.deepcopy(tiny_gpt2)
    tied = done.digest()
    tiny_gpt2.lm_head.weight = nn.Parameter(
        separate.lm_head.weight.detach().clone(), requires_grad=False
    )
    assert done.digest() != tied
    tiny_gpt2.lm_head.weight = tiny_gpt2.transformer.wte.weight
    assert done.digest() == tied
    done.undo()
    assert tiny_gpt2.lm_head.weight.requires_grad


def test_layers_of_gpt2_are_found_by_name(tiny_gpt2, ids):
    done = injection.inject(tiny_gpt2, named(r"transformer\.h\.\d+\.attn\.c_attn"), Shifted)
    assert done.report.layers == ("transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn")
    assert isinstance(tiny_gpt2.transformer.h[1].attn.c_attn.layer, Conv1D)
    digest = done.digest()
    step(tiny_gpt2, lambda: tiny_gpt2(ids).logits[..., 0].sum())
    assert done.digest() == digest
    assert (tiny_gpt2.transformer.h[0].attn.c_attn.shift != 0).item()


def test_additions_start_in_the_mode_of_what_they_replace():
    model = nn.Sequential(linear(), linear(2, 2)).eval()
    model[1].train()
    injection.inject(model, lambda name, _: True, lambda m: nn.Sequential(m, nn.Dropout(0.5)))
    assert [module.training for module in model[0]] == [False, False]
    assert [module.training for module in model[1]] == [True, True]
    assert (model[0].training, model[1].training) == (False, True)


def test_what_make_freezes_stays_frozen():
    model = nn.Sequential(linear())
    done = injection.inject(model, named("0"), lambda m: Shifted(m).requires_grad_(False))
    assert done.report == (0, 9, ("0",))


@pytest.mark.parametrize("failing", [False, True])
def test_a_refused_make_leaves_the_model_alone(plain, failing):
    calls = []

    def make(module):
        calls.append(module)
        if len(calls) == 3 and failing:
            raise KeyError("not this one")
        return Shifted(module) if len(calls) < 3 else "no module"

    modules, were = list(plain.named_modules()), flags(plain)
    with pytest.raises(KeyError if failing else ValueError, match="not this one|^make: "):
        injection.inject(plain, named(ATTENTION), make)
    assert list(plain.named_modules()) == modules
    assert flags(plain) == were


class Freezing(nn.Module):
    """Freezes the layer that it is given, as LoRA does."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer.requires_grad_(False)


@pytest.mark.parametrize("failing", [False, True])
def test_a_refused_make_that_froze_layers_has_them_trained_again(plain, failing):
    for i, parameter in enumerate(plain.parameters()):
        parameter.requires_grad_(i % 3 != 1)
    calls = []

    def make(module):
        calls.append(Freezing(module))
        if len(calls) == 3 and failing:
            raise KeyError("not this one")
        return calls[-1] if len(calls) < 3 else "no module"

    modules, were = list(plain.named_modules()), flags(plain)
    with pytest.raises(KeyError if failing else ValueError, match="not this one|^make: "):
        injection.inject(plain, named(ATTENTION), make)
    assert list(plain.named_modules()) == modules
    assert flags(plain) == were


def test_nothing_found_is_refused_and_freezes_nothing(plain):
    were = flags(plain)
    with pytest.raises(ValueError, match=r"^where: "):
        injection.inject(plain, named("nothing"), Shifted)
    assert flags(plain) == were
    with pytest.raises(ValueError, match=r"^where: "):
        injection.inject(linear(), lambda name, _: True, Shifted)


@pytest.mark.parametrize("layer", [linear(5, 3), Conv1D(3, 5).double()])
def test_matrix_is_the_map_and_a_view(layer):
    weight = injection.matrix(layer)
    x = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(layer(x) - layer.bias, weight.T, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        weight.zero_()
    assert (layer.weight == 0).all()


def test_input_of_another_type_is_taken_inside_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        injection.require_input(torch.ones(2, 3), linear())


BAD = [
    (lambda: injection.matrix(nn.Conv1d(2, 3, 1)), "layer: must be linear"),
    (lambda: injection.matrix(nn.Embedding(2, 3)), "layer: must be linear"),
    (lambda: injection.matrix(quantized()), "layer: must have floating"),
    (lambda: injection.matrix(Doubled(5, 3)), "layer: must be linear, got Doubled"),
    (lambda: injection.matrix(doubled_conv()), "layer: must be linear, got Conv1D"),
    (
        lambda: injection.matrix(computed(linear(), nn.utils.parametrizations.weight_norm)),
        "layer: must hold its weights itself",
    ),
    (
        lambda: injection.matrix(computed(linear(), nn.utils.parametrizations.spectral_norm)),
        "layer: must hold its weights itself",
    ),
    (
        lambda: injection.matrix(
            computed(
                linear(),
                lambda layer: parametrize.register_parametrization(layer, "bias", Doubling()),
            )
        ),
        "layer: must hold its weights itself",
    ),
    (lambda: injection.matrix(computed(linear(), pruned)), "layer: must hold its weights itself"),
    (
        lambda: injection.require_input(torch.ones(2, 1).double(), linear()),
        "x: must be \\[\\.\\.\\., 3",
    ),
    (
        lambda: injection.require_input(torch.tensor(1.0).double(), linear()),
        "x: must be \\[\\.\\.\\., 3",
    ),
    (lambda: injection.require_input(torch.ones(2, 3), linear()), "x: must be torch.float64"),
]


def computed(layer, wrap):
    wrap(layer)
    return layer


def pruned(layer):
    prune.identity(layer, "weight")


class Doubling(nn.Module):
    def forward(self, bias):
        return 2 * bias


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Renamed(nn.Linear):
    """Does what a linear layer does."""


def doubled_conv():
    kind = type("Conv1D", (Conv1D,), {"forward": lambda self, x: 2 * Conv1D.forward(self, x)})
    return kind(3, 5)


def test_a_class_with_the_same_forward_pass_is_taken():
    layer = Renamed(5, 3)
    assert injection.matrix(layer) is layer.weight


def quantized():
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.uint8), requires_grad=False)
    return layer


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
