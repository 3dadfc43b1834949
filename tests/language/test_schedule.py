"""The order of the rows and the step sizes of a training."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook.language import schedule


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(count, seed=5):
    return torch.randint(1, 40, (count,), generator=generator(seed))


@given(st.integers(0, 150), st.integers(1, 9), st.integers(0, 1000))
def test_every_row_is_in_one_batch_and_one_batch_may_be_smaller(count, batch, seed):
    found = schedule.batches(drawn(count), batch, generator(seed))
    rows = torch.cat([torch.empty(0, dtype=torch.int64), *found])
    assert sorted(rows.tolist()) == list(range(count))
    sizes = sorted(len(rows) for rows in found)
    assert sizes == sorted([batch] * (count // batch) + [count % batch] * (count % batch > 0))


def test_eight_batches_at_a_time_are_sorted_by_length():
    """A chunk of eight batches covers the lengths in eight steps, without overlap."""
    lengths = torch.arange(320) % 160
    found = schedule.batches(lengths, 20, generator())
    order = torch.randperm(320, generator=generator())
    chunks = [set(chunk.tolist()) for chunk in order.split(160)]
    for chunk in chunks:
        inside = [rows for rows in found if set(rows.tolist()) <= chunk]
        assert len(inside) == 8
        spans = sorted((lengths[rows].min().item(), lengths[rows].max().item()) for rows in inside)
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
        assert all((lengths[rows].diff() >= 0).all() for rows in inside)


def test_batches_are_in_no_order_of_length():
    lengths = torch.arange(160)
    passes = [schedule.batches(lengths, 20, generator(seed)) for seed in range(200)]
    for place in (0, -1):
        assert {found[place].min().item() for found in passes} == {20 * i for i in range(8)}


def test_passes_differ_and_a_seed_repeats_them():
    lengths, one, two = drawn(100), generator(1), generator(1)
    first, second = (schedule.batches(lengths, 10, one) for _ in range(2))
    again = schedule.batches(lengths, 10, two)
    assert [rows.tolist() for rows in first] == [rows.tolist() for rows in again]
    assert [rows.tolist() for rows in first] != [rows.tolist() for rows in second]


def test_orders_are_on_the_cpu_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    lengths = torch.ones(5)
    with torch.device("meta"):
        found = schedule.batches(lengths, 2, generator())
    assert {rows.device.type for rows in found} == {"cpu"}
    assert torch.equal(torch.get_rng_state(), before)


def test_the_rate_rises_over_a_tenth_and_falls_to_the_end():
    shares = [schedule.share(step, 20) for step in range(20)]
    assert shares[:2] == [1 / 2, 1]
    assert shares[1:] == pytest.approx([(19 - i) / 19 for i in range(19)])
    assert [schedule.share(step, 3) for step in range(3)] == pytest.approx([1, 2 / 3, 1 / 3])
    assert schedule.share(0, 1) == 1


@given(st.integers(1, 500))
def test_the_rate_is_largest_once_and_nowhere_zero(steps):
    shares = [schedule.share(step, steps) for step in range(steps)]
    warm = -(-steps // 10)
    assert shares.index(max(shares)) == warm - 1
    assert shares.count(1) == 1
    assert min(shares) > 0
    rises, falls = shares[:warm], shares[warm - 1 :]
    assert rises == pytest.approx([(i + 1) / warm for i in range(warm)])
    drops = [a - b for a, b in zip(falls, falls[1:], strict=False)]
    assert drops == pytest.approx([falls[-1]] * len(drops))


BAD = [
    (lambda: schedule.batches(drawn(4), 0, generator()), "batch: "),
    (lambda: schedule.share(-1, 4), "step: "),
    (lambda: schedule.share(4, 4), "step: "),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
