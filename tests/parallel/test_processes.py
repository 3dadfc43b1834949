"""One process per rank, over shared memory and over sockets; and what is left after a failure."""

import math
import multiprocessing
import os
import random
import signal
import threading
import time
from multiprocessing import shared_memory
from operator import attrgetter

import pytest
import torch

from gradbook.parallel import processes
from gradbook.parallel.backends import (
    Call,
    CollectiveError,
    Group,
    Killed,
    Raising,
    SharedMemory,
    Sockets,
    Stalled,
    run_processes,
    run_threads,
    simulate,
)
from gradbook.parallel.schedules import (
    ALGORITHMS,
    all_gather,
    double_tree,
    recursive_doubling,
    reduce_scatter,
    ring,
    root,
)
from gradbook.parallel.shared_memory import Segment

TRANSPORTS = [SharedMemory(), Sockets()]
GROUPS = [(SharedMemory(), 2), (SharedMemory(), 3), (Sockets(), 2), (Sockets(), 3)]


@pytest.fixture(scope="module", params=GROUPS, ids=lambda g: f"{type(g[0]).__name__}-{g[1]}")
def group(request, functions):
    transport, p = request.param
    with Group(p, transport, timeout=60, capacity=4096) as made:
        yield made


def all_gone(pids):
    def runs(pid):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    return not any(map(runs, pids))


@pytest.fixture
def segments(monkeypatch):
    """The names of all segments that the test makes."""
    names, create = [], Segment.create.__func__

    def spied(cls, capacity, parts):
        made = create(cls, capacity, parts)
        names.append(made.name)
        return made

    monkeypatch.setattr(Segment, "create", classmethod(spied))
    return names


def require_unlinked(names):
    assert names
    for name in names:
        with pytest.raises(FileNotFoundError):
            shared_memory.SharedMemory(name)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_processes_give_the_bits_of_the_other_backends(group, name, draws, same_bits):
    schedule = ALGORITHMS[name](group.world_size)
    for n in (0, 1, 4, 7, 1000, 70_001):
        tensors = draws(group.world_size, n)
        before = [t.clone() for t in tensors]
        ran, right = group.run(schedule, tensors), simulate(schedule, tensors)
        assert same_bits(ran.results, right.results)
        assert same_bits(ran.results, run_threads(schedule, tensors).results)
        assert same_bits(tensors, before)
        assert list(ran.bytes_sent) == right.bytes_sent
        assert len(ran.seconds) == group.world_size
        assert min(ran.seconds) > 0


@pytest.mark.parametrize("reduction", ["sum", "mean", "max", "min"])
def test_reductions_and_types(group, reduction, draws, same_bits):
    p = group.world_size
    types = [torch.float16, torch.bfloat16, torch.float64]
    if reduction != "mean":
        types += [torch.uint8, torch.int8, torch.int32, torch.int64]
    for dtype in types:
        for schedule in (ring(p), recursive_doubling(p)):
            tensors = [t.view(3, 11) for t in draws(p, 33, dtype)]
            ran = group.run(schedule, tensors, reduction)
            assert same_bits(ran.results, simulate(schedule, tensors, reduction).results)
            assert ran.results[1].shape == (3, 11)


def test_more_than_a_segment_at_a_time(group):
    # 3 MiB: several segments of a socket, more than its buffer holds, and an odd rest.
    p = group.world_size
    tensors = [torch.arange(786_433, dtype=torch.float32) + rank for rank in range(p)]
    for schedule in (ring(p), recursive_doubling(p), double_tree(p)):
        for result in group.run(schedule, tensors).results:
            assert torch.equal(result, torch.stack(tensors).sum(0))


def test_a_slow_rank_changes_nothing(group, draws, same_bits):
    p = group.world_size
    for algorithm in (ring, recursive_doubling, double_tree, root):
        tensors = draws(p, 50)
        ran = group.run(algorithm(p), tensors, before_step=Stalled(1, 0, 0.05))
        assert same_bits(ran.results, simulate(algorithm(p), tensors).results)


def test_a_thousand_collectives_in_a_row(group, functions):
    # No rank waits for the caller in between: one may begin the next while another ends the last.
    assert group.call(functions.many, ring(group.world_size), 1000) == [-1] * group.world_size


def test_algorithms_take_turns(group, functions, same_bits):
    p = group.world_size
    schedules = [algorithm(p) for algorithm in ALGORITHMS.values()]
    results = group.call(functions.alternating, schedules, 40)
    right = [
        simulate(schedules[i % len(schedules)], [torch.arange(7.0) * (r + i) for r in range(p)])
        for i in range(40)
    ]
    for result in results:
        assert same_bits(result, [one.results[0] for one in right])


