"""Train a small VAE in several processes, in the ways in which gradients can be averaged.

Each function whose name begins with ``with`` is one rank's work; a group runs it at all ranks, with the
same job: ``group.call(with_zero, job)``, see `gradbook.parallel.backends.Group`. The group needs room
for the gradient in its shared memory: ``Group(p, capacity=room(job))``. All ranks start from the same
weights, see their own shares of the same batches, and end with the same weights.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradbook.normal_vae import NormalVAE
from gradbook.parallel.buckets import Bucketed, InThread
from gradbook.parallel.data_parallel import (
    Batch,
    Losses,
    image_weight,
    packed,
    share_loss,
    shares,
    unpack_,
)
from gradbook.parallel.distributed import TorchDistributed
from gradbook.parallel.schedules import Schedule, all_gather, reduce_scatter, require_valid, ring
from gradbook.parallel.workers import Member
from gradbook.parallel.zero import ShardedAdam, moment_bytes


class Job(NamedTuple):
    """What is to be trained.

    Attributes:
        model: a VAE on the CPU; it stays as it is.
        batches: one for each step, at least one, all of one length.
        sizes: of the ranks' shares of every batch.
        rate: Adam's step size.
    """

    model: NormalVAE
    batches: tuple[Batch, ...]
    sizes: tuple[int, ...]
    rate: float = 1e-3


class Trained(NamedTuple):
    """What a rank ends with.

    Attributes:
        weights: [N], in the model's order.
        bytes_sent: of gradients and weights, by this rank; 0 where PyTorch sends and does not say.
        moment_bytes: of Adam's moments that this rank keeps.
    """

    weights: Tensor
    bytes_sent: int
    moment_bytes: int


def room(job: Job) -> int:
    """Count the bytes of a gradient."""
    return sum(parameter.nbytes for parameter in job.model.parameters())


def losses(member: Member, job: Job) -> Losses:
    """Give a rank the module that it trains.

    Args:
        member: this rank.
        job: the same at all ranks.

    Returns:
        A copy of the model, with its loss.

    Raises:
        ValueError: if the job is not for so many ranks, or its batches are none or of several
            lengths.
    """
    if len(job.sizes) != member.world_size:
        raise ValueError(f"sizes: must be {member.world_size}, one per rank, got {job.sizes}")
    return _module(job)


def backward(module: nn.Module, batch: Batch, sizes: tuple[int, ...], rank: int) -> None:
    """Leave a rank's part of the gradient at the parameters.

    Args:
        module: gives the losses of images.
        batch: the whole.
        sizes: of all ranks' shares.
        rank: whose part.

    Raises:
        ValueError: if the shares do not add up to the batch.
    """
    part = shares(batch, sizes)[rank]
    module.zero_grad()
    share_loss(module, part, image_weight(sizes)).backward()


def alone(job: Job) -> Trained:
    """Train in this process, on whole batches.

    Args:
        job: to be done; its sizes do not count.

    Returns:
        What a single rank ends with.

    Raises:
        ValueError: if the batches are none or of several lengths.
    """
    module = _module(job)
    whole = job._replace(sizes=(len(job.batches[0].images),))
    return _train(module, whole, 0, lambda: 0)


def with_schedule(member: Member, job: Job, schedule: Schedule) -> Trained:
    """Average gradients by one of our schedules.

    Args:
        member: this rank.
        job: the same at all ranks.
        schedule: an all-reduce.

    Returns:
        What this rank ends with.

    Raises:
        ValueError: if the schedule is no all-reduce, or as `losses`, which all these functions
            call.
    """
    require_valid(schedule)

    def average(flat: Tensor) -> int:
        return member.run(schedule, flat, "mean").bytes_sent

    module = losses(member, job)
    return _train(module, job, member.rank, partial(_average_all, module, average))


def with_gloo(member: Member, job: Job) -> Trained:
    """Average gradients by the all-reduce of `torch.distributed`.

    Args:
        member: this rank.
        job: the same at all ranks.

    Returns:
        What this rank ends with.
    """
    _require_process_group(member)

    def average(flat: Tensor) -> int:
        dist.all_reduce(flat)
        flat.div_(member.world_size)
        return 0

    module = losses(member, job)
    return _train(module, job, member.rank, partial(_average_all, module, average))


def with_ddp(member: Member, job: Job) -> Trained:
    """Leave averaging to PyTorch's `DistributedDataParallel`.

    Args:
        member: this rank.
        job: the same at all ranks.

    Returns:
        What this rank ends with.
    """
    _require_process_group(member)
    module = DistributedDataParallel(losses(member, job))
    return _train(module, job, member.rank, lambda: 0)


def with_buckets(member: Member, job: Job, limit: int) -> Trained:
    """Average gradients on our ring, bucket by bucket, while the backward pass goes on.

    Args:
        member: this rank.
        job: the same at all ranks.
        limit: bytes of a bucket.

    Returns:
        What this rank ends with.
    """
    module, sent = losses(member, job), []

    def average(flat: Tensor) -> None:
        sent.append(member.run(ring(member.world_size), flat, "mean").bytes_sent)

    def finish() -> int:
        bucketed.finish()
        total = sum(sent)
        sent.clear()
        return total

    with (
        InThread(average, 2 * member.timeout) as launch,
        Bucketed(module.parameters(), limit, launch) as bucketed,
    ):
        return _train(module, job, member.rank, finish)


def with_zero(member: Member, job: Job) -> Trained:
    """Share Adam out: reduce-scatter, a step on one's own share, all-gather.

    Args:
        member: this rank.
        job: the same at all ranks.

    Returns:
        What this rank ends with.
    """
    p, rank = member.world_size, member.rank
    module, scatter, gather = losses(member, job), reduce_scatter(p), all_gather(p)
    parameters, sent = list(module.parameters()), 0
    weights = packed(parameters)
    adam = ShardedAdam(weights, scatter, rank, job.rate)
    for batch in job.batches:
        backward(module, batch, job.sizes, rank)
        gradient = packed(parameter.grad for parameter in parameters)
        sent += member.run(scatter, gradient, "mean").bytes_sent
        adam.step_(weights, gradient)
        sent += member.run(gather, weights).bytes_sent
        unpack_(parameters, weights)
    return Trained(weights, sent, adam.moment_bytes)


def _module(job: Job) -> Losses:
    lengths = [len(batch.images) for batch in job.batches]
    if len(set(lengths)) != 1:
        raise ValueError(f"batches: must be at least one, all of one length, got {lengths}")
    return Losses(copy.deepcopy(job.model))


def _train(module: nn.Module, job: Job, rank: int, average: Callable[[], int]) -> Trained:
    adam, sent = torch.optim.Adam(module.parameters(), lr=job.rate), 0
    for batch in job.batches:
        backward(module, batch, job.sizes, rank)
        sent += average()
        adam.step()
    return Trained(packed(module.parameters()), sent, moment_bytes(adam))


def _average_all(module: nn.Module, average: Callable[[Tensor], int]) -> int:
    gradients = [parameter.grad for parameter in module.parameters()]
    flat = packed(gradients)
    sent = average(flat)
    unpack_(gradients, flat)
    return sent


def _require_process_group(member: Member) -> None:
    # It lasts as long as the process; the transport of a group may have made it.
    if not dist.is_initialized():
        TorchDistributed().join(member)
