"""What different losses choose when a code does not say which of several pictures it stood for.

A picture is a row of n pixels. A code leaves probabilities p [..., m] of m pictures [m, n], and the
decoder must answer with one row x. Each loss has its own best answer; on a finite set all are exact.
Every distance is a sum over pixels or features, not a mean.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gradbook.adversarial import require_laws
from gradbook.checks import require_finite
from gradbook.devices import device


def pictures(n: int) -> Tensor:
    """List the rows with one edge: dark on the left of it, bright on the right.

    Args:
        n: pixels of a row, at least 2.

    Returns:
        float64 [n - 1, n] of zeros and ones, on the book's device; the edge
        of picture i is between pixels i and i + 1.

    Raises:
        ValueError: if there are not two pixels.
    """
    _require_sizes(2, n=n)
    ones = torch.ones(n - 1, n, dtype=torch.float64, device=device())
    return ones.triu(1)


def lines(n: int) -> Tensor:
    """List the rows with one bright pixel.

    Args:
        n: pixels of a row, at least 2.

    Returns:
        float64 [n, n], the identity, on the book's device.

    Raises:
        ValueError: if there are not two pixels.
    """
    _require_sizes(2, n=n)
    return torch.eye(n, dtype=torch.float64, device=device())


def posteriors(count: int, width: int) -> Tensor:
    """List the laws of a picture given its code, if a code tells a place only roughly.

    Code c stands for the pictures from ``c width`` to before
    ``(c + 1) width``, all equally likely.

    Args:
        count: m, how many pictures.
        width: how many share a code; the last code may have fewer.

    Returns:
        float64 [codes, m], on the book's device.

    Raises:
        ValueError: if a number is not positive.
    """
    _require_sizes(1, count=count, width=width)
    code = torch.arange(count, device=device()) // width
    shared = (code.unique()[:, None] == code).double()
    return shared / shared.sum(1, keepdim=True)


def pooled_energy(x: Tensor, width: int) -> Tensor:
    """Compute how much squared change there is in every window, wherever in it.

    The square, taken before the sum, tells one edge from many small steps
    that add up to it.

    Args:
        x: rows [..., n], n at least 2.
        width: of a window, in differences; the last may be narrower.

    Returns:
        Sums of squared differences of neighbours, [..., windows].

    Raises:
        ValueError: if the rows are too short or not finite, or the width
            is not positive.
    """
    _require_rows(x)
    _require_sizes(1, width=width)
    parts = x.diff().square().split(width, -1)
    return torch.stack([part.sum(-1) for part in parts], -1)


def expected_squared(x: Tensor, p: Tensor, pictures: Tensor) -> Tensor:
    """Compute the expected squared error of an answer.

    Args:
        x: answers [..., n].
        p: probabilities of the pictures, [..., m].
        pictures: [m, n].

    Returns:
        [...].

    Raises:
        ValueError: if ``p`` has a negative element or does not sum to 1, a
            value is not finite, or the shapes disagree.
    """
    return expected_distance(x, p, pictures, lambda row: row)


def expected_absolute(x: Tensor, p: Tensor, pictures: Tensor) -> Tensor:
    """Compute the expected absolute error of an answer.

    The arguments are those of :func:`expected_squared`.

    Returns:
        [...].

    Raises:
        ValueError: as :func:`expected_squared`.
    """
    _check_answer(x, p, pictures)
    return (p * (x[..., None, :] - pictures).abs().sum(-1)).sum(-1)


def expected_distance(
    x: Tensor,
    p: Tensor,
    pictures: Tensor,
    features: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute the expected squared distance of an answer's features.

    The arguments are those of :func:`expected_squared`, and ``features``,
    a function of rows [..., n] that gives [..., f].

    Returns:
        [...].

    Raises:
        ValueError: as :func:`expected_squared`.
    """
    _check_answer(x, p, pictures)
    gaps = features(x)[..., None, :] - features(pictures)
    return (p * gaps.square().sum(-1)).sum(-1)


