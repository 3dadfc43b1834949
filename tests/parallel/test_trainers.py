"""Training in several processes ends with the weights of training in one."""

import copy
import os
import signal
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from gradbook import normal_vae
from gradbook.parallel import trainers
from gradbook.parallel.backends import CollectiveError, Group
from gradbook.parallel.data_parallel import Batch, packed
from gradbook.parallel.schedules import recursive_doubling, reduce_scatter, ring
from gradbook.parallel.traffic import chunk_sizes, traffic
from gradbook.parallel.trainers import Job

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"
)
STEPS, SIZES = 3, {2: (6, 6), 3: (1, 7, 4)}
WAYS = {
    "ring": (trainers.with_schedule, ring),
    "recursive doubling": (trainers.with_schedule, recursive_doubling),
    "gloo": (trainers.with_gloo,),
    "ddp": (trainers.with_ddp,),
    "buckets": (trainers.with_buckets, lambda p: 8 * 40),
    "one bucket": (trainers.with_buckets, lambda p: 10**6),
    "zero": (trainers.with_zero,),
}


def a_job(p):
    generator = torch.Generator().manual_seed(0)
    kind = {"generator": generator, "dtype": torch.float64}
    model = normal_vae.build(10, 3, 8, generator).double()
    batches = tuple(
        Batch(torch.rand(12, 10, **kind).round(), torch.randn(12, 3, **kind)) for _ in range(STEPS)
    )
    return Job(model, batches, SIZES[p], rate=0.01)


@pytest.fixture(scope="module", params=SIZES)
def group(request):
    with Group(request.param, timeout=60, capacity=trainers.room(a_job(request.param))) as made:
        yield made


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_those_of_one_process(group, way):
    p, (train, *arguments) = group.world_size, WAYS[way]
    job = a_job(p)
    right = trainers.alone(job)
    found = group.call(train, job, *(make(p) for make in arguments), limit=60.0)
    n = trainers.room(job) // 8
    for one in found:
        # Weights are below 1 and three steps of 0.01 are summed; Adam divides rounding errors of
        # 1e-17 by 1e-8 at worst, which leaves 1e-11 of a step.
        torch.testing.assert_close(one.weights, right.weights, rtol=0, atol=1e-12)
        assert torch.equal(one.weights, found[0].weights)
    sums = [one.moment_bytes for one in found]
    assert right.moment_bytes == 2 * 8 * n
    if way == "zero":
        # Rank i has chunk i + 1.
        assert sums == [2 * size for size in (chunk_sizes(ring(p), n, 8) * 2)[1 : p + 1]]
    else:
        assert sums == [2 * 8 * n] * p
    if way in ("ring", "zero", "one bucket"):
        once = traffic(ring(p), chunk_sizes(ring(p), n, 8)).sent
        if way != "one bucket":  # there the order of the parameters, and the chunks, are others
            assert [one.bytes_sent for one in found] == [STEPS * sent for sent in once]
        assert sum(one.bytes_sent for one in found) == STEPS * 2 * (p - 1) * 8 * n


def by_hand(job):
    model = copy.deepcopy(job.model)
    adam = torch.optim.Adam(model.parameters(), lr=job.rate)
    for batch in job.batches:
        adam.zero_grad()
        (-normal_vae.elbo(model, *batch)).mean().backward()
        adam.step()
    return packed(model.parameters())


def test_training_alone_is_the_loop_that_one_writes():
    job = a_job(2)
    before = packed(job.model.parameters())
    found = trainers.alone(job)
    # As in the test above: rounding errors of gradients, enlarged by Adam.
    torch.testing.assert_close(found.weights, by_hand(job), rtol=0, atol=1e-12)
    assert (found.weights - before).abs().max() > 0.01
    assert found.bytes_sent == 0
    assert torch.equal(packed(job.model.parameters()), before)


def test_a_rank_leaves_the_job_s_model_as_it_is():
    job = a_job(2)._replace(sizes=(12,))
    before = packed(job.model.parameters())
    run = SimpleNamespace(bytes_sent=0)
    member = SimpleNamespace(rank=0, world_size=1, timeout=10.0, run=lambda *_: run)
    for train, *more in (
        (trainers.with_schedule, ring(1)),
        (trainers.with_buckets, 320),
        (trainers.with_zero,),
    ):
        found = train(member, job, *more)
        torch.testing.assert_close(found.weights, by_hand(job), rtol=0, atol=1e-12)
        assert torch.equal(packed(job.model.parameters()), before)


def test_bad_jobs_are_refused():
    member = SimpleNamespace(rank=0, world_size=3, timeout=1.0)
    for train, *more in (
        (trainers.with_schedule, ring(3)),
        (trainers.with_buckets, 1),
        (trainers.with_zero,),
    ):
        with pytest.raises(ValueError, match="^sizes: must be 3, one per rank"):
            train(member, a_job(2), *more)
    whole = a_job(3)
    first, second, _ = whole.batches
    unequal = (first, Batch(second.images[:5], second.noise[:5]))
    for batches, lengths in (((), r"\[\]"), (unequal, r"\[12, 5\]")):
        job = whole._replace(batches=batches)
        for refuse in (trainers.alone, lambda job: trainers.losses(member, job)):
            with pytest.raises(ValueError, match=f"^batches: must be at least one.*got {lengths}"):
                refuse(job)
    with pytest.raises(ValueError, match="ends without"):
        trainers.with_schedule(member, a_job(3), reduce_scatter(3))


def test_errors_and_deaths_name_a_rank_and_leave_nothing():
    with Group(2, timeout=10, capacity=8) as small:
        with pytest.raises(CollectiveError, match="step 0: ValueError: capacity: the group has"):
            small.call(trainers.with_buckets, a_job(2), 8 * 40, limit=20.0)
        assert small.pids == ()
    with Group(2, timeout=10, capacity=trainers.room(a_job(2))) as group:
        killed = group.pids[1]
        os.kill(killed, getattr(signal, "SIGKILL", signal.SIGTERM))
        with pytest.raises(CollectiveError, match="^rank 1, "):
            group.call(trainers.with_buckets, a_job(2), 8 * 40, limit=20.0)
        assert group.pids == ()
