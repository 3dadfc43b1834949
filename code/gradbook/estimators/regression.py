"""Control variates by regression: a term of known mean, subtracted with the best coefficient."""

import torch
from torch import Tensor

from gradbook.checks import require_finite


def control_variate(
    gradients: Tensor,
    control: Tensor,
    expectation: Tensor | float,
    coefficient: Tensor | float,
) -> Tensor:
    """Subtract a term of known mean from per-sample gradients.

    Args:
        gradients: [n, ...].
        control: per-sample values of the term [n, ...], from the same
            draws.
        expectation: the mean of the term [...], exact.
        coefficient: a scalar, or [...] with one for each coordinate, not
            computed from these draws.

    Returns:
        gradients - coefficient (control - expectation), [n, ...].

    Raises:
        ValueError: if the shapes do not agree or a number is not finite.

    Source: Glasserman 2003, section 4.1.
    """
    _require_alike(gradients, control)
    _require_per_coordinate("expectation", expectation, gradients)
    _require_per_coordinate("coefficient", coefficient, gradients)
    return gradients - coefficient * (control - expectation)


def regression_coefficient(gradients: Tensor, control: Tensor) -> Tensor:
    """Estimate the one coefficient of least total variance.

    It is the sum over coordinates of their covariances, over the sum of
    the control's variances. Use it on other draws than those it was
    computed from.

    Args:
        gradients: [n, ...] with n at least 2.
        control: [n, ...], from the same draws.

    Returns:
        A scalar.

    Raises:
        ValueError: if n < 2, the shapes do not agree, a tensor is not
            finite, or the control is constant.

    Source: Glasserman 2003, section 4.1.
    """
    _require_alike(gradients, control)
    if len(gradients) < 2:
        raise ValueError("gradients: needs at least two samples")
    centred = control - control.mean(0)
    size = centred.square().sum()
    # The mean of equal numbers may be off by its rounding, and the size of nothing above zero.
    if size == 0 or (control == control[0]).all():
        raise ValueError("control: must not be constant")
    return (gradients * centred).sum() / size


def _require_alike(gradients: Tensor, control: Tensor) -> None:
    if gradients.ndim == 0 or gradients.shape != control.shape:
        shapes = f"{tuple(control.shape)}, gradients {tuple(gradients.shape)}"
        raise ValueError(f"control: must be [n, ...] as the gradients, has shape {shapes}")
    require_finite(gradients=gradients, control=control)


def _require_per_coordinate(name: str, value: Tensor | float, gradients: Tensor) -> None:
    """Raise unless a value is finite, and one number for all coordinates or one for each."""
    require_finite(**{name: value})
    wanted = gradients.shape[1:]
    have = value.shape if isinstance(value, Tensor) else wanted
    try:
        fits = torch.broadcast_shapes(have, wanted) == wanted
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"{name}: must broadcast to {tuple(wanted)}, has shape {tuple(have)}")
