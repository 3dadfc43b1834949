"""Pages that have moved: the table ``press/moved.toml``, and what is wrong with it."""

import posixpath
import re
import tomllib
from pathlib import Path

from press.paths import ROOT

TABLE = ROOT / "press" / "moved.toml"
_NAME = re.compile(r"[\w-]+(/[\w-]+)*")


def read(path: Path = TABLE) -> dict[str, str]:
    """Read the table.

    Args:
        path: TOML with one table, ``moved``.

    Returns:
        The page that each old name leads to.

    Raises:
        ValueError: if the file holds anything else, or a name that no page can have.
    """
    found = tomllib.loads(path.read_text())
    table = found.get("moved")
    if set(found) != {"moved"} or not isinstance(table, dict):
        raise ValueError(f"{path.name}: must hold the table [moved] and nothing else")
    for name in (*table, *table.values()):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{path.name}: no name of a page: {name!r}")
    return table


def redirects(table: dict[str, str]) -> dict[str, str]:
    """Write the table as links from one page to the other, which work from disk too.

    Args:
        table: the page that each old name leads to.

    Returns:
        For each old name the relative address of its page.
    """
    return {
        old: posixpath.relpath(f"{new}.html", posixpath.dirname(old) or ".")
        for old, new in table.items()
    }


def faults(table: dict[str, str], pages: set[str]) -> list[str]:
    """Find redirects that lead nowhere, or that would take the place of a page.

    Args:
        table: the page that each old name leads to.
        pages: the names of the book's pages.

    Returns:
        What is wrong, in words.
    """
    lost = [f"{a} moved to {b}, which is no page" for a, b in table.items() if b not in pages]
    hidden = [f"{a} is said to have moved, and is a page" for a in table if a in pages]
    return lost + hidden
