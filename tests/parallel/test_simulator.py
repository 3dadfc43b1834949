"""The simulator: exact results, bits that agree, the order of a sum, trace and counters."""

import functools
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.parallel import reductions, schedules, tracing
from gradbook.parallel.schedules import ALGORITHMS, REDUCE, Schedule, Transfer
from gradbook.parallel.simulator import simulate

SIZES = (0, 1, 4, 7, 100, 1000)
BY_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def normal(p, *shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(p)
    ]


def integers(p, n, dtype, high, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(high, (n,), generator=generator).to(dtype) for _ in range(p)]


def expected(tensors, reduction):
    stack = torch.stack([t.double() for t in tensors])
    if reduction in ("max", "min"):
        return getattr(stack, "a" + reduction)(0)
    return stack.sum(0) / (len(tensors) if reduction == "mean" else 1)


def same_bits(one, other):
    kind = BY_BITS[one.element_size()]
    return one.dtype == other.dtype and torch.equal(one.view(kind), other.view(kind))


@pytest.mark.parametrize("p", range(1, 17))
@pytest.mark.parametrize("name", ALGORITHMS)
def test_integers_are_summed_exactly_at_every_rank(name, p):
    schedule = ALGORITHMS[name](p)
    for n in SIZES:
        # All partial sums are below 2 ** 24, so that float32 holds them.
        tensors = integers(p, n, torch.float32, 2**24 // 16)
        before = [t.clone() for t in tensors]
        results = simulate(schedule, tensors).results
        assert len(results) == p
        assert all(same_bits(r, expected(tensors, "sum").float()) for r in results)
        assert all(same_bits(t, b) for t, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_long_tensor_too(name):
    tensors = integers(6, 10_000, torch.int64, 2**40)
    for result in simulate(ALGORITHMS[name](6), tensors).results:
        assert torch.equal(result, sum(tensors))


@pytest.mark.parametrize("reduction", reductions.COMBINE)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_reduction_and_type_is_exact_on_small_integers(name, reduction):
    floating_only = reduction == "mean"
    for dtype in reductions.FLOATING + (() if floating_only else reductions.INTEGERS):
        for p in (1, 2, 3, 4, 8):
            # Sums stay below 128, which all types hold; bfloat16 has 8 bits.
            tensors = integers(p, 7, dtype, 15, seed=p)
            wanted = expected(tensors, reduction).to(dtype)
            for result in simulate(ALGORITHMS[name](p), tensors, reduction).results:
                assert same_bits(result, wanted)


@pytest.mark.parametrize("reduction", reductions.COMBINE)
@pytest.mark.parametrize("p", range(1, 17))
@pytest.mark.parametrize("name", ALGORITHMS)
def test_all_ranks_end_with_the_same_bits(name, p, reduction):
    for dtype in (torch.float32, torch.bfloat16):
        first, *others = simulate(
            ALGORITHMS[name](p), normal(p, 100, dtype=dtype), reduction
        ).results
        assert all(same_bits(first, other) for other in others)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("p", range(1, 17))
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_sum_is_right_to_its_rounding(name, p, reduction):
    tensors = normal(p, 5, 20, dtype=torch.float64)
    simulated = simulate(ALGORITHMS[name](p), tensors, reduction)
    # A sum of p numbers is off by (p - 1) units of 2 ** -53 of the sum of their sizes.
    size = sum(t.abs() for t in tensors)
    off = (simulated.results[0] - expected(tensors, reduction)).abs()
    assert (off <= 2 * p * 2.0**-53 * size).all()
    assert simulated.results[0].shape == (5, 20)


@pytest.mark.parametrize("p", [2, 3, 5, 8])
def test_a_ring_adds_chunk_c_from_rank_c_on(p):
    tensors = normal(p, 100)
    chunks = []
    for c, (start, stop) in enumerate(schedules.bounds(100, p)):
        turn = [tensors[(c + k) % p][start:stop] for k in range(p)]
        chunks.append(functools.reduce(operator.add, turn))
    assert same_bits(simulate(schedules.ring(p), tensors).results[0], torch.cat(chunks))


def test_a_ring_of_two_is_the_plain_sum_and_one_of_three_only_in_its_first_chunk():
    two, three = normal(2, 999), normal(3, 999)
    assert same_bits(simulate(schedules.ring(2), two).results[0], two[0] + two[1])
    ours, plain = simulate(schedules.ring(3), three).results[0], three[0] + three[1] + three[2]
    assert same_bits(ours[:333], plain[:333])
    assert not torch.equal(ours[333:666], plain[333:666])
    assert not torch.equal(ours[666:], plain[666:])


def test_recursive_doubling_and_halving_add_in_pairs():
    def paired(tensors):
        half = len(tensors) // 2
        return tensors[0] if half == 0 else paired(tensors[:half]) + paired(tensors[half:])

    tensors = normal(8, 64)
    near = paired(tensors)
    far = paired([tensors[i] for i in (0, 4, 2, 6, 1, 5, 3, 7)])
    assert not torch.equal(near, far)
    assert same_bits(simulate(schedules.recursive_doubling(8), tensors).results[3], near)
    assert same_bits(simulate(schedules.halving_doubling(8), tensors).results[3], far)


@pytest.mark.parametrize("p", [3, 4, 6])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_result_is_the_written_order_evaluated(name, p):
    def evaluate(expression, parts):
        if isinstance(expression, int):
            return parts[expression]
        own, received = (evaluate(side, parts) for side in expression)
        return own + received

    schedule, tensors = ALGORITHMS[name](p), normal(p, 50)
    cuts = schedules.bounds(50, schedule.chunks)
    for result, row in zip(
        simulate(schedule, tensors).results, tracing.order(schedule), strict=True
    ):
        chunks = [
            evaluate(e, [t[a:b] for t in tensors]) for e, (a, b) in zip(row, cuts, strict=True)
        ]
        assert same_bits(result, torch.cat(chunks))


def ring_by_hand(tensors):
    """Every rank in turn; what a step sends is set aside first."""
    p, n = len(tensors), tensors[0].numel()
    cut, held = schedules.bounds(n, p), [t.clone() for t in tensors]
    for s in range(2 * (p - 1)):
        first = s if s < p - 1 else s - p
        sent = [held[i][slice(*cut[(i - first) % p])].clone() for i in range(p)]
        for i in range(p):
            there = held[(i + 1) % p][slice(*cut[(i - first) % p])]
            there.add_(sent[i]) if s < p - 1 else there.copy_(sent[i])
    return held


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 99))
def test_a_ring_agrees_bit_for_bit_with_one_written_by_hand(p, n, seed):
    tensors = normal(p, n, seed=seed)
    for ours, theirs in zip(
        simulate(schedules.ring(p), tensors).results, ring_by_hand(tensors), strict=True
    ):
        assert same_bits(ours, theirs)


