"""Schedules as data: chunks, steps, and what no schedule may hold."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbook.parallel import transfers
from gradbook.parallel.transfers import COPY, REDUCE, Schedule, Transfer, numbered


@given(st.integers(0, 300), st.integers(1, 40))
def test_bounds_cut_the_numbers_in_order_and_the_first_chunks_are_longer(n, chunks):
    cuts = transfers.bounds(n, chunks)
    assert len(cuts) == chunks
    assert list(itertools.chain(*(range(*cut) for cut in cuts))) == list(range(n))
    sizes = [stop - start for start, stop in cuts]
    assert sizes == [n // chunks + 1] * (n % chunks) + [n // chunks] * (chunks - n % chunks)


@pytest.mark.parametrize(("n", "chunks"), [(-1, 2), (1.0, 2), (True, 2), (3, 0), (3, -1), (3, 1.0)])
def test_bounds_refuse_what_cannot_be_cut(n, chunks):
    with pytest.raises(ValueError, match="n: must be" if chunks == 2 else "chunks"):
        transfers.bounds(n, chunks)


def test_steps_are_numbered_without_the_empty_ones():
    move, other = (0, 1, 0, REDUCE), (1, 0, 0, COPY)
    schedule = numbered("mine", 2, 1, [[], [move], [], [other]])
    assert schedule == Schedule("mine", 2, 1, (Transfer(0, *move), Transfer(1, *other)))
    assert transfers.steps(schedule) == [(Transfer(0, *move),), (Transfer(1, *other),)]


@pytest.mark.parametrize(
    ("transfer", "message"),
    [
        ((0, 0, 3, 0, REDUCE), "ranks"),
        ((0, -1, 1, 0, REDUCE), "ranks"),
        ((0, 1, 1, 0, COPY), "two ranks"),
        ((0, 0, 1, 2, REDUCE), "chunks"),
        ((0, 0, 1, -1, REDUCE), "chunks"),
        ((0, 0, 1, 0, "add"), "op"),
        ((False, 0, 1, 0, REDUCE), "integers"),
        ((0, 0.0, 1, 0, REDUCE), "integers"),
        ((0, 0, True, 0, REDUCE), "integers"),
        ((0, 0, 1, "0", REDUCE), "integers"),
        ((1, 0, 1, 0, REDUCE), "expected step 0"),
    ],
)
def test_a_transfer_that_cannot_be_carried_out_is_named(transfer, message):
    broken = Schedule("mine", 3, 2, (Transfer(*transfer),))
    with pytest.raises(ValueError, match=message):
        transfers.require_transfers(broken)


def test_steps_may_not_go_back_and_a_chunk_is_written_once_in_a_step():
    first, second = Transfer(0, 0, 1, 0, REDUCE), Transfer(0, 2, 1, 0, REDUCE)
    with pytest.raises(ValueError, match="second one"):
        transfers.require_transfers(Schedule("mine", 3, 1, (first, second)))
    transfers.require_transfers(Schedule("mine", 3, 2, (first, second._replace(chunk=1))))
    back = Schedule("mine", 3, 1, (first, second._replace(step=1), first._replace(source=2)))
    with pytest.raises(ValueError, match="expected step 2"):
        transfers.require_transfers(back)
    for size in ({"world_size": 0}, {"chunks": 0}):
        with pytest.raises(ValueError, match=next(iter(size))):
            transfers.require_transfers(Schedule("mine", 3, 1, ())._replace(**size))
