"""The three sets of sentences: their sizes, that they share no row, and what a seed draws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook.language import encoder, reviews, splits
from gradbook.language.encoder import Tokens
from gradbook.language.splits import Rows

# Texts, and those of them with a clear sentiment.
ALL, KEPT = 1_889, 1_700


@pytest.fixture
def numbered(monkeypatch):
    """Texts that are numbers, positive if odd; every tenth has no clear sentiment."""

    def read(kind):
        assert kind == "movie"
        scores = torch.ones(ALL, dtype=torch.float64, device="cpu")
        scores[::2] = -1
        scores[::10] = 0.25
        return reviews.Snippets(tuple(map(str, range(len(scores)))), scores)

    monkeypatch.setattr(reviews, "reviews", read)
    return read


@pytest.fixture(scope="module")
def published():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADBOOK_DEVICE", "cpu")
        try:
            return splits.movies()
        except FileNotFoundError:
            pytest.skip("make data")


def rows(n):
    """Row i has the piece i, and the label i."""
    numbers = torch.arange(n)
    return Rows(Tokens(numbers[:, None], torch.ones(n, 1, dtype=torch.int64)), numbers)


def decoded(part):
    """The numbers that the texts of a part are."""
    read = encoder.tokenizer().batch_decode(part.tokens.ids.tolist(), skip_special_tokens=True)
    return [int(text.replace(" ", "")) for text in read]


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip((*a.tokens, a.labels), (*b.tokens, b.labels), strict=True)
    )


def test_the_parts_hold_every_clear_sentence_once_with_its_label(numbered):
    split = splits.movies()
    assert [len(part.labels) for part in split] == [KEPT - 1_600, 600, 1_000]
    numbers = [decoded(part) for part in split]
    together = sorted(sum(numbers, []))
    assert together == [i for i in range(ALL) if i % 10]
    for part, found in zip(split, numbers, strict=True):
        assert part.labels.tolist() == [number % 2 for number in found]
        assert part.tokens.ids.shape == part.tokens.mask.shape == (len(found), 40)
        # Mixed, not a stretch of the file.
        assert found != sorted(found)


def test_a_split_is_always_the_same(numbered):
    first = splits.movies()
    torch.randn(3)
    with torch.device("meta"):
        again = splits.movies()
    assert all(map(same, first, again))
    order = torch.randperm(KEPT, generator=torch.Generator().manual_seed(0))
    clear = torch.tensor([i for i in range(ALL) if i % 10])
    parts = clear[order].split([1_000, 600, KEPT - 1_600])
    for part, expected in zip((first.test, first.choosing, first.pool), parts, strict=True):
        assert decoded(part) == expected.tolist()


def test_texts_are_those_of_the_parts_in_the_same_order(numbered):
    parts, texts = splits.movies(), splits.movie_texts()
    assert splits.Split._fields == texts._fields == splits.Texts._fields
    for part, found in zip(parts, texts, strict=True):
        assert isinstance(found, tuple)
        assert [int(text) for text in found] == decoded(part)
    torch.randn(3)
    with torch.device("meta"):
        assert splits.movie_texts() == texts


def test_long_sentences_are_cut(numbered, monkeypatch):
    monkeypatch.setattr(splits, "TEST", 3)
    monkeypatch.setattr(splits, "CHOOSING", 2)
    short = splits.movies(longest=5)
    assert all(part.tokens.ids.shape[1] == 5 for part in short)
    assert [len(part.labels) for part in short] == [KEPT - 5, 2, 3]


def test_the_published_sentences(published):
    assert [len(part.labels) for part in published] == [8_472, 600, 1_000]
    for part in published:
        assert part.labels.double().mean().item() == pytest.approx(0.5, abs=0.02)
        assert part.tokens.ids.shape[1] == 40
    pool, choosing, test = ({tuple(row) for row in p.tokens.ids.tolist()} for p in published)
    assert not choosing & (pool | test)
    # The file holds one sentence twice that a review repeats: in the pool and to test on.
    assert len(pool & test) == 1


def test_the_published_texts_are_those_of_the_rows(published):
    for part, found in zip(published, splits.movie_texts(), strict=True):
        # Of the pool some: to encode all of it takes seconds.
        rows = torch.arange(0, len(found), -(-len(found) // 500))
        tokens = encoder.encode([found[i] for i in rows])
        assert len(found) == len(part.labels)
        assert torch.equal(tokens.ids, part.tokens.ids[rows])
        assert torch.equal(tokens.mask, part.tokens.mask[rows])


def test_rows_are_chosen_in_the_order_asked_for():
    found = rows(6).at(torch.tensor([4, 0, 4]))
    assert found.labels.tolist() == [4, 0, 4]
    assert found.tokens.ids.flatten().tolist() == [4, 0, 4]
    assert found.tokens.mask.shape == (3, 1)
    none = rows(6).at(torch.empty(0, dtype=torch.int64))
    assert (len(none.labels), none.tokens.ids.shape, none.tokens.mask.shape) == (0, (0, 1), (0, 1))
    mask = torch.tensor([[1, 0], [1, 1]])
    swapped = Rows(Tokens(mask + 5, mask), torch.tensor([1, 0])).at(torch.tensor([1, 0]))
    assert torch.equal(swapped.tokens.mask, mask.flip(0))
    assert torch.equal(swapped.tokens.ids, mask.flip(0) + 5)


def test_rows_are_chosen_where_they_are():
    found = Rows(Tokens(*(part.to("meta") for part in rows(4).tokens)), rows(4).labels.to("meta"))
    assert found.at(torch.tensor([1, 2])).tokens.ids.device.type == "meta"


@given(st.integers(0, 30), st.integers(0, 2**31), st.data())
def test_a_draw_is_without_replacement_and_a_smaller_one_is_its_beginning(n, seed, data):
    few, many = sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2)))
    found, first = splits.drawn(rows(n), many, seed), splits.drawn(rows(n), few, seed)
    assert len(found.labels) == len(set(found.labels.tolist())) == many
    assert torch.equal(found.tokens.ids.flatten(), found.labels)
    assert torch.equal(first.labels, found.labels[:few])
    assert same(splits.drawn(rows(n), many, seed), found)


def test_a_draw_depends_on_its_seed_alone():
    draws = [splits.drawn(rows(30), 10, seed).labels for seed in (0, 1)]
    assert not torch.equal(*draws)
    torch.randn(3)
    source = rows(30)
    with torch.device("meta"):
        assert torch.equal(splits.drawn(source, 10, 0).labels, draws[0])


@pytest.mark.parametrize("n", [-1, 7])
def test_more_rows_than_there_are_are_refused(n):
    with pytest.raises(ValueError, match=f"^n: must be from 0 to 6, got {n}"):
        splits.drawn(rows(6), n, 0)


def test_the_record_depends_on_the_file_about_films():
    assert splits.data_digest() == reviews.SHA256["movie"]
