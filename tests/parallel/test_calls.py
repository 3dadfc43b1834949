"""What a rank may call, and how two calls are told apart."""

import math

import pytest
import torch

from gradbook.parallel.calls import (
    Call,
    calls_of,
    described,
    fingerprint,
    finish_,
    pieces,
    require_call,
    require_timeout,
    require_world,
    write_,
)
from gradbook.parallel.schedules import COPY, REDUCE, recursive_doubling, ring


def test_a_fingerprint_sees_whatever_matters():
    numbers = torch.zeros(4)
    call = Call(ring(2), numbers, "sum")
    same = Call(ring(2), torch.ones(4), "sum")
    assert fingerprint(call, 3) == fingerprint(same, 3)
    turned = ring(2)._replace(transfers=ring(2).transfers[:1])
    others = [
        Call(recursive_doubling(2), numbers, "sum"),
        Call(turned, numbers, "sum"),
        Call(ring(2), numbers[:3], "sum"),
        Call(ring(2), numbers.view(2, 2), "sum"),
        Call(ring(2), numbers.double(), "sum"),
        Call(ring(2), numbers, "max"),
    ]
    seen = {fingerprint(other, 3) for other in others} | {fingerprint(call, 4)}
    assert len(seen) == 7
    assert fingerprint(call, 3) not in seen
    assert described(call) == "ring (2 ranks, 2 chunks): sum of float32 [4]"


def test_bad_calls_are_refused_and_name_the_rank():
    good = [torch.zeros(4) for _ in range(3)]
    for bad, why in (
        (torch.zeros(5), "rank 1 .*shape"),
        (torch.zeros(4).double(), "rank 1 .*type"),
        (torch.zeros(4, requires_grad=True), "rank 1 .*gradient"),
        (torch.zeros(8)[::2], "rank 1 .*contiguous"),
        (torch.zeros(4, device="meta"), "rank 1 .*CPU"),
    ):
        with pytest.raises(ValueError, match=why):
            calls_of(ring(3), [good[0], bad, good[2]], "sum")
    for bad in (torch.zeros(4, requires_grad=True), torch.zeros(8)[::2]):
        with pytest.raises(ValueError, match="rank 2 must"):
            require_call(Call(ring(3), bad), 2)
    with pytest.raises(ValueError, match="must be 3"):
        calls_of(ring(3), good[:2], "sum")
    with pytest.raises(ValueError, match="^reduction: "):
        calls_of(ring(3), good, "product")
    with pytest.raises(ValueError, match="mean"):
        calls_of(ring(3), [t.long() for t in good], "mean")
    for dtype in (torch.bool, torch.complex64):
        with pytest.raises(ValueError, match="real numbers"):
            calls_of(ring(3), [t.to(dtype) for t in good], "sum")


def test_schedules_are_refused_before_the_tensors():
    for bad, why in (
        (ring(2)._replace(world_size=0), "^world_size: "),
        (ring(2)._replace(transfers=ring(2).transfers[2:]), "^transfers: "),
    ):
        with pytest.raises(ValueError, match=why):
            calls_of(bad, [], "sum")
    require_world(ring(3), 3)
    with pytest.raises(ValueError, match="^schedule: must be of 2 ranks, got 3$"):
        require_world(ring(3), 2)


def test_a_timeout_is_a_finite_number_above_zero():
    for good in (1, 0.001, 1e6):
        require_timeout(good)
    for bad in (0, -1, math.inf, math.nan, True, "1", None):
        with pytest.raises(ValueError, match="^timeout: must be a finite number"):
            require_timeout(bad)


def test_chunks_are_written_as_the_transfer_says():
    results = []
    for op, reduction in ((REDUCE, "sum"), (REDUCE, "mean"), (REDUCE, "max"), (REDUCE, "min")):
        own = torch.tensor([1.0, 5.0])
        write_(own, torch.tensor([3.0, 4.0]), op, reduction)
        results.append(own.tolist())
    assert results == [[4, 9], [4, 9], [3, 5], [1, 4]]
    own = torch.zeros(2)
    write_(own, torch.tensor([3.0, 4.0]), COPY, "max")
    assert own.tolist() == [3, 4]


def test_a_mean_is_divided_at_the_end():
    for reduction, right in (("mean", [1, 2]), ("sum", [3, 6])):
        flat = torch.tensor([3.0, 6.0])
        finish_(flat, reduction, 3)
        assert flat.tolist() == right


def test_chunks_are_views():
    flat = torch.zeros(7)
    chunks = pieces(flat, 3)
    assert [len(chunk) for chunk in chunks] == [3, 2, 2]
    chunks[1].fill_(1.0)
    assert flat.tolist() == [0, 0, 0, 1, 1, 0, 0]
