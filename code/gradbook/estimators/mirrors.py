"""Antithetic draws: each noise used a second time, mirrored."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import _pytree

from gradbook.estimators.draws import Family, Objective, Theta

Estimator = Callable[[Objective, Family, Theta, Tensor], Theta]


def antithetic(
    estimator: Estimator,
    mirror: Callable[[Tensor], Tensor],
    f: Objective,
    family: Family,
    theta: Theta,
    noise: Tensor,
) -> Theta:
    """Average an estimator over each noise and its mirror image.

    The mirror must keep the law of the noise; then the average is as
    unbiased as the estimator. Its variance is (1 + r) / 2 of that of one
    draw, r the correlation of the two: less than two independent draws
    where r is negative, more where it is positive.

    Args:
        estimator: takes (f, family, theta, noise).
        mirror: maps noise to noise of the same law and shape:
            ``torch.neg`` where the law is symmetric,
            :func:`mirror_gumbel` for Gumbel noise.
        f: maps one draw and theta to a scalar.
        family: the distribution of z.
        theta: its parameters, a tensor or a container of tensors.
        noise: [n, ...], one row per pair.

    Returns:
        The mean of each pair, shaped as theta with a leading n.

    Raises:
        ValueError: if the mirror changes the shape, or as the estimator.

    Source: Hammersley and Morton 1956.
    """
    mirrored = mirror(noise)
    if mirrored.shape != noise.shape:
        shapes = f"{tuple(noise.shape)} to {tuple(mirrored.shape)}"
        raise ValueError(f"mirror: changes the shape from {shapes}")
    one = estimator(f, family, theta, noise)
    other = estimator(f, family, theta, mirrored)
    return _pytree.tree_map(lambda a, b: (a + b) / 2, one, other)


def mirror_gumbel(noise: Tensor) -> Tensor:
    """Mirror Gumbel noise at its median: u becomes 1 - u.

    Args:
        noise: standard Gumbel draws of any shape, -log(-log u).

    Returns:
        -log(-log(1 - u)); applied twice it gives back the noise. Below
        -6.6 in float64, or -4.6 in float32, u is no number but zero: the
        image is infinite.
    """
    exponential = (-noise).exp()
    # log(1 - exp(-e)): each form loses all digits where the other is exact.
    small = exponential < math.log(2)
    near = exponential.where(small, torch.ones_like(noise))
    of_small = (-(-near).expm1()).log()
    of_large = (-(-exponential).exp()).log1p()
    return -(-of_small.where(small, of_large)).log()
