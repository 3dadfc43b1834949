"""Bytes that are alive: cases counted by hand, random programs, autograd, and a training step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel

from gradbook import live_memory, training_memory
from gradbook.live_memory import LiveBytes, total_bytes, training_step_peak

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
)
# The meta device has sizes without memory: the meter counts them all the same.
on_devices = pytest.mark.parametrize("device", ["cpu", "meta", CUDA])
LOSS = 4


def zeros(*shape, dtype=torch.float32, device="cpu", **options):
    return torch.zeros(shape, dtype=dtype, device=device, **options)


@on_devices
@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 2), (torch.bool, 1)],
)
def test_a_tensor_has_its_numbers_bytes(device, dtype, size):
    with LiveBytes() as meter:
        x = zeros(3, 5, dtype=dtype, device=device)
        assert meter.current == meter.peak == 15 * size
        del x
        assert meter.current == 0
    assert meter.peak == 15 * size


@on_devices
def test_views_share_a_storage(device):
    with LiveBytes() as meter:
        x = zeros(4, 6, device=device)
        row, turned, wide = x[0], x.mT, x.flatten().view(2, 12)
        parts = x.split(2)
        seen = x[None].expand(7, 4, 6).detach()
        assert meter.current == 96
        del x, turned, wide, parts, seen
        assert meter.current == 96
        del row
        assert meter.current == 0


@on_devices
def test_in_place_needs_nothing_and_out_of_place_a_copy(device):
    with LiveBytes() as meter:
        x = zeros(10, device=device)
        x.add_(1).mul_(2)
        x[3:] += 1
        torch._foreach_add_([x, x[:2]], 1.0)
        assert meter.peak == 40
        y = x + 1
        z = x.clone()
        assert meter.current == 120
        del x, y
        assert meter.current == 40
        del z


@on_devices
def test_what_an_operation_returns_counts_with_its_inputs(device):
    with LiveBytes() as meter:
        a, b = zeros(3, 5, device=device), zeros(5, 7, device=device)
        product = a @ b
        assert meter.current == 4 * (15 + 35 + 21)
        values, indices = product.max(1)
        assert meter.current == 4 * (15 + 35 + 21) + 3 * (4 + 8)
        del a, b, product, values, indices
        roots = torch._foreach_sqrt([zeros(2, device=device), zeros(3, device=device)])
        assert meter.current == 4 * 5
        del roots
    assert meter.current == 0
    assert meter.peak == 4 * (15 + 35 + 21) + 3 * (4 + 8)


def test_the_old_value_lives_until_the_new_one_is_there():
    with LiveBytes() as meter:
        x = zeros(10)
        for _ in range(50):
            x = x + 1
            assert meter.current == 40
    assert meter.peak == 80


def test_tensors_of_numbers_count():
    with LiveBytes() as meter:
        x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, device="cpu")
        assert meter.current == 24
        del x
        assert meter.current == 0


def test_a_part_keeps_the_whole_alive():
    with LiveBytes() as meter:
        row = zeros(100, 3)[0]
        assert meter.current == 1200
        row = row.clone()
        assert meter.current == 12
        del row


def test_a_storage_may_be_resized():
    with LiveBytes() as meter:
        x = zeros(4)
        x.resize_(10)
        assert meter.current == 40
        x.untyped_storage().resize_(0)
        x.detach()
        assert meter.current == 0
        del x
    assert meter.current == 0
    assert meter.peak == 40


@on_devices
def test_what_was_there_before_is_not_seen_unless_watched(device):
    old = zeros(10, device=device)
    with LiveBytes() as meter:
        old.add_(1)
        view = old[3:].view(7)
        assert meter.current == meter.peak == 0
        assert meter.watch([old]) == 40
        assert meter.watch([old, view, old[::2]]) == 0
        assert meter.current == meter.peak == 40
        new = zeros(2, device=device)
        assert meter.watch([new]) == 0
        assert meter.current == 48
    del old
    assert meter.current == 48
    del view
    assert meter.current == 8
    del new
    assert meter.current == 0
    assert meter.watch([]) == 0


def test_a_meter_can_be_entered_again():
    meter = LiveBytes()
    with meter:
        x = zeros(3)
    outside = zeros(5)
    with meter:
        y = zeros(4)
        assert meter.current == 28
    del x, y, outside
    assert meter.current == 0


@on_devices
def test_what_autograd_saves_is_alive(device):
    """tanh keeps its output, a square its input, a sum nothing."""
    x = zeros(10, device=device, requires_grad=True)
    with LiveBytes() as meter:
        y = x.tanh()
        y = y.square()
        assert meter.current == 80
        y = y.sum()
        assert meter.current == 40 + 4
        y.backward()
        assert meter.current == 4 + 40
        assert total_bytes([x.grad]) == 40
        del y
        x.grad = None
        assert meter.current == 0
    with LiveBytes() as meter, torch.no_grad():
        y = x.tanh().square().sum()
        assert meter.current == total_bytes([y]) == 4


def test_phases_have_their_own_peaks():
    old = zeros(100)
    meter = LiveBytes()
    meter.watch([old])
    with meter:
        with meter.phase("first"):
            x = zeros(10)
            with meter.phase("inner"):
                y = zeros(20)
            del y
        with meter.phase("second"):
            pass
        with meter.phase("second"):
            z = zeros(3)
        del x
        with meter.phase("inner"):
            pass
    assert meter.peaks == {"first": 520, "inner": 520, "second": 452}
    assert meter.current == 412
    del z
    with pytest.raises(ZeroDivisionError), meter.phase("broken"):
        _ = 1 / 0
    meter.watch([torch.zeros(1000, device="cpu")])
    assert meter.peaks["broken"] == 400


def test_devices_can_be_told_apart():
    with LiveBytes("meta") as meter:
        x, y = zeros(3, device="meta"), zeros(4)
        assert meter.current == 12
        assert meter.watch([x, y]) == 0
    with LiveBytes(torch.device("cpu")) as meter:
        z = zeros(5), zeros(6, device="meta")
        assert meter.current == 20
        assert meter.watch([x, y]) == 16
    assert LiveBytes("cuda:1").watch([x, y, *z]) == 0


def test_an_index_tells_devices_of_one_type_apart():
    first, second = (torch.device("cuda", i) for i in range(2))
    assert [live_memory._is_on(one, second) for one in (first, second)] == [False, True]
    assert live_memory._is_on(first, torch.device("cuda"))


def test_storages_can_be_rounded_up():
    with LiveBytes(granule=512) as meter:
        x = zeros(1), zeros(128), zeros(129), zeros(0)
        assert meter.current == 512 + 512 + 1024
        del x
        assert meter.current == 0


def alive(tensors):
    """A second count: by addresses."""
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(sizes.values())


ACTIONS = {
    "new": lambda tensors, i: tensors.append(zeros(i + 1)),
    "view": lambda tensors, i: tensors.append(tensors[i].view(-1)[:1]),
    "copy": lambda tensors, i: tensors.append(tensors[i].clone()),
    "sum": lambda tensors, i: tensors.append(tensors[i][:1] + tensors[0][:1]),
    "in place": lambda tensors, i: tensors[i].add_(1),
    "replace": lambda tensors, i: tensors.__setitem__(i, tensors[i] * 2),
    "drop": lambda tensors, i: tensors.pop(i) if len(tensors) > 1 else None,
}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(ACTIONS)), st.integers(0, 9)), max_size=30))
def test_random_programs(program):
    tensors, most = [], 0
    with LiveBytes() as meter:
        tensors.append(zeros(3))
        for action, i in program:
            ACTIONS[action](tensors, i % len(tensors))
            assert meter.current == alive(tensors)
            most = max(most, meter.current)
        assert meter.peak >= most
        tensors.clear()
        assert meter.current == 0


def test_total_bytes_counts_each_storage_once():
    x = zeros(10)
    assert total_bytes([x, x[2:], zeros(2)]) == 48
    assert total_bytes(iter([x.double(), x])) == 120
    assert total_bytes([]) == 0


def network(device="cpu", widths=(3, 5, 2), activation=nn.Tanh):
    first, second, third = widths
    options = {"dtype": torch.float32, "device": device}
    return nn.Sequential(
        nn.Linear(first, second, **options), activation(), nn.Linear(second, third, **options)
    )


def step(model, optimizer, rows=7, device="cpu"):
    x = torch.ones(rows, model[0].in_features, dtype=torch.float32, device=device)
    return training_step_peak(model, lambda: model(x).square().sum(), optimizer)


def numbers(model):
    return sum(p.numel() for p in model.parameters())


@on_devices
@pytest.mark.parametrize(("activation", "kept"), [(nn.Tanh, 1), (nn.GELU, 2), (nn.Identity, 1)])
def test_activations_of_a_network_by_hand(device, activation, kept):
    """tanh keeps its output, which is also what the second layer keeps; GELU keeps its input too.

    The square keeps the last output; the first layer's input was there before.
    """
    model = network(device, activation=activation)
    found = step(model, torch.optim.SGD(model.parameters()), 7, device)
    assert found.weights == found.gradients == 4 * (3 * 5 + 5 + 5 * 2 + 2)
    assert found.states == 0
    assert found.activations == 4 * 7 * (kept * 5 + 2) + LOSS


@on_devices
def test_a_step_of_plain_descent_by_hand(device):
    """Forward: hidden values before and after tanh. Step: weights, gradients and the loss."""
    model = network(device)
    found = step(model, torch.optim.SGD(model.parameters(), foreach=False), 7, device)
    assert found.peaks["step"] == found.weights + found.gradients + LOSS
    assert found.peaks["forward"] == found.weights + 4 * 7 * (5 + 5)
    assert found.peak == max(found.peaks.values())
    assert list(found.peaks) == ["forward", "backward", "step"]


@pytest.mark.parametrize("foreach", [False, True])
def test_adam_holds_sixteen_bytes_a_parameter(foreach):
    """And one float32 for each tensor: the number of its steps."""
    model = network(widths=(30, 50, 20))
    optimizer = torch.optim.Adam(model.parameters(), foreach=foreach)
    found = step(model, optimizer)
    n, tensors = numbers(model), len(list(model.parameters()))
    recipe = training_memory.model_states(n, training_memory.FLOAT32_ADAM)
    assert found.weights == recipe["weights"] == 4 * n
    assert found.gradients == recipe["gradients"] == 4 * n
    assert found.states == recipe["first moments"] + recipe["second moments"] + 4 * tensors
    assert found.weights + found.gradients + found.states == 16 * n + 4 * tensors
    assert found.peaks["step"] > 16 * n + 4 * tensors + LOSS


def test_foreach_needs_a_copy_of_the_moments_at_once():
    """The root of all second moments lives at once; one tensor after another needs less."""
    model = network(widths=(30, 50, 20))
    each, at_once = (
        step(model, torch.optim.Adam(model.parameters(), foreach=foreach)).peaks["step"]
        for foreach in (False, True)
    )
    held = 16 * numbers(model) + 4 * 4 + LOSS
    assert at_once >= held + 4 * numbers(model)
    assert each <= held + 3 * 4 * 30 * 50


def test_the_second_step_is_measured():
    """The first made the states, which do not grow any more."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    found = step(model, optimizer)
    assert {state["step"].item() for state in optimizer.state.values()} == {2}
    assert step(model, optimizer) == found


