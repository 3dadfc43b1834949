"""Records of airports: which are read, how they are split, and the sentences of our style."""

import csv
import hashlib
import re

import airportsdata
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook.language import airports
from gradbook.language.airports import Airport

COLUMNS = [
    "icao",
    "iata",
    "name",
    "city",
    "subd",
    "country",
    "elevation",
    "lat",
    "lon",
    "tz",
    "lid",
]
ZURICH = Airport("LSZH", "Zurich Airport", "Zurich", "CH", 1416, 47.46)
CUZCO = Airport("SPZO", "Velasco Astete Airport", "Cuzco", "PE", 10860, -13.54)
OWN = "CH, Zurich: Zurich Airport lies at 1400 feet, north of the equator."
PLAIN = st.text("abc\u00e9 -'/()", min_size=1, max_size=12).map(lambda text: f"A{text.strip()}z")
RECORDS = st.builds(
    Airport,
    st.just("AAAA"),
    PLAIN,
    PLAIN,
    st.sampled_from(["CH", "US"]),
    st.integers(0, 15_000),
    st.floats(-90, 90).map(lambda x: round(x, 2)).filter(bool),
)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a table of our own in the place of the published one."""

    def write(*rows):
        path = tmp_path / "airports.csv"
        with path.open("w", encoding="utf8") as file:
            writer = csv.DictWriter(file, COLUMNS, "", quoting=csv.QUOTE_NONNUMERIC)
            writer.writeheader()
            writer.writerows(rows)
        monkeypatch.setattr(airports, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
        return path

    return write


@pytest.fixture(scope="module")
def published():
    return airports.airports()


def row(**changes):
    """A row of the table that is kept."""
    kept = {
        "icao": "LSZH",
        "iata": "ZRH",
        "name": "Zurich Airport",
        "city": "Zurich",
        "country": "CH",
        "elevation": 1416.0,
        "lat": 47.4581,
    }
    return kept | changes


def fakes(n):
    return tuple(ZURICH._replace(icao=f"{i:04}", city=f"City {i}") for i in range(n))


# The records


def test_a_row_becomes_a_record_of_whole_feet_and_hundredths_of_degrees(written):
    found = airports.airports(written(row()))
    assert found == (ZURICH,)
    found = airports.airports(written(row(elevation=1415.5, lat=-0.0051)))
    assert found == (ZURICH._replace(elevation=1416, latitude=-0.01),)


@pytest.mark.parametrize(
    "changes",
    [
        {"iata": ""},
        {"name": ""},
        {"city": ""},
        {"name": "a" * 35},
        {"city": "a" * 21},
        {"name": "A, B"},
        {"city": "A | B"},
        {"city": "A: B"},
        {"city": "A; B"},
        {"name": "A\nB"},
        {"name": "\u0410"},
        {"city": "A\u0250"},
        {"elevation": -0.6},
        {"lat": 0.004},
    ],
)
def test_a_row_that_our_lines_cannot_say_is_left_out(written, changes):
    assert airports.airports(written(row(**changes), row(city="Bern"))) == (
        ZURICH._replace(city="Bern"),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a" * 34},
        {"city": "a" * 20},
        {"name": "M\u00fcnchen \u024f"},
        {"elevation": -0.5},
        {"lat": 0.0051},
    ],
)
def test_a_row_at_the_edge_is_kept(written, changes):
    assert len(airports.airports(written(row(**changes)))) == 1


def test_one_airport_of_a_city_is_kept_the_first_that_can_be_said(written):
    rows = [
        row(icao="A", iata=""),
        row(icao="B", name="a" * 35),
        row(icao="C"),
        row(icao="D", city="ZURICH"),
        row(icao="E", country="US"),
    ]
    assert [airport.icao for airport in airports.airports(written(*rows))] == ["C", "E"]


def test_published_records_are_those_of_the_library(published):
    library = airportsdata.load("ICAO")
    assert len(published) == 5840
    for airport in published:
        theirs = library[airport.icao]
        assert theirs["iata"]
        assert (airport.name, airport.city, airport.country) == (
            theirs["name"],
            theirs["city"],
            theirs["country"],
        )
        # Halves of a foot and of a hundredth: how far rounding goes, and float64's own.
        assert abs(airport.elevation - theirs["elevation"]) <= 0.5
        assert abs(airport.latitude - theirs["lat"]) <= 0.005 + 1e-12
    assert len({(a.country, a.city.casefold()) for a in published}) == len(published)


def test_another_table_is_refused(written, tmp_path, monkeypatch):
    path = written(row())
    monkeypatch.setattr(airports, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="SHA-256 .* run `make setup`"):
        airports.airports(path)
    path.write_bytes(b"")
    for missing in (path, tmp_path / "none.csv"):
        with pytest.raises(FileNotFoundError, match="missing or empty: run `make setup`"):
            airports.airports(missing)
    monkeypatch.setattr(airports, "PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match="not installed: run `make setup`"):
        airports.airports()


def test_the_digest_is_that_of_the_table():
    content = airports.airports_file().read_bytes()
    assert hashlib.sha256(content).hexdigest() == airports.data_digest()


# The split


def test_a_split_has_every_airport_once(published):
    found = airports.split(published)
    assert [len(part) for part in found] == [5580, 60, 200]
    assert sorted(airport for part in found for airport in part) == sorted(published)
    # All rules can be learnt and are tested.
    for part in found:
        assert {airports.side(airport) for airport in part} == {"north", "south"}
        assert {airports.height_words(a) for a in part} == {"lies low", "lies", "stands high"}


def test_a_split_is_always_the_same(published):
    with torch.device("meta"):
        first = airports.split(fakes(300))
    torch.manual_seed(1)
    assert airports.split(fakes(300)) == first
    assert first.test != fakes(300)[:200]
    assert [airport.icao for airport in airports.split(published).test[:3]] == [
        "FAVY",
        "CYVR",
        "SNAL",
    ]


def test_a_draw_takes_different_airports_by_its_seed():
    every = fakes(20)
    seven = airports.drawn(every, 7, 3)
    assert len(set(seven)) == 7
    assert set(seven) <= set(every)
    assert airports.drawn(every, 4, 3) == seven[:4]
    assert airports.drawn(every, 7, 4) != seven
    assert set(airports.drawn(every, 20, 3)) == set(every)


# The lines


def test_a_record_in_one_line():
    assert airports.table(ZURICH) == (
        "name: Zurich Airport | city: Zurich | country: CH | elevation: 1416 | latitude: 47.46"
    )
    assert airports.table(CUZCO._replace(latitude=-13.5)).endswith("| latitude: -13.50")


def test_sentences_of_our_style():
    assert airports.sentence(ZURICH) == OWN
    assert airports.sentence(CUZCO) == (
        "PE, Cuzco: Velasco Astete Airport stands high at 10900 feet, south of the equator."
    )


@pytest.mark.parametrize(
    ("elevation", "words", "rounded"),
    [
        (0, "lies low", 0),
        (49, "lies low", 0),
        (50, "lies low", 100),
        (250, "lies low", 300),
        (499, "lies low", 500),
        (500, "lies", 500),
        (4000, "lies", 4000),
        (4001, "stands high", 4000),
    ],
)
def test_words_and_roundings_at_their_edges(elevation, words, rounded):
    airport = ZURICH._replace(elevation=elevation)
    assert airports.height_words(airport) == words
    assert airports.hundreds(airport) == rounded
    assert f"{words} at {rounded} feet" in airports.sentence(airport)


@given(st.integers(0, 10**6))
def test_rounding_is_to_the_nearest_hundred(elevation):
    rounded = airports.hundreds(ZURICH._replace(elevation=elevation))
    assert rounded % 100 == 0
    assert -50 < rounded - elevation <= 50


@pytest.mark.parametrize(("latitude", "word"), [(0.01, "north"), (-0.01, "south")])
def test_sides(latitude, word):
    assert airports.side(ZURICH._replace(latitude=latitude)) == word


# The rules


def broken(airport, text):
    return {rule for rule, kept in airports.rules_kept(airport, text).items() if not kept}


@given(RECORDS)
def test_our_sentence_keeps_every_rule(airport):
    text = airports.sentence(airport)
    assert not broken(airport, text)
    assert not broken(airport, f" {text}\n")
    assert len(airports.rules_kept(airport, text)) == 6


def test_every_published_sentence_keeps_every_rule(published):
    assert not any(broken(airport, airports.sentence(airport)) for airport in published)


@pytest.mark.parametrize(
    ("old", "new", "rules"),
    [
        ("CH, Zurich:", "Zurich, CH:", {"place", "frame"}),
        ("CH, Zurich:", "CH, Bern:", {"place"}),
        ("CH, Zurich:", "DE, Zurich:", {"place"}),
        ("CH, ", "", {"place", "frame"}),
        ("Zurich Airport", "Zurich Airfield", {"name"}),
        ("Zurich Airport", "Zurich Airports", {"name"}),
        ("Zurich: Zurich Airport", "Zurich Airport: It", {"place", "name"}),
        ("north", "south", {"side"}),
        ("north of the equator", "in the north", {"side", "frame"}),
        ("equator.", "equator, not south of the equator.", {"side", "frame"}),
        ("lies at", "lies low at", {"height"}),
        ("lies at", "stands high at", {"height"}),
        ("lies at", "is at", {"height", "frame"}),
        ("1400", "1416", {"elevation"}),
        ("1400", "11400", {"elevation"}),
        ("1400", "1,400", {"elevation", "frame"}),
        ("1400 feet", "1400 m", {"elevation", "frame"}),
        ("equator.", "equator. It lies at 1300 feet.", {"elevation", "frame"}),
        ("equator.", "equator", {"frame"}),
    ],
)
def test_a_changed_sentence_breaks_the_rules_it_should(old, new, rules):
    assert OWN.count(old) == 1
    assert broken(ZURICH, OWN.replace(old, new)) == rules


@pytest.mark.parametrize("text", ["", "Nothing of it."])
def test_what_is_not_said_is_not_right(text):
    for airport in (ZURICH, CUZCO, ZURICH._replace(elevation=0)):
        assert not any(airports.rules_kept(airport, text).values())


@given(RECORDS, RECORDS)
def test_a_rule_is_kept_by_the_sentence_of_another_airport_if_it_says_the_same(one, other):
    kept = airports.rules_kept(one, airports.sentence(other))
    assert kept["side"] == (airports.side(one) == airports.side(other))
    assert kept["height"] == (airports.height_words(one) == airports.height_words(other))
    assert kept["elevation"] == (airports.hundreds(one) == airports.hundreds(other))
    assert kept["place"] == ((one.country, one.city) == (other.country, other.city))
    assert kept["frame"]


BAD = [
    (lambda: airports.split(fakes(260)), "found: must be more than 260, got 260"),
    (lambda: airports.drawn(fakes(3), 4, 0), "n: must be at most 3, got 4"),
    (lambda: airports.drawn(fakes(3), 0, 0), "n: must be at least 1, got 0"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()


def test_the_smallest_split_has_a_pool():
    assert len(airports.split(fakes(261)).pool) == 1
