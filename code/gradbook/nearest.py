"""The nearest code of a vector: the lookup of every quantizer with a codebook.

Of the squared distance ``|z - c|^2 = |z|^2 - 2 z.c + |c|^2`` the first term is the same for all
codes, and the others cost one matrix product. That expansion subtracts large numbers from each
other when the vectors lie far from the origin: with a mean of 10 and a spread of 1/512, float32
keeps no digit of what tells the codes apart. Vectors and codes may be shifted together, so
:func:`nearest_code` subtracts the mean first.
"""

import torch
from torch import Tensor

from gradbook.checks import plain, require, require_finite

# The scores of so many vectors stay in the cache between the product and the search.
_ROWS = 1024


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Find the nearest code of every vector.

    The index maximises ``z.c - |c|^2 / 2``, after a shift of ``z`` and
    ``c`` by the mean of ``z``. What the rounding of that score cannot
    tell apart counts as near: the squared distance of the winner exceeds
    the smallest by some units of rounding of the square of the larger
    of two lengths, the spread of ``z`` and the distance. Half precision
    is scored in float32.

    Args:
        z: [N, D], of any floating type.
        codebook: [K, D] of the same type and device, K at least 1.

    Returns:
        Indices, int64 [N]. Equal codes give the lowest index, and so do
        codes at equal distances where the score is exact, as on a grid
        of small integers. No gradient flows.

    Raises:
        ValueError: if a shape or a type is wrong, the codebook is empty,
            an argument is not finite or its spread overflows, or the
            call is inside ``torch.func.vmap``.

    Source: van den Oord, Vinyals and Kavukcuoglu 2017, equation 1.
    """
    z, codebook = _checked(z, codebook)
    if not len(z):
        return torch.empty(0, dtype=torch.int64, device=z.device)
    shift = _centre(z)
    codes = codebook - shift
    # Scores in units of the codes' size: small squares do not vanish.
    scaled = codes * _unit(codes)
    offset = (scaled * codes).sum(1) / -2
    require(offset.isfinite(), "codebook: too far from z")
    best = torch.empty(len(z), dtype=torch.int64, device=z.device)
    scores = offset.new_empty(min(len(z), _ROWS), len(codes))
    for rows, out in zip(z.split(_ROWS), best.split(_ROWS), strict=True):
        chunk = scores[: len(rows)]
        torch.addmm(offset, rows - shift, scaled.T, out=chunk)
        torch.argmax(chunk, 1, out=out)
    return _first_of_equals(codes)[best]


def plain_nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Find the nearest code by the textbook expansion, to be refuted.

    Args:
        z: [N, D], of any floating type.
        codebook: [K, D] of the same type and device, K at least 1.

    Returns:
        Indices, int64 [N], of the smallest ``|z|^2 - 2 z.c + |c|^2``;
        wrong where its rounding exceeds the differences. No gradient
        flows.

    Raises:
        ValueError: if a shape or a type is wrong, the codebook is empty,
            an argument is not finite, or the call is inside
            ``torch.func.vmap``.
    """
    z, codebook = _checked(z, codebook)
    require_finite(z=z)
    z2, c2 = z.square().sum(1, keepdim=True), codebook.square().sum(1)
    return (z2 - 2 * z @ codebook.T + c2).argmin(1)


def squared_distances(z: Tensor, codebook: Tensor) -> Tensor:
    """Compute all squared distances from differences, in float64.

    The reference for small inputs: it holds N K D numbers.

    Args:
        z: [N, D], of any floating type.
        codebook: [K, D] of the same type and device, K at least 1.

    Returns:
        float64 [N, K], differentiable in both.

    Raises:
        ValueError: as :func:`plain_nearest_code`.
    """
    _checked(z, codebook)
    require_finite(z=z)
    return (z.double()[:, None] - codebook.double()).square().sum(-1)


def _checked(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Return both without gradient; whether z is finite is left to the caller."""
    for name, tensor in (("z", z), ("codebook", codebook)):
        if tensor.dim() != 2 or not tensor.shape[1] or plain(tensor).shape != tensor.shape:
            raise ValueError(f"{name}: must have two axes, got {list(plain(tensor).shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: must be of a floating type, got {tensor.dtype}")
    if codebook.shape[1] != z.shape[1] or not len(codebook):
        shape = list(codebook.shape)
        raise ValueError(f"codebook: must have rows of length {z.shape[1]}, got {shape}")
    for what in ("dtype", "device"):
        if getattr(codebook, what) != getattr(z, what):
            raise ValueError(f"codebook: must have the {what} of z, {getattr(z, what)}")
    require_finite(codebook=codebook)
    return plain(z), plain(codebook)


def _centre(z: Tensor) -> Tensor:
    """Round the mean [D] so coarsely that what lies on a grid stays on it, and ties stay ties.

    The step is a power of two, from an eighth to a quarter of the range of a coordinate. A
    coordinate that does not vary is its own mean.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    low, high = z.amin(0).to(dtype), z.amax(0).to(dtype)
    spread = high - low
    # A NaN or an infinity of z shows in its range, and a product with the codes has D terms.
    require((4 * z.shape[1] * spread).isfinite(), "z: must be finite, and its spread too")
    smallest = torch.finfo(torch.float64).tiny
    step = spread.double().log2().floor().sub(2).exp2().clamp(min=smallest)
    mean = z.mean(0, dtype=torch.float64)
    return (step * (mean / step).round()).to(dtype).clamp(low, high)


def _unit(codes: Tensor) -> Tensor:
    """Find the power of two that brings the largest number near 1."""
    _, exponent = torch.frexp(codes.abs().amax())
    unit = exponent.neg().double().exp2()
    return unit.clamp(max=torch.finfo(codes.dtype).max).to(codes.dtype)


def _first_of_equals(codes: Tensor) -> Tensor:
    """Give every code the lowest index of an equal one: a product may round equal columns apart."""
    _, group = codes.unique(dim=0, return_inverse=True)
    own = torch.arange(len(codes), device=codes.device)
    first = own.scatter_reduce(0, group, own, "amin", include_self=False)
    return first[group]
