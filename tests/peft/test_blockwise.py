"""Blocks, the nearest level, and the way there and back, against plain loops and bitsandbytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.peft import blockwise


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def levels(count, seed=0):
    """Sorted levels from -1 to 1, not equally spaced."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(count - 1, generator=generator, dtype=torch.float64) + 0.1
    ends = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])
    return 2 * ends / ends[-1] - 1


@pytest.fixture(scope="module")
def peer():
    """The functions of bitsandbytes."""
    from bitsandbytes import functional

    return functional


def test_blocks_are_a_view_in_the_order_of_the_numbers():
    w = normal(4, 6)
    rows = blockwise.blocks(w, 8)
    assert rows.shape == (3, 8)
    assert torch.equal(rows.flatten(), w.flatten())
    assert rows.data_ptr() == w.data_ptr()
    assert torch.equal(blockwise.blocks(w.T, 8).flatten(), w.T.flatten())


@pytest.mark.parametrize("count", [2, 15, 16, 64, 65, 256])
def test_the_nearest_level_is_that_of_a_search_through_all(count):
    x, code = 1.2 * normal(40, 50), levels(count)
    found = blockwise.nearest_level(x, code)
    assert found.dtype == torch.uint8
    assert found.shape == x.shape
    assert torch.equal(found.long(), (x[..., None] - code).abs().argmin(-1))


