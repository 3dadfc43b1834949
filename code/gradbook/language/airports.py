"""Airports as records, and one sentence about each in a style of the book's own.

The records are real: they come inside the package airportsdata 20260905 (MIT licence), which is
found without being imported. The sentences are not: a rule of ours makes each from its record, so
that what a model should have written is known, and can be checked word by word. Most of a sentence
is copied; three things follow from numbers, and have to be learnt: the side of the equator, the
words for a low and for a high place, and the rounding of the elevation.
"""

import csv
import importlib.util
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from gradbook import data
from gradbook.priors.grids import require_sizes

PACKAGE = "airportsdata"
SHA256 = "516c57d9d999f7a3be28ca649d2badbe3b972f07e57dc6173ab973b72d51cf52"
TEST, CHOOSING = 200, 60
# In letters: with them a record and its sentence stay short.
LONGEST_NAME, LONGEST_CITY = 34, 20
# In feet.
LOW, HIGH, STEP = 500, 4000, 100
# Letters of Europe's languages, their marks included, end here.
LATIN = 0x250
FRAME = re.compile(
    r"[A-Z]{2}, [^:]+: .+ (?:lies low|lies|stands high) at \d+ feet, (?:north|south) of the equator\."
)


class Airport(NamedTuple):
    """A record.

    Attributes:
        icao: four letters or digits that name it among all airports.
        name: in Latin letters.
        city: near it.
        country: ISO 3166's two letters.
        elevation: feet above the sea, whole.
        latitude: degrees, to hundredths; positive in the north.
    """

    icao: str
    name: str
    city: str
    country: str
    elevation: int
    latitude: float


class Split(NamedTuple):
    """Three sets of airports; no city is in two of them."""

    pool: tuple[Airport, ...]
    choosing: tuple[Airport, ...]
    test: tuple[Airport, ...]


def data_digest() -> str:
    """Summarize the data that a record depends on.

    Returns:
        The SHA-256 of the package's table. It needs no data on this machine: :func:`airports`
        refuses any other.
    """
    return SHA256


def airports(path: Path | None = None) -> tuple[Airport, ...]:
    """Read the airports that have a IATA code, one a city.

    Kept are those whose name and city are there, short, in Latin letters and without the signs
    that our lines use, which do not lie on the equator or below the sea. Of the airports of one
    city in one country the first of the table is kept.

    Args:
        path: the table; by default the package's.

    Returns:
        The airports, in the order of the table.

    Raises:
        FileNotFoundError: if the package is not installed, or the table is missing or empty.
        ValueError: if the table is not the published one.
    """
    path = airports_file() if path is None else path
    content = data._checked(path, data._read(path, "make setup"), SHA256, "make setup")
    first: dict[tuple[str, str], Airport] = {}
    for row in csv.DictReader(io.StringIO(content.decode())):
        if row["iata"]:
            airport = _airport(row)
            if _plain(airport):
                first.setdefault((airport.country, airport.city.casefold()), airport)
    return tuple(first.values())


