"""The law of a normal over the largest of its block: closed forms, draws, and published errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.peft import block_law, four_bit_codes
from gradbook.peft.blockwise import nearest_level
from gradbook.peft.nf4 import nf4_code

# The mean absolute error of NF4 that bitsandbytes publishes by block, over 200 draws: the mean is
# known to some 1e-5, since one draw scatters by 1e-4.
PUBLISHED = {
    32: 0.067746,
    64: 0.072798,
    128: 0.076831,
    256: 0.080337,
    512: 0.083547,
    1024: 0.086610,
    2048: 0.089592,
    4096: 0.092547,
}


def vector(*values):
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def nf4():
    return nf4_code(torch.float64).cpu()


def drawn(blocks, block, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(blocks, block, generator=generator, dtype=torch.float64)


def symmetric(levels):
    return st.lists(st.floats(0.01, 1), min_size=levels, max_size=levels, unique_by=lambda x: x)


def agrees(exact, found):
    """Compare with independent draws, within 4.5 standard errors: once in 150,000 by chance."""
    assert abs(exact - found.mean()) <= 4.5 * found.std() / math.sqrt(len(found)) + 1e-12


@pytest.mark.parametrize("block", [2, 3, 16, 64])
def test_the_law_is_that_of_draws(block):
    x = drawn(20_000, block)
    u = x / x.abs().amax(1, keepdim=True)
    at = vector(-1.5, -1, -0.9, -0.3, 0, 0.05, 0.6, 0.999, 1, 2)
    law = block_law.scaled_normal_cdf(at, block)
    for place, exact in zip(at[2:-2], law[2:-2], strict=True):
        agrees(exact, (u <= place).double().mean(1))
    ends = vector(0, 1 / (2 * block), 1, 1)
    torch.testing.assert_close(law[[0, 1, -2, -1]], ends, rtol=0, atol=1e-12)


def test_two_weights_have_a_ratio_with_a_closed_law():
    # The smaller over the larger of two normals is the tangent of a uniform angle up to 45 degrees.
    x = torch.linspace(-0.99, 0.99, 9, dtype=torch.float64, device="cpu")
    closed = 1 / 4 + (x.atan() / (math.pi / 4) + 1) / 4
    torch.testing.assert_close(block_law.scaled_normal_cdf(x, 2), closed, rtol=0, atol=1e-12)


@settings(max_examples=20)
@given(st.floats(0, 1), st.integers(2, 70_000))
def test_the_law_is_symmetric(x, block):
    at = vector(x, -x)
    above, below = block_law.scaled_normal_cdf(at, block)
    jump = (x == 1) / (2 * block)
    assert float(above + below) == pytest.approx(1 + jump, abs=1e-9)


@pytest.mark.parametrize("block", [2, 7, 64])
@pytest.mark.parametrize("s", [0, 1, 2])
def test_moments_are_those_of_draws(block, s):
    x = drawn(20_000, block, seed=1)
    largest = x.abs().amax(1, keepdim=True)
    u, rule = x / largest, block_law.maxima(block)
    at = vector(-1, -0.4, 0.3, 1)
    moments = block_law.partial_moments(at, rule, block, s)
    for i, place in enumerate(at):
        held = largest**s * (u <= place)
        agrees(moments.mass[i], held.mean(1))
        agrees(moments.first[i], (held * u).mean(1))


def test_the_density_is_the_slope_of_the_mass():
    rule, x = block_law.maxima(16), vector(-0.7, 0.0, 0.2, 0.9)
    step = 1e-5
    above, below = (block_law.partial_moments(x + d, rule, 16, 1).mass for d in (step, -step))
    slope = (above - below) / (2 * step)
    density = block_law.partial_moments(x, rule, 16, 1).density
    # A difference over 2e-5 is off by 1e-10 of a third derivative, and by rounding over the step.
    torch.testing.assert_close(density, slope, rtol=0, atol=1e-8)


@pytest.mark.parametrize("block", PUBLISHED)
def test_the_errors_of_nf4_are_those_published(block):
    exact = block_law.expected_error(nf4(), block, 1)
    assert exact == pytest.approx(PUBLISHED[block], abs=2e-5)


def test_squared_errors_at_64():
    assert block_law.expected_error(nf4(), 64, 2) == pytest.approx(0.00846, abs=5e-6)
    int4 = four_bit_codes.int4_code()
    assert block_law.expected_error(int4, 64, 2) == pytest.approx(0.01158, abs=5e-6)
    assert block_law.code_entropy(nf4(), 64) == pytest.approx(3.884, abs=1e-3)


@pytest.mark.parametrize("block", [2, 5, 64])
@pytest.mark.parametrize("power", [1, 2])
def test_errors_of_a_lopsided_code_are_those_of_draws(block, power):
    code = vector(-0.8, -0.35, 0.1, 0.95)
    x = drawn(20_000, block, seed=2)
    left = four_bit_codes.rounded(code)(x, block).view_as(x)
    exact = block_law.expected_error(code, block, power)
    agrees(exact, ((x - left).abs() ** power).mean(1))


@pytest.mark.parametrize("block", [2, 3, 4, 32, 256])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("levels", [2, 5, 16])
def test_affine_errors_are_those_of_draws(block, power, levels):
    x = drawn(4_000, block, seed=3)
    affine = four_bit_codes.affine_quantize(x, block, levels)
    left = four_bit_codes.affine_dequantize(affine).view_as(x)
    exact = block_law.affine_expected_error(levels, block, power)
    found = ((x - left).abs() ** power).mean(1)
    if block == 2:
        assert exact == 0
        assert found.max() < 1e-12
    else:
        agrees(exact, found)


@settings(max_examples=20)
@given(symmetric(5), st.integers(2, 300))
def test_masses_are_a_law_and_symmetric(magnitudes, block):
    x = vector(*magnitudes).sort().values
    masses = block_law.level_masses(torch.cat((-x.flip(0), x)), block)
    assert float(masses.sum()) == pytest.approx(1, abs=1e-12)
    assert (masses >= 0).all()
    torch.testing.assert_close(masses, masses.flip(0), rtol=0, atol=1e-10)
    assert masses[-1] >= 1 / (2 * block) - 1e-12


def test_levels_that_nearly_coincide_have_no_mass_below_zero():
    x = vector(0.5, 0.625, 0.75, 0.9999999999999999, 1.0)
    code = torch.cat((-x.flip(0), x))
    assert (block_law.level_masses(code, 2) >= 0).all()
    assert 0 < block_law.code_entropy(code, 2) < 4


def test_masses_and_entropy_are_those_of_draws():
    code, block = vector(-1, -0.2, 0.5, 0.9), 8
    x = drawn(20_000, block, seed=4)
    indices = nearest_level(x / x.abs().amax(1, keepdim=True), code)
    masses = block_law.level_masses(code, block)
    for level, exact in enumerate(masses):
        agrees(exact, (indices == level).double().mean(1))
    entropy = -sum(p * math.log2(p) for p in masses.tolist())
    assert block_law.code_entropy(code, block) == pytest.approx(entropy, rel=1e-12)


def test_two_even_levels_carry_one_bit():
    assert block_law.code_entropy(vector(-0.5, 0.5), 64) == pytest.approx(1, abs=1e-12)


def test_the_masses_of_nf4_are_even_only_at_one_scale():
    scale = float(torch.special.ndtri(vector(0.9677083)))
    fixed = block_law.fixed_scale_masses(nf4(), scale)
    law = torch.distributions.Normal(0.0, 1.0)
    middles = scale * (nf4()[1:] + nf4()[:-1]) / 2
    torch.testing.assert_close(fixed[1:-1], law.cdf(middles).diff(), rtol=0, atol=1e-12)
    assert float(fixed.sum()) == pytest.approx(1, abs=1e-12)
    assert fixed.max() / fixed.min() < 1.3
    blocked = block_law.level_masses(nf4(), 64)
    assert blocked.max() / blocked.min() > 5


def test_bad_inputs_are_refused():
    code, x = nf4(), vector(0.5)
    for block in (1, 0, -2, 2.0, True):
        with pytest.raises(ValueError, match="block"):
            block_law.scaled_normal_cdf(x, block)
        with pytest.raises(ValueError, match="block"):
            block_law.expected_error(code, block, 1)
        with pytest.raises(ValueError, match="block"):
            block_law.affine_expected_error(16, block, 1)
    with pytest.raises(ValueError, match="NaN"):
        block_law.scaled_normal_cdf(vector(math.nan), 4)
    for power in (0, 3, 1.0, True):
        with pytest.raises(ValueError, match="power"):
            block_law.expected_error(code, 64, power)
        with pytest.raises(ValueError, match="power"):
            block_law.affine_expected_error(16, 64, power)
    for levels in (1, 0, 2.5):
        with pytest.raises(ValueError, match="levels"):
            block_law.affine_expected_error(levels, 64, 1)
    for bad in (vector(0.5, -0.5), vector(-1, 1.5), vector(-1.5, 1), vector(0.5)):
        with pytest.raises(ValueError, match="code"):
            block_law.level_masses(bad, 64)
        with pytest.raises(ValueError, match="code"):
            block_law.expected_error(bad, 64, 2)
    for scale in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="scale"):
            block_law.fixed_scale_masses(code, scale)
