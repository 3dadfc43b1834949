"""Second moments: what is accepted as one, and their roots."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.peft import covariances


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 999))
def test_the_roots_are_symmetric_and_those_of_moore_and_penrose(n, inputs, seed):
    seen = normal(min(inputs, n), n, seed=seed)
    covariance = seen.T @ seen
    root, inverse = covariances.square_roots(covariance)
    close(root @ root, covariance)
    close(root, root.T)
    assert torch.linalg.eigvalsh(root).min() > -1e-7
    # Their product projects on what is seen; a small eigenvalue costs digits.
    close(root @ inverse @ seen.T, seen.T)
    unseen = torch.linalg.svd(seen)[2][len(seen) :]
    assert (inverse @ unseen.T).abs().sum() <= 1e-6 * (1 + inverse.abs().max())


def test_roots_of_a_diagonal_are_by_hand_and_rounding_is_zero():
    eps = torch.finfo(torch.float64).eps
    values = torch.tensor([4.0, 0.25, 11 * eps, -11 * eps], dtype=torch.float64)
    root, inverse = covariances.square_roots(torch.diag(values))
    zeros = torch.zeros(2, dtype=torch.float64)
    wanted = torch.tensor([2.0, 0.5], dtype=torch.float64)
    close(root, torch.diag(torch.cat([wanted, zeros])))
    close(inverse, torch.diag(torch.cat([1 / wanted, zeros])))


MATRIX, EYE = normal(3, 4), torch.eye(4, dtype=torch.float64)


def moved(gap):
    covariance = 10 * EYE
    covariance[0, 1] = 10 * gap
    return covariance


def test_what_fits_is_accepted_up_to_rounding():
    covariances.require_covariance(EYE, MATRIX)
    covariances.require_covariance(0 * EYE, MATRIX)
    covariances.require_covariance(moved(0.9e-6), MATRIX)


BAD = [
    (EYE[:3, :3], "covariance: must be \\[4, 4\\]"),
    (EYE[0], "covariance: must be \\[4, 4\\]"),
    (EYE.float(), "covariance: must be \\[4, 4\\] torch.float64"),
    (EYE / 0, "covariance: must be finite"),
    (moved(1.1e-6), "covariance: must be symmetric"),
]


@pytest.mark.parametrize(("covariance", "message"), BAD)
def test_what_does_not_fit_is_named(covariance, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        covariances.require_covariance(covariance, MATRIX)


def test_a_negative_eigenvalue_is_named():
    with pytest.raises(ValueError, match="^covariance: must have no negative eigenvalue"):
        covariances.square_roots(torch.diag(torch.tensor([1.0, -1e-9], dtype=torch.float64)))
