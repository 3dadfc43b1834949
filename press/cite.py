"""How to cite a chapter: a BibTeX entry and a plain sentence, folded at its foot."""

import html
from collections.abc import Callable

from press.edition import Edition, spoken

_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def bibtex(book: Edition, name: str, title: str, note: str, page: str) -> str:
    """Write the BibTeX entry of a chapter.

    Args:
        book: the edition that the chapter stands in.
        name: of the chapter's file, without its ending.
        title: of the chapter, in plain text.
        note: which version it is.
        page: its address, or ``""`` where it is not published.

    Returns:
        The entry; names and titles keep their capitals.
    """
    authors = " and ".join(f"{{{_tex(author)}}}" for author in book.authors)
    month = spoken(book.date).split()[1]
    fields = {
        "author": f"{{{authors}}}",
        "title": f"{{{{{_tex(title)}}}}}",
        "booktitle": f"{{{{{_tex(book.title)}}}}}",
        "year": str(book.date.year),
        "month": month[:3].lower(),  # BibTeX's own names, which a style writes out in its language
        "note": f"{{{_tex(note[:1].upper() + note[1:])}}}",
    }
    if page:
        fields["url"] = f"{{{page}}}"  # styles print an address as it is: nothing is escaped
    lines = [f"  {key} = {value}," for key, value in fields.items()]
    return "\n".join([f"@incollection{{gradbook-{name},", *lines, "}"])


def _tex(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)


def sentence(book: Edition, title: str, note: str, page: str) -> str:
    """Write the sentence that cites a chapter.

    Args:
        book: the edition that the chapter stands in.
        title: of the chapter, in plain text.
        note: which version it is.
        page: its address, or ``""`` where it is not published.

    Returns:
        HTML, one sentence.
    """
    authors = ", ".join(book.authors)
    start = html.escape(authors[:1].upper() + authors[1:])
    words = (
        f"{start}, “{html.escape(title)}”, in <cite>{html.escape(book.title)}</cite>, "
        f"{html.escape(note)}"
    )
    if page:
        address = html.escape(page)
        words += f', <a href="{address}">{address}</a>'
    return f"{words}."


def note(book: Edition, commit: str) -> str:
    """Name the version that is cited, with its date and the commit where one is known."""
    at = f", commit {commit[:7]}" if commit else ""
    return f"version {book.version} of {spoken(book.date)}{at}"


def block(words: str, entry: str, highlighted: Callable[[str, str], str]) -> str:
    """Fold the sentence and the entry.

    Args:
        words: the sentence, as HTML.
        entry: the BibTeX entry.
        highlighted: turns a text and the name of its language into HTML, as Sphinx does.

    Returns:
        HTML that opens without a script; the entry is code like any, with a button that copies it.
    """
    return (
        '<details class="cite"><summary>Cite this chapter</summary>\n'
        f"<p>{words}</p>\n"
        f'<div class="highlight-bibtex notranslate">{highlighted(entry, "bibtex")}</div>\n'
        "</details>\n"
    )