@pytest.mark.parametrize("count", [9, 129])
def test_half_way_the_lower_level_is_taken_and_a_level_is_its_own(count):
    # Quotients of powers of two, so that the midpoints are exact.
    code = torch.arange(-(count // 2), count // 2 + 1, dtype=torch.float64) / 64
    midpoints = (code[1:] + code[:-1]) / 2
    below = torch.arange(count - 1)
    assert torch.equal(blockwise.nearest_level(midpoints, code).long(), below)
    assert torch.equal(blockwise.nearest_level(midpoints + 1e-9, code).long(), below + 1)
    assert torch.equal(blockwise.nearest_level(code, code).long(), torch.arange(count))


@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(2, 20), st.integers(0, 99))
def test_a_block_is_over_its_absmax_and_comes_back_within_half_a_gap(n, size, count, seed):
    w, code = normal(n, size, seed=seed), levels(count, seed)
    indices, absmax = blockwise.absmax_quantize(w, code, size)
    assert torch.equal(absmax, w.abs().amax(1))
    back = blockwise.absmax_dequantize(indices, absmax, code).view(n, size)
    best = (w[..., None] - absmax[:, None, None] * code).abs().amin(-1)
    torch.testing.assert_close((w - back).abs(), best, rtol=0, atol=1e-14)
    assert torch.equal(back, code[indices.long()] * absmax[:, None])


def test_numbers_beyond_one_part_of_the_cache_are_done_as_those_within(monkeypatch):
    w, code = normal(37, 8), levels(16)
    whole = blockwise.absmax_quantize(w, code, 8)
    monkeypatch.setattr(blockwise, "CHUNK", 24)
    parts = blockwise.absmax_quantize(w, code, 8)
    assert all(map(torch.equal, whole, parts))
    rows = list(blockwise.chunks(w))
    assert [(part.start, part.stop) for part in rows[:2]] == [(0, 3), (3, 6)]
    assert torch.equal(torch.cat([w[part] for part in rows]), w)
    monkeypatch.setattr(blockwise, "CHUNK", 4)
    assert all(map(torch.equal, whole, blockwise.absmax_quantize(w, code, 8)))


def test_zeros_and_tiny_numbers_are_no_special_case():
    sides = torch.linspace(-1, 0, 8, dtype=torch.float64), torch.linspace(0, 1, 9).double()[1:]
    code = torch.cat(sides)
    w = torch.zeros(3, 4, dtype=torch.float64)
    w[1, 2], w[2, 1] = 1e-30, -3
    indices, absmax = blockwise.absmax_quantize(w, code, 4)
    assert absmax.tolist() == [0, 1e-30, 3]
    assert indices.tolist() == [[7, 7, 7, 7], [7, 7, 15, 7], [7, 0, 7, 7]]
    least = torch.tensor([1e-44, 0.0], dtype=torch.float32)
    indices, absmax = blockwise.absmax_quantize(least, code.float(), 2)
    assert absmax[0] == least[0]
    assert indices[0, 1] == 7


def test_the_scale_of_a_single_block_is_contiguous():
    code = torch.linspace(-1, 1, 5, dtype=torch.float64)
    _, absmax = blockwise.absmax_quantize(torch.ones(8, dtype=torch.float64), code, 8)
    assert absmax.stride() == (1,)
    # What is looked at as bytes must be.
    assert absmax.view(torch.uint8).shape == (8,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_quantized_as_the_float32_that_they_are(dtype):
    w, code = normal(6, 8, dtype=dtype), levels(16).float()
    ours = blockwise.absmax_quantize(w, code, 8)
    assert all(map(torch.equal, ours, blockwise.absmax_quantize(w.float(), code, 8)))
    assert ours[1].dtype == torch.float32


def test_a_code_of_bytes_is_that_of_bitsandbytes_but_for_its_rounding(peer):
    w = normal(256, 256, dtype=torch.float32)
    code = peer.create_dynamic_map()
    theirs, state = peer.quantize_blockwise(w, code.clone(), blocksize=256)
    indices, absmax = blockwise.absmax_quantize(w, code, 256)
    assert torch.equal(absmax, state.absmax)
    back = blockwise.absmax_dequantize(theirs, absmax, code).view_as(w)
    assert torch.equal(back, peer.dequantize_blockwise(theirs, state))
    # On a CPU theirs is looked up in 65,536 cells of [-1, 1], so it may miss by one of them.
    x = w.double() / absmax[:, None].double()
    ours, found = ((x - code.double()[i.long()]).abs() for i in (indices, theirs))
    assert (found - ours).max() < 2 / 65_535
    assert (ours - found).max() < 1e-6
    assert (indices != theirs).double().mean() < 0.005


def test_bad_input_is_refused():
    w, code = normal(2, 8), levels(16)
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="block_size: must be a positive integer"):
            blockwise.blocks(w, size)
    for size in (3, 32):
        with pytest.raises(ValueError, match="block_size: must divide the count 16"):
            blockwise.absmax_quantize(w, code, size)
    with pytest.raises(ValueError, match="block_size: must divide the count 0"):
        blockwise.blocks(w[:0], 4)
    with pytest.raises(ValueError, match="w: must be floating"):
        blockwise.blocks(torch.ones(4, dtype=torch.int64), 4)
    for bad in (float("nan"), float("inf"), -float("inf")):
        worse = w.clone()
        worse[1, 3] = bad
        with pytest.raises(ValueError, match="w: must be finite"):
            blockwise.absmax_quantize(worse, code, 4)
    with pytest.raises(ValueError, match="x: must not hold a NaN"):
        blockwise.nearest_level(w * float("nan"), code)


def test_bad_codes_are_refused():
    w, code = normal(2, 8), levels(16)
    flat, infinite = code.clone(), code.clone()
    flat[3], infinite[-1] = flat[4], float("inf")
    cases = {
        "2 to 256 levels": [code[:1], code.view(4, 4), levels(257)],
        "float64, got": [code.float()],
        "finite": [infinite],
        "sorted": [code.flip(0), flat],
    }
    for message, bad in cases.items():
        for one in bad:
            with pytest.raises(ValueError, match=f"code: must be .*{message}"):
                blockwise.absmax_quantize(w, one, 8)
            with pytest.raises(ValueError, match=f"code: must be .*{message}"):
                blockwise.nearest_level(w, one)
    with pytest.raises(ValueError, match="code: must be torch.float32"):
        blockwise.absmax_quantize(w.half(), code, 8)


def test_bad_indices_and_scales_are_refused():
    code = levels(16)
    indices, absmax = blockwise.absmax_quantize(normal(2, 8), code, 8)
    wrong = (indices[:1], indices.flatten(), indices.long(), indices[:, :0])
    for bad in wrong:
        with pytest.raises(ValueError, match=r"indices: must be \[2, B\] uint8"):
            blockwise.absmax_dequantize(bad, absmax, code)
    with pytest.raises(ValueError, match="indices: must be below 16"):
        blockwise.absmax_dequantize(indices.clamp(min=16), absmax, code)
    for bad in (-absmax, absmax * float("nan"), absmax / 0):
        with pytest.raises(ValueError, match="absmax: must be finite and not negative"):
            blockwise.absmax_dequantize(indices, bad, code)
    for bad in (absmax[:, None], absmax.half(), absmax[:0]):
        with pytest.raises(ValueError, match=r"absmax: must be \[n\], float32 or float64"):
            blockwise.absmax_dequantize(indices, bad, code)
    with pytest.raises(ValueError, match=r"code: must be torch.float32"):
        blockwise.absmax_dequantize(indices, absmax.float(), code)


def test_all_256_bytes_are_indices_of_256_levels():
    code = levels(256)
    indices = torch.arange(256).to(torch.uint8)[None]
    back = blockwise.absmax_dequantize(indices, torch.full((1,), 2, dtype=torch.float64), code)
    assert torch.equal(back, 2 * code)