def test_gradients_from_before_are_dropped():
    model = network()
    model[0].weight.grad = torch.full_like(model[0].weight, 1e6)
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = step(model, optimizer)
    x = torch.ones(7, 3, dtype=torch.float32)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for p, before, gradient in zip(model.parameters(), start, expected, strict=True):
        assert torch.equal(p, before)
        torch.testing.assert_close(p.grad, gradient)
    assert found.gradients == found.weights


def test_frozen_weights_have_no_gradients_and_no_states():
    model = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    found = step(model, optimizer)
    assert found.weights == 4 * numbers(model)
    assert found.gradients == 4 * numbers(model[2])
    assert found.states == 8 * numbers(model[2]) + 2 * 4
    # tanh of frozen weights keeps nothing of its own; the second layer keeps its input.
    assert found.activations == 4 * 7 * (5 + 2) + LOSS


def test_tied_weights_count_once():
    model = network(widths=(4, 4, 4))
    model[2].weight = model[0].weight
    found = step(model, torch.optim.Adam(model.parameters()))
    assert found.weights == found.gradients == 4 * (16 + 4 + 4)
    assert found.states == 8 * (16 + 4 + 4) + 3 * 4


def test_what_the_loss_makes_is_an_activation():
    model = network()
    given = torch.ones(7, 3, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters())
    made = training_step_peak(
        model, lambda: model(torch.ones(7, 3, dtype=torch.float32)).square().sum(), optimizer
    )
    there = training_step_peak(model, lambda: model(given).square().sum(), optimizer)
    assert made.activations - there.activations == 4 * 7 * 3


