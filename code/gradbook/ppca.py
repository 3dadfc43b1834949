"""Probabilistic PCA: the latent-variable model whose likelihood, posterior and optimum are known.

A latent z ~ N(0, I) of k coordinates gives data x | z ~ N(W z, s I) of D. Data are centred, and enter
by their covariance S, [D, D], alone; means per datum are then exact. All values are in nats.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require, require_finite, require_positive


class Ppca(NamedTuple):
    """The weight W, [D, k], and the noise variance s, a scalar."""

    weight: Tensor
    noise_variance: Tensor


def maximum_likelihood(covariance: Tensor, k: int) -> Ppca:
    """Compute the model that makes the data likeliest.

    Args:
        covariance: S, [D, D].
        k: how many latent coordinates, from 1 to D - 1.

    Returns:
        The weight, whose columns are principal directions by falling
        variance, unique up to their signs, and the noise variance, the
        mean of the eigenvalues left over. Any rotation of the latent
        leaves the data as likely.

    Raises:
        ValueError: if S is not a covariance, has no more than k positive
            eigenvalues, or k is out of range.

    Source: Tipping and Bishop 1999, equations 7 and 8.
    """
    values, _ = principal(covariance, k)
    if k == len(values):
        raise ValueError(f"k: must be less than the {k} axes of the data")
    noise_variance = values[k:].mean()
    enough = noise_variance > _slack(values)
    require(enough, "covariance: must leave the noise a variance")
    return Ppca(best_weight(covariance, noise_variance, k), noise_variance)


def best_weight(
    covariance: Tensor,
    noise_variance: float | Tensor,
    k: int,
) -> Tensor:
    """Compute the best weight for a noise variance that is given.

    Args:
        covariance: S, [D, D].
        noise_variance: s, positive.
        k: how many latent coordinates, from 1 to D.

    Returns:
        [D, k]: principal directions times sqrt(max(eigenvalue - s, 0)).

    Raises:
        ValueError: if S is not a covariance, s not positive, or k is out
            of range.

    Source: Tipping and Bishop 1999, appendix A; Lucas et al. 2019.
    """
    values, directions = principal(covariance, k)
    noise_variance = torch.as_tensor(noise_variance).to(values)
    require_positive(noise_variance=noise_variance)
    signal = (values[:k] - noise_variance).clamp(min=0)
    return directions[:, :k] * signal.sqrt()


def collapsed(
    covariance: Tensor,
    noise_variance: float | Tensor,
    k: int,
) -> int:
    """Count the latent coordinates that the optimum does not use.

    A direction in which the data vary no more than the decoder's noise
    is left to the noise: its column of the best weight is zero.

    Args:
        covariance: S, [D, D].
        noise_variance: s, positive, and not fitted.
        k: how many latent coordinates, from 1 to D.

    Returns:
        How many of the k largest eigenvalues are at most s.

    Raises:
        ValueError: as :func:`best_weight`.

    Source: Lucas et al. 2019; Dai et al. 2018.
    """
    weight = best_weight(covariance, noise_variance, k)
    return int((weight == 0).all(0).sum())


def log_likelihood(ppca: Ppca, covariance: Tensor) -> Tensor:
    """Compute the mean log density of a datum.

    Args:
        ppca: the model.
        covariance: S, [D, D].

    Returns:
        A scalar, differentiable in the model.

    Raises:
        ValueError: if S is not a covariance, or the model does not fit it.

    Source: Tipping and Bishop 1999, equation 4.
    """
    require_covariance(covariance)
    require_model(ppca, len(covariance))
    weight, noise_variance = ppca
    identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    marginal = weight @ weight.T + noise_variance * identity
    factor = torch.linalg.cholesky(marginal)
    log_det = 2 * factor.diagonal().log().sum()
    spread = torch.cholesky_solve(covariance, factor).trace()
    constant = len(weight) * math.log(2 * math.pi)
    return -0.5 * (constant + log_det + spread)


def precision(ppca: Ppca) -> Tensor:
    """Compute the precision of the posterior, one over its covariance.

    Args:
        ppca: the model.

    Returns:
        I + W'W / s, [k, k], the same for every datum.

    Raises:
        ValueError: if the model is not one.
    """
    require_model(ppca)
    weight, noise_variance = ppca
    identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    return identity + weight.T @ weight / noise_variance


def projection(ppca: Ppca) -> Tensor:
    """Compute the map from a centred datum to the mean of its posterior.

    Args:
        ppca: the model.

    Returns:
        [k, D].

    Raises:
        ValueError: if the model is not one.

    Source: Tipping and Bishop 1999, equation 6.
    """
    scaled = ppca.weight.T / ppca.noise_variance
    return torch.linalg.solve(precision(ppca), scaled)


def posterior(ppca: Ppca, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the exact posterior p(z | x).

    Args:
        ppca: the model.
        x: centred data, [n, D].

    Returns:
        Its means, [n, k], and its covariance, [k, k], the same for all.

    Raises:
        ValueError: if the model is not one, a value not finite, or the
            data do not have D columns.

    Source: Tipping and Bishop 1999, equation 6.
    """
    require_finite(x=x)
    if x.ndim != 2 or x.shape[1] != len(ppca.weight):
        shape = tuple(x.shape)
        raise ValueError(f"x: must be [n, {len(ppca.weight)}], is {shape}")
    covariance = torch.linalg.inv(precision(ppca))
    return x @ projection(ppca).T, covariance


def principal(covariance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Compute the variances and the directions of the principal axes.

    Args:
        covariance: S, [D, D].
        k: how many axes are wanted, from 1 to D.

    Returns:
        All eigenvalues, [D], falling, and eigenvectors as columns, [D, D].

    Raises:
        ValueError: if S is not a covariance, or k is out of range.
    """
    require_covariance(covariance)
    if not 1 <= k <= len(covariance):
        raise ValueError(f"k: must be from 1 to {len(covariance)}, got {k}")
    values, vectors = torch.linalg.eigh(covariance)
    require(values >= -_slack(values), "covariance: must have no negative eigenvalue")
    return values.flip(0), vectors.flip(1)


def require_covariance(covariance: Tensor) -> None:
    """Raise unless a matrix could be a covariance: square, finite, symmetric.

    Args:
        covariance: [D, D].

    Raises:
        ValueError: if it could not.
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"covariance: must be square, is {tuple(covariance.shape)}")
    require_finite(covariance=covariance)
    slack = math.sqrt(torch.finfo(covariance.dtype).eps) * covariance.abs().max()
    require((covariance - covariance.T).abs() <= slack, "covariance: must be symmetric")


def require_model(ppca: Ppca, size: int | None = None) -> None:
    """Raise unless a model is one: a finite matrix and a positive variance.

    Args:
        ppca: the model.
        size: how many axes the data have; by default any number.

    Raises:
        ValueError: if it is not, or is one for other data.
    """
    weight, noise_variance = ppca
    if weight.ndim != 2 or size not in (None, len(weight)):
        wanted = "D" if size is None else size
        raise ValueError(f"weight: must be [{wanted}, k], is {tuple(weight.shape)}")
    require_finite(weight=weight)
    require_positive(noise_variance=noise_variance)


def _slack(values: Tensor) -> Tensor:
    """How far rounding moves an eigenvalue, with some room."""
    return 10 * len(values) * torch.finfo(values.dtype).eps * values.abs().max()
