"""Pictures that a reader steps through, by a slider or by buttons.

All pictures lie in the page itself, with one handler in each control: no script file, no library,
nothing from the network, and no ids, so that it also works where a host moves the HTML.
"""

import base64
import io
from collections.abc import Callable, Iterable
from html import escape

from matplotlib.figure import Figure
from PIL import Image

COLOURS = 32
DPI = 110
PAUSE = 1200  # milliseconds between pictures

# The one that the slider stands on is shown, and told to those who do not see it.
_SHOW = (
    "const all=this.closest('.frames').querySelectorAll('img');"
    "all.forEach((x,i)=>{x.style.display=i==this.value?'':'none'});"
    "this.setAttribute('aria-valuetext',all[this.value].alt)"
)
_SLIDER = "const s=this.closest('.frames').querySelector('input');"
_SHOWN = "s.dispatchEvent(new Event('input'))"
_BACK = f"{_SLIDER}s.stepDown();{_SHOWN}"
_NEXT = f"{_SLIDER}s.stepUp();{_SHOWN}"
# It stops at the end, and when the page no longer holds it.
_PLAY = (
    f"{_SLIDER}const b=this;"
    "const stop=()=>{clearInterval(b.timer);b.timer=0;b.textContent='Play'};"
    "if(b.timer){stop();return}"
    f"if(s.value==s.max){{s.value=0;{_SHOWN}}}"
    "b.textContent='Pause';"
    "b.timer=setInterval(()=>{if(!b.isConnected||s.value==s.max){stop();return}"
    f"s.stepUp();{_SHOWN}}},{PAUSE})"
)


class Frames:
    """Pictures with their descriptions, shown one at a time.

    Args:
        label: what the slider moves through, in words.
        pictures: PNG files, at least one.
        texts: what each of them shows.

    Raises:
        ValueError: if there is no picture, or not one text for each.
    """

    def __init__(self, label: str, pictures: Iterable[bytes], texts: Iterable[str]):
        self.label, self.pictures, self.texts = label, list(pictures), list(texts)
        if not self.pictures:
            raise ValueError("pictures: must be at least one")
        if len(self.texts) != len(self.pictures):
            count = len(self.pictures)
            raise ValueError(f"texts: must be {count}, one per picture, got {len(self.texts)}")

    def __repr__(self) -> str:
        return f"{self.label}: {len(self.pictures)} pictures"

    def _repr_html_(self) -> str:
        label, last = escape(self.label), len(self.pictures) - 1
        images = "".join(
            f'<img src="{_address(picture)}" alt="{escape(text)}"{_hidden(number)}>'
            for number, (picture, text) in enumerate(zip(self.pictures, self.texts, strict=True))
        )
        return (
            f'<div class="frames" role="group" aria-label="{label}"><div class="frames-controls">'
            f"{_button('Back', _BACK)}"
            f'<input type="range" min="0" max="{last}" step="1" value="0" autocomplete="off" '
            f'aria-label="{label}" aria-valuetext="{escape(self.texts[0])}" '
            f'oninput="{escape(_SHOW)}">'
            f"{_button('Step', _NEXT)}{_button('Play', _PLAY)}</div>{images}</div>"
        )


def _address(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _hidden(number: int) -> str:
    return ' style="display:none"' if number else ""


def _button(word: str, handler: str) -> str:
    return f'<button type="button" onclick="{escape(handler)}">{word}</button>'


def frames(
    label: str,
    count: int,
    draw: Callable[[Figure, int], str],
    size: tuple[float, float] = (6.4, 3.2),
) -> Frames:
    """Draw pictures to step through.

    Args:
        label: what the slider moves through, in words.
        count: how many pictures.
        draw: draws a picture's number, from 0, into an empty figure, and
            returns in words what it shows.
        size: of a figure, in inches.

    Returns:
        The pictures; a notebook shows them with a slider.

    Raises:
        ValueError: if there is no picture.
    """
    pictures, texts = [], []
    for number in range(count):
        figure = Figure(figsize=size, layout="constrained")
        texts.append(draw(figure, number))
        pictures.append(_small_png(figure))
    return Frames(label, pictures, texts)


def _small_png(figure: Figure) -> bytes:
    # Few colours, and no name of the program that wrote it: small, and the same at each run.
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, metadata={"Software": None})
    picture = Image.open(drawn).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()
