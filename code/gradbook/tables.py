"""Tables on a page."""

from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], digits: int = 4) -> None:
    """Show rows as a Markdown table in a notebook.

    Args:
        header: the column titles, with units.
        rows: the cells; numbers are rounded.
        digits: significant digits of the numbers.

    Raises:
        ValueError: if a row's length differs from the header's.
    """
    from IPython.display import Markdown, display  # only notebooks have it

    rows = list(rows)  # an iterator can be read only once
    if wrong := [row for row in rows if len(row) != len(header)]:
        raise ValueError(f"rows: {wrong[0]} has not {len(header)} cells")
    # item() and not float(): torch warns when float() meets a tensor that requires a gradient.
    cells = [[x.item() if hasattr(x, "item") else x for x in row] for row in rows]
    text = tabulate(cells, header, tablefmt="github", floatfmt=f".{digits}g")
    display(Markdown(text))
