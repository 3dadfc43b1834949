"""The picture that stands beside a link to the book where people share it."""

from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

NAME = "card.png"
WIDTH, HEIGHT = 1200, 630  # pixels, as the services that show such pictures ask for
LEAD = "An executable book: every theorem\nis followed by a check that could fail."
_GREEN = "#0b6e5a"  # the book's own, of its icon and its claims
_PALE = "#9fd8c6"
_DPI = 100


def words(title: str) -> str:
    """Say what the card shows, for those who do not see it."""
    return f"{title}. {' '.join(LEAD.split())}"


def draw(title: str, path: Path) -> None:
    """Draw the card: the title, what the book is, and a descent along a gradient.

    The file holds no date and no version of what drew it, so the same title gives the same bytes.

    Args:
        title: of the book, of two words or more.
        path: of the PNG to write.
    """
    with matplotlib.style.context("default"):  # whatever the reader's own style is
        figure = Figure(figsize=(WIDTH / _DPI, HEIGHT / _DPI), dpi=_DPI, facecolor=_GREEN)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        _draw_descent(axes)
        first, rest = title.split(" ", 1)
        text = {"color": "white", "transform": axes.transAxes, "va": "top"}
        axes.text(0.06, 0.86, f"{first}\n{rest}", size=50, weight="bold", linespacing=1.2, **text)
        axes.text(0.06, 0.38, LEAD, size=25, linespacing=1.4, **text)
        figure.savefig(path, metadata={"Software": None})


def _draw_descent(axes: Axes) -> None:
    """A valley of ellipses, and the steps of a descent into it."""
    across, up = np.meshgrid(np.linspace(-3, 1, 200), np.linspace(-1, 1, 100))
    axes.contour(
        across, up, across**2 / 4 + up**2, levels=14, colors=_PALE, linewidths=1, alpha=0.3
    )
    steps = [np.array([0.85, 0.75])]
    for _ in range(12):
        steps.append(steps[-1] - 0.8 * steps[-1] * np.array([0.5, 2.0]))
    axes.plot(*np.transpose(steps), "o-", color="white", lw=3, ms=8)
