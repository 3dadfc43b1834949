"""A benchmark of two different things is a defect: both sides of every case agree."""

import pytest
import torch

from benchmarks.__main__ import CASES, table
from benchmarks.timing import Case, Timing, compare


@pytest.fixture(autouse=True)
def _own_random_state():
    # Peers that draw from the global generator seed it; the other tests keep theirs.
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operation)
def test_both_sides_compute_the_same_values(case):
    ours, peer = (side() for side in case.make())
    assert ours.numel() > 0
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, peer, rtol=case.rtol, atol=1e-14)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operation)
def test_a_side_gives_the_same_values_every_time(case):
    for side in case.make():
        assert torch.equal(side(), side())


def test_compare_runs_both_sides_in_turns_after_a_warm_up():
    calls = []
    timing = compare(lambda: calls.append("ours"), lambda: calls.append("peer"), 7)
    assert calls == ["ours", "peer"] * 8
    assert timing.ours > 0
    assert timing.peer > 0


def test_compare_keeps_the_fastest_run_in_milliseconds(monkeypatch):
    # Durations in seconds: ours 3, 1, 2; the peer's 5, 6, 4.
    ticks = iter([0, 3, 0, 5, 0, 1, 0, 6, 0, 2, 0, 4])
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: next(ticks))
    timing = compare(lambda: None, lambda: None, 3)
    assert timing == Timing(1000.0, 4000.0)
    assert timing.ratio == 0.25


def test_compare_refuses_no_repeats():
    with pytest.raises(ValueError, match="^repeats: "):
        compare(lambda: None, lambda: None, 0)


def test_the_table_names_the_peer_and_the_ratio():
    case = Case("sum", "numpy", 0.0, lambda: (lambda: None, lambda: None))
    lines = table([(case, Timing(3.0, 2.0))]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["sum", "numpy", "3.00", "2.00", "1.5"]
