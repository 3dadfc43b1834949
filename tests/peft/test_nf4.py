"""NF4: its table derived, and its bytes and values against bitsandbytes, to the bit."""

from fractions import Fraction
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.devices import device
from gradbook.peft import nf4

PUBLISHED = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)


@pytest.fixture(scope="module")
def peer():
    """The functions of bitsandbytes."""
    from bitsandbytes import functional

    return functional


def test_the_table_is_the_published_one(peer):
    exact = nf4.nf4_code(torch.float64).cpu()
    published = torch.tensor(PUBLISHED, dtype=torch.float64)
    # The published numbers are rounded to float32, and so are the probabilities behind them.
    torch.testing.assert_close(exact, published, rtol=0, atol=2.5e-7)
    assert torch.equal(nf4.nf4_code(torch.float32).cpu(), published.float())
    assert torch.equal(nf4.nf4_code(torch.float32).cpu(), peer.get_4bit_type("nf4", "cpu"))


def test_the_table_is_that_of_the_quantiles_one_by_one():
    quantile = NormalDist().inv_cdf
    top = quantile(nf4.OFFSET)
    above = [quantile(0.5 + k * (nf4.OFFSET - 0.5) / 8) / top for k in range(1, 9)]
    below = [-quantile(0.5 + k * (nf4.OFFSET - 0.5) / 7) / top for k in range(7, 0, -1)]
    expected = torch.tensor([*below, 0, *above], dtype=torch.float64)
    ours = nf4.nf4_code(torch.float64).cpu()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)
    assert abs(nf4.OFFSET - (1 - 1 / 32 + 1 - 1 / 30) / 2) < 5e-8


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.6, 0.999))
def test_levels_are_equally_spaced_in_probability(positive, negative, offset):
    code = nf4.quantile_code(positive, negative, offset, torch.float64).cpu()
    assert len(code) == positive + negative + 1
    assert code[negative] == 0
    assert code[0] == -1
    assert code[-1] == 1
    top = NormalDist().inv_cdf(offset)
    p = torch.special.ndtr(code * top)
    for side, count in ((p[negative:], positive), (p[: negative + 1], negative)):
        cells = torch.full((count,), (offset - 0.5) / count, dtype=torch.float64)
        torch.testing.assert_close(side.diff(), cells, rtol=0, atol=1e-12)


def test_the_type_is_torchs_or_the_one_asked_for():
    assert nf4.nf4_code().dtype == torch.get_default_dtype()
    assert nf4.nf4_code().device.type == device().type
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert nf4.nf4_code().dtype == torch.float64
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("block_size", [32, 64, 128, 256, 512, 1024, 2048, 4096])
def test_bytes_scales_and_values_are_those_of_bitsandbytes(block_size, peer):
    w = normal(96, 1024, seed=block_size)
    packed, absmax = nf4.quantize_nf4(w, block_size)
    theirs, state = peer.quantize_4bit(w, blocksize=block_size, quant_type="nf4")
    assert torch.equal(packed, theirs.flatten())
    assert torch.equal(absmax, state.absmax)
    back = nf4.dequantize_nf4(packed, absmax, w.shape)
    levels = peer.get_4bit_type("nf4", "cpu")[nf4.unpack(packed).long()]
    assert torch.equal(back.view(-1, block_size), levels.view(-1, block_size) * absmax[:, None])
    # From 2048 on bitsandbytes may compile something first, for seconds.
    if block_size < 2048:
        assert torch.equal(back, peer.dequantize_4bit(theirs, state))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_those_of_bitsandbytes_too(dtype, peer):
    w = normal(64, 128, dtype=dtype)
    packed, absmax = nf4.quantize_nf4(w)
    theirs, state = peer.quantize_4bit(w, blocksize=64, quant_type="nf4")
    assert torch.equal(packed, theirs.flatten())
    assert absmax.dtype == torch.float32
    back = nf4.dequantize_nf4(packed, absmax, w.shape, dtype)
    assert back.dtype == dtype
    assert torch.equal(back, peer.dequantize_4bit(theirs, state))


