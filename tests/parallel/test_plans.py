"""What a rank does in each step, against the schedule and against its meaning."""

import pytest

from gradbook.parallel.plans import Offer, Step, Take, plan
from gradbook.parallel.schedules import (
    ALGORITHMS,
    COPY,
    REDUCE,
    Schedule,
    Transfer,
    recursive_doubling,
    ring,
)


def test_a_ring_of_three_at_rank_zero():
    # It sends up and hears from below. It writes chunk 1 in the step after rank 1 read it as 0's
    # offer, so that it waits for rank 1 by then, and never in the same step.
    steps = plan(ring(3), 0)
    assert steps == (
        Step((Offer(1, 0, False),), (Take(2, 2, REDUCE, False, ()),)),
        Step((Offer(1, 2, False),), (Take(2, 1, REDUCE, False, ()),)),
        Step((Offer(1, 1, False),), (Take(2, 0, COPY, False, ((1, 1),)),)),
        Step((Offer(1, 0, False),), (Take(2, 2, COPY, False, ((1, 2),)),)),
    )


def test_an_exchange_reads_and_writes_the_same_chunk():
    (step,) = plan(recursive_doubling(2), 1)
    assert all(offer.rewritten for offer in step.offers)
    assert all(take.offered and take.after == ((0, k + 1),) for k, take in enumerate(step.takes))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("p", [1, 2, 3, 5, 8])
def test_every_transfer_stands_in_two_plans(name, p):
    schedule = ALGORITHMS[name](p)
    plans = [plan(schedule, rank) for rank in range(p)]
    sent = {
        (number, rank, offer.destination, offer.chunk)
        for rank, steps in enumerate(plans)
        for number, step in enumerate(steps)
        for offer in step.offers
    }
    received = {
        (number, take.source, rank, take.chunk, take.op)
        for rank, steps in enumerate(plans)
        for number, step in enumerate(steps)
        for take in step.takes
    }
    assert received == set(schedule.transfers)
    assert sent == {transfer[:4] for transfer in schedule.transfers}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_rank_waits_for_every_reader_before_it_writes(name):
    # Replayed from the transfers alone: who has read a chunk since it was last written, and which
    # of the reader's takes that was.
    schedule = ALGORITHMS[name](6)
    for rank in range(6):
        count, readers, number = {}, {}, 0
        for number, step in enumerate(plan(schedule, rank)):
            now = [t for t in schedule.transfers if t.step == number]
            for t in now:
                if t.source == rank:
                    count[t.destination] = count.get(t.destination, 0) + 1
                    readers.setdefault(t.chunk, {})[t.destination] = count[t.destination]
            for take in step.takes:
                assert dict(take.after) == readers.pop(take.chunk, {})
                assert take.offered == any(t.source == rank and t.chunk == take.chunk for t in now)


def test_a_plan_refuses_what_cannot_be_carried_out():
    with pytest.raises(ValueError, match="^rank: "):
        plan(ring(3), 3)
    with pytest.raises(ValueError, match="^transfers: "):
        plan(Schedule("loop", 2, 1, (Transfer(0, 1, 1, 0, COPY),)), 0)
