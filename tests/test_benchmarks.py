"""A benchmark of two different things is a defect: both sides of every case agree."""

import pytest
import torch

from benchmarks import categories, codes
from benchmarks.__main__ import CASES, table
from benchmarks.timing import Case, Timing, compare
from gradbook.gumbel import gumbel_noise, gumbel_softmax, gumbel_top_k


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
    torch.testing.assert_close(case.compared(ours), case.compared(peer), rtol=case.rtol, atol=1e-14)


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


def test_statistics_of_draws_are_what_they_say():
    y = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    torch.testing.assert_close(categories.of_shares(y), torch.tensor([1.15, 0.6]).double())
    noise = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    torch.testing.assert_close(categories.of_noise(noise), torch.tensor([3.0, 14 / 3]).double())
    assert categories.of_orders(torch.tensor([[1, 2], [4, 0]])).tolist() == [2.5, 1]


def test_statistics_of_draws_see_another_law():
    rows = torch.linspace(-1, 1, 32).expand(20_000, 32)
    noise = gumbel_noise((20_000, 32), torch.Generator().manual_seed(0), torch.float32)
    for one, other in (
        (gumbel_softmax(rows, 0.7, noise), gumbel_softmax(rows, 0.75, noise)),
        (gumbel_softmax(rows, 0.7, noise), gumbel_softmax(0.9 * rows, 0.7, noise)),
    ):
        one, other = categories.of_shares(one), categories.of_shares(other)
        assert (one / other - 1).abs().max() > categories.RTOL
    one, other = categories.of_noise(noise), categories.of_noise(1.02 * noise)
    assert (one / other - 1).abs().max() > categories.RTOL
    one, other = (categories.of_orders(gumbel_top_k(r, noise, 8)) for r in (rows, 0.9 * rows))
    assert (one / other - 1).abs().max() > categories.RTOL


def test_distances_of_codes_see_one_wrong_code():
    ours, _ = (side() for side in codes.nearest_case())
    _, products = (side() for side in codes.product_case())
    values, _ = (side() for side in codes.quantize_case())
    right = codes.of_indices(ours)
    for other in (codes.of_indices_or_products(products), codes.of_values(values)):
        torch.testing.assert_close(other, right, rtol=1e-5, atol=0.0)
    ours[7] = (ours[7] + 1) % codes.CODES
    wrong = codes.of_indices(ours) > right * (1 + 1e-5)
    assert wrong.nonzero().tolist() == [[7]]


def test_the_footnote_tells_what_the_faster_noise_costs(monkeypatch):
    monkeypatch.setattr(categories, "exponentials_have_53_bits", lambda: True)
    note = categories.tails()
    assert "ours ends at 22.2, and 2.3e-10 of the Gumbel law" in note
    assert "Gumbel ends at 15.9 (1.2e-07)" in note
    assert "gumbel_softmax ends at 36.7 (1.1e-16)" in note
    monkeypatch.setattr(categories, "exponentials_have_53_bits", lambda: False)
    assert note.startswith(categories.tails())
    assert "36.7" not in categories.tails()


def test_the_footnote_knows_where_exponentials_come_from(monkeypatch):
    def from_float32(self, generator):
        uniform = torch.empty(self.shape, dtype=torch.float32).uniform_(generator=generator)
        return self.copy_(-torch.log1p(-uniform))

    def from_float64(self, generator):
        uniform = torch.empty(self.shape, dtype=torch.float64).uniform_(generator=generator)
        return self.copy_(-torch.log1p(-uniform))

    monkeypatch.setattr(torch.Tensor, "exponential_", from_float32)
    assert not categories.exponentials_have_53_bits()
    monkeypatch.setattr(torch.Tensor, "exponential_", from_float64)
    assert categories.exponentials_have_53_bits()
