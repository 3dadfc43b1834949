"""Shakespeare to train on and Milton to tune to, in pieces of a vocabulary that Shakespeare makes.

Milton's *Paradise Lost*, in the spelling of its first edition, comes in the same archive as the
plays; the archive is read, never installed. Its ten books are split once and for all.
"""

import io
import string
import tarfile
import zlib
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import tokenizers
import torch
from tokenizers import Tokenizer
from torch import Tensor

from gradbook import data
from gradbook.checks import require
from gradbook.priors.grids import require_sizes

PARADISE_LOST = "*/miltondata/texts/paradise_lost_(no_introduction)_gut.txt"
# Of the file, with the spaces at the ends of its lines.
MILTON_SHA256 = "017f904a417a3cf3534fde361eb5e9ce001630e9801a734e823ffc20d7b98943"
# How a book begins, and the one that is set aside to choose by; what follows it is held out.
TITLES = {"choosing": "PARADISE LOST\nBOOK IX.", "held_out": "PARADISE LOST.\nBOOK X."}
PIECES = 1024
# All that the tokenizer can say: what Shakespeare and Milton are written in, and a little more.
LETTERS = "\n" + string.printable[:95]


class Books(NamedTuple):
    """Three parts of a text: to tune on, to choose settings by, and held out to measure on."""

    tuning: str
    choosing: str
    held_out: str


def shakespeare() -> str:
    """Read the works of Shakespeare.

    Returns:
        5 057 198 ASCII characters.

    Raises:
        FileNotFoundError: as :func:`gradbook.data.shakespeare`.
        ValueError: as :func:`gradbook.data.shakespeare`.

    Source: as :func:`gradbook.data.shakespeare`.
    """
    return data.shakespeare()


def milton(path: Path | None = None) -> Books:
    """Read *Paradise Lost*, in ten books, and split it.

    Spaces at the ends of lines are left out, and with them the last byte,
    which marks the end of the file: they are the file's, not Milton's.

    Args:
        path: the archive; by default as
            :func:`gradbook.data.shakespeare_file`.

    Returns:
        Books I to VIII to tune on, three quarters; IX to choose by; X,
        one seventh, held out. Together 454 481 ASCII characters.

    Raises:
        FileNotFoundError: if the archive is missing or empty.
        ValueError: if it is damaged, or its text is not the published one.

    Source: J. Milton, 1667, "Paradise Lost", after a text of Project
    Gutenberg in the public domain.
    """
    path = data.shakespeare_file() if path is None else path
    content = data._checked(path, _content(path, PARADISE_LOST), MILTON_SHA256, "make data")
    lines = content.decode().rstrip("\x1a").split("\n")
    text = "\n".join(line.rstrip() for line in lines)
    ends = [text.index(TITLES["choosing"]), text.index(TITLES["held_out"])]
    return Books(text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :])


def byte_pairs(text: str, pieces: int = PIECES) -> Tokenizer:
    """Make a vocabulary by joining the most frequent pairs of neighbours.

    Joins stay within words, numbers and runs of signs; a space joins the
    word after it. The same text always makes the same vocabulary.

    Args:
        text: what to learn it from; seconds for 5 million characters.
        pieces: V, the size of the vocabulary; at least 96, for its
            letters, which come first.

    Returns:
        A tokenizer of the library ``tokenizers``. It can say every text
        of printable ASCII characters and line ends.

    Raises:
        ValueError: if the text holds other characters, V is below 96, or
            the text is too short for V.

    Source: Sennrich, Haddow and Birch 2016, "Neural machine translation of
    rare words with subword units", algorithm 1; Radford et al. 2019, "Language
    models are unsupervised multitask learners", section 2.2 (where joins stop).
    """
    _require_letters(text)
    if pieces < len(LETTERS):
        raise ValueError(f"pieces: must be at least {len(LETTERS)}, got {pieces}")
    tokenizer = Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    # The library writes a space or a line end as another letter.
    spelt = tokenizer.pre_tokenizer.pre_tokenize_str(LETTERS)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=pieces,
        show_progress=False,
        initial_alphabet=sorted({letter for word, _ in spelt for letter in word}),
    )
    tokenizer.train_from_iterator([text], trainer)
    if tokenizer.get_vocab_size() != pieces:
        found = tokenizer.get_vocab_size()
        raise ValueError(f"text: must be longer, it makes {found} pieces, not {pieces}")
    return tokenizer


def tokens(tokenizer: Tokenizer, text: str) -> Tensor:
    """Turn a text into ids of its pieces.

    Args:
        tokenizer: as :func:`byte_pairs` makes.
        text: of its letters.

    Returns:
        [n] int64, on the CPU.

    Raises:
        ValueError: if the text holds characters that the tokenizer cannot
            say.
    """
    _require_letters(text)
    return torch.tensor(tokenizer.encode(text).ids, dtype=torch.int64, device="cpu")


def characters(tokenizer: Tokenizer, ids: Tensor) -> int:
    """Count the characters that pieces stand for.

    A loss in nats a piece depends on how long pieces are; its sum divided
    by this count, in bits a character, does not.

    Args:
        tokenizer: as :func:`byte_pairs` makes.
        ids: of any shape, int64.

    Returns:
        Their number; every letter is one byte, so that it is the sum of
        the pieces' lengths.

    Raises:
        ValueError: if an id is no piece.
    """
    flat = ids.flatten().tolist()
    size = tokenizer.get_vocab_size()
    require((ids >= 0) & (ids < size), f"ids: must be from 0 to {size - 1}")
    return sum(len(tokenizer.id_to_token(piece)) for piece in flat)


def windows(ids: Tensor, length: int) -> Tensor:
    """Cut a text into windows that do not overlap.

    Args:
        ids: of its pieces, [n] int64.
        length: T, pieces of a window.

    Returns:
        [n // T, T]; what is left over at the end is dropped.

    Raises:
        ValueError: if T is below 1, or the text is no row of ids or
            shorter than T.
    """
    require_sizes(length=length)
    if ids.ndim != 1 or ids.dtype != torch.int64:
        raise ValueError(f"ids: must be [n] int64, got {list(ids.shape)} {ids.dtype}")
    if len(ids) < length:
        raise ValueError(f"ids: must be at least {length} pieces, got {len(ids)}")
    return ids[: len(ids) // length * length].reshape(-1, length)


def _require_letters(text: str) -> None:
    strange = sorted(set(text) - set(LETTERS))
    if strange:
        raise ValueError(f"text: must be printable ASCII and line ends, got {strange[0]!r}")


def _content(path: Path, name: str) -> bytes:
    """Read a file of the archive; nothing is unpacked to the disk."""
    packed = io.BytesIO(data._read(path, "make data"))
    try:
        with tarfile.open(fileobj=packed) as archive:
            found = [member for member in archive if fnmatch(member.name, name)]
            return archive.extractfile(found[0]).read()
    except (tarfile.TarError, EOFError, zlib.error, OSError, IndexError) as error:
        raise ValueError(
            f"{path} is damaged: run `make data`, or python -m gradbook.fetch"
        ) from error
