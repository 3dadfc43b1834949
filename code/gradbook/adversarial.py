"""The hinge game of an image compressor: its losses, its weight, and its optimum on a finite set.

The discriminator gives a score to each patch, high where it looks real; scores are not logits of a
probability. The losses differ from those of :mod:`gradbook.gan`, which are logarithms of the
sigmoid. On a finite set, where real and fake have the probability vectors p and q, the game's
optimum is a sum.
"""

import torch
from torch import Tensor

from gradbook.checks import require, require_finite

# Of the published code; see :func:`balance`.
DELTA, MOST, SHARE = 1e-4, 1e4, 0.8


def discriminator_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Estimate the discriminator's loss: scores short of a margin of 1.

    Args:
        real: scores of data, of any shape.
        fake: scores of reconstructions, of any shape; detach these first,
            or the decoder gets a gradient too.

    Returns:
        The half of mean max(0, 1 - real) + mean max(0, 1 + fake), a
        scalar. The half is of the published code.

    Raises:
        ValueError: if one is empty or not finite.

    Source: J. H. Lim and J. C. Ye, 2017, "Geometric GAN"; T. Miyato et al.
    2018, "Spectral normalization for generative adversarial networks",
    section 4.
    """
    _require_some(real=real, fake=fake)
    return 0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())


def generator_loss(fake: Tensor) -> Tensor:
    """Estimate the decoder's loss, which has no margin.

    Args:
        fake: scores of reconstructions, of any shape.

    Returns:
        - mean fake, a scalar.

    Raises:
        ValueError: if there is none, or one is not finite.

    Source: Lim and Ye 2017; Miyato et al. 2018, section 4.
    """
    _require_some(fake=fake)
    return -fake.mean()


def gradient_norm(loss: Tensor, weight: Tensor) -> Tensor:
    """Compute the length of a loss's gradient in one weight.

    The graph is kept: the loss can still be differentiated.

    Args:
        loss: a scalar that depends on the weight.
        weight: of any shape.

    Returns:
        A scalar without a gradient of its own.

    Raises:
        ValueError: if the loss is not a finite scalar, has no gradient in
            the weight, or that is not finite.
    """
    return _norm("loss", loss, weight)


def balance(
    reconstruction: Tensor,
    adversarial: Tensor,
    delta: float = DELTA,
    most: float = MOST,
    share: float = SHARE,
) -> Tensor:
    """Compute the factor that brings one gradient to a share of another.

    Args:
        reconstruction: norm of the gradient that sets the measure.
        adversarial: norm of the gradient to be multiplied.
        delta: added to the second norm; 1e-4 in the published code.
        most: bound of the factor before the share; 1e4 as published.
        share: what the second norm shall be of the first; 0.8 as published.

    Returns:
        share min(reconstruction / (adversarial + delta), most). Below the
        bound, the second norm becomes
        share reconstruction adversarial / (adversarial + delta).

    Raises:
        ValueError: if a norm or the share is negative or not finite, or
            delta or the bound is not positive and finite.

    Source: P. Esser, R. Rombach and B. Ommer, 2021, "Taming transformers
    for high-resolution image synthesis", equation 7; the share, the bound
    and this delta are of the published code.
    """
    _require_numbers(delta, most, share)
    norms = {"reconstruction": reconstruction, "adversarial": adversarial}
    require_finite(**norms)
    for name, norm in norms.items():
        require(norm >= 0, f"{name}: must not be negative")
    return share * (reconstruction / (adversarial + delta)).clamp(0, most)


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    last_weight: Tensor,
    delta: float = DELTA,
    most: float = MOST,
    share: float = SHARE,
) -> Tensor:
    """Compute the adversarial loss's weight by gradients at the last layer.

    The published code takes a missing gradient for a weight of 0, which
    hides a discriminator that is not connected; here it is an error.

    Args:
        reconstruction: the loss of images, a scalar.
        adversarial: the decoder's loss in the game, a scalar.
        last_weight: of the decoder's last layer.
        delta: see :func:`balance`.
        most: see :func:`balance`.
        share: see :func:`balance`.

    Returns:
        A scalar without a gradient. Both losses can still be
        differentiated.

    Raises:
        ValueError: if a loss is not a finite scalar or has no gradient in
            the weight, or as :func:`balance`.

    Source: Esser, Rombach and Ommer 2021, equation 7.
    """
    pull = _norm("reconstruction", reconstruction, last_weight)
    push = _norm("adversarial", adversarial, last_weight)
    return balance(pull, push, delta, most, share)


def best_scores(p: Tensor, q: Tensor) -> Tensor:
    """Compute scores that minimize the discriminator's hinge loss.

    Args:
        p: probabilities of real images, [..., k].
        q: probabilities of reconstructions, [..., k].

    Returns:
        The sign of p - q, [..., k]. Where both are equal, every score from
        -1 to 1 is as good; this is 0.

    Raises:
        ValueError: if one has a negative element or does not sum to 1, or
            the shapes differ.

    Source: Lim and Ye 2017.
    """
    require_laws(p=p, q=q)
    return (p - q).sign()


def expected_hinge(p: Tensor, q: Tensor, scores: Tensor) -> Tensor:
    """Compute the expectation of :func:`discriminator_hinge`.

    Args:
        p: probabilities of real images, [..., k].
        q: probabilities of reconstructions, [..., k].
        scores: of the k images, [..., k].

    Returns:
        [...]; at :func:`best_scores` the sum of min(p, q), which is 1 minus
        the total variation of p and q.

    Raises:
        ValueError: as :func:`best_scores`, or if the scores are not finite
            or of another shape.
    """
    require_laws(p=p, q=q)
    _require_scores(scores, q)
    return 0.5 * (p * (1 - scores).relu() + q * (1 + scores).relu()).sum(-1)


def expected_generator_loss(q: Tensor, scores: Tensor) -> Tensor:
    """Compute the expectation of :func:`generator_loss`.

    At the best scores d it is ``2 TV(p, q) - sum p d``. While the scores
    stand still, the last term is a constant, and the slope in q is that of
    twice the total variation wherever p and q differ.

    Args:
        q: probabilities of reconstructions, [..., k].
        scores: of the k images, [..., k].

    Returns:
        minus the sum of q times the scores, [...].

    Raises:
        ValueError: as :func:`expected_hinge`.

    Source: Lim and Ye 2017.
    """
    require_laws(q=q)
    _require_scores(scores, q)
    return -(q * scores).sum(-1)


def require_laws(**laws: Tensor) -> None:
    """Raise unless every tensor holds probabilities, all of one shape.

    Args:
        **laws: [..., k], under the names of the caller's arguments.

    Raises:
        ValueError: if one has a negative element, a NaN or a row that does
            not sum to 1, or the shapes differ.
    """
    shapes = {name: tuple(law.shape) for name, law in laws.items()}
    for name, law in laws.items():
        if law.ndim == 0 or not law.is_floating_point():
            raise ValueError(f"{name}: must be probabilities [..., k]")
        if law.shape != next(iter(laws.values())).shape:
            raise ValueError(f"{name}: must have one shape with the others, got {shapes}")
        tolerance = torch.finfo(law.dtype).eps ** 0.5
        require(law >= 0, f"{name}: must not be negative")
        require((law.sum(-1) - 1).abs() <= tolerance, f"{name}: must sum to 1")


def _norm(name: str, loss: Tensor, weight: Tensor) -> Tensor:
    if loss.ndim:
        raise ValueError(f"{name}: must be a scalar, got {tuple(loss.shape)}")
    require_finite(**{name: loss})
    slope = None
    if loss.requires_grad and weight.requires_grad:
        # Both losses will be differentiated once more, together.
        (slope,) = torch.autograd.grad(loss, weight, retain_graph=True, allow_unused=True)
    if slope is None:
        raise ValueError(f"{name}: has no gradient in the weight")
    require(slope.isfinite(), f"{name}: its gradient must be finite")
    return slope.detach().norm()


def _require_numbers(delta: float, most: float, share: float) -> None:
    require_finite(delta=delta, most=most, share=share)
    if share < 0:
        raise ValueError(f"share: must not be negative, got {share}")
    for name, number in (("delta", delta), ("most", most)):
        if number <= 0:
            raise ValueError(f"{name}: must be positive, got {number}")


def _require_some(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            raise ValueError(f"{name}: must not be empty")
    require_finite(**tensors)


def _require_scores(scores: Tensor, law: Tensor) -> None:
    if scores.shape != law.shape:
        shapes = f"{tuple(law.shape)}, got {tuple(scores.shape)}"
        raise ValueError(f"scores: must have the shape of the probabilities, {shapes}")
    require_finite(scores=scores)
