"""Schedules carried out by `torch.distributed`, in a group and under `torchrun`."""

import pytest
import torch
import torch.distributed as dist

from gradbook.parallel.backends import (
    CollectiveError,
    Group,
    Killed,
    Raising,
    Stalled,
    TorchDistributed,
    run_distributed,
    simulate,
)
from gradbook.parallel.schedules import ALGORITHMS, recursive_doubling, ring, root
from gradbook.parallel.workforce import START

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"
)


@pytest.fixture(scope="module", params=[2, 3])
def group(request, functions):
    with Group(request.param, TorchDistributed(), timeout=60) as made:
        yield made


@pytest.mark.parametrize("name", ALGORITHMS)
def test_gloo_gives_the_simulators_bits(group, name, draws, same_bits):
    schedule = ALGORITHMS[name](group.world_size)
    for n, reduction in ((0, "sum"), (1, "max"), (7, "mean"), (70_001, "sum")):
        tensors = draws(group.world_size, n)
        ran = group.run(schedule, tensors, reduction)
        right = simulate(schedule, tensors, reduction)
        assert same_bits(ran.results, right.results)
        assert list(ran.bytes_sent) == right.bytes_sent


def test_a_process_group_of_ones_own(group, functions):
    p = group.world_size
    schedules = [recursive_doubling(p)] * p
    answers = group.call(functions.with_process_group, schedules, "mean")
    for sent, tensor in answers:
        assert torch.equal(tensor, torch.arange(10.0) + (p - 1) / 2)
        assert sent > 0


def test_a_process_group_agrees_first(group, functions):
    p = group.world_size
    answers = group.call(functions.refused_by_process_group, [ring(p)] * (p - 1) + [root(p)])
    text = f"rank {p - 1}, step 0: calls root"
    if p == 2:
        text = "rank 1, step 0: calls root"
    for kind, message in answers:
        assert kind == "CollectiveError"
        assert message.startswith(text)
    answers = group.call(functions.refused_by_process_group, [ring(p + 1)] * p)
    assert answers == [("ValueError", f"schedule: must be of {p} ranks, got {p + 1}")] * p


def test_a_process_group_names_a_rank_that_does_not_come(functions):
    with Group(2, TorchDistributed(), timeout=60) as group:
        fault = Stalled(1, 1, 6.0)
        answers = group.call(functions.process_group_alone, ring(2), fault)
        assert answers[0] == (
            "CollectiveError",
            "rank 1, step 1: did not come in time; rank 0 waited for it",
        )


@pytest.mark.parametrize("absent", [0, 2])
def test_a_process_group_names_a_rank_that_never_calls(absent, functions):
    with Group(3, TorchDistributed(), timeout=60) as group:
        answers = group.call(functions.without_one, ring(3), absent)
    assert answers.pop(absent) is None
    for kind, message, seconds in answers:
        assert kind == "CollectiveError"
        assert message.startswith(f"rank {absent}, step 0: did not come in time")
        # The process group's own limit does not count: it is for the start alone.
        assert seconds < START / 2


def test_a_process_group_refuses_tensors_before_it_asks_the_others(functions):
    # Each rank by itself, so that nobody answers.
    with Group(2, TorchDistributed(), timeout=60) as group:
        for rank, said in enumerate(group.call(functions.refused_tensors, ring(2))):
            assert said == [
                f"ValueError tensors: rank {rank} must give a contiguous one",
                f"ValueError tensors: rank {rank} must give one without gradient; detach it",
                f"ValueError tensors: rank {rank} must give one on the CPU, got meta",
                "ValueError tensors: must be real numbers, got torch.bool",
                "ValueError reduction: must be one of ['sum', 'mean', 'max', 'min'], got 'product'",
                "ValueError timeout: must be a finite number of seconds above 0, got 0.0",
            ]


def test_a_short_timeout_is_for_our_collectives_and_not_for_the_process_group(functions):
    with Group(2, TorchDistributed(), timeout=0.1) as group:
        assert group.call(functions.meet_late) == [0, 1]


def test_a_rank_overtakes_nobody(require_handmade):
    with Group(3, TorchDistributed(), timeout=60) as group:
        require_handmade(group.run, 2**20)


# Only where a rank stands still is it waited for until the end.
FAULTS = [(Killed(1, 2), 60), (Raising(2, 1), 60), (Stalled(1, 1, 600.0), 3)]


@pytest.mark.parametrize(("fault", "timeout"), FAULTS)
def test_a_failure_names_rank_and_step(fault, timeout, draws):
    with pytest.raises(CollectiveError) as caught:
        run_distributed(ring(3), draws(3, 1000), timeout=timeout, before_step=fault)
    assert (caught.value.rank, caught.value.step) == (fault.rank, fault.step)
