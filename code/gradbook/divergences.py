"""How far one probability vector is from another: f-divergences, their witnesses, Wasserstein.

p and q are probabilities of the same k outcomes, or of k cells of a grid, on the last axis; axes
before it broadcast. An f-divergence is the sum of ``q f(p/q)``. Six generators are here: ``KL``,
``REVERSE_KL``, ``JENSEN_SHANNON``, ``TOTAL_VARIATION``, ``SQUARED_HELLINGER`` and ``CHI_SQUARE``. The
last is the sum of ``(p - q)**2 / q``; the three before it are halved, so that total variation and
squared Hellinger end at 1 and Jensen-Shannon at log 2. Divergences are in nats.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require, require_finite, require_positive
from gradbook.logits import require_classes, require_fits


class Generator(NamedTuple):
    """A convex function f on the ratios u = p/q, with f(1) = 0, and what follows from it.

    Attributes:
        f: the function, finite or infinite at 0.
        derivative: f', with its limits at 0 and at infinity.
        conjugate: ``f*(t) = sup over u >= 0 of (t u - f(u))``, infinite
            outside its domain.
        recession: the limit of ``f(u) / u`` at infinity, which is also
            where the domain of the conjugate ends.
    """

    f: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]
    recession: float


def _below(bound: float, t: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    # The inner `where` keeps NaN slopes of values outside out of the gradient.
    inside = t < bound
    return torch.where(inside, value(torch.where(inside, t, bound - 1)), math.inf)


_HALF_LOG_2 = 0.5 * math.log(2)

KL = Generator(
    f=lambda u: torch.xlogy(u, u),
    derivative=lambda u: u.log() + 1,
    conjugate=lambda t: (t - 1).exp(),
    recession=math.inf,
)
REVERSE_KL = Generator(
    f=lambda u: -u.log(),
    derivative=lambda u: -1 / u,
    conjugate=lambda t: _below(0.0, t, lambda t: -1 - (-t).log()),
    recession=0.0,
)
JENSEN_SHANNON = Generator(
    # u / (u + 1) first: the products of large u would overflow.
    f=lambda u: 0.5 * (torch.xlogy(u, 2 * (u / (u + 1))) - ((u + 1) / 2).log()),
    derivative=lambda u: _HALF_LOG_2 - 0.5 * (1 / u).log1p(),
    conjugate=lambda t: _below(_HALF_LOG_2, t, lambda t: -0.5 * (-(2 * t).expm1()).log1p()),
    recession=_HALF_LOG_2,
)
TOTAL_VARIATION = Generator(
    f=lambda u: 0.5 * (u - 1).abs(),
    derivative=lambda u: 0.5 * (u - 1).sign(),
    conjugate=lambda t: torch.where(t > 0.5, math.inf, t.clamp(min=-0.5)),
    recession=0.5,
)
SQUARED_HELLINGER = Generator(
    f=lambda u: 0.5 * (u.sqrt() - 1).square(),
    derivative=lambda u: 0.5 - 0.5 / u.sqrt(),
    # Not t / (1 - 2 t), which has no value at minus infinity.
    conjugate=lambda t: _below(0.5, t, lambda t: 0.5 / (1 - 2 * t) - 0.5),
    recession=0.5,
)
CHI_SQUARE = Generator(
    f=lambda u: (u - 1).square(),
    derivative=lambda u: 2 * (u - 1),
    conjugate=lambda t: t.clamp(min=-2) + t.clamp(min=-2).square() / 4,
    recession=math.inf,
)


def f_divergence(generator: Generator, p: Tensor, q: Tensor) -> Tensor:
    """Compute an f-divergence, the sum of ``q f(p/q)``.

    An outcome with p = 0 adds ``q f(0)``, one with q = 0 adds p times the
    recession slope, and one with both 0 adds nothing.

    Args:
        generator: f and its limits.
        p: probabilities [..., k].
        q: probabilities [..., k].

    Returns:
        [...]. In a probability that is 0 the gradient, often infinite, is
        taken as 0; a ratio too large for the type counts as infinite.

    Raises:
        ValueError: if p or q is negative or does not sum to 1 within
            1e-6, or the two do not fit.

    Source: S. Nowozin, B. Cseke and R. Tomioka, 2016, section 2.1.
    """
    _check(p, q)
    both = (p > 0) & (q > 0) & (p / q).isfinite()
    ratio = torch.where(both, p, 1) / torch.where(both, q, 1)
    only_p, only_q = (p > 0) & ~both, (q > 0) & (p == 0)
    # What is dropped is a product with 1: zero times infinity is NaN.
    at_p = torch.where(only_p, p, 1) * generator.recession
    at_q = torch.where(only_q, q, 1) * generator.f(p.new_zeros(()))
    terms = torch.where(both, q * generator.f(ratio), 0)
    terms = torch.where(only_p, at_p, torch.where(only_q, at_q, terms))
    return terms.sum(-1)


def best_witness(generator: Generator, p: Tensor, q: Tensor) -> Tensor:
    """Compute f'(p/q), at which the variational bound is the divergence.

    Args:
        generator: f and its derivative.
        p: probabilities [..., k].
        q: probabilities [..., k].

    Returns:
        [..., k], inside the conjugate's domain where q is not 0. It is
        f'(0) where p is 0, the recession slope where q is 0, either of
        which may be infinite, and f'(1) where both are.

    Raises:
        ValueError: as :func:`f_divergence`.

    Source: X. Nguyen, M. Wainwright and M. Jordan, 2010, lemma 1.
    """
    _check(p, q)
    neither = (p == 0) & (q == 0)
    ratio = torch.where(neither, 1, p) / torch.where(neither, 1, q)
    witness = generator.derivative(ratio)
    # At large ratios f' rounds to the recession slope.
    rounded = (q > 0) & (generator.conjugate(witness) == math.inf)
    below = witness.nextafter(torch.full_like(witness, -math.inf))
    return torch.where(rounded, below, witness)


def variational_bound(
    generator: Generator,
    witness: Tensor,
    p: Tensor,
    q: Tensor,
) -> Tensor:
    """Compute E_p[T] - E_q[f*(T)], a lower bound of the f-divergence.

    Args:
        generator: f, by its conjugate.
        witness: T [..., k]; may be -inf where p is 0, and inf where q is.
        p: probabilities [..., k].
        q: probabilities [..., k].

    Returns:
        [...], minus infinity if a value of T is outside the domain of the
        conjugate; differentiable in the witness, and in p and q.

    Raises:
        ValueError: as :func:`f_divergence`, also for the witness, or if
            that has a NaN or another infinity.

    Source: Nguyen et al. 2010, lemma 1; Nowozin et al. 2016, section 2.2.
    """
    _check(p, q)
    _check_witness(witness, p, q)
    gain = (p * torch.where(p > 0, witness, 0)).sum(-1)
    conjugate = generator.conjugate(torch.where(q > 0, witness, 0))
    cost = (q * torch.where(q > 0, conjugate, 0)).sum(-1)
    # An infinite gain comes from q = 0: a cost that overflows keeps it.
    bound = torch.where(gain == math.inf, gain, gain - cost)
    outside = (witness > generator.recession).any(-1)
    return torch.where(outside, -math.inf, bound)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Compute KL(p || q), the sum of ``p log(p/q)``.

    Args:
        p: probabilities [..., k].
        q: probabilities [..., k].

    Returns:
        [...], in nats; infinite where q excludes what p does not.

    Raises:
        ValueError: as :func:`f_divergence`.
    """
    _check(p, q)
    inside = p > 0
    # Where p is 0 both logarithms are of 1: neither they nor slopes are NaN.
    log_p, log_q = (torch.where(inside, v, 1).log() for v in (p, q))
    return (p * (log_p - log_q)).sum(-1)


