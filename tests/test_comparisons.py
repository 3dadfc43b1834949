import math

import pytest
import torch

from gradbook.comparisons import compare

EXACT = torch.tensor([3.0, 4.0], dtype=torch.float64)


def test_a_comparison_by_hand():
    """Errors (0, 0), (2, 0), (4, 6) about g = (3, 4): mean (2, 2), variances 4 and 12."""
    rows = EXACT + torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 6.0]], dtype=torch.float64)
    found = compare(rows, EXACT)
    slopes = torch.tensor([25.0, 31.0, 61.0], dtype=torch.float64) / 25
    assert found.slope == pytest.approx(39 / 25)
    assert found.slope_stderr == pytest.approx(slopes.std().item() / math.sqrt(3))
    assert found.variance == pytest.approx(16 / 25)
    assert found.squared_bias == pytest.approx((4 - 4 / 3 + 4 - 12 / 3) / 25)
    assert found.z_max == pytest.approx(2 / math.sqrt(4 / 3))


def test_unbiased_estimates_have_no_squared_bias_on_average():
    """400 comparisons of 5 estimates each: their mean within 4.5 standard errors of the truth."""
    noise = torch.randn(400, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for bias in (0.0, 0.5):
        found = [compare(EXACT * (1 + bias) + rows, EXACT).squared_bias for rows in noise]
        values = torch.tensor(found, dtype=torch.float64)
        assert abs(values.mean() - bias**2) <= 4.5 * values.std() / math.sqrt(len(values))


def test_exact_estimates_have_neither_bias_nor_variance():
    found = compare(EXACT.expand(4, 2), EXACT)
    assert found == (1, 0, 0, 0, 0)


def test_a_bias_without_variance_is_infinitely_far_off():
    """In one coordinate of the two; the other is exact."""
    rows = EXACT.expand(4, 2) * torch.tensor([1.0, 2.0])
    assert compare(rows, EXACT).z_max == math.inf
    assert compare(rows, EXACT).variance == 0


def test_bad_input_is_named():
    rows = EXACT + torch.arange(6.0).reshape(3, 2)
    for bad in (EXACT[None], rows[0], rows[:, :1], rows[..., None], rows[:0]):
        with pytest.raises(ValueError, match="^rows: "):
            compare(bad, EXACT)
    for bad in (math.nan, math.inf):
        spoiled = rows.clone()
        spoiled[:, 1] = bad
        with pytest.raises(ValueError, match="^rows: must be finite"):
            compare(spoiled, EXACT)
        with pytest.raises(ValueError, match="^exact: must be finite"):
            compare(rows, EXACT * bad)
    with pytest.raises(ValueError, match="^exact: must not be zero"):
        compare(rows, 0 * EXACT)
