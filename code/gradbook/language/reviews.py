"""Snippets of reviews, each scored by people: from -4, most negative, to 4, most positive.

They come inside the source archive of the Python package vaderSentiment 3.3.2, as a tar file in a
tar file; the archive is read, never installed. A score is the mean of at least twenty people's; the
texts are quotations from reviews on the web.
"""

import io
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook import data
from gradbook.checks import require

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
# Of the contents of the two files.
SHA256 = {
    "movie": "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
    "amazon": "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2",
}


class Snippets(NamedTuple):
    """Texts, and the mean score of each, [n] float64."""

    texts: tuple[str, ...]
    scores: Tensor


class Labelled(NamedTuple):
    """Texts, and the label of each, [n] int64: 1 is positive, 0 is negative."""

    texts: tuple[str, ...]
    labels: Tensor


def reviews(kind: str, path: Path | None = None) -> Snippets:
    """Read the snippets of one kind, in the order of the file.

    Args:
        kind: ``"movie"`` (10 605 sentences about films) or ``"amazon"``
            (3 708 sentences about goods, in lower case).
        path: the archive; by default see :func:`reviews_file`.

    Returns:
        The texts and their scores, on the CPU.

    Raises:
        FileNotFoundError: if the archive is missing or empty.
        ValueError: if ``kind`` is neither of the two, or the archive is damaged, or its file is not
            the published one.

    Source: C. J. Hutto and E. Gilbert, 2014, "VADER: a parsimonious rule-based model for sentiment
    analysis of social media text".
    """
    if kind not in SHA256:
        raise ValueError(f'kind: must be "movie" or "amazon", got {kind!r}')
    path = reviews_file() if path is None else path
    content = _content(path, f"hutto_ICWSM_2014/{kind}ReviewSnippets_GroundTruth.txt")
    content = data._checked(path, content, SHA256[kind], "make data")
    rows = [line.split("\t") for line in content.decode().splitlines()]
    scores = [float(score) for _, score, _ in rows]
    texts = tuple(text for _, _, text in rows)
    return Snippets(texts, torch.tensor(scores, dtype=torch.float64, device="cpu"))


def reviews_file() -> Path:
    """Find the source archive of the package ``vaderSentiment``.

    The places, in order: the folder ``reviews`` in ``$GRADBOOK_DATA``; in ``.cache/data`` of the
    current folder or of one above it.

    Returns:
        The first that exists.

    Raises:
        FileNotFoundError: if there is none.
    """
    for place in data._places():
        path = place / "reviews" / ARCHIVE
        if path.is_file():
            return path
    raise FileNotFoundError(
        "The reviews are not on this machine: run `make data`, or python -m gradbook.fetch"
    )


def sentiment(snippets: Snippets, least: float = 0.5) -> Labelled:
    """Keep the snippets that people agree have a sentiment, and label them by its sign.

    Args:
        snippets: texts and scores.
        least: the smallest size of a score that is kept, more than 0: a
            score of 0 has no sign.

    Returns:
        The kept texts in their order, with label 1 where the score is
        positive and 0 where it is negative.

    Raises:
        ValueError: if the scores are not one finite number a text, or ``least`` is not positive
            and finite.
    """
    texts, scores = snippets
    if scores.shape != (len(texts),):
        raise ValueError(f"snippets: {len(texts)} texts have scores {list(scores.shape)}")
    require(scores.isfinite(), "snippets: scores must be finite")
    if not 0 < least < float("inf"):
        raise ValueError(f"least: must be positive and finite, got {least}")
    keep = scores.abs() >= least
    kept = tuple(text for text, kept in zip(texts, keep.tolist(), strict=True) if kept)
    return Labelled(kept, (scores[keep] > 0).long())


def _content(path: Path, name: str) -> bytes:
    """Read a file of the archive inside the archive; nothing is unpacked to the disk."""
    packed = data._read(path, "make data")
    try:
        return _member(_member(packed, INNER), name)
    except (tarfile.TarError, EOFError, zlib.error, OSError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged: run `make data`, or python -m gradbook.fetch"
        ) from error


def _member(packed: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        return archive.extractfile(name).read()
