"""Models of n binary pixels with counted parameters: a table, independent pixels, a chain.

Pictures are rows x [N, n] of zeros and ones, in a floating type. A table numbers the pictures as
binary numbers, the first pixel the highest digit. A *pseudo-count* is what a fit adds to every
count: 0 gives maximum likelihood. Log-probabilities are in nats. What counts the
parameters raises ``ValueError`` where there is no pixel or no hidden unit.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require
from gradbook.expectation import strings

MOST_PIXELS = 20


class Table(NamedTuple):
    """Any distribution: the probability of every picture, [2^n]."""

    probabilities: Tensor


class Independent(NamedTuple):
    """Independent pixels: the probability that each is 1, [n]."""

    probabilities: Tensor


class Chain(NamedTuple):
    """Pixels that see the one before: P(x_1 = 1), and P(x_i = 1 | x_{i-1}) at 0 and 1, [n - 1, 2]."""

    first: Tensor
    after: Tensor


def table_parameters(n: int) -> int:
    """Count the free numbers of any distribution over pictures.

    Args:
        n: pixels, at least 1.

    Returns:
        2^n - 1.
    """
    return 2 ** _positive("n", n) - 1


def conditional_parameters(n: int) -> list[int]:
    """Count the free numbers of each factor of the chain rule, as tables.

    The i-th factor P(x_i | x_1 ... x_{i-1}) has one for every beginning.

    Args:
        n: pixels, at least 1.

    Returns:
        2^(i - 1) for i from 1 to n; they sum to those of the table.
    """
    return [2**before for before in range(_positive("n", n))]


def independent_parameters(n: int) -> int:
    """Count the parameters of independent pixels.

    Args:
        n: pixels, at least 1.

    Returns:
        n.
    """
    return _positive("n", n)


def chain_parameters(n: int) -> int:
    """Count the parameters of a chain.

    Args:
        n: pixels, at least 1.

    Returns:
        2 n - 1.
    """
    return 2 * _positive("n", n) - 1


def fvsbn_parameters(n: int) -> int:
    """Count the parameters of :class:`gradbook.nade.Fvsbn`.

    Args:
        n: pixels, at least 1.

    Returns:
        n (n + 1) / 2: a bias for each pixel, a weight for each pair.
    """
    return _positive("n", n) * (n + 1) // 2


def nade_parameters(n: int, hidden: int) -> int:
    """Count the parameters of :class:`gradbook.nade.Nade`.

    Args:
        n: pixels, at least 1.
        hidden: hidden units H, at least 1.

    Returns:
        2 n H + H + n: two matrices, two biases.
    """
    return 2 * _positive("n", n) * _positive("hidden", hidden) + hidden + n


def all_bits(n: int) -> Tensor:
    """List every picture.

    Args:
        n: pixels, from 1 to 20.

    Returns:
        [2^n, n] of torch's default type, in the order of a table.

    Raises:
        ValueError: if ``n`` is out of range.
    """
    return strings(2, _listable(n)).to(torch.get_default_dtype())


def fit_table(x: Tensor, pseudo_count: float) -> Table:
    """Fit a table: the share of each picture.

    Args:
        x: pictures [N, n], n up to 20.
        pseudo_count: what is added to the count of every picture.

    Returns:
        The table.

    Raises:
        ValueError: if ``x`` is not rows of bits, or too wide; or the
            pseudo-count is negative, or 0 where there is no picture.
    """
    _check_fit(x, pseudo_count)
    states = 2 ** _listable(x.shape[1])
    counts = _number(x).bincount(minlength=states).to(x.dtype)
    total = len(x) + pseudo_count * states
    return Table((counts + pseudo_count) / total)


def fit_independent(x: Tensor, pseudo_count: float) -> Independent:
    """Fit independent pixels: the share of ones of each.

    Args:
        x: pictures [N, n].
        pseudo_count: what is added to the ones, and to the zeros.

    Returns:
        The probabilities.

    Raises:
        ValueError: as :func:`fit_table`, but for the width.
    """
    _check_fit(x, pseudo_count)
    return Independent(_share(x.sum(0), len(x), pseudo_count))


def fit_chain(x: Tensor, pseudo_count: float) -> Chain:
    """Fit a chain: the share of ones after a zero, and after a one.

    Args:
        x: pictures [N, n].
        pseudo_count: what is added to the ones, and to the zeros, of the
            first pixel and after each value of the one before. Without
            it, a pixel is 1 half of the time after what was never seen.

    Returns:
        The probabilities.

    Raises:
        ValueError: as :func:`fit_independent`.
    """
    _check_fit(x, pseudo_count)
    before, pixel = x[:, :-1], x[:, 1:]
    after_one = _share((before * pixel).sum(0), before.sum(0), pseudo_count)
    zero = 1 - before
    after_zero = _share((zero * pixel).sum(0), zero.sum(0), pseudo_count)
    first = _share(x[:, 0].sum(), len(x), pseudo_count)
    return Chain(first, torch.stack([after_zero, after_one], 1))


def table_log_prob(table: Table, x: Tensor) -> Tensor:
    """Look up the log-probabilities of pictures [N, n]: [N].

    Raises:
        ValueError: if ``x`` is not rows of n bits.
    """
    p = table.probabilities
    n = len(p).bit_length() - 1
    if len(p) != 2**n:
        raise ValueError(f"table: must have 2^n rows, has {len(p)}")
    require_bits("x", x, n)
    return _checked(p)[_number(x)].log()


def independent_log_prob(model: Independent, x: Tensor) -> Tensor:
    """Sum the log-probabilities of independent pixels [N, n]: [N].

    Raises:
        ValueError: as :func:`table_log_prob`.
    """
    require_bits("x", x, len(model.probabilities))
    return _bernoulli(model.probabilities, x).sum(1)


def chain_log_prob(model: Chain, x: Tensor) -> Tensor:
    """Sum the log-probabilities of pixels [N, n] given those before: [N].

    Raises:
        ValueError: as :func:`table_log_prob`.
    """
    require_bits("x", x, 1 + len(model.after))
    after_zero, after_one = model.after.unbind(1)
    after = torch.where(x[:, :-1] == 1, after_one, after_zero)
    rest = _bernoulli(after, x[:, 1:]).sum(1)
    return _bernoulli(model.first, x[:, 0]) + rest


def require_bits(name: str, x: Tensor, n: int | None = None) -> None:
    """Raise unless a tensor is rows of bits.

    Args:
        name: what the caller calls it.
        x: should be [N, n] zeros and ones of a floating type.
        n: how many columns; by default any number but 0.

    Raises:
        ValueError: if it is something else.
    """
    if x.ndim != 2 or x.shape[1] != (n or max(1, x.shape[1])):
        raise ValueError(f"{name}: must be [N, {n or 'n'}], is {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name}: must be of a floating type, is {x.dtype}")
    require((x == 0) | (x == 1), f"{name}: must be zeros and ones")


def _share(ones: Tensor, total: Tensor | int, pseudo_count: float) -> Tensor:
    return ((ones + pseudo_count) / (total + 2 * pseudo_count)).nan_to_num(0.5)


def _bernoulli(p: Tensor, x: Tensor) -> Tensor:
    return torch.where(x == 1, _checked(p), 1 - p).log()


def _checked(p: Tensor) -> Tensor:
    require((p >= 0) & (p <= 1), "probabilities: must be from 0 to 1")
    return p


def _number(x: Tensor) -> Tensor:
    n = x.shape[1]
    return (x.long() * 2 ** torch.arange(n - 1, -1, -1, device=x.device)).sum(1)


def _check_fit(x: Tensor, pseudo_count: float) -> None:
    require_bits("x", x)
    if not 0 <= pseudo_count < torch.inf:
        raise ValueError(f"pseudo_count: must be finite and not negative, got {pseudo_count}")
    if len(x) == 0 and pseudo_count == 0:
        raise ValueError("x: must have a picture, or pseudo_count be positive")


def _listable(n: int) -> int:
    if n > MOST_PIXELS:
        raise ValueError(f"n: must be at most {MOST_PIXELS}, got {n}")
    return _positive("n", n)


def _positive(name: str, size: int) -> int:
    if size < 1:
        raise ValueError(f"{name}: must be at least 1, got {size}")
    return size
