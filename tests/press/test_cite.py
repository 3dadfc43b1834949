"""How a chapter is cited: the entry, which BibTeX must read, and the sentence."""

import datetime

from pybtex.database import parse_string

from press import cite
from press.edition import Edition

BOOK = Edition("The Book", ("the contributors", "Ada Who"), "1.0", datetime.date(2026, 3, 9))
NOTE = "version 1.0 of 9 March 2026"
PAGE = "https://example.org/a_book/chapters/x%20y.html"


def test_the_entry_is_complete():
    assert cite.bibtex(BOOK, "vq-vae", "VQ-VAE: discrete codes", NOTE, PAGE) == (
        "@incollection{gradbook-vq-vae,\n"
        "  author = {{the contributors} and {Ada Who}},\n"
        "  title = {{VQ-VAE: discrete codes}},\n"
        "  booktitle = {{The Book}},\n"
        "  year = 2026,\n"
        "  month = mar,\n"
        "  note = {Version 1.0 of 9 March 2026},\n"
        "  url = {https://example.org/a_book/chapters/x%20y.html},\n"
        "}"
    )


def test_a_page_that_is_not_published_has_no_address():
    assert "url" not in cite.bibtex(BOOK, "x", "X", NOTE, "")
    assert "http" not in cite.sentence(BOOK, "X", NOTE, "")


def test_bibtex_reads_any_title():
    title = r"A & B: 50% of é_1 #2 $3 {x} \ ~ ^"
    entry = cite.bibtex(BOOK, "x", title, NOTE, PAGE)
    (found,) = parse_string(entry, "bibtex").entries.values()
    assert found.fields["title"] == (
        r"{A \& B: 50\% of é\_1 \#2 \$3 \{x\} \textbackslash{} \textasciitilde{} \textasciicircum{}}"
    )
    assert found.fields["month"] == "March"
    assert found.fields["url"] == PAGE
    assert [str(person) for person in found.persons["author"]] == [
        "{the contributors}",
        "{Ada Who}",
    ]


def test_the_sentence_names_all_and_is_escaped():
    book = BOOK._replace(title="The <Book>")
    assert cite.sentence(book, "A & B", NOTE, f"{PAGE}?a&b") == (
        "The contributors, Ada Who, “A &amp; B”, in <cite>The &lt;Book&gt;</cite>, "
        "version 1.0 of 9 March 2026, "
        f'<a href="{PAGE}?a&amp;b">{PAGE}?a&amp;b</a>.'
    )


def test_the_note_names_the_commit_where_one_is_known():
    assert cite.note(BOOK, "") == NOTE
    assert cite.note(BOOK, "0123456789" * 4) == f"{NOTE}, commit 0123456"


def test_the_block_is_folded_and_its_code_is_highlighted():
    found = cite.block("words", "entry", lambda text, language: f"<pre>{language}:{text}</pre>")
    assert found.startswith('<details class="cite"><summary>Cite this chapter</summary>')
    assert "<p>words</p>" in found
    assert "<pre>bibtex:entry</pre>" in found
