"""Pictures to step through: their HTML, and what their handlers say."""

import base64
import io
import os
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from gradbook.frames import PAUSE, Frames, frames
from press import browser


class Elements(HTMLParser):
    """Collects start tags with their attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


def draw(figure, number):
    figure.subplots().plot([0, number])
    return f'line to "{number}" & on'


@pytest.fixture(scope="module")
def shown() -> Frames:
    return frames("heights < 3", 3, draw, size=(2, 1))


def test_it_is_compared_by_a_line_of_words(shown):
    assert repr(shown) == "heights < 3: 3 pictures"


def test_every_picture_is_a_small_png_of_few_colours(shown):
    for picture in shown.pictures:
        image = Image.open(io.BytesIO(picture))
        assert (image.format, image.mode, image.size) == ("PNG", "P", (220, 110))
        assert len(image.getcolors()) <= 32
        assert b"matplotlib" not in picture
    assert len(set(shown.pictures)) == 3


def test_pictures_are_drawn_equal_twice(shown):
    assert frames("heights < 3", 3, draw, size=(2, 1)).pictures == shown.pictures


def test_the_page_holds_all_pictures_with_their_texts_and_shows_the_first(shown):
    images = Elements(shown._repr_html_()).of("img")
    held = [base64.b64decode(x["src"].removeprefix("data:image/png;base64,")) for x in images]
    assert held == shown.pictures
    assert [x["alt"] for x in images] == [f'line to "{number}" & on' for number in range(3)]
    assert [x.get("style") for x in images] == [None, "display:none", "display:none"]


def test_the_slider_is_labelled_and_says_what_it_shows(shown):
    (slider,) = Elements(shown._repr_html_()).of("input")
    assert slider["aria-label"] == "heights < 3"
    assert slider["aria-valuetext"] == 'line to "0" & on'
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "0")


def test_handlers_need_no_id_and_nothing_from_elsewhere(shown):
    text = shown._repr_html_()
    elements = Elements(text)
    assert not any("id" in attributes for _, attributes in elements.found)
    assert not re.search(r"https?:|<script", text)
    handlers = [x["onclick"] for x in elements.of("button")]
    handlers += [x["oninput"] for x in elements.of("input")]
    assert len(handlers) == 4
    assert all("this.closest('.frames')" in handler for handler in handlers)
    back, step, _, _ = handlers
    assert "stepDown()" in back
    assert "stepUp()" in step


@pytest.fixture(scope="module")
def tab():
    executable = browser.find_chromium()
    if executable is None:
        message = f"no Chromium: install Debian's package {browser.PACKAGE}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with browser.chromium(executable) as running, browser.offline(running, "light") as opened:
        yield opened


class Reader:
    """Clicks and looks: which pictures are to be seen, what is said of them, and what Play is called."""

    def __init__(self, page):
        self.page = page

    def press(self, word: str) -> None:
        self.page.get_by_role("button", name=word).click()

    def wait(self, pauses: int) -> None:
        self.page.clock.run_for(pauses * PAUSE)

    @property
    def sees(self) -> tuple[list[int], str, str]:
        shown = [i for i, x in enumerate(self.page.locator("img").all()) if x.is_visible()]
        said = self.page.locator("input").get_attribute("aria-valuetext")
        return shown, said, self.page.locator("button").last.inner_text()


@pytest.fixture
def reader(tab, shown, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><title>x</title>{shown._repr_html_()}")
    # A clock that only the test moves.
    tab.context.clock.install()
    tab.context.clock.pause_at(10**12)
    yield Reader(tab.open(path))
    assert (tab.requests, tab.complaints) == ([], [])


def picture(number: int, button: str = "Play") -> tuple[list[int], str, str]:
    return [number], f'line to "{number}" & on', button


def test_a_reader_steps_forth_and_back_and_no_further_than_the_ends(reader):
    seen = [reader.sees]
    for word in ("Step", "Step", "Step", "Back", "Back", "Back", "Step"):
        reader.press(word)
        seen.append(reader.sees)
    assert seen == [picture(number) for number in (0, 1, 2, 2, 1, 0, 0, 1)]


def test_a_reader_moves_the_slider(reader):
    for number in (2, 0, 1):
        reader.page.locator("input").fill(str(number))
        assert reader.sees == picture(number)


def test_play_goes_to_the_end_and_again_from_the_start(reader):
    for _ in range(2):
        reader.press("Play")
        assert reader.sees == picture(0, "Pause")
        for number in (1, 2):
            reader.wait(1)
            assert reader.sees == picture(number, "Pause")
        reader.wait(1)
        assert reader.sees == picture(2)
        reader.wait(3)
        assert reader.sees == picture(2)


def test_play_can_be_paused_and_goes_on_from_there(reader):
    reader.press("Play")
    reader.wait(1)
    reader.press("Pause")
    reader.wait(3)
    assert reader.sees == picture(1)
    reader.press("Play")
    assert reader.sees == picture(1, "Pause")
    reader.wait(1)
    assert reader.sees == picture(2, "Pause")


def test_there_must_be_a_picture_and_a_text_for_each():
    with pytest.raises(ValueError, match="pictures: must be at least one"):
        frames("none", 0, draw)
    with pytest.raises(ValueError, match="texts: must be 2, one per picture, got 1"):
        Frames("two", [b"a", b"b"], ["one"])
