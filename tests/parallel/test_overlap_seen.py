"""All-reduces end while a backward pass is held up for them."""

import threading
from types import SimpleNamespace

import pytest
import torch

from gradbook import normal_vae
from gradbook.parallel import overlap_seen
from gradbook.parallel.backends import Group
from gradbook.parallel.data_parallel import Batch
from gradbook.parallel.overlap_seen import order_of_overlap
from gradbook.parallel.trainers import Job, room


def a_job():
    generator = torch.Generator().manual_seed(0)
    kind = {"generator": generator, "dtype": torch.float64}
    model = normal_vae.build(10, 3, 8, generator).double()
    batch = Batch(torch.rand(4, 10, **kind).round(), torch.randn(4, 3, **kind))
    return Job(model, (batch,), (2, 2))


def a_member(size, run, timeout=10.0):
    return SimpleNamespace(rank=0, world_size=size, timeout=timeout, run=run)


def bytes_of_decoder(job):
    return sum(parameter.nbytes for parameter in job.model.decoder.parameters())


def test_the_first_bucket_is_reduced_during_the_backward_pass():
    # The decoder's output layer, 80 + 10 numbers, is 720 bytes; the next bucket ends in the encoder.
    with Group(2, timeout=60, capacity=room(a_job())) as group:
        for lines in group.call(order_of_overlap, a_job(), 720, limit=60.0):
            assert lines[:3] == ["launched 0", "reduced 0", "encoder"]
            assert lines.index("launched 2") < lines.index("backward pass done")
            words = [f"{what} {bucket}" for what in ("launched", "reduced") for bucket in range(3)]
            assert sorted(lines)[2:] == words


def test_what_is_reduced_late_is_waited_for_in_vain(monkeypatch):
    given_up, hold = threading.Event(), overlap_seen._Witness.hold

    def holding(witness, gradient):
        try:
            hold(witness, gradient)
        finally:
            given_up.set()

    monkeypatch.setattr(overlap_seen._Witness, "hold", holding)
    # It ends only after that, however slow this machine is.
    member = a_member(2, lambda *_: given_up.wait(60), timeout=0.1)
    with pytest.raises(TimeoutError, match="^backward pass: the first bucket"):
        order_of_overlap(member, a_job(), 720)


def test_what_an_all_reduce_raises_is_handed_on():
    def wrong(*_):
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError, match="no"):
        order_of_overlap(a_member(2, wrong), a_job(), 720)
    witness = overlap_seen._Witness(a_member(2, wrong))
    with pytest.raises(ArithmeticError, match="no"):
        witness.reduce(torch.zeros(1))
    witness.hold(torch.zeros(1))  # without waiting, and nothing was reduced before the encoder
    assert witness.happened == []


def test_the_first_bucket_may_hold_the_whole_decoder_and_no_more():
    job = a_job()
    right = ["launched 0", "reduced 0", "encoder", "launched 1"]
    lines = order_of_overlap(a_member(2, lambda *_: None), job, bytes_of_decoder(job))
    assert lines[:4] == right
    with pytest.raises(ValueError, match="^limit: must be at most the decoder's bytes"):
        order_of_overlap(a_member(2, None), job, bytes_of_decoder(job) + 1)


def test_bad_input_is_refused():
    with pytest.raises(
        ValueError, match="^limit: must be at most the decoder's bytes, got 1000000"
    ):
        order_of_overlap(a_member(2, None), a_job(), 10**6)
    with pytest.raises(ValueError, match="^sizes: must be 3, one per rank"):
        order_of_overlap(a_member(3, None), a_job(), 720)
