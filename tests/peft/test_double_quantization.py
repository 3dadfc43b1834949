"""Scales as bytes: the levels and the parts of bitsandbytes, and what the bytes cost in error."""

import pytest
import torch

from gradbook.peft import double_quantization as double
from gradbook.peft import nf4


def scales(count, seed=0, dtype=torch.float32):
    """Absmax of blocks of 64 normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(count, 64, generator=generator, dtype=torch.float64)
    return w.abs().amax(1).to(dtype)


def weights(rows):
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 1024, generator=generator, dtype=torch.float32)


@pytest.fixture(scope="module")
def peer():
    """The functions of bitsandbytes."""
    from bitsandbytes import functional

    return functional


def test_the_levels_are_those_of_bitsandbytes(peer):
    assert torch.equal(double.dynamic_code(torch.float32).cpu(), peer.create_dynamic_map())


def test_the_levels_are_fractions_of_powers_of_ten():
    code = double.dynamic_code(torch.float64).cpu()
    expected = [0.0, 1.0]
    for exponent in range(7):
        for cell in range(2**exponent):
            fraction = 0.1 + 0.9 * (cell + 0.5) / 2**exponent
            expected += [10 ** (exponent - 6) * fraction, -(10 ** (exponent - 6)) * fraction]
    expected = torch.tensor(sorted(expected), dtype=torch.float64)
    torch.testing.assert_close(code, expected, rtol=1e-14, atol=0)
    assert len(code) == 256
    assert double.dynamic_code().dtype == torch.get_default_dtype()


@pytest.mark.parametrize("rows", [16, 33])
def test_parts_and_values_are_those_of_bitsandbytes(rows, peer):
    w = weights(rows)
    packed, absmax = nf4.quantize_nf4(w)
    kind = {"blocksize": 64, "quant_type": "nf4", "compress_statistics": True}
    theirs, state = peer.quantize_4bit(w, **kind)
    ours = double.double_quantize(absmax)
    assert torch.equal(ours.mean, state.offset)
    assert torch.equal(ours.absmax, state.state2.absmax)
    # On a CPU theirs is looked up in 65,536 cells, so a byte may be a neighbour's.
    assert (ours.indices != state.absmax).double().mean() < 0.01
    given = double.QuantizedScales(state.absmax, state.state2.absmax, state.offset)
    back = nf4.dequantize_nf4(packed, double.double_dequantize(given), w.shape)
    assert torch.equal(back, peer.dequantize_4bit(theirs, state))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 24])
def test_the_last_block_may_be_shorter(count):
    absmax = scales(count, dtype=torch.float64)
    parts = double.double_quantize(absmax, 8)
    assert len(parts.indices) == count
    assert len(parts.absmax) == -(-count // 8)
    assert parts.mean == absmax.mean()
    code = double.dynamic_code(torch.float64).cpu()
    back = double.double_dequantize(parts, 8)
    for n, block in enumerate((absmax - absmax.mean()).split(8)):
        assert parts.absmax[n] == block.abs().max()
        differences = (block[:, None] - parts.absmax[n] * code).abs()
        error = (back[8 * n :][: len(block)] - absmax[8 * n :][: len(block)]).abs()
        torch.testing.assert_close(error, differences.amin(1), rtol=0, atol=1e-14)


def test_the_error_of_the_weights_hardly_grows():
    w = weights(64).double()
    packed, absmax = nf4.quantize_nf4(w)
    again = double.double_dequantize(double.double_quantize(absmax))
    once, twice = (
        (nf4.dequantize_nf4(packed, s, w.shape) - w).square().mean() for s in (absmax, again)
    )
    # 0.00845 for normal weights, and 0.04 % more.
    assert 0.0083 < once < 0.0086
    assert abs(twice / once - 1) < 2e-3
    assert 0 < (again - absmax).square().mean().sqrt() < 0.005 * absmax.mean()


def test_equal_scales_come_back_exactly_and_none_is_negative():
    same = torch.full((300,), 0.75, dtype=torch.float32)
    assert torch.equal(double.double_dequantize(double.double_quantize(same)), same)
    parts = double.QuantizedScales(
        torch.tensor([0, 255], dtype=torch.uint8), torch.tensor([2.0]), torch.tensor(0.5)
    )
    assert double.double_dequantize(parts, 2).tolist() == [0, 2.5]


def test_bad_scales_are_refused():
    absmax = scales(6)
    for bad in (absmax[None], absmax[:0], absmax.half(), absmax.long()):
        with pytest.raises(ValueError, match=r"absmax: must be \[n\], float32 or float64"):
            double.double_quantize(bad)
    with pytest.raises(ValueError, match="absmax: must be finite"):
        double.double_quantize(absmax / 0)
    for size in (0, 2.5):
        with pytest.raises(ValueError, match="block_size: must be a positive integer"):
            double.double_quantize(absmax, size)
    with pytest.raises(ValueError, match="dtype: must be float32 or float64"):
        double.dynamic_code(torch.bfloat16)


def test_bad_parts_are_refused():
    parts = double.double_quantize(scales(6), 4)
    with pytest.raises(ValueError, match="block_size: must be a positive integer"):
        double.double_dequantize(parts, 0)
    wrong = (
        parts._replace(indices=parts.indices[None]),
        parts._replace(mean=parts.mean[None]),
        parts._replace(mean=parts.mean.double()),
    )
    for bad in wrong:
        with pytest.raises(ValueError, match=r"scales: must be \[n\] bytes and a mean"):
            double.double_dequantize(bad, 4)
    for bad, size in ((parts, 2), (parts._replace(absmax=parts.absmax[:1]), 4)):
        with pytest.raises(ValueError, match="scales: must be a byte each"):
            double.double_dequantize(bad, size)
    with pytest.raises(ValueError, match="mean: must be finite"):
        double.double_dequantize(parts._replace(mean=parts.mean / 0), 4)
    with pytest.raises(ValueError, match=r"indices: must be \[2, B\] uint8"):
        double.double_dequantize(parts._replace(indices=parts.indices.int()), 4)
