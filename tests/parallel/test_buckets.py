"""Buckets: how they are filled, in which order they are launched, and that this is during the pass."""

import threading

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradbook.parallel.buckets import Bucketed, InThread, buckets


@pytest.mark.skipif(
    not hasattr(dist, "_compute_bucket_assignment_by_size"), reason="torch without distributed"
)
@given(st.lists(st.integers(1, 50), max_size=12), st.integers(1, 120))
def test_buckets_are_those_of_pytorch(sizes, limit):
    found = buckets(sizes, limit)
    assert [i for group in found for i in group] == list(range(len(sizes)))
    if sizes:
        tensors = [torch.empty(size, dtype=torch.uint8) for size in sizes]
        theirs, _ = dist._compute_bucket_assignment_by_size(tensors, [limit])
        assert found == theirs


def test_a_bucket_closes_at_its_limit():
    assert buckets([4, 4, 4, 9, 1], 8) == [[0, 1], [2, 3], [4]]
    assert buckets([], 8) == []
    for limit in (0, -1, 1.0, True):
        with pytest.raises(ValueError, match="^limit: must be a positive integer, got "):
            buckets([1], limit)
    with pytest.raises(ValueError, match="^sizes: "):
        buckets([1, -1], 1)


class Recorder:
    """Doubles what it is given, but only when it is waited for."""

    def __init__(self):
        self.launched, self.waited = [], []

    def __call__(self, flat):
        self.launched.append(len(flat))

        def wait():
            self.waited.append(len(flat))
            flat.mul_(2)

        return wait


def three_layers():
    torch.manual_seed(0)
    sizes = (2, 3, 4, 1)
    layers = [nn.Linear(m, n) for m, n in zip(sizes[:-1], sizes[1:], strict=True)]
    return nn.Sequential(*layers).double()


def test_gradients_go_through_buckets_from_the_last_to_the_first():
    model, launch = three_layers(), Recorder()
    x = torch.ones(5, 2, dtype=torch.float64)
    model(x).sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    during = []
    model[1].weight.register_post_accumulate_grad_hook(lambda p: during.append(len(launch.waited)))
    with Bucketed(model.parameters(), 8 * 6, launch) as bucketed:
        # 1 + 4, 4 + 12, 3 + 6 numbers; six fill a bucket.
        assert bucketed.groups == [[5, 4, 3], [2], [1, 0]]
        for _ in range(2):
            model(x).sum().backward()
            assert launch.launched == [9, 12, 9]
            assert launch.waited == []
            bucketed.finish()
            assert launch.waited == [9, 12, 9]
            for parameter, before in zip(model.parameters(), plain, strict=True):
                assert torch.equal(parameter.grad, 2 * before)
            launch.launched.clear()
            launch.waited.clear()
            model.zero_grad()
    model(x).sum().backward()
    assert launch.launched == []


def test_a_bucket_is_launched_before_the_backward_pass_goes_on():
    model, launch, seen = three_layers(), Recorder(), []
    handle = model[1].register_full_backward_pre_hook(lambda *_: seen.append(launch.launched[:]))
    with handle, Bucketed(model.parameters(), 8, launch) as bucketed:
        model(torch.ones(1, 2, dtype=torch.float64, requires_grad=True)).sum().backward()
        bucketed.finish()
    assert sorted(seen[0]) == [1, 4]  # the last layer's two


def test_buckets_wait_for_earlier_ones():
    """The first parameter's gradient comes first here, and its bucket is the last."""
    first, last = (nn.Parameter(torch.ones(n, dtype=torch.float64)) for n in (2, 3))
    launch = Recorder()
    with Bucketed([first, last], 1, launch) as bucketed:
        assert bucketed.groups == [[1], [0]]
        (first.sum()).backward()
        assert launch.launched == []
        (last.sum()).backward()
        assert launch.launched == [3, 2]
        bucketed.finish()
        assert first.grad.tolist() == [2, 2]


def test_a_parameter_without_gradient_is_named():
    first, last = (nn.Parameter(torch.ones(n, dtype=torch.float64)) for n in (2, 3))
    with Bucketed([first, last], 1, Recorder()) as bucketed:
        last.sum().backward()
        with pytest.raises(RuntimeError, match="^parameters: number 0 got no gradient"):
            bucketed.finish()
        (first.sum() + last.sum()).backward()  # and nothing is left of that
        bucketed.finish()
        (first.sum() + last.sum()).backward()
        with pytest.raises(RuntimeError, match="^finish: must be called"):
            last.sum().backward()


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"requires_grad": False}, "number 1 must ask for a gradient"),
        ({"dtype": torch.float32}, "number 1 must be of number 0's type and device, got .*float32"),
        ({"device": "meta"}, "number 1 must be of number 0's type and device, got .*meta"),
    ],
)
def test_parameters_that_do_not_fit_are_named_before_a_hook_is_there(odd, message):
    kind = {"dtype": torch.float64, "device": "cpu", "requires_grad": True}
    first, second = (torch.ones(2, **(kind | more)) for more in ({}, odd))
    launch = Recorder()
    with pytest.raises(ValueError, match=f"^parameters: {message}"):
        Bucketed([first, second], 1, launch)
    first.sum().backward()
    assert launch.launched == []


def test_a_thread_reduces_one_after_the_other_while_others_go_on():
    gate, order = threading.Event(), []

    def slow(flat):
        assert gate.wait(10)
        order.append(len(flat))
        return flat.add_(1)

    with InThread(slow, 10.0) as launch:
        waits = [launch(torch.zeros(n)) for n in (3, 1, 2)]
        assert order == []
        gate.set()
        assert waits[2]().tolist() == [1, 1]
        assert order == [3, 1, 2]


def test_a_thread_hands_on_errors_and_ends():
    def wrong(flat):
        raise ArithmeticError("no")

    gate = threading.Event()
    with InThread(wrong, 10.0) as launch, pytest.raises(ArithmeticError, match="no"):
        launch(torch.zeros(1))()
    with InThread(lambda flat: gate.wait(10), 0.05) as launch:
        with pytest.raises(TimeoutError, match=r"^all-reduce: has not ended after 0\.05 s"):
            launch(torch.zeros(1))()
        gate.set()
    assert not [t for t in threading.enumerate() if t.name.startswith("all-reduce")]


def test_after_a_failed_all_reduce_no_other_is_begun():
    gate, begun = threading.Event(), []

    def wrong(flat):
        assert gate.wait(10)
        begun.append(len(flat))
        raise ArithmeticError(f"no {len(flat)}")

    with InThread(wrong, 10.0) as launch:
        waits = [launch(torch.zeros(n)) for n in (3, 1, 2)]
        gate.set()
        for wait in reversed(waits):
            with pytest.raises(ArithmeticError, match="no 3"):
                wait()
    assert begun == [3]
