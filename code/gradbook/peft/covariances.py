"""Second moments C = E x x^T of the inputs of a linear layer."""

import torch
from torch import Tensor

from gradbook.checks import require, require_finite


def square_roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Compute C^{1/2} and its pseudo-inverse.

    Eigenvalues that are zero but for rounding, up to n times it, are zero.

    Args:
        covariance: C, [n, n], as for :func:`require_covariance`.

    Returns:
        Both, [n, n].

    Raises:
        ValueError: if an eigenvalue is negative.
    """
    values, vectors = torch.linalg.eigh(covariance)
    small = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    require(values >= -small, "covariance: must have no negative eigenvalue")
    kept = values > small
    roots = torch.where(kept, values, 0).sqrt()
    inverses = torch.where(kept, 1 / torch.where(kept, roots, 1), 0)
    return (vectors * roots) @ vectors.T, (vectors * inverses) @ vectors.T


def require_covariance(covariance: Tensor, matrix: Tensor) -> None:
    """Raise unless second moments fit the inputs of a matrix.

    Args:
        covariance: must be [n, n], of the matrix' type, finite, and symmetric up to a millionth of
            its largest entry.
        matrix: [m, n].

    Raises:
        ValueError: if it is not.
    """
    n = matrix.shape[1]
    if covariance.shape != (n, n) or covariance.dtype != matrix.dtype:
        got = f"{list(covariance.shape)} {covariance.dtype}"
        raise ValueError(f"covariance: must be [{n}, {n}] {matrix.dtype}, got {got}")
    require_finite(covariance=covariance)
    close = (covariance - covariance.T).abs() <= 1e-6 * covariance.abs().max()
    require(close, "covariance: must be symmetric")
