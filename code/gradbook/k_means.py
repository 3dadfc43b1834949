"""k-means: a codebook fitted to fixed vectors, by Lloyd's steps from a start by k-means++."""

import torch
from torch import Tensor

from gradbook.checks import require, require_finite
from gradbook.nearest import nearest_code


def lloyd_step(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Move every code to the mean of the vectors nearest to it.

    Args:
        z: [N, D], of any floating type.
        codebook: [K, D] of the same type and device, K at least 1.

    Returns:
        The new codebook [K, D], in which a code without vectors stays
        where it was, and how many vectors each code had, int64 [K].

    Raises:
        ValueError: as :func:`gradbook.nearest.nearest_code`.

    Source: Lloyd 1982.
    """
    indices = nearest_code(z, codebook)
    z, codebook = z.detach(), codebook.detach()
    counts = torch.bincount(indices, minlength=len(codebook))
    # Means of differences from the code: a sum of vectors far from the origin loses digits.
    moves = torch.zeros_like(codebook).index_add(0, indices, z - codebook[indices])
    return codebook + moves / counts.clamp(min=1)[:, None], counts


def distortion(z: Tensor, codebook: Tensor) -> Tensor:
    """Compute the mean squared distance of a vector from its nearest code.

    Args:
        z: [N, D], of any floating type, N at least 1.
        codebook: [K, D] of the same type and device, K at least 1.

    Returns:
        A scalar: the squared distance summed over D, averaged over N.
        It is differentiable in both, the nearest codes being held fixed.

    Raises:
        ValueError: as :func:`gradbook.nearest.nearest_code`, or if ``z``
            is empty.
    """
    indices = nearest_code(z, codebook)
    _require_vectors(z)
    return (z - codebook[indices]).square().sum(1).mean()


def k_means(z: Tensor, codebook: Tensor, steps: int) -> Tensor:
    """Fit a codebook by steps of Lloyd's algorithm.

    Args:
        z: [N, D], of any floating type.
        codebook: where it starts, [K, D], of the same type and device.
        steps: how many steps, at least 0.

    Returns:
        The codebook after the steps [K, D], without gradient.

    Raises:
        ValueError: as :func:`lloyd_step`, or if ``steps`` is negative.
    """
    if steps < 0:
        raise ValueError(f"steps: must be at least 0, got {steps}")
    for _ in range(steps):
        codebook, _ = lloyd_step(z, codebook)
    return codebook.detach().clone()


def k_means_plus_plus(z: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Choose vectors as codes, each with a chance that grows with its distance.

    The first is uniform; every other one is drawn in proportion to the
    squared distance from the nearest code so far, or uniformly once all
    distances are zero.

    Args:
        z: [N, D], of any floating type, N at least 1.
        k: how many codes, at least 1; they repeat if z has fewer vectors.
        generator: on the CPU.

    Returns:
        Rows of ``z`` [k, D], in the order of the draws.

    Raises:
        ValueError: if ``z`` has another shape or type, is empty or not
            finite, its squared distances overflow float64, or ``k`` is less
            than 1.

    Source: Arthur and Vassilvitskii 2007, section 2.2.
    """
    if z.dim() != 2 or not z.is_floating_point():
        raise ValueError(f"z: must be floats [N, D], got {z.dtype} {list(z.shape)}")
    require_finite(z=z)
    _require_vectors(z)
    if k < 1:
        raise ValueError(f"k: must be at least 1, got {k}")
    points = z.detach().double()
    nearest = torch.full_like(points[:, 0], torch.inf)
    chosen = [_draw(torch.ones_like(nearest), generator)]
    for _ in range(k - 1):
        distances = (points - points[chosen[-1]]).square().sum(1)
        nearest = torch.minimum(nearest, distances)
        weights = nearest if nearest.any() else torch.ones_like(nearest)
        chosen.append(_draw(weights, generator))
    return z.detach()[chosen]


def _draw(weights: Tensor, generator: torch.Generator) -> int:
    """Draw an index in proportion to weights, by the inverse of the distribution function."""
    total = weights.cumsum(0)
    require(total.isfinite(), "z: its squared distances overflow")
    u = torch.rand(1, generator=generator, dtype=torch.float64, device="cpu").to(total.device)
    # The first sum above u: a weight of zero adds nothing and is never the first.
    return int(torch.searchsorted(total, u * total[-1], right=True))


def _require_vectors(z: Tensor) -> None:
    if not len(z):
        raise ValueError("z: must have at least one vector")
