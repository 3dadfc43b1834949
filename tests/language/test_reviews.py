"""The archive in an archive, its places, and labels from scores."""

import gzip
import hashlib
import io
import math
import tarfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook import data
from gradbook.language import reviews

ROWS = "1\t2.5\tA clich\u00e9, but \u2018fun\u2019\r\n2\t-0.5\tTepid\r\n3\t0.25\tIt is a film"


def packed(files):
    """A gzipped tar file of these contents by name."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return whole.getvalue()


def snippets(scores):
    texts = tuple(f"text {i}" for i in range(len(scores)))
    return reviews.Snippets(texts, torch.tensor(scores, dtype=torch.float64))


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive of our own, with one file of reviews, in the folder where it is looked for."""
    content = ROWS.encode()
    inner = packed({"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": content})
    path = tmp_path / "reviews" / reviews.ARCHIVE
    path.parent.mkdir()
    path.write_bytes(packed({reviews.INNER: inner}))
    monkeypatch.setitem(reviews.SHA256, "movie", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("GRADBOOK_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return path


def published(kind):
    try:
        return reviews.reviews(kind)
    except FileNotFoundError:
        pytest.skip("make data")


def test_rows_are_read_in_order_with_their_letters(archive):
    with torch.device("meta"):
        texts, scores = reviews.reviews("movie")
    assert texts == ("A clich\u00e9, but \u2018fun\u2019", "Tepid", "It is a film")
    assert scores.dtype == torch.float64
    assert scores.tolist() == [2.5, -0.5, 0.25]


def test_a_file_that_is_not_the_published_one_is_refused(archive, monkeypatch):
    monkeypatch.setitem(reviews.SHA256, "movie", "0" * 64)
    with pytest.raises(ValueError, match="SHA-256 .* run `make data`"):
        reviews.reviews("movie")
    with pytest.raises(ValueError, match="damaged: run `make data`"):
        reviews.reviews("amazon")


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"no archive",
        lambda whole: gzip.compress(b"no archive"),
        lambda whole: packed({"other": b""}),
        lambda whole: packed({reviews.INNER: b"no archive"}),
    ],
)
def test_a_damaged_archive_says_what_to_do(archive, damage):
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ValueError, match=f"{reviews.ARCHIVE} is damaged: run `make data`"):
        reviews.reviews("movie")


def test_the_archive_is_looked_for_in_its_places_in_order(archive, tmp_path, monkeypatch):
    assert reviews.reviews_file() == archive
    cached = tmp_path / ".cache" / "data" / "reviews" / reviews.ARCHIVE
    cached.parent.mkdir(parents=True)
    cached.touch()
    below = tmp_path / "chapters"
    below.mkdir()
    monkeypatch.chdir(below)
    assert reviews.reviews_file() == archive
    with pytest.raises(FileNotFoundError, match="missing or empty: run `make data`"):
        reviews.reviews("movie", cached)
    monkeypatch.delenv("GRADBOOK_DATA")
    assert reviews.reviews_file() == cached
    cached.unlink()
    monkeypatch.setattr(data, "_places", lambda: [tmp_path / "absent"])
    with pytest.raises(FileNotFoundError, match="not on this machine: run `make data`"):
        reviews.reviews_file()


@pytest.mark.parametrize(
    ("kind", "count", "kept", "positive"),
    [("movie", 10_605, 10_072, 4_996), ("amazon", 3_708, 2_985, 1_750)],
)
def test_the_published_reviews(kind, count, kept, positive):
    found = published(kind)
    assert len(found.texts) == len(found.scores) == count
    assert found.scores.abs().max() <= 4
    assert all(found.texts)
    assert not any("\u00c3" in text or text.endswith("\r") for text in found.texts)
    labelled = reviews.sentiment(found)
    assert (len(labelled.texts), labelled.labels.sum().item()) == (kept, positive)


@given(st.lists(st.floats(-4, 4), max_size=8), st.floats(0.01, 4))
def test_labels_are_the_signs_of_large_scores(scores, least):
    texts, labels = reviews.sentiment(snippets(scores), least)
    kept = [i for i, score in enumerate(scores) if abs(score) >= least]
    assert texts == tuple(f"text {i}" for i in kept)
    assert labels.tolist() == [int(scores[i] > 0) for i in kept]
    assert labels.dtype == torch.int64


def test_a_score_of_one_half_counts_by_default():
    texts, labels = reviews.sentiment(snippets([0.5, -0.5, 0.49, -0.49]))
    assert (texts, labels.tolist()) == (("text 0", "text 1"), [1, 0])


BAD = [
    (lambda: reviews.reviews("tweets"), 'kind: must be "movie" or "amazon"'),
    (lambda: reviews.sentiment(snippets([1.0]), 0), "least: "),
    (lambda: reviews.sentiment(snippets([1.0]), -1), "least: "),
    (lambda: reviews.sentiment(snippets([1.0]), math.nan), "least: "),
    (lambda: reviews.sentiment(snippets([1.0]), math.inf), "least: "),
    (lambda: reviews.sentiment(snippets([math.nan])), "snippets: "),
    (lambda: reviews.sentiment(snippets([1.0])._replace(texts=())), "snippets: "),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