def test_half_way_bitsandbytes_takes_the_lower_level_as_well(peer):
    code = nf4.nf4_code(torch.float32).cpu()
    midpoints = (code[1:] + code[:-1]) / 2
    w = torch.cat([midpoints, torch.ones(1), torch.zeros(16)])
    packed, _ = nf4.quantize_nf4(w, 32)
    theirs, _ = peer.quantize_4bit(w, blocksize=32, quant_type="nf4")
    assert torch.equal(packed, theirs.flatten())
    assert nf4.unpack(packed)[:15].tolist() == list(range(15))


def test_the_first_number_is_the_high_half_of_the_byte():
    packed, absmax = nf4.quantize_nf4(torch.tensor([2.0, -2.0, 0.0, 2.0]), 4)
    assert packed.tolist() == [0xF0, 0x7F]
    assert absmax.tolist() == [2]
    assert nf4.dequantize_nf4(packed, absmax).tolist() == [2, -2, 0, 2]


def test_a_block_of_zeros_stays_zeros():
    w = torch.zeros(2, 64, dtype=torch.float32)
    w[1, 5] = -3
    packed, absmax = nf4.quantize_nf4(w)
    assert absmax.tolist() == [0, 3]
    assert set(packed[:32].tolist()) == {0x77}
    assert torch.equal(nf4.dequantize_nf4(packed, absmax, w.shape), w)


def test_quantizing_again_changes_nothing():
    for dtype in (torch.float64, torch.float32):
        packed, absmax = nf4.quantize_nf4(normal(30, 64).to(dtype))
        again = nf4.quantize_nf4(nf4.dequantize_nf4(packed, absmax))
        assert torch.equal(again[0], packed)
        assert torch.equal(again[1], absmax)


def test_float64_stays_float64_and_errors_are_within_half_the_widest_gap():
    w = normal(50, 64, dtype=torch.float64)
    packed, absmax = nf4.quantize_nf4(w)
    back = nf4.dequantize_nf4(packed, absmax, w.shape)
    assert back.dtype == absmax.dtype == torch.float64
    gap = nf4.nf4_code(torch.float64).diff().max().cpu()
    assert ((w - back).abs().amax(1) <= absmax * gap / 2 + 1e-12).all()


@settings(max_examples=20)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=20))
def test_packing_is_undone_by_unpacking(numbers):
    indices = torch.tensor(2 * numbers, dtype=torch.uint8)
    packed = nf4.pack(indices)
    assert packed.tolist() == [
        16 * a + b for a, b in zip(indices[::2].tolist(), indices[1::2].tolist(), strict=True)
    ]
    assert torch.equal(nf4.unpack(packed), indices)


def test_bad_codes_are_refused():
    for name, bad in (("positive", (0, 7)), ("negative", (8, 0)), ("positive", (8.0, 7))):
        with pytest.raises(ValueError, match=f"{name}: must be a positive integer"):
            nf4.quantile_code(*bad, 0.9)
    for offset in (0.5, 1.0, float("nan"), -0.9):
        with pytest.raises(ValueError, match="offset: must be between"):
            nf4.quantile_code(8, 7, offset)
    with pytest.raises(ValueError, match="must be at most 255 together, got 256"):
        nf4.quantile_code(128, 128, 0.9)
    assert len(nf4.quantile_code(128, 127, 0.9)) == 256
    for dtype in (torch.float16, torch.int64):
        with pytest.raises(ValueError, match="dtype: must be float32 or float64"):
            nf4.nf4_code(dtype)


