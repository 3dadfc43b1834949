"""The edition: read from the citation file, and said at the foot and on the page of versions."""

import datetime
import re
import tomllib

import pytest

from press.address import Address
from press.edition import Edition, edition, footer, spoken, versions
from press.paths import ROOT

WHERE = Address(
    "https://github.com/someone/book", "0123456789" * 4, "https://someone.github.io/book"
)
BOOK = Edition("The Book", ("A",), "1.0", datetime.date(2026, 3, 9))
CITATION = """\
title: "The Book: a title"
authors:
  - name: "the contributors"
  - given-names: Ada
    name-particle: de
    family-names: Who
version: 1.0
date-released: 2026-03-09
"""


@pytest.fixture
def cff(tmp_path):
    def write(text):
        path = tmp_path / "CITATION.cff"
        path.write_text(text)
        return path

    return write


def test_the_citation_file_is_read_as_it_is_written(cff):
    assert edition(cff(CITATION)) == Edition(
        "The Book: a title", ("the contributors", "Ada de Who"), "1.0", BOOK.date
    )


@pytest.mark.parametrize("key", ["title", "version", "date-released"])
def test_what_is_missing_is_named(cff, key):
    with pytest.raises(ValueError, match=rf"^CITATION\.cff: {key} is missing$"):
        edition(cff(re.sub(f"^{key}:.*\n", "", CITATION, flags=re.MULTILINE)))


@pytest.mark.parametrize(
    ("authors", "words"),
    [("[]", "authors is missing"), ("[{email: a@example.org}]", "an author without a name")],
)
def test_a_book_has_authors_with_names(cff, authors, words):
    with pytest.raises(ValueError, match=words):
        edition(cff(f"title: T\nauthors: {authors}\nversion: '1'\ndate-released: 2026-03-09\n"))


def test_a_day_that_is_none_is_refused(cff):
    with pytest.raises(ValueError, match="2026-02-30|day is out of range"):
        edition(cff(CITATION.replace("2026-03-09", "2026-02-30")))


def test_days_are_spoken_in_english():
    assert spoken(datetime.date(2026, 1, 31)) == "31 January 2026"
    assert spoken(datetime.date(2025, 12, 1)) == "1 December 2025"


def test_the_foot_names_the_version_and_where_it_is_known_the_commit():
    assert footer(BOOK, None) == "<p>Version 1.0 of 9 March 2026.</p>"
    assert footer(BOOK._replace(version="1<2"), WHERE) == (
        "<p>Version 1&lt;2 of 9 March 2026, commit "
        f'<a href="https://github.com/someone/book/commit/{WHERE.commit}">0123456</a>.</p>'
    )


def test_the_page_of_versions_names_other_versions_only_where_they_are_known():
    published = versions(BOOK, WHERE)
    assert published.startswith("This site is version **1.0** of 9 March 2026, built from commit ")
    assert f"[`0123456`](https://github.com/someone/book/commit/{WHERE.commit})" in published
    assert "[The releases](https://github.com/someone/book/releases)" in published
    unpublished = versions(BOOK, None)
    assert unpublished.startswith("This site is version **1.0** of 9 March 2026.\n")
    assert "http" not in unpublished


def test_all_files_name_one_version():
    book = edition()
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert package["version"] == book.version
    assert [author["name"] for author in package["authors"]] == list(book.authors)
    changes = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [line for line in changes if line != "Unreleased"]
    assert released[0] == f"{book.version} ({book.date})"
