"""Truncations against numpy, the optimum among other matrices of a rank, and what is stored."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook import delta_svd


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def planted(m, n, values, seed=0):
    """A matrix with these singular values."""
    left = torch.linalg.qr(normal(m, len(values), seed=seed))[0]
    right = torch.linalg.qr(normal(n, len(values), seed=seed + 1))[0]
    return (left * torch.tensor(values, dtype=torch.float64)) @ right.T


def relative(delta, other):
    return ((delta - other).norm() / delta.norm()).item()


SHAPES = [(5, 5), (7, 4), (3, 9), (1, 6), (6, 1), (1, 1)]


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_truncations_are_numpys(m, n):
    delta = normal(m, n)
    left, values, right = np.linalg.svd(delta.numpy(), full_matrices=False)
    for rank in range(min(m, n) + 1):
        found = delta_svd.truncated(delta, rank)
        assert [tuple(part.shape) for part in found] == [(m, rank), (rank,), (n, rank)]
        np.testing.assert_allclose(found.values.numpy(), values[:rank], rtol=1e-12)
        theirs = (left[:, :rank] * values[:rank]) @ right[:rank]
        np.testing.assert_allclose(found.matrix().numpy(), theirs, rtol=0, atol=1e-12)
        for side in (found.left, found.right):
            torch.testing.assert_close(side.T @ side, torch.eye(rank).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_the_error_is_that_of_the_truncation(m, n):
    delta = normal(m, n)
    errors = [delta_svd.error(delta, rank) for rank in range(min(m, n) + 1)]
    for rank, error in enumerate(errors):
        kept = delta_svd.truncated(delta, rank).matrix()
        assert error == pytest.approx(relative(delta, kept), rel=1e-10, abs=1e-14)
    assert errors[0] == 1
    assert errors[-1] == 0
    assert errors == sorted(errors, reverse=True)


def test_the_error_is_computed_from_singular_values():
    delta = planted(8, 6, [3.0, 2.0, 1.0, 0.5])
    total = 9 + 4 + 1 + 0.25
    for rank, tail in enumerate((total, 5.25, 1.25, 0.25)):
        assert delta_svd.error(delta, rank) == pytest.approx(math.sqrt(tail / total), rel=1e-12)
    assert delta_svd.error(delta, 4) < 1e-14
    assert delta_svd.error(1e6 * delta, 2) == pytest.approx(delta_svd.error(delta, 2), rel=1e-12)


def test_a_planted_rank_is_found():
    delta = planted(30, 20, [5.0, 4.0, 3.0])
    assert delta_svd.rank_for(delta, 1 - 1e-12) == 3
    assert relative(delta, delta_svd.truncated(delta, 3).matrix()) < 1e-13
    assert relative(delta, delta_svd.truncated(delta, 2).matrix()) == pytest.approx(
        3 / math.sqrt(50)
    )


def test_the_rank_for_an_energy_is_the_least_that_keeps_it():
    delta = torch.diag(torch.tensor([4.0, 2.0, 2.0, 1.0])).double()
    squares = [16 / 25, 20 / 25, 24 / 25, 1.0]
    assert delta_svd.rank_for(delta, 0) == 0
    for rank, kept in enumerate(squares, 1):
        assert delta_svd.rank_for(delta, kept - 1e-9) == rank
        assert delta_svd.rank_for(delta, min(kept + 1e-9, 1)) == min(rank + 1, 4)
    assert delta_svd.rank_for(delta, 1) == 4


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_the_rank_for_an_energy_agrees_with_the_error(seed, energy):
    delta = normal(5, 7, seed=seed)
    rank = delta_svd.rank_for(delta, energy)
    assert 1 - delta_svd.error(delta, rank) ** 2 >= energy - 1e-12
    if rank:
        assert 1 - delta_svd.error(delta, rank - 1) ** 2 < energy + 1e-12


def test_small_singular_values_are_not_lost_beside_large_ones():
    values = [1.0, 1e-6, 1e-7]
    delta = torch.diag(torch.tensor(values)).double()
    assert delta_svd.error(delta, 2) == pytest.approx(1e-7, rel=1e-6)
    single = torch.diag(torch.tensor(values, dtype=torch.float32))
    assert delta_svd.error(single, 2) == pytest.approx(1e-7, rel=1e-3)


def test_a_matrix_of_zeros_needs_no_rank():
    zero = torch.zeros(4, 3)
    assert delta_svd.rank_for(zero, 1) == 0
    assert [delta_svd.error(zero, rank) for rank in range(4)] == [0.0] * 4
    assert (delta_svd.truncated(zero, 2).matrix() == 0).all()


def test_very_small_deltas_are_not_taken_for_zero():
    delta = 1e-20 * planted(5, 4, [2.0, 1.0])
    assert delta_svd.error(delta, 1) == pytest.approx(1 / math.sqrt(5), rel=1e-10)
    assert delta_svd.error(delta.float(), 1) == pytest.approx(1 / math.sqrt(5), rel=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_other_matrix_of_the_rank_is_nearer(rank):
    """Random ones, neighbours of the best one, and those that alternating least squares finds."""
    delta = normal(6, 5, seed=4)
    best = delta_svd.error(delta, rank)
    found = delta_svd.truncated(delta, rank)
    for seed in range(100):
        left, right = normal(6, rank, seed=seed), normal(rank, 5, seed=seed + 1000)
        fitted = left @ torch.linalg.lstsq(left, delta).solution
        moved = (found.left + 0.01 * left) @ (found.values[:, None] * found.right.T + 0.01 * right)
        for other in (left @ right, fitted, moved):
            assert torch.linalg.matrix_rank(other) <= rank
            assert relative(delta, other) >= best - 1e-12
    reached = []
    for seed in range(3):
        left = normal(6, rank, seed=seed)
        for _ in range(400):
            right = torch.linalg.lstsq(left, delta).solution
            left = torch.linalg.lstsq(right.T, delta.T).solution.T
        reached.append(relative(delta, left @ right))
    assert min(reached) >= best - 1e-12
    assert min(reached) == pytest.approx(best, rel=1e-8)


def test_what_is_stored():
    assert delta_svd.stored(384, 1536, 8) == 8 * 384 + 8 * 1536
    assert delta_svd.stored(5, 7, 0) == 0
    assert delta_svd.break_even(4096, 4096) == 2048
    assert delta_svd.break_even(384, 1536) == pytest.approx(307.2)
    assert delta_svd.break_even(1, 1) == 0.5


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_below_the_break_even_a_truncation_is_smaller(m, n):
    even = delta_svd.break_even(m, n)
    assert min(m, n) / 2 <= even <= min(m, n)
    for rank in (math.floor(even), math.ceil(even)):
        stored = delta_svd.stored(m, n, rank)
        assert (stored > m * n) == (rank * (m + n) > m * n)
        assert (stored <= m * n) == (rank <= even)


def weights(seed):
    return {
        "a.weight": normal(6, 4, seed=seed),
        "a.bias": normal(6, seed=seed + 1),
        "b.weight": normal(3, 9, seed=seed + 2, dtype=torch.float32),
        "kernel": normal(2, 2, 3, 3, seed=seed + 3),
        "count": torch.full((2, 2), seed),
    }


def test_matrices_are_truncated_and_the_rest_is_kept_exactly():
    before, after = weights(0), weights(50)
    found = delta_svd.compressed(before, after, 2)
    assert list(found) == list(after)
    for name in ("a.bias", "kernel", "count"):
        assert torch.equal(found[name], after[name])
    for name in ("a.weight", "b.weight"):
        change = found[name] - before[name]
        assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2
        delta = after[name] - before[name]
        tolerance = 1e-12 if name == "a.weight" else 1e-5
        assert relative(delta, change) == pytest.approx(delta_svd.error(delta, 2), rel=tolerance)
    assert [part.dtype for part in found.values()] == [part.dtype for part in after.values()]


def test_rank_zero_takes_the_matrices_back_and_a_full_rank_none():
    before, after = weights(0), weights(50)
    found = delta_svd.compressed(before, after, 0)
    assert torch.equal(found["a.weight"], before["a.weight"])
    assert torch.equal(found["a.bias"], after["a.bias"])
    whole = delta_svd.compressed(before, after, 4)
    assert torch.equal(whole["a.weight"], after["a.weight"])
    assert torch.equal(whole["b.weight"], after["b.weight"])


def test_compressed_weights_are_copies_without_a_gradient():
    layer = torch.nn.Linear(4, 3)
    after = {name: part + 1 for name, part in layer.named_parameters()}
    found = delta_svd.compressed(dict(layer.named_parameters()), after, 1)
    assert not any(part.requires_grad for part in found.values())
    found["bias"].zero_()
    assert (after["bias"] != 0).all()
    assert delta_svd.compressed({}, {}, 1) == {}


BAD = [
    (lambda: delta_svd.truncated(normal(3), 1), "delta: "),
    (lambda: delta_svd.truncated(normal(3, 2).long(), 1), "delta: "),
    (lambda: delta_svd.truncated(normal(3, 0), 0), "delta: "),
    (lambda: delta_svd.truncated(normal(3, 2) / 0, 1), "delta: must be finite"),
    (lambda: delta_svd.truncated(normal(3, 2), 3), "rank: "),
    (lambda: delta_svd.truncated(normal(3, 2), -1), "rank: "),
    (lambda: delta_svd.error(normal(3, 2), 3), "rank: "),
    (lambda: delta_svd.error(normal(3, 2), -1), "rank: "),
    (lambda: delta_svd.error(normal(3, 2) / 0, 1), "delta: "),
    (lambda: delta_svd.rank_for(normal(3, 2) / 0, 0.5), "delta: "),
    (lambda: delta_svd.rank_for(normal(3, 2), -0.1), "energy: "),
    (lambda: delta_svd.rank_for(normal(3, 2), 1.1), "energy: "),
    (lambda: delta_svd.rank_for(normal(3, 2), math.nan), "energy: "),
    (lambda: delta_svd.stored(0, 2, 1), "m: "),
    (lambda: delta_svd.stored(2, 0, 1), "n: "),
    (lambda: delta_svd.stored(2, 2, -1), "rank: "),
    (lambda: delta_svd.break_even(0, 2), "m: "),
    (lambda: delta_svd.break_even(2, 0), "n: "),
    (lambda: delta_svd.compressed({"a": normal(2, 2)}, {}, 1), "after: "),
    (lambda: delta_svd.compressed({"a": normal(2, 2)}, {"a": normal(2, 3)}, 1), "after: a "),
    (lambda: delta_svd.compressed({"a": normal(2, 2)}, {"a": normal(2, 2) / 0}, 1), "delta: "),
    (lambda: delta_svd.compressed({}, {}, -1), "rank: "),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
