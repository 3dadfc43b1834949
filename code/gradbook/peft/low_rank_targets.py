"""Fits of low rank whose least error is known: a linear layer has to change by a given matrix.

The layer W_0 shall become W_0 + D, with D [m, n], and is given W_0 + M. Inputs x, of n numbers,
have the second moments C = E x x^T, [n, n]; the loss ``E |(D - M) x|^2 / 2`` depends on no more.
So it is exact, and so is its minimum over the matrices M of a rank.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require, require_finite
from gradbook.delta_svd import truncated
from gradbook.peft.covariances import require_covariance, square_roots
from gradbook.peft.lora import require_factor
from gradbook.transformer_sizes import require_sizes

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


class Fitted(NamedTuple):
    """Learnt A [r, n] and B [m, r], and the loss before every step and at the end."""

    A: Tensor
    B: Tensor
    losses: Tensor


def planted(outputs: int, inputs: int, values: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a matrix with given singular values; the singular vectors are uniform.

    Args:
        outputs: m.
        inputs: n.
        values: [k], not negative, k at most the smaller side; zeros lower the rank.
        generator: on the CPU; draws are in float64.

    Returns:
        D [m, n], of the type and on the device of the values.

    Raises:
        ValueError: if a size is below 1, or the values are not such a vector.
    """
    require_sizes(outputs=outputs, inputs=inputs)
    if values.ndim != 1 or not values.is_floating_point():
        raise ValueError(f"values: must be a floating [k], got {list(values.shape)} {values.dtype}")
    if len(values) > (most := min(outputs, inputs)):
        raise ValueError(f"values: must be at most {most}, got {len(values)}")
    require((values >= 0) & values.isfinite(), "values: must be finite and not negative")
    left, right = (_orthonormal(side, len(values), generator) for side in (outputs, inputs))
    exact = (left * values.detach().double().cpu()) @ right.T
    return exact.to(values.device, values.dtype)


def loss(delta: Tensor, product: Tensor, covariance: Tensor) -> Tensor:
    """Compute ``E |(D - M) x|^2 / 2 = tr((D - M) C (D - M)^T) / 2``.

    Args:
        delta: D, [m, n].
        product: M, [m, n].
        covariance: C, [n, n].

    Returns:
        A scalar, differentiable in all three.

    Raises:
        ValueError: if a shape or type does not fit, or C is not symmetric and finite.
    """
    _require_problem(delta, covariance)
    if product.shape != delta.shape or product.dtype != delta.dtype:
        want, got = list(delta.shape), list(product.shape)
        raise ValueError(f"product: must be {want} {delta.dtype}, got {got} {product.dtype}")
    return _loss(delta, product, covariance)


def best(delta: Tensor, covariance: Tensor, rank: int) -> Tensor:
    """Compute the matrix of a rank with the least loss (reduced rank).

    The loss is ``|(D - M) C^{1/2}|^2 / 2``, least where M C^{1/2} is the
    truncated D C^{1/2}. If C is singular, M is zero on what no input has.

    Args:
        delta: D, [m, n].
        covariance: C, [n, n].
        rank: r, from 0 to the smaller side.

    Returns:
        M, [m, n].

    Raises:
        ValueError: as :func:`loss`, or if C is no covariance, or the rank
            is out of range.

    Source: Eckart and Young 1936; Izenman 1975, "Reduced-rank regression
    for the multivariate linear model", with the residuals' weights equal.
    """
    _require_problem(delta, covariance)
    _require_rank(rank, delta)
    root, inverse = square_roots(covariance)
    return truncated(delta @ root, rank).matrix() @ inverse


def floor(delta: Tensor, covariance: Tensor, rank: int) -> Tensor:
    """Compute the least loss of a rank: half the squared singular values of D C^{1/2} after r.

    Args:
        delta, covariance, rank: as for :func:`best`.

    Returns:
        A scalar. Where it is zero, rounding leaves some 1e-16 of the values, squared.

    Raises:
        ValueError: as :func:`best`.

    Source: as :func:`best`.
    """
    _require_problem(delta, covariance)
    _require_rank(rank, delta)
    root, _ = square_roots(covariance)
    return torch.linalg.svdvals(delta @ root)[rank:].square().sum() / 2


def truncated_loss(delta: Tensor, covariance: Tensor, rank: int) -> Tensor:
    """Compute the loss of D's own truncation, which does not look at the inputs.

    It is the floor if C is a multiple of the identity, or if the rank of D
    is at most r; else nothing bounds how much larger it is.

    Args:
        delta, covariance, rank: as for :func:`best`.

    Returns:
        A scalar.

    Raises:
        ValueError: as :func:`best`.
    """
    _require_problem(delta, covariance)
    _require_rank(rank, delta)
    return _loss(delta, truncated(delta, rank).matrix(), covariance)


