"""Integers, floats and equal steps in four bits: published tables, gguf's blocks, bounds."""

import math

import numpy as np
import pytest
import torch
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.peft import four_bit_codes
from gradbook.peft.nf4 import nf4_code


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(ours, theirs, atol=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def test_levels_of_fp4_are_those_of_bitsandbytes():
    from bitsandbytes.functional import get_4bit_type

    theirs = get_4bit_type("fp4", device="cpu").unique().double()
    # Theirs are in float32.
    close(four_bit_codes.fp4_code().cpu(), theirs, atol=6e-8)


def test_levels_of_int4_are_sevenths():
    assert (7 * four_bit_codes.int4_code()).round(decimals=12).tolist() == list(range(-7, 8))


def test_levels_of_e2m1_are_those_of_gguf():
    theirs = np.unique(quants.MXFP4.kvalues) / 12
    close(four_bit_codes.e2m1_code().cpu(), torch.from_numpy(theirs))


def test_the_floats_differ_in_their_least_level_only():
    ours, theirs = four_bit_codes.fp4_code(), four_bit_codes.e2m1_code()
    assert (ours != theirs).nonzero().flatten().tolist() == [6, 8]
    assert float(theirs[8] / ours[8]) == pytest.approx(16)


def test_equal_steps_are_those_of_gguf():
    x = normal(64, 32).float()
    theirs = quants.Q4_1.dequantize(quants.Q4_1.quantize(x.numpy()))
    ours = four_bit_codes.affine_rounded(x, 32).view_as(x)
    _, _, step = four_bit_codes.affine_quantize(x, 32)
    # Theirs rounds the least and the step to float16: 2^-11 of each, up to 15 steps away; and at a
    # half-way point it may take the next index.
    slack = 2**-11 * (x.abs().amax(1) + 15 * step)
    difference = (ours - torch.from_numpy(theirs)).abs()
    assert (difference <= (step + slack)[:, None]).all()
    assert (difference <= slack[:, None]).double().mean() > 0.99


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(2, 256), st.integers(0, 99))
def test_equal_steps_meet_the_ends_and_are_half_a_step_off(n, size, levels, seed):
    w = normal(n, size, seed=seed)
    affine = four_bit_codes.affine_quantize(w, size, levels)
    left = four_bit_codes.affine_dequantize(affine).view(n, size)
    assert affine.indices.shape == (n, size)
    assert int(affine.indices.max()) < levels
    close(affine.least, w.amin(1))
    close(affine.step, (w.amax(1) - w.amin(1)) / (levels - 1))
    close(left.amin(1), w.amin(1))
    close(left.amax(1), w.amax(1))
    assert ((left - w).abs() <= affine.step[:, None] / 2 + 1e-12).all()


def test_equal_numbers_come_back():
    w = torch.tensor([[3.0, 3.0], [0.0, 0.0]], dtype=torch.float32, device="cpu")
    affine = four_bit_codes.affine_quantize(w, 2)
    assert affine.indices.tolist() == [[0, 0], [0, 0]]
    assert torch.equal(four_bit_codes.affine_dequantize(affine), w.flatten())


def test_steps_between_numbers_of_any_size():
    w = torch.tensor([-3e38, 3e38, 0.0, 1e38], dtype=torch.float32, device="cpu")
    left = four_bit_codes.affine_rounded(w, 4)
    assert left.isfinite().all()
    assert ((left - w).abs() <= 2.1e37).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_coder_takes_the_nearest_level(dtype):
    w, code = normal(6, 8).to(dtype), torch.tensor([-1, -0.3, 0.2, 1.0], dtype=torch.float64)
    left = four_bit_codes.rounded(code)(w, 16)
    exact = w.double().reshape(-1, 16)
    largest = exact.abs().amax(1, keepdim=True)
    nearest = (exact[..., None] - largest[..., None] * code).abs().argmin(-1)
    wanted = (largest * code[nearest]).flatten()
    assert left.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(left.double(), wanted, atol=1e-6)
    assert four_bit_codes.affine_rounded(w, 16).dtype == left.dtype


def test_errors_are_relative_and_one_for_each_matrix():
    w = normal(8, 16)
    coders = {
        "nothing": lambda w, _: w.flatten(),
        "zero": lambda w, _: torch.zeros_like(w).flatten(),
        "half": lambda w, _: w.flatten() / 2,
        "nf4": four_bit_codes.rounded(nf4_code(torch.float64).cpu()),
    }
    found = four_bit_codes.errors_by_code([w, 1000 * w], coders, 16)
    assert found["nothing"] == [0, 0]
    assert found["zero"] == pytest.approx([1, 1])
    assert found["half"] == pytest.approx([0.5, 0.5])
    left = coders["nf4"](w, 16).view_as(w)
    lost = float(((w - left).square().mean() / w.square().mean()).sqrt())
    assert found["nf4"] == pytest.approx([lost, lost])
    blocks_of_eight = four_bit_codes.errors_by_code([w], coders, 8)["nf4"]
    assert blocks_of_eight[0] < lost


def test_bits_count_the_constants():
    assert four_bit_codes.bits_per_weight(64) == 4.5
    assert four_bit_codes.bits_per_weight(32) == 5
    assert four_bit_codes.bits_per_weight(128, constants=2) == 4.5
    assert four_bit_codes.bits_per_weight(32, constants=2, width=16) == 5


def test_bad_inputs_are_refused():
    w = normal(4, 4)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="w"):
            four_bit_codes.affine_quantize(torch.full_like(w, bad), 4)
    for size in (3, 0, 32):
        with pytest.raises(ValueError, match="block_size"):
            four_bit_codes.affine_quantize(w, size)
    for levels in (1, 257, 4.0):
        with pytest.raises(ValueError, match="levels"):
            four_bit_codes.affine_quantize(w, 4, levels)
    with pytest.raises(ValueError, match="w"):
        four_bit_codes.affine_quantize(w.long(), 4)
    indices, least, step = four_bit_codes.affine_quantize(w, 4)
    with pytest.raises(ValueError, match="indices"):
        four_bit_codes.affine_dequantize(four_bit_codes.Affine(indices.long(), least, step))
    with pytest.raises(ValueError, match="indices"):
        four_bit_codes.affine_dequantize(four_bit_codes.Affine(indices[0], least, step))
    with pytest.raises(ValueError, match="least"):
        four_bit_codes.affine_dequantize(four_bit_codes.Affine(indices, least[:1], step))
    with pytest.raises(ValueError, match="least"):
        four_bit_codes.affine_dequantize(four_bit_codes.Affine(indices, least, step[:1]))
    for code in ([-1.0, 1.5], [1.0, -1.0]):
        with pytest.raises(ValueError, match="code"):
            four_bit_codes.rounded(torch.tensor(code, dtype=torch.float64))
    with pytest.raises(ValueError, match="weights"):
        four_bit_codes.errors_by_code([torch.zeros_like(w)], {}, 4)
    for sizes in ((0,), (64, 0), (64, 1, 0), (64.0,)):
        with pytest.raises(ValueError, match="must be a positive integer"):
            four_bit_codes.bits_per_weight(*sizes)