def js(p: Tensor, q: Tensor) -> Tensor:
    """Compute the mean of KL(p || m) and KL(q || m), with m their average.

    Args:
        p: probabilities [..., k].
        q: probabilities [..., k].

    Returns:
        [...], in nats, from 0 to log 2.

    Raises:
        ValueError: as :func:`f_divergence`.
    """
    _check(p, q)
    return 0.5 * (kl(p, 0.5 * (p + q)) + kl(q, 0.5 * (p + q)))


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Compute the largest difference in the probability of an event.

    Args:
        p: probabilities [..., k].
        q: probabilities [..., k].

    Returns:
        [...], from 0 to 1: half the sum of ``|p - q|``.

    Raises:
        ValueError: as :func:`f_divergence`.
    """
    _check(p, q)
    return 0.5 * (p - q).abs().sum(-1)


def wasserstein(p: Tensor, q: Tensor, positions: Tensor) -> Tensor:
    """Compute the Wasserstein-1 distance of two laws on points of a line.

    It is the area between the two distribution functions.

    Args:
        p: probabilities [..., k].
        q: probabilities [..., k].
        positions: where the k points are [k], in increasing order.

    Returns:
        [...], in the unit of the positions.

    Raises:
        ValueError: as :func:`f_divergence`, or if the positions are no
            k finite numbers in order.
    """
    _check(p, q)
    if positions.shape != p.shape[-1:]:
        raise ValueError("positions: must be as many as the probabilities")
    require_finite(positions=positions)
    require(positions.diff() >= 0, "positions: must be in increasing order")
    between = (p - q).cumsum(-1)[..., :-1].abs()
    return (between * positions.diff()).sum(-1)


def normal_kl(mean1: Tensor, variance1: Tensor, mean2: Tensor, variance2: Tensor) -> Tensor:
    """Compute KL(N(mean1, variance1) || N(mean2, variance2)).

    Args:
        mean1: any shape; the other three broadcast with it.
        variance1: positive.
        mean2: of the second normal.
        variance2: positive.

    Returns:
        The common shape, in nats.

    Raises:
        ValueError: if a mean is not finite or a variance not positive.
    """
    require_finite(mean1=mean1, mean2=mean2)
    require_positive(variance1=variance1, variance2=variance2)
    ratio = variance1 / variance2
    shift = (mean1 - mean2).square() / variance2
    return 0.5 * (ratio + shift - 1 - ratio.log())


def _check(p: Tensor, q: Tensor) -> None:
    for name, tensor in (("p", p), ("q", q)):
        if tensor.ndim == 0 or not tensor.is_floating_point():
            raise ValueError(f"{name}: must be probabilities [..., k]")
        require(tensor >= 0, f"{name}: must not be negative")
        off = (tensor.sum(-1, dtype=torch.float64) - 1).abs()
        require(off <= 1e-6, f"{name}: must sum to 1 on the last axis")
    require_classes("q", q, p.shape[-1])
    require_fits("p", p, "q", q)


def _check_witness(witness: Tensor, p: Tensor, q: Tensor) -> None:
    require_classes("witness", witness, p.shape[-1])
    require_fits("witness", witness, "p and q", p + q)
    low, high = (witness == -math.inf) & (p == 0), (witness == math.inf) & (q == 0)
    require(witness.isfinite() | low | high, "witness: must be finite where it counts")
