"""The benchmark of collectives: every side computes the sum, and the table is what it says."""

import pytest

from benchmarks import collectives


def test_all_sides_take_turns_and_agree():
    # A side whose sum is wrong raises at its rank.
    seconds = collectives.measure(2, 1002, 1)
    assert len(seconds) == len(collectives.SIDES)
    assert min(seconds) > 0


def test_no_turns_are_refused():
    with pytest.raises(ValueError, match="^repeats: "):
        collectives.measure(2, 10, 0)


def test_the_table_gives_bandwidths_and_ratios():
    rows = collectives.table(4, 1000, [0.001, 0.002, 0.003, 0.004, 0.008]).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")][1:] for row in rows]
    # 2 · 3/4 · 4000 bytes in a millisecond are 6 MB/s.
    assert cells[0] == ["1.00", "0.01", "8.00", "1.00"]
    assert cells[3] == ["4.00", "0.00", "2.00", "4.00"]
    assert [row.split("|")[1].strip() for row in rows] == [s.name for s in collectives.SIDES]


def test_the_slowest_rank_counts_and_the_warm_up_does_not(monkeypatch):
    # Every side's ranks take so long in its turns; the first would be the fastest.
    turns = [(0.5, 0.1), (7.0, 3.0), (4.0, 6.0), (1.0, 9.0)]
    made = []

    class Fake:
        def __init__(self, world_size, transport, capacity):
            made.append((world_size, transport, capacity))
            self.turns = {}

        def __enter__(self):
            return self

        def __exit__(self, *error):
            made.pop()

        def call(self, turn, schedule, n):
            place = self.turns.get(turn, 0)
            self.turns[turn] = place + 1
            return list(turns[place])

    monkeypatch.setattr(collectives, "Group", Fake)
    assert collectives.measure(2, 10, 3) == [6.0] * len(collectives.SIDES)
    assert made == []  # all groups were left