def test_bad_weights_are_refused():
    w = normal(2, 64)
    for size in (0, 64.0):
        with pytest.raises(ValueError, match="block_size: must be a positive integer"):
            nf4.quantize_nf4(w, size)
    with pytest.raises(ValueError, match="block_size: must be even, got 1"):
        nf4.quantize_nf4(w, 1)
    for size in (48, 256):
        with pytest.raises(ValueError, match="block_size: must divide the count 128"):
            nf4.quantize_nf4(w, size)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="w: must be finite"):
            nf4.quantize_nf4(torch.where(w > 1, bad, w))
    with pytest.raises(ValueError, match="w: must be floating"):
        nf4.quantize_nf4(torch.ones(64, dtype=torch.int32))


def test_bad_bytes_are_refused():
    packed, absmax = nf4.quantize_nf4(normal(3, 64))
    for bad in (packed[:-1], packed[:0], packed.int()):
        with pytest.raises(ValueError, match="packed: must be uint8, a multiple of 3"):
            nf4.dequantize_nf4(bad, absmax)
    for shape in ((3, 63), (4, 64), (), (-3, -64)):
        with pytest.raises(ValueError, match="shape: must hold 192 numbers"):
            nf4.dequantize_nf4(packed, absmax, shape)
    for bad in (absmax.half(), absmax[:0], absmax[None]):
        with pytest.raises(ValueError, match=r"absmax: must be \[n\], float32 or float64"):
            nf4.dequantize_nf4(packed, bad)
    with pytest.raises(ValueError, match="absmax: must be finite"):
        nf4.dequantize_nf4(packed, -absmax)
    with pytest.raises(ValueError, match="dtype: must be floating"):
        nf4.dequantize_nf4(packed, absmax, dtype=torch.int64)
    for bad in (torch.zeros(3).byte(), torch.zeros(0).byte(), torch.zeros(4).int()):
        with pytest.raises(ValueError, match="indices: must be uint8, an even count"):
            nf4.pack(bad)
    with pytest.raises(ValueError, match="indices: must be below 16"):
        nf4.pack(torch.tensor([0, 16], dtype=torch.uint8))
    with pytest.raises(ValueError, match="packed: must be uint8"):
        nf4.unpack(packed.int())


def test_the_end_of_nf4_is_that_of_the_rule():
    end = nf4.end_offset(nf4.POSITIVE, nf4.NEGATIVE)
    assert end == pytest.approx(float((Fraction(31, 32) + Fraction(29, 30)) / 2), rel=1e-15)
    # The published one has seven digits, and cuts off the others.
    assert int(end * 10**7) == round(nf4.OFFSET * 10**7)
    assert 0 < end - nf4.OFFSET < 1e-7


@settings(max_examples=25)
@given(st.integers(1, 128), st.integers(1, 127))
def test_the_end_is_the_middle_of_the_last_cells(positive, negative):
    # Above 0 every level has a cell; below, 0 has half a one besides.
    above = 1 - Fraction(1, 2) / positive / 2
    below = 1 - Fraction(1, 2) / (negative + Fraction(1, 2)) / 2
    end = nf4.end_offset(positive, negative)
    assert end == pytest.approx(float((above + below) / 2), rel=1e-15)
    code = nf4.quantile_code(positive, negative, end, torch.float64)
    assert len(code) == positive + negative + 1
    assert (code[0], code[negative], code[-1]) == (-1, 0, 1)


def test_ends_of_short_codes():
    assert nf4.end_offset(1, 1) == pytest.approx(19 / 24, rel=1e-15)
    assert nf4.end_offset(2, 1) == pytest.approx(41 / 48, rel=1e-15)
    assert nf4.end_offset(1, 2) == pytest.approx(33 / 40, rel=1e-15)
    assert nf4.end_offset(4, 3) == pytest.approx(209 / 224, rel=1e-15)


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, "2"])
def test_an_end_needs_levels_on_both_sides(bad):
    with pytest.raises(ValueError, match="^positive: "):
        nf4.end_offset(bad, 1)
    with pytest.raises(ValueError, match="^negative: "):
        nf4.end_offset(1, bad)