def test_sizes_do_not_depend_on_the_device():
    """A network without memory has the same step as one with it."""
    found = []
    for device in ("cpu", "meta"):
        model = network(device, (30, 50, 20), nn.GELU)
        optimizer = torch.optim.Adam(model.parameters(), foreach=False)
        found.append(step(model, optimizer, 9, device))
    assert found[0] == found[1]


def test_a_tiny_bert():
    config = BertConfig(
        vocab_size=13,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
    )
    model = BertModel(config, add_pooling_layer=False).to("cpu", torch.float32)
    ids = torch.zeros(3, 5, dtype=torch.int64, device="cpu")
    optimizer = torch.optim.AdamW(model.parameters())
    found = training_step_peak(model, lambda: model(ids).last_hidden_state.mean(), optimizer)
    tensors = len(list(model.parameters()))
    assert found.weights == found.gradients == 4 * numbers(model)
    assert found.states == 8 * numbers(model) + 4 * tensors


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("foreach", [False, True])
def test_the_allocator_agrees(foreach):
    """The first step takes the libraries' own memory; Adam's step has the largest peak."""
    options = {"dtype": torch.float32, "device": "cuda", "bias": False}
    model = nn.Sequential(nn.Linear(256, 128, **options), nn.Tanh(), nn.Linear(128, 256, **options))
    optimizer = torch.optim.Adam(model.parameters(), foreach=foreach)
    x = torch.ones(4, 256, dtype=torch.float32, device="cuda")

    def train():
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()

    train()
    model.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with LiveBytes("cuda", granule=512) as meter:
        train()
    assert meter.peak == torch.cuda.max_memory_allocated() - before
    assert meter.current == torch.cuda.memory_allocated() - before


def sparse():
    return torch.eye(3, device="cpu").to_sparse()


MODEL = network()
DESCENT = torch.optim.SGD(MODEL.parameters())
X = torch.ones(2, 3, dtype=torch.float32, device="cpu")
BAD = [
    (lambda: LiveBytes(granule=0), "granule: "),
    (lambda: LiveBytes().watch([sparse()]), "tensors: must be strided"),
    (lambda: total_bytes([sparse()]), "tensors: must be strided"),
    (lambda: training_step_peak(MODEL, lambda: MODEL(X), DESCENT), "loss: "),
    (lambda: training_step_peak(MODEL, lambda: 3.0, DESCENT), "loss: "),
    (lambda: training_step_peak(MODEL, lambda: MODEL(X).sum().detach(), DESCENT), "loss: "),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
