"""Tables of frequencies: counts by hand, laws that sum to 1, and the best table of all."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook.priors import counting

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def integers(*shape, count=3, seed=0):
    return torch.randint(count, shape, generator=generator(seed))


def test_uniform_is_the_number_of_positions_times_log_k():
    found = counting.uniform_log_prob(integers(5, 2, 3), 7)
    assert found.dtype == torch.float64
    assert found.tolist() == [-6 * math.log(7)] * 5


@given(alpha=st.sampled_from([0.0, 0.5, 1.0, 10.0]), seed=st.integers(0, 99))
def test_frequencies_are_counted_one_by_one(alpha, seed):
    codes, count = integers(4, 2, 3, seed=seed), 5
    everywhere = counting.frequencies(codes, count, alpha)
    each = counting.position_frequencies(codes, count, alpha)
    for k in range(count):
        share = ((codes == k).sum().item() + alpha) / (24 + 5 * alpha)
        assert everywhere[k].item() == pytest.approx(share, rel=1e-12)
        for i in range(2):
            for j in range(3):
                seen = sum(int(grid[i, j] == k) for grid in codes)
                own = (seen + alpha) / (4 + 5 * alpha)
                assert each[i, j, k].item() == pytest.approx(own, rel=1e-12)


def test_log_prob_multiplies_the_entries(all_grids):
    every = all_grids(2, 2, 3)
    table = torch.rand(3, generator=generator(), dtype=torch.float64)
    tables = torch.rand(2, 2, 3, generator=generator(1), dtype=torch.float64)
    for law in (table / table.sum(), tables / tables.sum(-1, keepdim=True)):
        found = counting.table_log_prob(every, law)
        full = law.expand(2, 2, 3)
        by_hand = [
            math.prod(full[i, j, grid[i, j]].item() for i in range(2) for j in range(2))
            for grid in every
        ]
        torch.testing.assert_close(found.exp(), torch.tensor(by_hand, dtype=torch.float64), **EXACT)
        assert found.exp().sum().item() == pytest.approx(1, rel=1e-12)


def test_a_table_with_one_height_and_width_is_not_mixed_up():
    codes = torch.tensor([[[0, 1, 1]]])
    table = torch.tensor([[[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]]], dtype=torch.float64)
    assert counting.table_log_prob(codes, table).item() == pytest.approx(math.log(0.375))


def test_no_table_fits_better_than_the_frequencies():
    """The gain of every other table is minus a divergence."""
    codes = integers(50, 2, 2, seed=3)
    for fitted in (counting.frequencies, counting.position_frequencies):
        best = fitted(codes, 3, 0.0)
        most = counting.table_log_prob(codes, best).sum().item()
        noise = torch.rand(200, *best.shape, generator=generator(2), dtype=torch.float64)
        for step in noise:
            other = best + 0.2 * step
            other = other / other.sum(-1, keepdim=True)
            assert counting.table_log_prob(codes, other).sum().item() < most
    by_position = counting.table_log_prob(codes, counting.position_frequencies(codes, 3, 0.0))
    together = counting.table_log_prob(codes, counting.frequencies(codes, 3, 0.0))
    assert by_position.sum() > together.sum()


def test_an_unseen_code_is_impossible_without_smoothing():
    codes = torch.zeros(2, 1, 1, dtype=torch.int64)
    table = counting.frequencies(codes, 2, 0.0)
    assert counting.table_log_prob(codes + 1, table).tolist() == [-math.inf] * 2
    smooth = counting.frequencies(codes, 2, 1.0)
    assert counting.table_log_prob(codes + 1, smooth).exp().tolist() == pytest.approx([0.25] * 2)


def test_bits_are_those_of_each_table():
    train, test = integers(30, 2, 3, seed=1), integers(7, 2, 3, seed=2)
    found = counting.table_bits(train, test, 3, 0.5)
    assert found["uniform"] == pytest.approx(math.log2(3), rel=1e-12)
    tables = {
        "frequencies": counting.frequencies(train, 3, 0.5),
        "positions": counting.position_frequencies(train, 3, 0.5),
    }
    for name, table in tables.items():
        nats = -counting.table_log_prob(test, table).sum().item()
        assert found[name] == pytest.approx(nats / (7 * 6 * math.log(2)), rel=1e-12)
    assert set(found) == {"uniform", *tables}


def test_an_empty_batch_gives_an_empty_result():
    none = torch.empty(0, 2, 3, dtype=torch.int64)
    assert counting.uniform_log_prob(none, 3).shape == (0,)
    table = counting.position_frequencies(none, 4, 1.0)
    assert torch.equal(table, torch.full((2, 3, 4), 0.25, dtype=torch.float64))
    assert counting.table_log_prob(none, table).shape == (0,)
    assert counting.frequencies(none, 4, 2.0).tolist() == [0.25] * 4


CODES = integers(2, 2, 3)
NONE = CODES[:0]
FLAT = torch.full((3,), 1 / 3)
BAD = [
    (lambda: counting.uniform_log_prob(CODES, 0), "count: must be at least 1"),
    (lambda: counting.uniform_log_prob(CODES + 1, 3), "codes: must be from 0 to 2"),
    (lambda: counting.uniform_log_prob(CODES[0], 3), "codes: must be \\[B, h, w\\]"),
    (lambda: counting.frequencies(CODES.double(), 3, 1.0), "codes: must be int64"),
    (lambda: counting.frequencies(CODES, 3, -0.1), "alpha: must be finite and not neg"),
    (lambda: counting.frequencies(CODES, 3, math.nan), "alpha: must be finite"),
    (lambda: counting.frequencies(CODES, 3, math.inf), "alpha: must be finite"),
    (lambda: counting.frequencies(NONE, 3, 0.0), "alpha: must be positive where"),
    (lambda: counting.position_frequencies(NONE, 3, 0.0), "alpha: must be positive where"),
    (lambda: counting.position_frequencies(CODES - 1, 3, 1.0), "codes: must be from 0"),
    (lambda: counting.table_log_prob(CODES, FLAT[None]), "table: must be \\[K\\] or"),
    (lambda: counting.table_log_prob(CODES, FLAT.expand(3, 2, 3)), "table: must be \\[K\\] or"),
    (lambda: counting.table_log_prob(CODES, 2 * FLAT), "table: every row"),
    (lambda: counting.table_log_prob(CODES, torch.tensor([-1.0, 1, 1])), "table: every row"),
    (lambda: counting.table_log_prob(CODES, FLAT * math.nan), "table: every row"),
    (lambda: counting.table_bits(CODES, NONE, 3, 1.0), "log_probs: "),
    (lambda: counting.table_log_prob(CODES + 1, FLAT), "codes: must be from 0 to 2"),
    (lambda: counting.table_log_prob(CODES[0], FLAT), "codes: must be \\[B, h, w\\]"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_a_row_that_sums_to_a_thousandth_more_is_refused():
    table = torch.full((4,), 0.25025, dtype=torch.float64)
    with pytest.raises(ValueError, match="table: "):
        counting.table_log_prob(torch.zeros(1, 2, 2, dtype=torch.int64), table)
