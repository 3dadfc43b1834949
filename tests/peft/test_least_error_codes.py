"""Codes of least error: a published table, k-means on draws, and no small move betters them."""

import pytest
import torch

from gradbook.k_means import lloyd_step
from gradbook.peft import block_law, least_error_codes
from gradbook.peft.block_law import expected_error
from gradbook.peft.nf4 import nf4_code

LEAST = {1: least_error_codes.least_absolute_code, 2: least_error_codes.least_squares_code}


def all_codes(block):
    pinned = (least_error_codes.pinned_code(block), least_error_codes.af4_code(block))
    return [find(block).cpu() for find in LEAST.values()] + [code.cpu() for code in pinned]


def test_af4_is_the_published_table():
    from bitsandbytes.functional import get_4bit_type

    table = get_4bit_type("af4", device="cpu", blocksize=64).double().sort().values
    # The table has eight digits, rounded to float32.
    torch.testing.assert_close(least_error_codes.af4_code(64).cpu(), table, rtol=0, atol=7e-8)


@pytest.mark.parametrize("block", [2, 64, 4096])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("levels", [2, 16])
def test_no_small_move_betters_the_least_error(block, power, levels):
    code = LEAST[power](block, levels).cpu()
    least = expected_error(code, block, power)
    assert len(code) == levels
    torch.testing.assert_close(code, -code.flip(0), rtol=0, atol=1e-7)
    for i in range(levels):
        for move in (-1e-3, 1e-3):
            moved = code.clone()
            moved[i] = (moved[i] + move).clamp(-1, 1)
            assert expected_error(moved, block, power) >= least - 1e-13


@pytest.mark.parametrize("block", [8, 64, 1024])
def test_no_small_move_betters_the_pinned_code(block):
    grid = torch.linspace(-1, 1, 8001, dtype=torch.float64, device="cpu")
    middles, mass = (grid[1:] + grid[:-1]) / 2, block_law.scaled_normal_cdf(grid, block).diff()
    # The jump at 1 is at a level, where the error is none; that at -1 is not in a difference.
    mass[-1] -= 1 / (2 * block)

    def error(code):
        return float((mass * (middles[:, None] - code.cpu()).abs().amin(1)).sum())

    code = least_error_codes.pinned_code(block).cpu()
    assert code[[0, 7, 15]].tolist() == [-1, 0, 1]
    least = error(code)
    assert least < error(least_error_codes.af4_code(block))
    assert least < error(nf4_code(torch.float64))
    # Such a move costs some 1e-6 and more; the width of the grid, 1e-8.
    for i in set(range(16)) - {0, 7, 15}:
        for move in (-5e-3, 5e-3):
            moved = code.clone()
            moved[i] += move
            assert error(moved) > least + 1e-7


def test_medians_halve_the_mass_of_their_cells():
    block = 64
    code = least_error_codes.pinned_code(block).cpu()
    edges = block_law.midpoint_edges(code)
    below = block_law.scaled_normal_cdf(code, block)
    at = block_law.scaled_normal_cdf(edges, block)
    free = [i for i in range(16) if i not in (0, 7, 15)]
    halves = (at[1:] + at[:-1]) / 2
    torch.testing.assert_close(below[free], halves[free], rtol=0, atol=1e-12)


def test_af4_takes_zero_for_an_edge():
    block = 64
    code = least_error_codes.af4_code(block).cpu()
    low, middle, high = block_law.scaled_normal_cdf(
        torch.stack((code.new_zeros(()), code[8], (code[8] + code[9]) / 2)), block
    )
    assert float(middle) == pytest.approx(float(low + high) / 2, abs=1e-12)
    edges = least_error_codes.zero_edges(code)
    assert edges[7] == edges[8] == 0
    assert edges[[0, -1]].tolist() == [-1, 1]
    untouched = [i for i in range(17) if i not in (7, 8)]
    assert torch.equal(edges[untouched], block_law.midpoint_edges(code)[untouched])


def test_the_least_squares_code_is_a_fixed_point_of_k_means():
    # Pieces of weights between draws: u counted M^2 times is what the exact code is a k-means of.
    block = 16
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40_000, block, generator=generator, dtype=torch.float64)
    largest = x.abs().amax(1)
    rows = torch.multinomial(largest**2, len(x), replacement=True, generator=generator)
    u = (x[rows] / largest[rows, None]).flatten()[:, None]
    code = least_error_codes.least_squares_code(block).cpu()
    moved, counts = lloyd_step(u, code[:, None])
    # A cell is at most 0.22 wide, so that a mean of its u scatters by less than 0.064 over the
    # root of their count; the rows are drawn again, which doubles the variance, and in one row
    # the signs are independent.
    scatter = 0.064 * (2 / counts.double()).sqrt()
    assert ((moved[:, 0] - code).abs() < 4.5 * scatter).all()
    assert (scatter < 1e-3).all()


@pytest.mark.parametrize("block", [2, 16, 64, 256, 4096])
def test_each_code_is_best_at_what_it_is_for(block):
    codes = all_codes(block) + [nf4_code(torch.float64).cpu()]
    for power in (1, 2):
        errors = [expected_error(code, block, power) for code in codes]
        assert min(errors) == errors[power - 1]


def test_a_largest_that_fills_its_cell_is_a_level():
    # Half of two weights are the larger of two: half the last cell's mass is at 1 and more.
    code = least_error_codes.least_absolute_code(2).cpu()
    assert code[[0, -1]].tolist() == pytest.approx([-1, 1], abs=1e-12)
    assert abs(float(least_error_codes.least_absolute_code(4096)[0])) < 0.7


def test_bad_inputs_are_refused():
    for find in (*LEAST.values(), least_error_codes.pinned_code, least_error_codes.af4_code):
        for block in (1, 0, 64.0):
            with pytest.raises(ValueError, match="block"):
                find(block)
    for find in LEAST.values():
        for levels in (1, 0, 16.0):
            with pytest.raises(ValueError, match="levels"):
                find(64, levels)
    with pytest.raises(ValueError, match="level 0"):
        least_error_codes.zero_edges(torch.tensor([-1.0, 1.0], dtype=torch.float64))