def airports_file() -> Path:
    """Find the table in the package, without importing it.

    Returns:
        Its path.

    Raises:
        FileNotFoundError: if the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{PACKAGE} is not installed: run `make setup`")
    return Path(spec.submodule_search_locations[0], "airports.csv")


def split(found: Sequence[Airport]) -> Split:
    """Split airports once and for all.

    Args:
        found: more than 260, one a city, as :func:`airports` gives them.

    Returns:
        200 to test on, 60 to choose settings by, and a pool of the others, always the same.

    Raises:
        ValueError: if there are too few.
    """
    if len(found) <= TEST + CHOOSING:
        raise ValueError(f"found: must be more than {TEST + CHOOSING}, got {len(found)}")
    order = drawn(found, len(found), 0)
    return Split(order[TEST + CHOOSING :], order[TEST : TEST + CHOOSING], order[:TEST])


def drawn(found: Sequence[Airport], n: int, seed: int) -> tuple[Airport, ...]:
    """Draw some airports without replacement.

    Args:
        found: of which.
        n: how many.
        seed: of the draw.

    Returns:
        These, in the order drawn; a smaller n gives the first of them.

    Raises:
        ValueError: if n is below 1, or there are not so many.
    """
    require_sizes(n=n)
    if n > len(found):
        raise ValueError(f"n: must be at most {len(found)}, got {n}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(found), generator=generator, device="cpu")
    return tuple(found[i] for i in order[:n].tolist())


def table(airport: Airport) -> str:
    """Write a record in one line, without its code.

    Args:
        airport: the record.

    Returns:
        Such as ``name: Zurich Airport | city: Zurich | country: CH |
        elevation: 1416 | latitude: 47.46``.
    """
    fields = {
        "name": airport.name,
        "city": airport.city,
        "country": airport.country,
        "elevation": airport.elevation,
        "latitude": f"{airport.latitude:.2f}",
    }
    return " | ".join(f"{key}: {value}" for key, value in fields.items())


def sentence(airport: Airport) -> str:
    """Write the sentence of our style about an airport.

    Country and city come first. An airport below 500 feet "lies low", one
    above 4000 "stands high", any other "lies". The elevation is rounded to
    hundreds of feet, halves upwards.

    Args:
        airport: the record.

    Returns:
        Such as ``CH, Zurich: Zurich Airport lies at 1400 feet, north of the
        equator.``
    """
    place = f"{airport.country}, {airport.city}: {airport.name}"
    height = f"{height_words(airport)} at {hundreds(airport)} feet"
    return f"{place} {height}, {side(airport)} of the equator."


def height_words(airport: Airport) -> str:
    """Say how high an airport lies.

    Args:
        airport: the record.

    Returns:
        ``lies low`` below 500 feet, ``stands high`` above 4000, else ``lies``.
    """
    if airport.elevation < LOW:
        return "lies low"
    return "stands high" if airport.elevation > HIGH else "lies"


def hundreds(airport: Airport) -> int:
    """Round an elevation to hundreds of feet, halves upwards.

    Args:
        airport: the record.

    Returns:
        Feet.
    """
    return (airport.elevation + STEP // 2) // STEP * STEP


def side(airport: Airport) -> str:
    """Say on which side of the equator an airport lies.

    Args:
        airport: the record.

    Returns:
        ``north`` or ``south``.
    """
    return "north" if airport.latitude > 0 else "south"


def rules_kept(airport: Airport, text: str) -> dict[str, bool]:
    """Check a sentence rule by rule.

    What is said twice and differently counts as wrong, and so does what is not said.

    Args:
        airport: the record.
        text: the sentence; blanks around it do not count.

    Returns:
        Whether the ``place``, country then city, stands first; the ``name`` is copied; the
        ``side`` of the equator, the words for the ``height`` and the rounded ``elevation`` are
        right; and the whole has the ``frame`` of our style, whatever it says. Our own sentence
        keeps all six.
    """
    text = text.strip()
    sides = re.findall(r"\b(north|south) of the equator", text)
    heights = re.findall(r"\b(lies low|lies|stands high) at\b", text)
    feet = re.findall(r"(\S+) feet\b", text)
    return {
        "place": text.startswith(f"{airport.country}, {airport.city}:"),
        "name": f" {airport.name} " in text,
        "side": set(sides) == {side(airport)},
        "height": set(heights) == {height_words(airport)},
        "elevation": set(feet) == {str(hundreds(airport))},
        "frame": FRAME.fullmatch(text) is not None,
    }


def _airport(row: dict[str, str]) -> Airport:
    # Rounded first: what the sentence says must follow from the line of the record.
    elevation = math.floor(float(row["elevation"]) + 0.5)
    latitude = round(float(row["lat"]), 2)
    return Airport(row["icao"], row["name"], row["city"], row["country"], elevation, latitude)


def _plain(airport: Airport) -> bool:
    """Say whether a record is complete, short, and free of what our lines cannot say."""
    words = airport.name + airport.city
    return (
        0 < len(airport.name) <= LONGEST_NAME
        and 0 < len(airport.city) <= LONGEST_CITY
        and all(letter < chr(LATIN) and letter not in "|:;,\n" for letter in words)
        and airport.elevation >= 0
        and airport.latitude != 0
    )
