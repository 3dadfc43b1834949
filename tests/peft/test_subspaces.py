"""Spaces with known angles, scipy's angles, the mean over random spaces, and the paper's numbers."""

import math

import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook.peft import subspaces


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def basis(n, count, seed=0):
    """Orthonormal columns, uniform: torch's QR of normals, with the signs of R's diagonal."""
    q, r = torch.linalg.qr(normal(n, count, seed=seed))
    return q * r.diagonal().sign()


def planted(left, values, right):
    return (left * torch.tensor(values, dtype=torch.float64)) @ right.T


def eye(n):
    return torch.eye(n, dtype=torch.float64)


def test_directions_are_those_that_were_planted_largest_first():
    left, right = basis(7, 3, 1), basis(5, 3, 2)
    matrix = planted(left, [1.0, 4.0, 2.0], right)
    for given_, sides in ((matrix, left), (matrix.T, right)):
        found = subspaces.directions(given_, 3)
        signs = (found * sides[:, [1, 2, 0]]).sum(0)
        torch.testing.assert_close(found * signs, sides[:, [1, 2, 0]], rtol=0, atol=1e-12)
        torch.testing.assert_close(signs.abs(), torch.ones(3).double(), rtol=0, atol=1e-12)


def test_known_angles_give_their_squared_cosines():
    one = planted(eye(4)[:, :2], [2.0, 1.0], eye(2))
    # The first direction at an angle t of the first, the second at u of the second.
    t, u = 0.3, 1.1
    turned = torch.zeros(4, 2, dtype=torch.float64)
    turned[0, 0], turned[2, 0] = math.cos(t), math.sin(t)
    turned[1, 1], turned[3, 1] = math.cos(u), math.sin(u)
    other = planted(turned, [5.0, 3.0], eye(2))
    c, d = math.cos(t) ** 2, math.cos(u) ** 2
    for i, j, expected in ((1, 1, c), (1, 2, c), (2, 1, c), (2, 2, (c + d) / 2)):
        assert subspaces.similarity(one, other, i, j) == pytest.approx(expected, abs=1e-12)


