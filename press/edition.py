"""Which edition of the book this is, read from ``CITATION.cff``, and the sentences that say so."""

import datetime
import html
from pathlib import Path
from typing import NamedTuple

import yaml

from press.address import Address
from press.paths import ROOT

CITATION = ROOT / "CITATION.cff"
# strftime would follow the machine's language.
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


class Edition(NamedTuple):
    """The book as it is cited: its authors by name, and the day on which the version was made."""

    title: str
    authors: tuple[str, ...]
    version: str
    date: datetime.date


def edition(path: Path = CITATION) -> Edition:
    """Read the edition from a citation file.

    Args:
        path: a file in the Citation File Format.

    Returns:
        The edition.

    Raises:
        ValueError: if the file lacks a title, an author, a version or the date of its release.
    """
    # Every value as a text: YAML would read version 1.0 as a number.
    found = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    for key in ("title", "authors", "version", "date-released"):
        if not found.get(key):
            raise ValueError(f"{path.name}: {key} is missing")
    authors = tuple(_name(author) for author in found["authors"])
    day = datetime.date.fromisoformat(found["date-released"])
    return Edition(found["title"], authors, found["version"], day)


def _name(author: dict) -> str:
    """An entity has one name; a person's are joined as they are spoken."""
    parts = [author.get(key) for key in ("given-names", "name-particle", "family-names", "name")]
    if not any(parts):
        raise ValueError(f"CITATION.cff: an author without a name: {author}")
    return " ".join(part for part in parts if part)


def spoken(day: datetime.date) -> str:
    """Write a day as the book's sentences do: ``24 November 2026``."""
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


def footer(book: Edition, where: Address | None) -> str:
    """Write the line at the foot of every page.

    Args:
        book: the edition.
        where: the book's address, where it is known.

    Returns:
        An HTML paragraph: the version, its date, and the commit where the book is published.
    """
    words = f"Version {html.escape(book.version)} of {spoken(book.date)}"
    if where:
        words += f', commit <a href="{_commit(where)}">{where.commit[:7]}</a>'
    return f"<p>{words}.</p>"


def versions(book: Edition, where: Address | None) -> str:
    """Say which version a site is, and where the others are.

    Args:
        book: the edition.
        where: the book's address, where it is known.

    Returns:
        MyST text.
    """
    this = f"This site is version **{book.version}** of {spoken(book.date)}"
    if where is None:
        return (
            f"{this}.\nIt was built without being told where the book is published: "
            "it names no commit, and no place where other versions are."
        )
    return (
        f"{this}, built from commit [`{where.commit[:7]}`]({_commit(where)}).\n"
        f"[The releases]({where.repository}/releases) hold every version that was published, "
        "each as a site to read offline."
    )


def _commit(where: Address) -> str:
    return f"{where.repository}/commit/{where.commit}"
