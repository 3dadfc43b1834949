"""The Fréchet distance of two sets of images: two normal laws fitted to features, and compared.

The squared 2-Wasserstein distance of the normals. With the features of the Inception network it is
the FID; with others, as here, it has no name and its values compare with no published FID. It is
biased: few images look further from any set, also from their own.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require, require_finite
from gradbook.devices import device

Pooled = Callable[[Tensor], Tensor]

CHUNK = 500
DIM = 64
# Of a covariance's largest entry: what rounding in float32 may break.
TOLERANCE = 1e-5


class Moments(NamedTuple):
    """The mean [d] and the covariance [d, d] of a law, in float64."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """Estimate the mean and the covariance of features.

    Args:
        features: [n, d], n above d.

    Returns:
        Both in float64; the covariance divides by n - 1.

    Raises:
        ValueError: if the features are not finite, or not more than their
            dimension: the covariance would be singular.
    """
    _check_features(features)
    rows = features.detach().double()
    mean = rows.mean(0)
    centred = rows - mean
    return Moments(mean, centred.T @ centred / (len(rows) - 1))


def frechet_distance(
    m1: Tensor,
    c1: Tensor,
    m2: Tensor,
    c2: Tensor,
) -> Tensor:
    """Compute the Fréchet distance of two normal laws.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^(1/2) C2 C1^(1/2))^(1/2))``.

    Args:
        m1: mean [d].
        c1: covariance [d, d], symmetric, with no negative eigenvalue.
        m2: mean [d].
        c2: covariance [d, d].

    Returns:
        A scalar in float64, at least 0; no gradient flows through it.

    Raises:
        ValueError: if shapes disagree, a number is not finite, or a
            covariance is none.

    Source: Dowson and Landau 1982, equation 4; Heusel et al. 2017,
    equation 6.
    """
    m1, c1, m2, c2 = (t.detach().double() for t in (m1, c1, m2, c2))
    _check_law(1, m1, c1)
    _check_law(2, m2, c2)
    if m1.shape != m2.shape:
        raise ValueError(f"m2: must have the shape of m1, got {list(m2.shape)}")
    values, vectors = torch.linalg.eigh(c1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # tr X^(1/2) is the sum of the roots of X's eigenvalues.
    product = torch.linalg.eigvalsh(root @ c2 @ root)
    cross = product.clamp(min=0).sqrt().sum()
    spread = c1.trace() + c2.trace() - 2 * cross
    return (m1 - m2).square().sum() + spread.clamp(min=0)


def projection(
    dim_in: int,
    dim_out: int,
    generator: torch.Generator,
) -> Tensor:
    """Draw a subspace, every one as likely.

    Args:
        dim_in: of the space.
        dim_out: of the subspace, at most ``dim_in``; ``DIM`` in the book.
        generator: of the CPU.

    Returns:
        float64 [dim_in, dim_out] on the book's device, whose columns are
        orthonormal.

    Raises:
        ValueError: if a dimension is not positive, or ``dim_out`` is above
            ``dim_in``.

    Source: Mezzadri 2007, "How to generate random matrices from the
    classical compact groups", section 5.
    """
    if dim_in < 1:
        raise ValueError(f"dim_in: must be positive, got {dim_in}")
    if not 1 <= dim_out <= dim_in:
        raise ValueError(f"dim_out: must be from 1 to {dim_in}, got {dim_out}")
    shape = (dim_in, dim_out)
    draws = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    columns, triangle = torch.linalg.qr(draws)
    # Without the signs the columns would depend on how QR was computed.
    return (columns * triangle.diagonal().sign()).to(device())


def projected(images: Tensor, pooled: Pooled, subspace: Tensor) -> Tensor:
    """Compute the features of images in chunks, and project them.

    Args:
        images: [n, C, H, W].
        pooled: maps images to features [n, dim_in].
        subspace: [dim_in, d], as from :func:`projection`.

    Returns:
        float64 [n, d], without gradients.

    Raises:
        ValueError: if the features do not fit the subspace, or as
            ``pooled``.
    """
    rows = []
    with torch.no_grad():
        for chunk in images.split(CHUNK):
            features = pooled(chunk)
            if features.ndim != 2 or features.shape[1] != len(subspace):
                shape = list(features.shape)
                raise ValueError(f"subspace: is {list(subspace.shape)}, features are {shape}")
            rows.append(features.to(subspace.dtype) @ subspace)
    return torch.cat(rows)


def frechet_of_images(x: Tensor, y: Tensor, pooled: Pooled, subspace: Tensor) -> Tensor:
    """Compute the Fréchet distance of two sets of images.

    Args:
        x: [n, C, H, W].
        y: [m, C, H, W]; n and m above the subspace's dimension d, and
            better many times above it.
        pooled: maps images to features [n, dim_in].
        subspace: [dim_in, d], as from :func:`projection`.

    Returns:
        A scalar in float64.

    Raises:
        ValueError: as :func:`projected` and :func:`moments`.
    """
    laws = [moments(projected(images, pooled, subspace)) for images in (x, y)]
    return frechet_distance(*laws[0], *laws[1])


def _check_features(features: Tensor) -> None:
    if features.ndim != 2 or not features.shape[1] or not features.is_floating_point():
        kind = f"{list(features.shape)} {features.dtype}"
        raise ValueError(f"features: must be floating [n, d], got {kind}")
    n, d = features.shape
    if n <= d:
        message = "a covariance of {} rows in {} dimensions is singular"
        raise ValueError(f"features: {message.format(n, d)}; more rows than dimensions are needed")
    require_finite(features=features)


def _check_law(number: int, mean: Tensor, covariance: Tensor) -> None:
    if mean.ndim != 1:
        raise ValueError(f"m{number}: must be [d], got {list(mean.shape)}")
    require_finite(**{f"m{number}": mean})
    _check_covariance(f"c{number}", covariance)
    if len(covariance) != len(mean):
        raise ValueError(f"c{number}: must have {len(mean)} rows, has {len(covariance)}")


def _check_covariance(name: str, covariance: Tensor) -> None:
    shape = covariance.shape
    if covariance.ndim != 2 or shape[0] != shape[1] or not len(covariance):
        raise ValueError(f"{name}: must be [d, d], got {list(shape)}")
    require_finite(**{name: covariance})
    slack = TOLERANCE * covariance.abs().max()
    require((covariance - covariance.T).abs() <= slack, f"{name}: must be symmetric")
    require(torch.linalg.eigvalsh(covariance) >= -slack, f"{name}: has a negative eigenvalue")
