"""What one step of training does to the output of a LoRA, exactly and on average.

The output is W x + s B A x, with A [r, n] and B [m, r]. S, [m, n], is the gradient of the loss by
the whole matrix: for one input x whose output has the gradient g it is g x^T, for a batch the sum
of these. From B = 0 only B moves, because its gradient is s S A^T and that of A is zero. So a batch
is no harder than one input, of which row o of S takes the place.

Averages are over A, of independent entries with mean 0 and a standard deviation. LoRA's uniform
law has ``1 / sqrt(3 n)``. Those of fourth moments and of signs are exact if A is normal; for the
uniform law they are limits, near when no few numbers of x and of S's row outweigh the others.

Source: D. Kalajdzievski, 2023, "A rank stabilization scaling factor for fine-tuning with LoRA" (the
rank); S. Hayou, N. Ghosh and B. Yu, 2024, "LoRA+: efficient low rank adaptation of large models"
(the width). The formulas are worked out here.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require_finite
from gradbook.peft.covariances import require_covariance
from gradbook.peft.lora import require_factor
from gradbook.transformer_sizes import require_sizes


class Parts(NamedTuple):
    """What a step changes in an output [m]: through A alone, through B alone, and through both."""

    by_a: Tensor
    by_b: Tensor
    by_both: Tensor


def gradient_change(slope: Tensor, A: Tensor, scaling: float, rate: float, x: Tensor) -> Tensor:
    """Compute how a step of gradient descent from B = 0 changes outputs.

    It is -rate s^2 S A^T A x, linear in the batch.

    Args:
        slope: S, [m, n].
        A: [r, n].
        scaling: s.
        rate: of the step.
        x: any inputs, of the batch or not, [..., n].

    Returns:
        [..., m].

    Raises:
        ValueError: if a shape or type does not fit, or something is not finite.
    """
    _require_factor(slope, A, scaling, rate, x)
    return -rate * scaling**2 * (x @ A.T) @ (slope @ A.T).T


def sign_change(slope: Tensor, A: Tensor, scaling: float, rate: float, x: Tensor) -> Tensor:
    """Compute how a step of the gradient's signs from B = 0 changes outputs.

    It is ``-rate |s| sign(S A^T) A x``: Adam's first step, if its eps is nothing
    beside the gradient. With one input, at this input, it is
    ``-rate |s| sum |A x| sign(g)``.

    Args:
        slope, A, scaling, rate, x: as for :func:`gradient_change`.

    Returns:
        [..., m].

    Raises:
        ValueError: as :func:`gradient_change`.
    """
    _require_factor(slope, A, scaling, rate, x)
    return -rate * abs(scaling) * (x @ A.T) @ (slope @ A.T).sign().T


def gradient_mean(slope: Tensor, rank: int, scaling: float, rate: float, std: float) -> Tensor:
    """Compute the mean over A of the matrix that :func:`gradient_change` adds.

    It is -rate s^2 r std^2 S, for any law of A: it grows as s^2 r.

    Args:
        slope: S, [m, n].
        rank: r.
        scaling: s.
        rate: of the step.
        std: of A's entries.

    Returns:
        [m, n], to be applied to an input.

    Raises:
        ValueError: if a size is below 1, the deviation below 0, S is not a floating matrix, or
            something is not finite.
    """
    _require_step(slope, scaling, rate, std, rank)
    return -rate * scaling**2 * rank * std**2 * slope


def sign_mean(slope: Tensor, rank: int, scaling: float, rate: float, std: float) -> Tensor:
    """Compute the mean over normal A of the matrix that :func:`sign_change` adds.

    Row o is ``-rate |s| r std sqrt(2 / pi) S_o / |S_o|``: it grows as s r.

    Args:
        slope, rank, scaling, rate, std: as for :func:`gradient_mean`.

    Returns:
        [m, n], to be applied to an input; zero in a row where S is zero.

    Raises:
        ValueError: as :func:`gradient_mean`.
    """
    _require_step(slope, scaling, rate, std, rank)
    factor = -rate * abs(scaling) * rank * std * math.sqrt(2 / math.pi)
    return factor * _directions(slope)


def gradient_square(
    slope: Tensor, covariance: Tensor, rank: int, scaling: float, rate: float, std: float
) -> Tensor:
    """Compute the mean square of :func:`gradient_change` over normal A and inputs x.

    ``(rate s^2 std^2)^2 (r |S_o|^2 tr C + (r^2 + r) S_o C S_o^T)``: the part with
    r^2 is the mean over A, squared, and the rest is spread over all inputs
    alike.

    Args:
        slope: S, [m, n].
        covariance: C = E x x^T, [n, n]; of one input it is x x^T.
        rank: r.
        scaling: s.
        rate: of the step.
        std: of A's entries.

    Returns:
        [m], for every output.

    Raises:
        ValueError: as :func:`gradient_mean`, or if C has another shape or type, or is not symmetric.
    """
    _require_step(slope, scaling, rate, std, rank)
    require_covariance(covariance, slope)
    aimed = ((slope @ covariance) * slope).sum(1)
    spread = slope.square().sum(1) * covariance.trace()
    factor = (rate * scaling**2 * std**2) ** 2
    return factor * (rank * spread + (rank**2 + rank) * aimed)


def sign_square(
    slope: Tensor, covariance: Tensor, rank: int, scaling: float, rate: float, std: float
) -> Tensor:
    """Compute the mean square of :func:`sign_change` over normal A and inputs x.

    ``(rate s std)^2 (r tr C + r (r - 1) (2 / pi) S_o C S_o^T / |S_o|^2)``.

    Args:
        slope, covariance, rank, scaling, rate, std: as for :func:`gradient_square`.

    Returns:
        [m], for every output; zero where S_o is zero.

    Raises:
        ValueError: as :func:`gradient_square`.
    """
    _require_step(slope, scaling, rate, std, rank)
    require_covariance(covariance, slope)
    rows = _directions(slope)
    aimed = 2 / math.pi * ((rows @ covariance) * rows).sum(1)
    spread = covariance.trace() * (rows != 0).any(1)
    return (rate * scaling * std) ** 2 * rank * (spread + (rank - 1) * aimed)


def dimensions(slope: Tensor, covariance: Tensor) -> Tensor:
    """Count in how many dimensions inputs spread, as a row of S sees it: 1 / E cos^2, weighted.

    It is ``tr C |S_o|^2 / (S_o C S_o^T)``: n if C is a multiple of the identity,
    and 1 if all inputs point where S_o does. A step of signs changes a fresh
    output by s r only where r is large beside pi / 2 of it, and by
    s ``sqrt(r)`` below; a step of gradients by s^2 r where r is large beside
    it.

    Args:
        slope: S, [m, n].
        covariance: C, [n, n].

    Returns:
        [m]; infinite for a row that no input sees, and NaN for a zero row.

    Raises:
        ValueError: as :func:`gradient_square`.
    """
    _require_step(slope, 1.0, 1.0)
    require_covariance(covariance, slope)
    aimed = ((slope @ covariance) * slope).sum(1)
    return covariance.trace() * slope.square().sum(1) / aimed


def sign_parts(
    A: Tensor, B: Tensor, scaling: float, x: Tensor, g: Tensor, rates: tuple[float, float]
) -> Parts:
    """Split what a step of signs, of A and of B at once, changes in the output of its one input.

    A moves by -rate_A sign(B^T g) sign(x)^T, B by -rate_B sign(g) sign(A x)^T.
    To first order, the first lowers the loss by ``rate_A s |x|_1 |B^T g|_1``,
    the second by ``rate_B s |A x|_1 |g|_1``.

    Args:
        A: [r, n].
        B: [m, r].
        scaling: s, positive.
        x: [n].
        g: gradient of the loss by the output, [m].
        rates: of A and of B.

    Returns:
        s B dA x, s dB A x and s dB dA x; their sum is the whole change.

    Raises:
        ValueError: if a shape or type does not fit, something is not finite, or s not positive.
    """
    _require_layer(A, B, x, g)
    require_finite(rate_a=rates[0], rate_b=rates[1])
    require_factor(scaling=scaling)
    hidden = A @ x
    moved = -rates[0] * x.abs().sum() * (B.T @ g).sign()  # dA x
    step = -rates[1] * torch.outer(g.sign(), hidden.sign())  # dB
    parts = (B @ moved, step @ hidden, step @ moved)
    return Parts(*(scaling * part for part in parts))


def balanced_ratio(A: Tensor, B: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """Compute the rate_B / rate_A at which a step of signs lowers the loss alike through A and B.

    To first order it is ``|x|_1 |B^T g|_1 / (|A x|_1 |g|_1)``. If B is what signs
    alone have made, -b sign(g) sign(A x)^T, it is ``b r |x|_1 / |A x|_1``: with
    LoRA's A, and x normal, near ``sqrt(3)`` b n, whatever the rank.

    Args:
        A, B, x, g: as for :func:`sign_parts`.

    Returns:
        A scalar; 0 if B is zero, infinite or NaN if A x or g is.

    Raises:
        ValueError: as :func:`sign_parts`.
    """
    _require_layer(A, B, x, g)
    by_a = x.abs().sum() * (B.T @ g).abs().sum()
    return by_a / ((A @ x).abs().sum() * g.abs().sum())


def _directions(slope: Tensor) -> Tensor:
    norms = slope.norm(dim=1, keepdim=True)
    return slope / norms.where(norms > 0, 1)


def _require_step(
    slope: Tensor, scaling: float, rate: float, std: float = 1.0, rank: int = 1
) -> None:
    if slope.ndim != 2 or not all(slope.shape) or not slope.is_floating_point():
        got = f"{list(slope.shape)} {slope.dtype}"
        raise ValueError(f"slope: must be a floating [m, n], got {got}")
    require_sizes(rank=rank)
    require_finite(slope=slope, scaling=scaling, rate=rate, std=std)
    if std < 0:
        raise ValueError(f"std: must not be negative, got {std}")


def _require_factor(slope: Tensor, A: Tensor, scaling: float, rate: float, x: Tensor) -> None:
    _require_step(slope, scaling, rate)
    _require_like(slope, A=A, x=x)
    if A.ndim != 2:
        raise ValueError(f"A: must be [r, {slope.shape[1]}], got {list(A.shape)}")


def _require_like(slope: Tensor, **others: Tensor) -> None:
    n = slope.shape[1]
    for name, other in others.items():
        if other.shape[-1:] != (n,) or other.dtype != slope.dtype:
            got = f"{list(other.shape)} {other.dtype}"
            raise ValueError(f"{name}: must be [..., {n}] {slope.dtype}, got {got}")
        require_finite(**{name: other})


def _require_layer(A: Tensor, B: Tensor, x: Tensor, g: Tensor) -> None:
    rank = A.shape[:1].numel()
    shapes = {"x": x.shape[:1], "A": (rank, x.numel()), "g": g.shape[:1], "B": (g.numel(), rank)}
    for (name, shape), value in zip(shapes.items(), (x, A, g, B), strict=True):
        if not value.ndim or value.shape != shape or value.dtype != x.dtype:
            got = f"{list(value.shape)} {value.dtype}"
            raise ValueError(f"{name}: must be {list(shape)} {x.dtype}, got {got}")
        require_finite(**{name: value})
