"""One thread per rank: the same bits as the simulator's, and an end to every failure."""

import math
import threading
import time

import pytest
import torch

from gradbook.parallel import threads
from gradbook.parallel.backends import CollectiveError, Raising, run_threads, simulate
from gradbook.parallel.failures import Killed
from gradbook.parallel.schedules import ALGORITHMS, ring

SIZES = (0, 1, 4, 7, 100, 1000, 10_000)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("p", range(1, 17))
def test_threads_give_the_simulators_bits(name, p, draws, same_bits):
    schedule = ALGORITHMS[name](p)
    for n in SIZES if p in (3, 16) else (0, 7, 100):
        tensors = draws(p, n)
        before = [t.clone() for t in tensors]
        ran, right = run_threads(schedule, tensors), simulate(schedule, tensors)
        assert same_bits(ran.results, right.results)
        assert same_bits(tensors, before)
        assert list(ran.bytes_sent) == right.bytes_sent


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("reduction", ["sum", "mean", "max", "min"])
def test_reductions_and_types(name, reduction, draws, same_bits):
    types = [torch.float16, torch.bfloat16, torch.float64]
    if reduction != "mean":
        types += [torch.uint8, torch.int8, torch.int32, torch.int64]
    schedule = ALGORITHMS[name](5)
    for dtype in types:
        tensors = [t.view(3, 11) for t in draws(5, 33, dtype)]
        ran = run_threads(schedule, tensors, reduction)
        assert same_bits(ran.results, simulate(schedule, tensors, reduction).results)
        assert ran.results[4].shape == (3, 11)


def test_whole_numbers_add_up_exactly():
    tensors = [torch.arange(1000, dtype=torch.float32) + 1000 * rank for rank in range(7)]
    for algorithm in ALGORITHMS.values():
        for result in run_threads(algorithm(7), tensors).results:
            assert torch.equal(result, torch.stack(tensors).sum(0))


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("step", [0, 3])
def test_an_error_ends_all_threads_and_names_rank_and_step(rank, step, draws):
    before = threading.active_count()
    with pytest.raises(CollectiveError, match=f"^rank {rank}, step {step}: Arith") as caught:
        run_threads(ring(3), draws(3, 10), timeout=20, before_step=Raising(rank, step))
    assert (caught.value.rank, caught.value.step) == (rank, step)
    assert isinstance(caught.value.__cause__, ArithmeticError)
    assert threading.active_count() == before


@pytest.fixture
def stuck():
    """Hold ranks up before their steps, until the test is over."""
    over = threading.Event()
    yield lambda *places: lambda rank, step: (rank, step) in places and over.wait(600)
    over.set()
    for thread in threading.enumerate():  # the other tests count threads
        if thread.name.startswith("rank "):
            thread.join(60)


def test_a_rank_that_does_not_come_is_named_within_the_timeout(draws, stuck):
    started = time.monotonic()
    with pytest.raises(CollectiveError, match="did not come in time") as caught:
        run_threads(ring(3), draws(3, 10), timeout=2, before_step=stuck((1, 2)))
    assert (caught.value.rank, caught.value.step) == (1, 2)
    assert time.monotonic() - started < 300


def test_of_ranks_that_all_stand_still_the_last_is_named(draws, stuck, monkeypatch):
    monkeypatch.setattr(threads, "GRACE", 1.0)
    hook = stuck((0, 0), (1, 0), (2, 0))
    with pytest.raises(CollectiveError, match="^rank 0, step 0: did not come in time$"):
        run_threads(ring(3), draws(3, 10), timeout=1, before_step=hook)


@pytest.mark.parametrize("timeout", [0, -1.0, math.inf, math.nan, "1", None])
def test_a_timeout_must_be_a_positive_number(timeout, draws):
    with pytest.raises(ValueError, match="^timeout: "):
        run_threads(ring(2), draws(2, 3), timeout=timeout)


def test_killing_is_for_processes(draws):
    with pytest.raises(CollectiveError, match="^rank 0, step 1: RuntimeError: Killed: "):
        run_threads(ring(2), draws(2, 3), before_step=Killed(0, 1))


def test_tensors_must_be_alike():
    with pytest.raises(ValueError, match="rank 1"):
        run_threads(ring(2), [torch.zeros(3), torch.zeros(4)])
