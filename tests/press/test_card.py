"""The social card: its size, its colours, and the same bytes wherever it is drawn."""

import matplotlib
import numpy as np
from PIL import Image

from press import card

TITLE = "Gradients Through Everything"


def test_the_card_has_the_size_and_the_colours_that_it_should(tmp_path):
    card.draw(TITLE, tmp_path / "card.png")
    with Image.open(tmp_path / "card.png") as image:
        assert image.size == (1200, 630)
        assert image.info.keys() <= {"dpi"}
        pixels = np.asarray(image.convert("RGB"))
    assert tuple(pixels[-1, 0]) == (0x0B, 0x6E, 0x5A)
    white = (pixels == 255).all(axis=2)
    rows, columns = np.nonzero(white)
    # Words and steps stand inside a margin that no service cuts off.
    assert rows.min() > 20
    assert rows.max() < 610
    assert columns.min() > 40
    assert columns.max() < 1190
    # The title ends before the descent begins.
    assert not white[90:250, 850:880].any()


def test_the_same_title_gives_the_same_bytes_and_another_gives_others(tmp_path):
    card.draw(TITLE, tmp_path / "a.png")
    with matplotlib.rc_context({"font.family": "serif", "lines.linewidth": 9, "savefig.dpi": 50}):
        card.draw(TITLE, tmp_path / "b.png")
    card.draw("Another Title", tmp_path / "c.png")
    first, again, other = (tmp_path.joinpath(f"{name}.png").read_bytes() for name in "abc")
    assert first == again != other


def test_the_card_is_described():
    assert card.words("The Book") == (
        "The Book. An executable book: every theorem is followed by a check that could fail."
    )
