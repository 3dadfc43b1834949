"""Traffic counted by hand: shared ports, messages, sizes of chunks."""

import math

import pytest

from gradbook.parallel import schedules, traffic
from gradbook.parallel.schedules import COPY, REDUCE, Schedule, Transfer


def test_loads_and_counts_of_a_step_with_shared_ports():
    # Rank 0 sends both chunks to rank 1 (one message) and one to rank 2; rank 2 combines.
    both = [Transfer(0, 0, 1, c, COPY) for c in (0, 1)]
    schedule = Schedule(
        "mine", 3, 2, (*both, Transfer(0, 0, 2, 0, REDUCE), Transfer(1, 1, 2, 1, COPY))
    )
    sizes = traffic.chunk_sizes(schedule, 5, 4)
    assert sizes == [12, 8]
    assert traffic.loads(schedule, sizes) == [(32, 12), (8, 0)]
    assert traffic.traffic(schedule, sizes) == ([32, 8, 0], [0, 20, 20], 3)
    assert traffic.clock(schedule, sizes, 1.0, 0.5, 0.25) == [1 + 16 + 3, 20 + 1 + 4]
    into = Schedule("mine", 3, 1, (Transfer(0, 0, 2, 0, COPY),))._replace(chunks=2)
    into = into._replace(transfers=(*into.transfers, Transfer(0, 1, 2, 1, REDUCE)))
    assert traffic.loads(into, [3, 4]) == [(7, 4)]


def test_sizes_of_chunks_are_checked():
    with pytest.raises(ValueError, match="item"):
        traffic.chunk_sizes(schedules.ring(2), 5, 0)
    with pytest.raises(ValueError, match="n: must be"):
        traffic.chunk_sizes(schedules.ring(2), -5)


COUNTS = (traffic.traffic, traffic.loads, traffic.clock)


@pytest.mark.parametrize("count", COUNTS)
def test_there_must_be_a_size_for_every_chunk(count):
    for sizes in ([], [1], [1, 1, 1]):
        with pytest.raises(ValueError, match=f"^sizes: must be 2, one per chunk, got {len(sizes)}"):
            count(schedules.ring(2), sizes)
    for bad in (-1, math.nan):
        with pytest.raises(ValueError, match="^sizes: must be "):
            count(schedules.ring(2), [1, bad])
    # Zero is a size.
    count(schedules.ring(2), [1, 0])


@pytest.mark.parametrize("count", COUNTS)
def test_what_cannot_be_carried_out_is_not_counted(count):
    for move in ((0, 0, -1, 0, COPY), (0, 0, 1, -1, COPY), (1, 0, 1, 0, COPY)):
        with pytest.raises(ValueError, match="^transfers: "):
            count(Schedule("mine", 2, 1, (Transfer(*move),)), [1])


@pytest.mark.parametrize("rate", ["alpha", "beta", "gamma"])
@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_rates_are_checked(rate, bad):
    with pytest.raises(ValueError, match=rate):
        traffic.clock(schedules.ring(2), [1, 1], **{rate: bad})