@settings(max_examples=30)
@given(st.integers(1, 16), st.integers(0, 60), st.integers(1, 4))
def test_a_rank_of_a_ring_sends_all_twice_but_two_chunks(p, n, item):
    dtype = {1: torch.uint8, 2: torch.int16, 3: torch.float32, 4: torch.float64}[item]
    simulated = simulate(schedules.ring(p), [torch.zeros(n, dtype=dtype)] * p)
    s = [stop - start for start, stop in schedules.bounds(n, p)]
    sent = [2 * n - s[(i + 1) % p] - s[(i + 2) % p] for i in range(p)]
    # A rank receives what the one before it sends.
    assert simulated.sent == (sent if p > 1 else [0])
    assert simulated.received == [simulated.sent[i - 1] for i in range(p)]
    assert sum(simulated.sent) == 2 * (p - 1) * n
    width = dtype.itemsize
    assert simulated.bytes_sent == [width * x for x in simulated.sent]
    assert simulated.bytes_received == [width * x for x in simulated.received]
    assert simulated.messages == 2 * p * (p - 1)
    assert all(abs(x - 2 * (p - 1) * n / p) < 2 for x in simulated.sent)


@pytest.mark.parametrize("p", [1, 2, 3, 8, 13])
def test_every_all_reduce_but_the_exchange_moves_the_least_possible_in_all(p):
    n = 1000
    totals = {
        name: sum(simulate(make(p), [torch.zeros(n)] * p).sent) for name, make in ALGORITHMS.items()
    }
    q = 1 << (p.bit_length() - 1)
    exchange = q * (q.bit_length() - 1) + 2 * (p - q)
    assert totals.pop("recursive_doubling") == n * exchange
    assert set(totals.values()) == {2 * (p - 1) * n}