def fit(
    delta: Tensor,
    covariance: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    optimizer: Optimizer,
    steps: int,
) -> Fitted:
    """Train M = scaling B A on the exact loss, every step with the whole gradient.

    Args:
        delta: D, [m, n].
        covariance: C, [n, n].
        A: where it starts, [r, n]; not changed.
        B: where it starts, [m, r]; not changed. Zeros are LoRA's start.
        scaling: of the product, positive.
        optimizer: called with copies of A and B, in this order.
        steps: T.

    Returns:
        What was learnt, and losses [T + 1]; with too large a rate they end infinite or NaN.

    Raises:
        ValueError: as :func:`loss`, or if the scaling is not positive and finite, or T below 1.

    Source: Hu et al. 2021, section 4.1.
    """
    _require_training(delta, covariance, A, B, scaling, steps)
    A, B = (x.detach().clone().requires_grad_() for x in (A, B))
    made, losses = optimizer([A, B]), []
    for _ in range(steps):
        value = _loss(delta, scaling * (B @ A), covariance)
        made.zero_grad()
        value.backward()
        made.step()
        losses.append(value.detach())
    A, B = A.detach(), B.detach()
    last = _loss(delta, scaling * (B @ A), covariance)
    return Fitted(A, B, torch.stack([*losses, last]))


def over_ranks(
    delta: Tensor,
    covariance: Tensor,
    A: Tensor,
    ranks: Sequence[int],
    scale: Callable[[int], float],
    optimizer: Optimizer,
    steps: int,
) -> list[Fitted]:
    """Train a LoRA of each rank from B = 0, all from the first rows of one A.

    With C = X^T X / b it learns from a batch X of b inputs.

    Args:
        delta, covariance, optimizer, steps: as for :func:`fit`.
        A: [R, n], with R the largest rank.
        ranks: each from 1 to R.
        scale: the scaling, of the rank.

    Returns:
        What :func:`fit` gives, for each rank.

    Raises:
        ValueError: if a rank is out of range, or as :func:`fit`.
    """
    if A.ndim != 2:
        raise ValueError(f"A: must be [R, n], got {list(A.shape)}")
    for rank in ranks:
        require_sizes(rank=rank)
        if rank > len(A):
            raise ValueError(f"ranks: must be at most {len(A)}, got {rank}")
    B = delta.new_zeros(delta.shape[:1].numel(), len(A))
    return [fit(delta, covariance, A[:r], B[:, :r], scale(r), optimizer, steps) for r in ranks]


def captured(delta: Tensor, dimension: int, generator: torch.Generator) -> Tensor:
    """Compute the share of ``|D|^2`` that a random subspace of its N = m n numbers can hold.

    D is approximated by P z, with P [N, d] orthonormal and drawn, and z
    learnt. Whatever D is, the share ``|P^T D|^2 / |D|^2`` has the law
    Beta(d / 2, (N - d) / 2), so its mean is d / N.

    Args:
        delta: D, [m, n], not zero.
        dimension: d, from 1 to N.
        generator: on the CPU; draws are in float64.

    Returns:
        A scalar from 0 to 1, of the type and on the device of D.

    Raises:
        ValueError: if D is not a finite matrix or is zero, or d is out of range.

    Source: Li et al. 2018, "Measuring the intrinsic dimension of objective landscapes", section 2;
    Aghajanyan et al. 2021, "Intrinsic dimensionality explains the effectiveness of language model
    fine-tuning". The law is worked out here.
    """
    _require_delta(delta)
    require_sizes(dimension=dimension)
    if dimension > delta.numel():
        raise ValueError(f"dimension: must be at most {delta.numel()}, got {dimension}")
    require((delta != 0).any(), "delta: must not be zero")
    flat = delta.detach().double().cpu().flatten()
    flat = flat / flat.abs().max()  # the squares of tiny numbers would be zero
    basis = _orthonormal(len(flat), dimension, generator)
    share = (basis.T @ (flat / flat.norm())).square().sum()
    return share.to(delta.device, delta.dtype)


def _loss(delta: Tensor, product: Tensor, covariance: Tensor) -> Tensor:
    missed = delta - product
    return ((missed @ covariance) * missed).sum() / 2


def _orthonormal(side: int, columns: int, generator: torch.Generator) -> Tensor:
    """Draw [side, columns] on the CPU; the space that the columns span is uniform."""
    drawn = torch.randn(side, columns, generator=generator, dtype=torch.float64, device="cpu")
    return torch.linalg.qr(drawn)[0]


def _require_delta(delta: Tensor) -> None:
    if delta.ndim != 2 or not all(delta.shape) or not delta.is_floating_point():
        raise ValueError(f"delta: must be a floating [m, n], got {list(delta.shape)} {delta.dtype}")
    require_finite(delta=delta)


def _require_rank(rank: int, delta: Tensor) -> None:
    if type(rank) is not int or not 0 <= rank <= min(delta.shape):
        raise ValueError(f"rank: must be from 0 to {min(delta.shape)}, got {rank!r}")


def _require_problem(delta: Tensor, covariance: Tensor) -> None:
    _require_delta(delta)
    require_covariance(covariance, delta)


def _require_training(
    delta: Tensor, covariance: Tensor, A: Tensor, B: Tensor, scaling: float, steps: int
) -> None:
    _require_problem(delta, covariance)
    require_factor(scaling=scaling)
    require_sizes(steps=steps)
    (m, n), rank = delta.shape, A.shape[:1].numel()
    for name, factor, shape in (("A", A, (rank, n)), ("B", B, (m, rank))):
        if factor.shape != shape or factor.dtype != delta.dtype:
            got = f"{list(factor.shape)} {factor.dtype}"
            raise ValueError(f"{name}: must be {list(shape)} {delta.dtype}, got {got}")
        require_finite(**{name: factor})
