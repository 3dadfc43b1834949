"""The rotation trick: gradients that turn with the vector on its way to its code.

A straight-through estimator copies the gradient at the code onto the vector as it is. The rotation
trick turns and scales it as the vector itself was turned and scaled to reach the code, so the angle
between gradient and vector is that between gradient and code. The hats are unit vectors: z is the
vector, q its code.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require, require_finite
from gradbook.gumbel import straight_through


class _Polar(NamedTuple):
    """Unit vectors [..., D] and lengths [..., 1]; a zero vector has the unit vector zero."""

    unit: Tensor
    length: Tensor


def rotate(z: Tensor, z_q: Tensor) -> Tensor:
    """Return codes with the gradient of turned and scaled vectors.

    A row where no rotation is defined gets the straight-through gradient:
    a zero vector or code, a code in the opposite direction up to
    rounding, or a ratio of lengths beyond the type.

    Args:
        z: vectors [N, D].
        z_q: their codes [N, D]; no gradient flows into them.

    Returns:
        [N, D] with exactly the values of ``z_q``. The gradient g of a row
        reaches z as ``(|q| / |z|) R^T g``, where R carries z's direction
        to q's and leaves the orthogonal complement of both as it is; R
        and the ratio count as constants.

    Raises:
        ValueError: if the arguments are not floating [N, D] of the same
            shape with D at least 1, or are not finite.

    Source: Fifty et al. 2024, "Restructuring vector quantization with the
    rotation trick", section 4.
    """
    _require_rows("z", z)
    _require_like("z_q", z_q, "z", z)
    require_finite(z=z, z_q=z_q)
    a, b = _polar(z.detach()), _polar(z_q.detach())
    scale = b.length / a.length
    defined = _turns(a, b) & scale.isfinite()
    # Infinity would make NaN of the zero gradient of a choice not taken.
    scale = torch.where(defined, scale, 1)
    turned = scale * _turn(z, a.unit, b.unit)
    return straight_through(z_q, torch.where(defined, turned, z))


def rotation_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Build the rotation in the plane of two vectors that aligns them.

    Args:
        a: [D], not zero.
        b: [D], not zero and not opposite to ``a``, where many rotations
            would do.

    Returns:
        The matrix R [D, D], orthogonal and of determinant 1, for which
        R a points in the direction of b. It leaves what is orthogonal to
        both as it is.

    Raises:
        ValueError: if there is no such R, or the arguments are not
            floating vectors of the same size, or are not finite.

    Source: Fifty et al. 2024, section 4.
    """
    if a.ndim != 1:
        raise ValueError(f"a: must be a vector, got shape {tuple(a.shape)}")
    _require_rows("a", a[None])
    _require_like("b", b, "a", a)
    require_finite(a=a, b=b)
    start, end = _polar(a[None]), _polar(b[None])
    require(start.length > 0, "a: must not be zero")
    require(end.length > 0, "b: must not be zero")
    require(_turns(start, end), "b: must not be opposite to a")
    identity = torch.eye(len(a), dtype=a.dtype, device=a.device)
    # Rows of the identity turn into the columns of R.
    return _turn(identity, start.unit, end.unit).T


def _turn(x: Tensor, z_hat: Tensor, q_hat: Tensor) -> Tensor:
    """Apply R = I - 2 r r^T + 2 q_hat z_hat^T to rows of x."""
    r = _polar(z_hat + q_hat).unit
    along_r = (x * r).sum(-1, keepdim=True)
    along_z = (x * z_hat).sum(-1, keepdim=True)
    return x - 2 * along_r * r + 2 * along_z * q_hat


def _turns(a: _Polar, b: _Polar) -> Tensor:
    """Say where both vectors have a direction and their sum is not lost to rounding, [..., 1]."""
    # The bisector's relative error is the rounding of its parts over its length.
    shortest = torch.finfo(a.unit.dtype).eps ** 0.5
    apart = _polar(a.unit + b.unit).length > shortest
    return (a.length > 0) & (b.length > 0) & apart


def _polar(x: Tensor) -> _Polar:
    # Squares of very small or very large numbers would leave the type.
    largest = x.abs().amax(-1, keepdim=True)
    scaled = x / torch.where(largest > 0, largest, 1)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return _Polar(scaled / torch.where(norm > 0, norm, 1), largest * norm)


def _require_rows(name: str, x: Tensor) -> None:
    if x.ndim != 2 or not x.shape[1] or not x.is_floating_point():
        shape = tuple(x.shape)
        raise ValueError(f"{name}: must be floating [N, D], D at least 1, got {x.dtype} {shape}")


def _require_like(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    kinds = [(tuple(t.shape), t.dtype, t.device) for t in (x, other)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{name}: must be like {other_name}, {kinds[1]}, got {kinds[0]}")