def expected_game(x: Tensor, p: Tensor, pictures: Tensor) -> Tensor:
    """Compute how well the best discriminator tells an answer from the pictures.

    All of the decoder's probability is on x. The discriminator's least
    hinge loss is 1 minus the total variation of the two laws; this is that
    variation, which is 1 for an answer that is no picture.

    The arguments are those of :func:`expected_squared`.

    Returns:
        1 minus the probability of x, [...].

    Raises:
        ValueError: as :func:`expected_squared`.
    """
    _check_answer(x, p, pictures)
    same = (x[..., None, :] == pictures).all(-1)
    return 1 - (p * same).sum(-1)


def best_squared(p: Tensor, pictures: Tensor) -> Tensor:
    """Compute the answer with the least squared error: the mean.

    Args:
        p: probabilities of the pictures, [..., m].
        pictures: [m, n].

    Returns:
        [..., n].

    Raises:
        ValueError: as :func:`expected_squared`.
    """
    _check(p, pictures)
    return p @ pictures


def best_absolute(p: Tensor, pictures: Tensor) -> Tensor:
    """Compute an answer with the least absolute error: each pixel's median.

    The arguments are those of :func:`best_squared`.

    Returns:
        [..., n], of each pixel the least value that is not exceeded with
        a probability of at least 1/2.

    Raises:
        ValueError: as :func:`expected_squared`.
    """
    _check(p, pictures)
    values, order = pictures.T.sort(-1)
    columns = torch.arange(len(values), device=values.device)
    below = p[..., order].cumsum(-1)
    # Rounding must not turn a half into less than a half.
    half = 0.5 - torch.finfo(below.dtype).eps * p.shape[-1]
    first = (below >= half).to(torch.int8).argmax(-1)
    return values[columns, first]


def best_of_features(
    p: Tensor,
    pictures: Tensor,
    features: Callable[[Tensor], Tensor],
) -> Tensor:
    """Find which picture, or else their mean, has the nearest features.

    Other rows than those may be nearer still.

    The arguments are those of :func:`expected_distance`, without ``x``.

    Returns:
        A Boolean mask [..., m + 1] of the pictures and, last, the mean,
        true where the cost is least, but for rounding.

    Raises:
        ValueError: as :func:`expected_squared`.
    """
    mean = best_squared(p, pictures)[..., None, :]
    choice = torch.cat([pictures.expand(*p.shape[:-1], -1, -1), mean], -2)
    costs = expected_distance(choice, p[..., None, :], pictures, features)
    return _least(costs)


def best_adversarial(p: Tensor, pictures: Tensor) -> Tensor:
    """Find which pictures a decoder may answer with in the game.

    Only the probability of an answer counts, so none is blurred: with
    equally likely pictures, any of them will do.

    The arguments are those of :func:`best_squared`.

    Returns:
        A Boolean mask [..., m], true where :func:`expected_game` is least,
        but for rounding.

    Raises:
        ValueError: as :func:`expected_squared`.
    """
    _check(p, pictures)
    return _least(expected_game(pictures, p[..., None, :], pictures))


def _least(costs: Tensor) -> Tensor:
    least = costs.amin(-1, keepdim=True)
    return costs <= least + torch.finfo(costs.dtype).eps ** 0.5 * (1 + least)


def _require_sizes(least: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"{name}: must be at least {least}, got {size}")


def _require_rows(x: Tensor) -> None:
    if x.ndim == 0 or x.shape[-1] < 2 or not x.is_floating_point():
        raise ValueError(f"x: must be rows [..., n] of at least 2 numbers, got {tuple(x.shape)}")
    require_finite(x=x)


def _check(p: Tensor, pictures: Tensor) -> None:
    if pictures.ndim != 2 or not len(pictures) or not pictures.is_floating_point():
        raise ValueError(f"pictures: must be numbers [m, n], got {tuple(pictures.shape)}")
    require_finite(pictures=pictures)
    if p.ndim == 0 or p.shape[-1] != len(pictures) or p.dtype != pictures.dtype:
        raise ValueError(f"p: must be [..., {len(pictures)}], of the pictures' type")
    require_laws(p=p)


def _check_answer(x: Tensor, p: Tensor, pictures: Tensor) -> None:
    _check(p, pictures)
    if x.shape[-1:] != pictures.shape[1:] or not x.is_floating_point():
        raise ValueError(f"x: must be rows [..., {pictures.shape[1]}], got {tuple(x.shape)}")
    require_finite(x=x)
