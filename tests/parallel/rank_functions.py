"""What the tests let every rank do; processes import it, so that it is no test module."""

import time

import torch
import torch.distributed as dist

from gradbook.parallel.distributed import all_reduce
from gradbook.parallel.failures import PeerLate


def many(member, schedule, count):
    """Reduce again and again; some ranks are early, others late."""
    tensor = torch.zeros(10, dtype=torch.float64)
    for i in range(count):
        tensor.fill_(member.rank + i)
        member.run(schedule, tensor)
        p = member.world_size
        if not (tensor == p * i + p * (p - 1) // 2).all():
            raise ArithmeticError(f"number {i} is wrong")
    return member.step


def alternating(member, schedules, count):
    """One algorithm after the other, without a pause."""
    results = []
    for i in range(count):
        tensor = torch.arange(7, dtype=torch.float32) * (member.rank + i)
        member.run(schedules[i % len(schedules)], tensor)
        results.append(tensor)
    return torch.stack(results)


def in_buffer(member, schedule, n):
    tensor = member.buffer((n,), torch.float32).fill_(member.rank + 1.0)
    done = member.run(schedule, tensor)
    return tensor.clone(), done


def unequal(member, schedule):
    """Rank 1 makes one call more than the others."""
    for _ in range(2 if member.rank == 1 else 1):
        member.run(schedule, torch.zeros(4))


def out_of_step(member, schedule, other):
    """The same words and the same shape, but rank 1's second call is of another kind."""
    member.run(schedule, torch.zeros(4))
    member.run(other if member.rank == 1 else schedule, torch.zeros(4))


def sleep(member):
    time.sleep(600)


def missing_file(member):
    if member.rank == 0:
        raise EOFError("no such thing")


def blaming(member, others):
    """Wait in vain for another rank; for none, be done; for oneself, stand still."""
    other = others[member.rank]
    if other == member.rank:
        time.sleep(600)
    if other is not None:
        raise PeerLate(other)


def with_process_group(member, schedules, reduction):
    tensor = torch.arange(10, dtype=torch.float32) + member.rank
    return all_reduce(schedules[member.rank], tensor, reduction, timeout=60), tensor


def refused_by_process_group(member, schedules):
    try:
        all_reduce(schedules[member.rank], torch.zeros(3), timeout=60)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def process_group_alone(member, schedule, before_step):
    """Two ranks; what rank 0 says when the other fails in a step."""
    tensor = torch.zeros(10)
    try:
        all_reduce(schedule, tensor, timeout=3, before_step=before_step)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def refused_tensors(member, schedule):
    """What is said of calls that this rank cannot make."""
    good = torch.zeros(6)
    calls = [
        (torch.zeros(12)[::2], "sum", 60),
        (torch.zeros(6, requires_grad=True), "sum", 60),
        (torch.zeros(6, device="meta"), "sum", 60),
        (good.bool(), "sum", 60),
        (good, "product", 60),
        (good, "sum", 0.0),
    ]
    said = []
    for call in calls:
        try:
            all_reduce(schedule, *call)
        except Exception as error:
            said.append(f"{type(error).__name__} {error}")
    return said


def without_one(member, schedule, absent):
    """One rank never calls; what the others say, and how long they take to leave the group."""
    if member.rank == absent:
        return None
    try:
        all_reduce(schedule, torch.zeros(6), timeout=3)
    except Exception as error:
        said = type(error).__name__, str(error)
    started = time.monotonic()
    dist.destroy_process_group()
    return *said, time.monotonic() - started


def meet_late(member):
    """Rank 1 comes a second after rank 0."""
    time.sleep(member.rank)
    dist.barrier()
    return member.rank