def test_the_two_halves_of_a_ring(group, draws, same_bits):
    p = group.world_size
    tensors = draws(p, 10)
    half = group.run(reduce_scatter(p), tensors).results
    assert same_bits(group.run(all_gather(p), half).results, simulate(ring(p), tensors).results)


def test_numbers_in_the_shared_memory_are_reduced_there(group, functions):
    p = group.world_size
    for tensor, done in group.call(functions.in_buffer, ring(p), 10):
        assert torch.equal(tensor, torch.full((10,), p * (p + 1) / 2))
        assert done.bytes_sent > 0


def test_functions_know_their_rank(group):
    assert group.call(attrgetter("rank")) == list(range(group.world_size))
    assert group.call(attrgetter("world_size")) == [group.world_size] * group.world_size
    assert len(set(group.pids)) == group.world_size


def test_bad_input_leaves_the_group_as_it_was(group, draws, same_bits):
    p = group.world_size
    with pytest.raises(ValueError, match="rank 1"):
        group.run(ring(p), [torch.zeros(3)] + [torch.zeros(4)] * (p - 1))
    with pytest.raises(ValueError, match="^calls: must be"):
        group.run_calls([None] * (p + 1))
    with pytest.raises(ValueError, match="^calls: at least one"):
        group.run_calls([None] * p)
    with pytest.raises(ValueError, match="^schedule: must be of"):
        group.run_calls([Call(ring(p + 1), torch.zeros(3))] * p)
    with pytest.raises(ValueError, match=f"must be {p + 1}"):
        group.run(ring(p + 1), draws(p, 3))
    with pytest.raises(Exception, match="pickle|local object"):
        group.run(ring(p), draws(p, 3), before_step=lambda rank, step: None)
    assert same_bits(
        group.run(ring(p), draws(p, 3)).results, simulate(ring(p), draws(p, 3)).results
    )


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_one_use_ends_what_it_started(transport, segments, draws, same_bits):
    for p in (1, 4):
        tensors = draws(p, 100)
        ran = run_processes(ring(p), tensors, "mean", transport=transport)
        assert same_bits(ran.results, simulate(ring(p), tensors, "mean").results)
    require_unlinked(segments)


def test_a_closed_group_says_so(draws):
    with Group(2) as group:
        pids = group.pids
        assert not all_gone(pids)
        group.close()
        group.close()
        assert all_gone(pids)
        with pytest.raises(RuntimeError, match="^group: is closed"):
            group.run(ring(2), draws(2, 3))


class NoWorkforce:
    def __init__(self, *arguments):
        raise AssertionError("processes were started")


def test_a_group_of_bad_sizes_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setattr(processes, "Workforce", NoWorkforce)
    with pytest.raises(ValueError, match="^world_size: "):
        Group(0)
    for timeout in (0, math.nan, "1"):
        with pytest.raises(ValueError, match="^timeout: "):
            Group(2, timeout=timeout)
    for capacity in (-1, 64.5, "x", True, None):
        with pytest.raises(ValueError, match="^capacity: must be an integer"):
            Group(2, capacity=capacity)


def test_a_group_without_room_ends_what_it_started(segments):
    before = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match="^capacity: 2 times"):
        Group(2, capacity=2**62)
    assert set(multiprocessing.active_children()) == before
    require_unlinked(segments)


# Only where a rank stands still is it waited for until the end.
FAULTS = [
    (Killed(1, 2), 60, "rank 1, step 2: its process was ended by SIGKILL"),
    (Killed(0, 0), 60, "rank 0, step 0: its process was ended by SIGKILL"),
    (Raising(2, 3), 60, "rank 2, step 3: ArithmeticError: raised on purpose"),
    (Stalled(1, 1, 600.0), 3, "rank 1, step 1: did not come in time"),
]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs Unix signals")
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("fault", "timeout", "message"), FAULTS)
def test_a_failure_ends_everything_and_names_rank_and_step(
    transport, fault, timeout, message, segments, draws
):
    threads = threading.active_count()
    with Group(3, transport, timeout=timeout) as group:
        pids, folder = group.pids, group.call(attrgetter("meeting"))[0]
        with pytest.raises(CollectiveError, match=message) as caught:
            group.run(ring(3), draws(3, 100_000), before_step=fault)
        assert (caught.value.rank, caught.value.step) == (fault.rank, fault.step)
        assert all_gone(pids)
        with pytest.raises(RuntimeError, match="^group: is closed"):
            group.run(ring(3), draws(3, 3))
    require_unlinked(segments)
    assert not os.path.exists(folder)
    assert threading.active_count() == threads


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_failures_leave_no_descriptor_open(draws):
    counts = []
    for _ in range(3):
        with pytest.raises(CollectiveError):
            run_processes(ring(2), draws(2, 10), before_step=Raising(0, 1))
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[1] == counts[2]


