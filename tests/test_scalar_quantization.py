"""Finite scalar quantization: the grid, its gradient, and the numbers of its codes."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_quantize_pytorch import FSQ

from gradbook.scalar_quantization import (
    finite_scalar_quantize,
    number_of_codes,
    scalar_codes,
    scalar_indices,
)

F64 = torch.float64
LEVELS = [(3,), (8, 4, 4), (8, 5, 5, 5), (4, 5, 6, 7)]


def normal(*shape, seed=0, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=F64)


def gradient(z, g, quantize):
    leaf = z.clone().requires_grad_()
    (found,) = torch.autograd.grad(quantize(leaf), leaf, g)
    return found


# The grid


@pytest.mark.parametrize("levels", LEVELS)
def test_vector_quantize_pytorch_has_the_same_values_indices_and_gradients(levels):
    z, g = normal(2, 500, len(levels)).float()
    theirs = FSQ(levels=list(levels))
    values, indices = theirs(z[None])
    ours = finite_scalar_quantize(z, levels)
    torch.testing.assert_close(ours, values[0], rtol=0, atol=1e-6)
    assert torch.equal(scalar_indices(ours, levels), indices[0].long())
    every = torch.arange(math.prod(levels))
    torch.testing.assert_close(
        scalar_codes(every, levels), theirs.implicit_codebook, rtol=0, atol=1e-6
    )
    their_gradient = gradient(z, g, lambda z: theirs(z[None])[0][0])
    our_gradient = gradient(z, g, lambda z: finite_scalar_quantize(z, levels))
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-5)


def test_two_levels_are_the_formula_of_vector_quantize_pytorch():
    """Its module refuses two levels; its formula does not."""
    z = torch.linspace(-6, 2, 101)[:, None]
    theirs = FSQ.bound(SimpleNamespace(_levels=torch.tensor([2])), z)
    ours = finite_scalar_quantize(z, [2])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert set(ours.flatten().tolist()) == {-1.0, 0.0}
    edge = z[ours[:, 0] == 0].min()
    assert edge == pytest.approx(-3.8, abs=0.08)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 15, 16])
def test_every_level_is_reached_in_order(count):
    values = finite_scalar_quantize(torch.linspace(-12, 12, 20_001, dtype=F64)[:, None], [count])
    assert (values.diff(dim=0) >= 0).all()
    half = count // 2
    expected = (torch.arange(count, dtype=F64) - half) / half
    torch.testing.assert_close(values.unique(), expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("count", [2, 3, 4, 999, 1000])
def test_far_away_is_the_outermost_level_and_zero_the_middle(count):
    for dtype in (torch.float32, F64):
        z = torch.tensor([[-50.0], [0.0], [50.0]], dtype=dtype)
        digits = scalar_indices(finite_scalar_quantize(z, [count]), [count])
        assert digits.tolist() == [0, count // 2, count - 1]


@pytest.mark.parametrize("count", [4, 5, 8, 9])
def test_zero_lies_in_the_middle_of_its_level(count):
    """Before rounding the squashed coordinate at z = 0 is 0: both neighbours are as far."""
    reach = (count - 1) * 1.001 / 2
    offset = 0.5 if count % 2 == 0 else 0.0
    for edge in (0.499, 0.501, -0.499, -0.501):
        z = math.atanh((edge + offset) / reach) - math.atanh(offset / reach)
        value = finite_scalar_quantize(torch.tensor([[z]], dtype=F64), [count])
        assert value.item() * (count // 2) == pytest.approx(round(edge), abs=1e-12)


@pytest.mark.parametrize("levels", LEVELS)
def test_the_gradient_is_that_of_the_squashed_coordinate(levels):
    z, g = normal(2, 40, len(levels), seed=3)
    found = gradient(z, g, lambda z: finite_scalar_quantize(z, levels))
    for d, count in enumerate(levels):
        reach = (count - 1) * 1.001 / 2
        shift = math.atanh((0.5 if count % 2 == 0 else 0.0) / reach)
        slope = reach / (count // 2) / (z[:, d] + shift).cosh() ** 2
        torch.testing.assert_close(found[:, d], g[:, d] * slope, rtol=1e-11, atol=1e-13)


# The numbers of codes


@pytest.mark.parametrize("levels", [*LEVELS, (2, 2, 2), (1000,), (999, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_numbers_and_codes_are_one_to_one(levels, dtype):
    every = torch.arange(math.prod(levels))
    codes = scalar_codes(every, levels, dtype)
    assert codes.dtype == dtype
    assert codes.shape == (len(every), len(levels))
    assert len(codes.unique(dim=0)) == len(every) == number_of_codes(levels)
    assert torch.equal(scalar_indices(codes, levels), every)


def test_the_first_coordinate_is_the_lowest_digit():
    values = torch.tensor([[-1.0, -1.0], [-0.5, -1.0], [-1.0, 0.0], [0.5, 1.0]])
    indices = scalar_indices(values, [4, 3])
    assert indices.dtype == torch.int64
    assert indices.tolist() == [0, 1, 4, 3 + 2 * 4]


@settings(max_examples=30)
@given(levels=st.lists(st.integers(2, 12), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_values_are_the_codes_of_their_numbers(levels, seed):
    values = finite_scalar_quantize(normal(7, 3, len(levels), seed=seed, scale=3), levels)
    indices = scalar_indices(values, levels)
    assert indices.shape == (7, 3)
    assert torch.equal(scalar_codes(indices, levels, F64), values)


def test_many_codes_need_64_bits():
    levels = [1000] * 6
    last = torch.tensor([10**18 - 1])
    assert torch.equal(scalar_indices(scalar_codes(last, levels), levels), last)


def test_an_empty_batch_is_empty():
    values = finite_scalar_quantize(torch.empty(0, 2), [3, 4])
    assert values.shape == (0, 2)
    indices = scalar_indices(values, [3, 4])
    assert indices.shape == (0,)
    assert scalar_codes(indices, [3, 4]).shape == (0, 2)


# Bad input


@pytest.mark.parametrize("levels", [[], [1, 3], [3, 0], [-4], [2.0], [1001], [1000] * 7])
def test_bad_levels(levels):
    for call in (
        lambda: finite_scalar_quantize(torch.zeros(2, len(levels)), levels),
        lambda: scalar_indices(torch.zeros(2, len(levels)), levels),
        lambda: scalar_codes(torch.zeros(2, dtype=torch.int64), levels),
        lambda: number_of_codes(levels),
    ):
        with pytest.raises(ValueError, match="^levels: "):
            call()


@pytest.mark.parametrize(
    "z",
    [
        torch.zeros(2, 3),
        torch.tensor(0.0),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.tensor([[0.0, math.nan]]),
        torch.tensor([[0.0, math.inf]]),
    ],
)
def test_bad_vectors(z):
    with pytest.raises(ValueError, match="^z: "):
        finite_scalar_quantize(z, [3, 4])
    with pytest.raises(ValueError, match="^values: "):
        scalar_indices(z, [3, 4])


@pytest.mark.parametrize("value", [0.3, 1.0, -1.5, 0.52])
def test_values_off_the_grid(value):
    with pytest.raises(ValueError, match="^values: must be on the grid"):
        scalar_indices(torch.tensor([[value]]), [4])


@pytest.mark.parametrize(
    "indices",
    [torch.tensor([12]), torch.tensor([-1]), torch.tensor([0.0]), torch.tensor([True])],
)
def test_bad_indices(indices):
    with pytest.raises(ValueError, match="^indices: "):
        scalar_codes(indices, [3, 4])


def test_the_type_of_the_vectors_and_not_the_default_counts():
    torch.set_default_dtype(torch.float64)
    try:
        z = torch.zeros(2, 3, dtype=torch.float32)
        assert finite_scalar_quantize(z, (8, 4, 4)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