@given(st.integers(2, 8), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_a_similarity_is_the_mean_of_scipys_squared_cosines(n, i, j, seed):
    one, other = normal(n, 6, seed=seed), normal(n, 7, seed=seed + 100)
    i, j = min(i, n), min(j, n)
    sides = (scipy.linalg.svd(x.numpy())[0] for x in (one, other))
    a, b = (u[:, :k] for u, k in zip(sides, (i, j), strict=True))
    angles = scipy.linalg.subspace_angles(a, b)
    found = subspaces.similarity(one, other, i, j)
    # scipy's angles, from sines where the cosines are large, are good to about 1e-8.
    mean = sum(math.cos(angle) ** 2 for angle in angles) / min(i, j)
    assert found == pytest.approx(mean, abs=1e-7)
    assert found == pytest.approx(subspaces.similarity(other, one, j, i), abs=1e-12)
    # i + j - n dimensions are shared, whatever the spaces are.
    assert max(0.0, (i + j - n) / min(i, j)) - 1e-12 <= found <= 1


def test_a_space_within_another_has_similarity_1_and_orthogonal_ones_0():
    one = planted(basis(6, 4), [4.0, 3.0, 2.0, 1.0], basis(5, 4))
    for i in range(1, 5):
        for j in range(1, 5):
            assert subspaces.similarity(one, 3 * one, i, j) == pytest.approx(1, abs=1e-12)
            assert subspaces.similarity(one, one, i, j) <= 1
    first, last = eye(6)[:, :2] @ normal(2, 3), eye(6)[:, 2:] @ normal(4, 3, seed=1)
    assert subspaces.similarity(first, last, 2, 3) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n", "i", "j"), [(6, 1, 1), (6, 2, 3), (9, 4, 2), (5, 5, 2)])
def test_random_spaces_meet_the_chance(n, i, j):
    """A Monte Carlo mean over 400 pairs, at 4.5 of its standard errors."""
    found = []
    for seed in range(400):
        one, other = normal(n, i, seed=seed), normal(n, j, seed=seed + 1000)
        found.append(subspaces.similarity(one, other, i, j))
    found = torch.tensor(found, dtype=torch.float64)
    error = found.std() / len(found) ** 0.5
    expected = subspaces.chance(i, j, n)
    # One that fills everything holds the other: then there is no spread but rounding.
    assert abs(found.mean() - expected) <= 4.5 * error + 1e-12


def test_chance_is_the_mean_over_all_pairs_of_axes():
    n, i, j = 7, 2, 3
    axes = eye(n)
    shared = [
        (axes[:, list(a)].T @ axes[:, list(b)]).square().sum().item() / min(i, j)
        for a in torch.combinations(torch.arange(n), i).tolist()
        for b in torch.combinations(torch.arange(n), j).tolist()
    ]
    assert subspaces.chance(i, j, n) == pytest.approx(sum(shared) / len(shared), rel=1e-12)
    assert subspaces.chance(8, 64, 12288) == 64 / 12288


@given(st.integers(1, 3), st.integers(0, 99))
def test_what_is_seen_is_the_weights_between_two_projections(rank, seed):
    delta, weight = normal(5, 4, seed=seed), normal(5, 4, seed=seed + 100)
    left, _, right = scipy.linalg.svd(delta.numpy(), full_matrices=False)
    left, right = torch.tensor(left[:, :rank]), torch.tensor(right[:rank])
    between = left @ left.T @ weight @ right.T @ right
    found = subspaces.seen(delta, weight, rank)
    assert found == pytest.approx(between.norm().item(), rel=1e-10)
    assert found <= weight.norm() + 1e-12
    expected = delta.norm().item() / between.norm().item()
    assert subspaces.amplification(delta, weight, rank) == pytest.approx(expected, rel=1e-10)


def test_a_matrix_sees_its_own_first_singular_values():
    weight = planted(basis(6, 3), [6.0, 3.0, 2.0], basis(4, 3, 1))
    for rank, total in ((1, 36), (2, 45), (3, 49)):
        assert subspaces.seen(weight, weight, rank) == pytest.approx(math.sqrt(total), rel=1e-12)
        assert subspaces.amplification(weight, weight, rank) == pytest.approx(
            7 / math.sqrt(total), rel=1e-12
        )


def test_an_addition_along_a_weak_direction_amplifies_it():
    """W has 0.1 where delta has 2, and 5 elsewhere."""
    left, right = basis(6, 2, 1), basis(5, 2, 2)
    weight = planted(left, [5.0, 0.1], right)
    delta = planted(left[:, 1:], [2.0], right[:, 1:])
    assert subspaces.amplification(delta, weight, 1) == pytest.approx(20, rel=1e-10)
    # A left side of one and a right side of the other: W takes nothing from there to here.
    across = torch.outer(eye(3)[0], eye(3)[1])
    assert subspaces.amplification(across, eye(3), 1) == math.inf


def test_all_of_the_addition_counts_and_only_its_first_directions_look():
    delta = planted(eye(3), [4.0, 3.0, 0.5], eye(3))
    weight = planted(eye(3), [1.0, 2.0, 100.0], eye(3))
    whole = math.sqrt(16 + 9 + 0.25)
    assert subspaces.amplification(delta, weight, 1) == pytest.approx(whole, rel=1e-12)
    expected = whole / math.sqrt(5)
    assert subspaces.amplification(delta, weight, 2) == pytest.approx(expected, rel=1e-12)


def test_random_directions_see_the_weights_by_chance():
    """The mean of 400 squares, at 4.5 of its standard errors."""
    weight, rank = normal(5, 4, seed=7), 2
    squares = torch.tensor(
        [
            subspaces.seen(basis(5, 2, seed) @ basis(4, 2, seed + 1000).T, weight, rank) ** 2
            for seed in range(400)
        ],
        dtype=torch.float64,
    )
    expected = subspaces.seen_by_chance(weight, rank) ** 2
    assert expected == pytest.approx(weight.square().sum().item() * 4 / 20, rel=1e-12)
    assert abs(squares.mean() - expected) <= 4.5 * squares.std() / 20


@pytest.mark.parametrize(("rank", "printed"), [(4, 0.02), (64, 0.33)])
def test_the_papers_column_of_random_directions_is_the_closed_form(rank, printed):
    """Table 7, of a query matrix of GPT-3: 12288 wide, of norm 61.95, two digits printed."""
    norm, width = 61.95, 12288
    small = torch.full((12, 12), norm / 12, dtype=torch.float64)
    assert small.norm().item() == pytest.approx(norm, rel=1e-12)
    # The same share of a smaller matrix: its rank over its width is what counts.
    found = subspaces.seen_by_chance(small, 1) * 12 * rank / width
    assert found == pytest.approx(printed, abs=0.01)


def test_float32_is_enough_to_tell_the_rank():
    product = (normal(40, 3) @ normal(3, 30, seed=1)).float()
    assert subspaces.directions(product, 3).dtype == torch.float32
    with pytest.raises(ValueError, match="^count: must be at most the rank, 3, got 4"):
        subspaces.directions(product, 4)


SQUARE = normal(3, 3)
LOW = torch.outer(normal(3), normal(3, seed=1))
BAD = [
    (lambda: subspaces.directions(SQUARE, 0), "count: must be a positive"),
    (lambda: subspaces.directions(SQUARE, 4), "count: must be at most the rank, 3, got 4"),
    (lambda: subspaces.directions(LOW, 2), "count: must be at most the rank, 1, got 2"),
    (lambda: subspaces.directions(0 * SQUARE, 1), "count: must be at most the rank, 0"),
    (lambda: subspaces.directions(SQUARE[0], 1), "matrix: must be a matrix"),
    (lambda: subspaces.directions(SQUARE[:0], 1), "matrix: must be a matrix"),
    (lambda: subspaces.directions(SQUARE / 0, 1), "matrix: must be finite"),
    (lambda: subspaces.directions(SQUARE.half(), 1), "matrix: must be float32 or float64"),
    (lambda: subspaces.similarity(SQUARE, SQUARE, 4, 1), "i: must be at most the rank"),
    (lambda: subspaces.similarity(SQUARE, LOW, 1, 2), "j: must be at most the rank, 1"),
    (lambda: subspaces.similarity(SQUARE / 0, LOW, 1, 1), "one: must be finite"),
    (lambda: subspaces.similarity(SQUARE, LOW / 0, 1, 1), "other: must be finite"),
    (lambda: subspaces.similarity(SQUARE, SQUARE[:2], 1, 1), "other: must have 3 rows"),
    (lambda: subspaces.similarity(SQUARE, SQUARE.float(), 1, 1), "other: must have 3 rows"),
    (lambda: subspaces.chance(0, 1, 2), "i: "),
    (lambda: subspaces.chance(1, 0, 2), "j: "),
    (lambda: subspaces.chance(1, 3, 2), "n: must be at least 3"),
    (lambda: subspaces.seen(LOW, SQUARE, 2), "rank: must be at most the rank, 1"),
    (lambda: subspaces.seen(LOW, SQUARE[:2], 1), "weight: must be \\[3, 3\\]"),
    (lambda: subspaces.seen(LOW, SQUARE.float(), 1), "weight: must be \\[3, 3\\]"),
    (lambda: subspaces.seen(LOW, SQUARE / 0, 1), "weight: must be finite"),
    (lambda: subspaces.seen_by_chance(SQUARE, 4), "rank: must be at most 3"),
    (lambda: subspaces.seen_by_chance(SQUARE, 0), "rank: must be a positive"),
    (lambda: subspaces.seen_by_chance(SQUARE / 0, 1), "weight: must be finite"),
    (lambda: subspaces.amplification(LOW, SQUARE, 2), "rank: must be at most the rank"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