def test_a_rank_that_died_before_is_named(draws):
    with Group(2, timeout=30) as group:
        os.kill(group.pids[1], signal.SIGKILL)
        with pytest.raises(CollectiveError, match="^rank 1, step 0: its process was ended"):
            group.run(ring(2), draws(2, 10))


WORDS = [(0, "did not answer within 5 seconds"), (64, "did not come in time")]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs Unix signals")
@pytest.mark.parametrize(("capacity", "words"), WORDS)
def test_a_rank_that_stands_still_is_named(capacity, words, draws, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 3.0)  # of which all passes here
    # Without room for the numbers, it is already missed when the memory is handed out.
    with Group(2, timeout=2, capacity=capacity) as group:
        pids = group.pids
        os.kill(pids[0], signal.SIGSTOP)
        with pytest.raises(CollectiveError, match=f"^rank 0, step 0: {words}"):
            group.run(ring(2), draws(2, 10))
        assert all_gone(pids)


def test_a_rank_that_never_calls_is_named():
    with Group(3, Sockets(), timeout=3) as group:
        call = Call(ring(3), torch.zeros(5))
        with pytest.raises(CollectiveError, match="^rank 2, step 0: did not come in time"):
            group.run_calls([call, call, None])


ODD = [
    (lambda p: Call(root(p), torch.zeros(6)), "root"),
    (lambda p: Call(ring(p), torch.zeros(7)), r"\[7\]"),
    (lambda p: Call(ring(p), torch.zeros(6).double()), "float64"),
    (lambda p: Call(ring(p), torch.zeros(6), "max"), "max"),
]


@pytest.mark.parametrize(("make", "word"), ODD)
def test_a_rank_that_calls_something_else_is_named(make, word):
    started = time.monotonic()
    with Group(3, timeout=60) as group:
        call = Call(ring(3), torch.zeros(6))
        with pytest.raises(
            CollectiveError, match=f"^rank 1, step 0: calls .*{word}.*, rank 0 calls"
        ):
            group.run_calls([call, make(3), call])
    assert time.monotonic() - started < 60  # it was told, not timed out


def test_functions_that_fail_are_named(functions):
    with (
        Group(2, timeout=60) as group,
        pytest.raises(CollectiveError, match="^rank 0, step 0: EOFError: no such") as caught,
    ):
        group.call(functions.missing_file)
    assert "missing_file" in caught.value.__notes__[0]
    with (
        Group(2, timeout=3, capacity=64) as group,
        pytest.raises(CollectiveError, match="^rank 0, step 0: did not come"),
    ):
        group.call(functions.unequal, ring(2))
    with (
        Group(2, timeout=60, capacity=64) as group,
        pytest.raises(CollectiveError, match="^rank 1, step 0: calls root"),
    ):
        group.call(functions.out_of_step, ring(2), root(2))
    with (
        Group(2, capacity=64) as group,
        pytest.raises(CollectiveError, match="ValueError: capacity: .* 64 bytes .* needs 68"),
    ):
        group.call(functions.in_buffer, ring(2), 17)


def test_a_function_that_takes_too_long_is_ended(functions):
    with Group(2, timeout=60) as group:
        pids = group.pids
        with pytest.raises(CollectiveError, match="did not answer within 0.2 seconds"):
            group.call(functions.sleep, limit=0.2)
        assert all_gone(pids)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs Unix signals")
def test_twenty_times_a_random_rank_is_killed(segments, draws):
    chance = random.Random(9)
    for _ in range(20):
        p, transport = chance.choice([2, 3, 4]), chance.choice(TRANSPORTS)
        fault = Killed(chance.randrange(p), chance.randrange(2 * p - 2))
        with Group(p, transport, timeout=30) as group:
            pids = group.pids
            with pytest.raises(CollectiveError, match="SIGKILL") as caught:
                group.run(ring(p), draws(p, 100_000), before_step=fault)
            assert (caught.value.rank, caught.value.step) == (fault.rank, fault.step)
            assert all_gone(pids)
    require_unlinked(segments)