@pytest.mark.parametrize("p", range(1, 17))
def test_scattering_and_gathering_is_the_all_reduce(p):
    tensors = normal(p, 33)
    half = simulate(schedules.reduce_scatter(p), tensors)
    whole = simulate(schedules.all_gather(p), half.results)
    together = simulate(schedules.ring(p), tensors)
    assert all(same_bits(a, b) for a, b in zip(whole.results, together.results, strict=True))
    added = [a + b for a, b in zip(half.sent, whole.sent, strict=True)]
    assert added == together.sent


def test_the_trace_tells_whose_numbers_arrived():
    simulated = simulate(schedules.ring(3), normal(3, 4))
    assert [a.transfer for a in simulated.trace] == list(schedules.ring(3).transfers)
    who = [sorted(a.contributions) for a in simulated.trace]
    assert who == [[0, 1], [1, 2], [0, 2]] + [[0, 1, 2]] * 9
    # The first of three chunks has two of the four float32, the others one.
    assert [a.bytes for a in simulated.trace] == [
        8 if a.transfer.chunk == 0 else 4 for a in simulated.trace
    ]


def test_the_clock_of_the_simulation_and_its_end():
    simulated = simulate(schedules.root(3), normal(3, 10), alpha=1.0, beta=0.1, gamma=0.01)
    assert simulated.clock == pytest.approx([5.4, 10.8, 15.8, 20.8], rel=1e-12)
    assert simulated.seconds == simulated.clock[-1]
    alone = simulate(schedules.ring(1), normal(1, 3), alpha=1.0)
    assert (alone.clock, alone.seconds, alone.messages) == ([], 0.0, 0)


def test_a_single_rank_gets_a_copy():
    (tensor,) = normal(1, 3)
    for reduction in reductions.COMBINE:
        for make in ALGORITHMS.values():
            (result,) = simulate(make(1), [tensor], reduction).results
            assert torch.equal(result, tensor)
            assert result.data_ptr() != tensor.data_ptr()


def test_zeros_of_two_signs_have_a_larger_one_by_their_order():
    # Why the docstring leaves the sign of a zero open; a single number takes the scalar path.
    tensors = [torch.tensor([0.0]), torch.tensor([-0.0])]
    results = simulate(schedules.recursive_doubling(2), tensors, "max").results
    assert torch.equal(*results)
    assert results[0].item() == 0
    # All other algorithms hand one rank's answer to the others.
    for name in set(ALGORITHMS) - {"recursive_doubling"}:
        first, second = simulate(ALGORITHMS[name](2), tensors, "max").results
        assert same_bits(first, second)


def test_infinities_and_nan_reach_every_rank():
    tensors = [
        torch.tensor([1.0, float("inf"), float("nan")]),
        torch.tensor([2.0, float("-inf"), 0.0]),
    ]
    for name, make in ALGORITHMS.items():
        for result in simulate(make(2), tensors).results:
            assert (result[0].item(), result.isnan().tolist()) == (3.0, [False, True, True]), name


def test_bad_schedules_tensors_and_rates_are_refused():
    tensors = normal(2, 4)
    twice = (Transfer(0, 0, 1, 0, REDUCE), Transfer(1, 0, 1, 0, REDUCE))
    with pytest.raises(ValueError, match=r"counts \[0\] twice.*step=1"):
        simulate(Schedule("mine", 2, 1, twice), tensors)
    with pytest.raises(ValueError, match="ranks"):
        simulate(Schedule("mine", 2, 1, (Transfer(0, 0, 2, 0, REDUCE),)), tensors)
    with pytest.raises(ValueError, match="rank 1 must have rank 0's shape"):
        simulate(schedules.ring(2), [tensors[0], tensors[1][:3]])
    with pytest.raises(ValueError, match="reduction"):
        simulate(schedules.ring(2), tensors, "product")
    for rate in ("alpha", "beta", "gamma"):
        for bad in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=rate):
                simulate(schedules.ring(2), tensors, **{rate: bad})
