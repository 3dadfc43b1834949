"""The sentences about films that the chapters on tuning learn from, choose by, and test on.

Those with a clear sentiment are split once and for all into a pool to learn from, some to choose
settings by, and some to test on; what a seed learns from is drawn from the pool.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.devices import device
from gradbook.language import encoder, reviews
from gradbook.language.encoder import Tokens

TEST, CHOOSING = 1_000, 600


class Rows(NamedTuple):
    """Encoded texts, ids and mask [n, T], and their labels [n] int64."""

    tokens: Tokens
    labels: Tensor

    def at(self, rows: Tensor) -> "Rows":
        """Choose some rows.

        Args:
            rows: indices [k].

        Returns:
            These, in this order.
        """
        rows = rows.to(self.labels.device)
        return Rows(Tokens(self.tokens.ids[rows], self.tokens.mask[rows]), self.labels[rows])


class Split(NamedTuple):
    """Three sets of sentences that share no row; one text, which the file has twice, is in two."""

    pool: Rows
    choosing: Rows
    test: Rows


def data_digest() -> str:
    """Summarize the texts that a record depends on.

    Returns:
        The SHA-256 of the file of movie reviews. It needs no data on this machine:
        :func:`gradbook.language.reviews.reviews` refuses all other files.
    """
    return reviews.SHA256["movie"]


def movies(longest: int = 40) -> Split:
    """Read the sentences about films with a clear sentiment, and split them.

    Args:
        longest: pieces of a sentence, with the two that mark its ends; longer ones are cut.

    Returns:
        1000 to test on, 600 to choose by, and a pool of the other 8472, always the same, on the
        book's device. About a half of each is positive.

    Raises:
        FileNotFoundError: as :func:`gradbook.language.reviews.reviews`.
        ValueError: as :func:`gradbook.language.reviews.reviews`.
    """
    found = _clear()
    every = Rows(encoder.encode(found.texts, longest), found.labels.to(device()))
    test, choosing, pool = (every.at(rows) for rows in _parts(len(found.texts)))
    return Split(pool, choosing, test)


class Texts(NamedTuple):
    """The same three sets as :class:`Split`, as they were written."""

    pool: tuple[str, ...]
    choosing: tuple[str, ...]
    test: tuple[str, ...]


def movie_texts() -> Texts:
    """Give the sentences of :func:`movies` as texts, in the same order.

    Returns:
        Those of the pool, to choose by, and to test on.

    Raises:
        FileNotFoundError: as :func:`gradbook.language.reviews.reviews`.
        ValueError: as :func:`gradbook.language.reviews.reviews`.
    """
    texts = _clear().texts
    test, choosing, pool = (tuple(texts[i] for i in rows.tolist()) for rows in _parts(len(texts)))
    return Texts(pool, choosing, test)


def _clear() -> reviews.Labelled:
    return reviews.sentiment(reviews.reviews("movie"))


def _parts(n: int) -> tuple[Tensor, ...]:
    """Split the first n whole numbers into those of test, choosing and pool."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(n, generator=generator, device="cpu")
    return order.split([TEST, CHOOSING, n - TEST - CHOOSING])


def drawn(rows: Rows, n: int, seed: int) -> Rows:
    """Draw some rows without replacement.

    Args:
        rows: of which.
        n: how many.
        seed: of the draw.

    Returns:
        These, in the order drawn; a smaller n gives the first of them.

    Raises:
        ValueError: if there are not so many.
    """
    if not 0 <= n <= len(rows.labels):
        raise ValueError(f"n: must be from 0 to {len(rows.labels)}, got {n}")
    generator = torch.Generator().manual_seed(seed)
    return rows.at(torch.randperm(len(rows.labels), generator=generator, device="cpu")[:n])
