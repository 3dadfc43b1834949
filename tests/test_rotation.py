"""The rotation trick: the matrix, the gradient it makes, and the rows where there is no rotation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from gradbook.rotation import rotate, rotation_matrix

F64 = torch.float64


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=F64)


def gradient(z, z_q, g, through=rotate):
    leaf = z.clone().requires_grad_()
    (found,) = torch.autograd.grad(through(leaf, z_q), leaf, g)
    return found


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


# The matrix


@settings(max_examples=30)
@given(dim=st.integers(2, 7), seed=st.integers(0, 1000))
def test_the_matrix_is_the_rotation_of_the_plane_of_both(dim, seed):
    a, b = normal(2, dim, seed=seed)
    rotation = rotation_matrix(a, 3 * b)
    close = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(dim, dtype=F64), **close)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0, dtype=F64), **close)
    torch.testing.assert_close(rotation @ unit(a), unit(b), **close)
    basis = torch.linalg.qr(torch.stack([a, b], 1)).Q
    across = normal(dim, seed=seed + 1)
    across = across - basis @ (basis.T @ across)
    torch.testing.assert_close(rotation @ across, across, **close)


def test_a_quarter_turn():
    x, y = torch.eye(3, dtype=F64)[:2]
    expected = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=F64)
    torch.testing.assert_close(rotation_matrix(x, y), expected, rtol=0, atol=1e-15)


def test_one_dimension_has_the_identity_alone():
    one = torch.ones(1, dtype=F64)
    torch.testing.assert_close(rotation_matrix(one, 5 * one), one[None], rtol=1e-15, atol=0)
    with pytest.raises(ValueError, match="^b: must not be opposite"):
        rotation_matrix(one, -one)


# The gradient


def test_the_value_is_exactly_the_code():
    z, z_q = normal(2, 50, 6)
    assert torch.equal(rotate(z, z_q), z_q)
    assert torch.equal(rotate(z.float(), z_q.float()), z_q.float())


@settings(max_examples=30)
@given(dim=st.integers(2, 7), seed=st.integers(0, 1000))
def test_the_gradient_is_that_of_the_matrix(dim, seed):
    z, z_q, g = normal(3, 4, dim, seed=seed)
    ours = gradient(z, z_q, g)
    for i in range(4):
        by_hand = z_q[i].norm() / z[i].norm() * rotation_matrix(z[i], z_q[i]).T @ g[i]
        torch.testing.assert_close(ours[i], by_hand, rtol=1e-10, atol=1e-10)


def test_the_angle_with_the_vector_is_that_with_the_code():
    z, z_q, g = normal(3, 200, 5, seed=2)
    ours = gradient(z, z_q, g)
    torch.testing.assert_close(cosine(ours, z), cosine(g, z_q), rtol=0, atol=1e-12)
    ratio = z_q.norm(dim=1) / z.norm(dim=1)
    torch.testing.assert_close(ours.norm(dim=1), ratio * g.norm(dim=1), rtol=1e-12, atol=0)
    assert (cosine(g, z) - cosine(g, z_q)).abs().mean() > 0.1


@pytest.mark.parametrize(("dtype", "atol"), [(F64, 1e-12), (torch.float32, 1e-4)])
def test_vector_quantize_pytorch_has_the_same_value_and_gradient(dtype, atol):
    z, z_q, g = normal(3, 300, 8, seed=5).to(dtype)
    torch.testing.assert_close(rotate(z, z_q), rotate_to(z, z_q), rtol=0, atol=atol)
    theirs = gradient(z, z_q, g, rotate_to)
    torch.testing.assert_close(gradient(z, z_q, g), theirs, rtol=0, atol=atol)


def test_a_code_at_its_vector_gives_the_straight_through_gradient():
    z, g = normal(2, 20, 4)
    torch.testing.assert_close(gradient(z, z.clone(), g), g, rtol=1e-12, atol=1e-12)


def test_no_gradient_reaches_the_code():
    z, z_q = normal(2, 3, 4).requires_grad_()
    z_q = z_q.detach().requires_grad_()
    found = torch.autograd.grad(rotate(z, z_q).sum(), (z, z_q), allow_unused=True)
    assert found[0] is not None
    assert found[1] is None


# Rows without a rotation


def no_rotation():
    z, z_q = normal(2, 6, 3, seed=7)
    z[0] = 0
    z_q[1] = 0
    z_q[2] = -2.5 * z[2]
    z_q[3] = -z[3] + 1e-10 * normal(3, seed=8)
    z[4] *= 1e-200
    z_q[4] *= 1e200
    return z, z_q


def test_rows_without_a_rotation_get_the_straight_through_gradient():
    z, z_q = no_rotation()
    g = normal(6, 3, seed=9)
    ours = gradient(z, z_q, g)
    assert torch.equal(ours[:5], g[:5])
    torch.testing.assert_close(ours[5], gradient(z, z_q, g, rotate_to)[5], rtol=1e-12, atol=1e-12)
    assert torch.equal(rotate(z, z_q), z_q)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_nearly_opposite_codes_turn_as_far_as_rounding_allows(dtype):
    z, g = normal(2, 50, 3, seed=3).to(dtype)
    aside = 1e-2 * normal(50, 3, seed=4).to(dtype)
    z_q = -z + aside * z.norm(dim=1, keepdim=True)
    ours = gradient(z, z_q, g)
    ratio = z_q.norm(dim=1) / z.norm(dim=1)
    error = 1e3 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours.norm(dim=1), ratio * g.norm(dim=1), rtol=error, atol=0)
    torch.testing.assert_close(cosine(ours, z), cosine(g, z_q), rtol=0, atol=error)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_lengths_whose_squares_leave_the_type(size):
    z, z_q, g = normal(3, 5, 4, seed=6)
    ours = gradient(size * z, size * z_q, g)
    torch.testing.assert_close(ours, gradient(z, z_q, g), rtol=1e-12, atol=1e-12)


def test_an_empty_batch_is_empty():
    empty = torch.empty(0, 4, dtype=F64, requires_grad=True)
    assert rotate(empty, empty.detach()).shape == (0, 4)
    assert gradient(empty.detach(), empty.detach(), empty.detach()).shape == (0, 4)


# Bad input


@pytest.mark.parametrize(
    ("z", "z_q", "name"),
    [
        (torch.ones(3), torch.ones(3), "z"),
        (torch.ones(3, 0), torch.ones(3, 0), "z"),
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3), "z"),
        (torch.ones(2, 3), torch.ones(1, 3), "z_q"),
        (torch.ones(2, 3), torch.ones(2, 4), "z_q"),
        (torch.ones(2, 3), torch.ones(2, 3, dtype=F64), "z_q"),
        (torch.full((2, 3), math.nan), torch.ones(2, 3), "z"),
        (torch.ones(2, 3), torch.full((2, 3), math.inf), "z_q"),
    ],
)
def test_rotate_refuses(z, z_q, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        rotate(z, z_q)


@pytest.mark.parametrize(
    ("a", "b", "name"),
    [
        (torch.ones(1, 3), torch.ones(3), "a"),
        (torch.tensor(1.0), torch.ones(3), "a"),
        (torch.ones(3), torch.ones(4), "b"),
        (torch.zeros(3), torch.ones(3), "a"),
        (torch.ones(3), torch.zeros(3), "b"),
        (torch.ones(3), -torch.ones(3), "b"),
        (torch.full((3,), math.nan), torch.ones(3), "a"),
        (torch.ones(3), torch.full((3,), math.inf), "b"),
    ],
)
def test_rotation_matrix_refuses(a, b, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        rotation_matrix(a, b)
