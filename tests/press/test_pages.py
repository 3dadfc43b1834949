"""The ledger and the index as text; tests/press/test_build.py sees them rendered."""

import json
import math

import pytest

from gradbook.claims import Claim
from press import pages
from press.digest import digest

GPU = {
    "device": "cuda",
    "card": "Card X",
    "driver": "580.1",
    "torch": "2.13.0",
    "date": "2026-01-02",
    "commit": "abcdef0123456789",
}


def write(folder, name, title, claims, body=""):
    """Write a page and the notebook that holds its claims."""
    page = folder / f"{name}.md"
    page.write_text(f"---\nx: y\n---\n\n# {title}\n\n{body}")
    bundles = [claim._repr_mimebundle_() for claim in claims]
    outputs = [{"output_type": "display_data", "data": d, "metadata": m} for d, m in bundles]
    cell = {"cell_type": "code", "source": "1", "outputs": outputs}
    page.with_suffix(".ipynb").write_text(json.dumps({"cells": [cell]}))
    return page


def rows(text):
    """Read the rows of the list tables of a page, without their headers."""
    tables = [part.split("::::\n")[0] for part in text.split("::::{list-table}\n")[1:]]
    found = []
    for table in tables:
        for row in table.split("\n* - ")[2:]:
            found.append([cell.strip() for cell in row.split("\n  - ")])
    return found


@pytest.mark.parametrize(
    ("label", "role"),
    [
        ("thm-a", "{prf:ref}`thm-a`"),
        ("prop-a-b", "{prf:ref}`prop-a-b`"),
        ("lem-a", "{prf:ref}`lem-a`"),
        ("cor-a", "{prf:ref}`cor-a`"),
        ("def-a", "{prf:ref}`def-a`"),
        ("eq-a", "{eq}`eq-a`"),
        ("ex-a", "{ref}`ex-a`"),
        ("exact-tail", "{ref}`exact tail <exact-tail>`"),
        ("float32-tail", "{ref}`float32 tail <float32-tail>`"),
    ],
)
def test_a_reference_follows_the_prefix(label, role):
    assert pages.reference(label) == role


def test_a_row_holds_where_what_kind_measured_and_bound(tmp_path):
    claims = [
        Claim("thm-a", "the sum is one", "exact", 1.0, None, "= 1 within 0"),
        Claim("eq-b", "the mean", "statistical", 0.12345678, 0.0123, "= 0 by 4"),
        Claim("ex-c", "it is so", "argued", None, None, "by symmetry"),
        Claim("some-tail", "close", "approximate", -2.5, None, "= 2"),
        Claim("lem-d", "small", "bound", 0, None, "≤ 1"),
    ]
    text = pages.ledger([write(tmp_path, "one", "First", claims)], None)
    assert rows(text) == [
        ["{prf:ref}`thm-a`", "the sum is one", "exact", "1", "–", r"\= 1 within 0"],
        ["{eq}`eq-b`", "the mean", "statistical", "0.123457 ± 0.012", "–", r"\= 0 by 4"],
        ["{ref}`ex-c`", "it is so", "argued", "–", "–", "by symmetry"],
        ["{ref}`some tail <some-tail>`", "close", "approximate", "-2.5", "–", r"\= 2"],
        ["{prf:ref}`lem-d`", "small", "bound", "0", "–", "≤ 1"],
    ]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_shown_as_a_word(tmp_path, value):
    claims = [Claim("thm-a", "s", "bound", value, None, f"≥ {value:g}")]
    (row,) = rows(pages.ledger([write(tmp_path, "one", "First", claims)], None))
    assert row[3] == str(value)


def test_markup_characters_of_a_statement_are_escaped(tmp_path):
    statement = r"a_b * `c` <d> [e] {f} $g$ | ~ \h & #"
    claims = [Claim("thm-a", statement, "exact", 1.0, None, "= x_1 * y_2")]
    (row,) = rows(pages.ledger([write(tmp_path, "one", "First", claims)], None))
    assert row[1] == r"a\_b \* \`c\` \<d\> \[e\] \{f\} \$g\$ \| \~ \\h \& \#"
    assert row[5] == r"\= x\_1 \* y\_2"


@pytest.mark.parametrize(
    ("words", "escaped"),
    [
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("% a", r"\% a"),
        ("::: a", r"\:\:\: a"),
        ("+ a", r"\+ a"),
    ],
)
def test_a_statement_does_not_begin_a_block(tmp_path, words, escaped):
    page = write(tmp_path, "one", "First", [Claim("thm-a", words, "exact", 1.0, None, "b")])
    assert rows(pages.ledger([page], None))[0][1] == escaped


def test_an_argument_of_several_lines_stays_in_its_cell(tmp_path):
    claims = [Claim("thm-a", "s", "argued", None, None, "first\n\n  * second\n::::\n")]
    (row,) = rows(pages.ledger([write(tmp_path, "one", "First", claims)], None))
    assert row[5] == r"first \* second \:\:\:\:"


def test_the_head_counts_claims_chapters_and_arguments(tmp_path):
    exact = Claim("thm-a", "s", "exact", 1.0, None, "b")
    argued = Claim("thm-b", "t", "argued", None, None, "reason")
    chapters = [
        write(tmp_path, "one", "First", [exact, argued, argued]),
        write(tmp_path, "two", "Second *one*", [exact] * 4),
    ]
    text = pages.ledger(chapters, None)
    words = " ".join(text.split())
    assert "7 claims in 2 chapters, 2 of them argued rather than run" in words
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# The ledger of claims",
        "## First",
        "## Second *one*",
    ]
    assert "has not been run on a GPU yet" in text


def test_a_chapter_without_claims_has_no_empty_table(tmp_path):
    text = pages.ledger([write(tmp_path, "one", "First", [])], None)
    assert "list-table" not in text
    assert "## First\n\nNo claims.\n" in text


def test_the_gpu_column_is_filled_from_the_record_of_a_run(tmp_path):
    first = Claim("thm-a", "s", "exact", 1.0, None, "b")
    second = Claim("thm-a", "t", "statistical", 2.0, 0.5, "b")
    third = Claim("thm-c", "s", "exact", 3.0, None, "b")
    chapters = [write(tmp_path, "one", "First", [first, second, third])]
    chapters.append(write(tmp_path, "two", "Second", [first]))
    gpu = GPU | {
        "chapters": {"one": {"digest": digest(chapters[0]), "seconds": 1.0}},
        "claims": {
            "one": [
                {"label": "thm-a", "statement": "t", "measured": 2.25, "stderr": 0.25},
                {"label": "thm-a", "statement": "s", "measured": "inf", "stderr": None},
                {"label": "thm-c", "statement": "other", "measured": 9.0, "stderr": None},
            ]
        },
    }
    text = pages.ledger(chapters, gpu)
    assert [row[4] for row in rows(text)] == ["inf", "2.25 ± 0.25", "–", "–"]
    assert [row[3] for row in rows(text)] == ["1", "2 ± 0.5", "3", "1"]
    assert (
        "The GPU column was measured on Card X, driver 580.1, with torch 2.13.0 on 2026-01-02, "
        "of commit `abcdef012345`. It misses 1 of the chapters: two.\n"
    ) in text
    assert "has changed since" not in text


@pytest.mark.parametrize("ran", [["one"], ["one", "two"]])
def test_values_of_a_text_that_changed_are_not_shown_without_a_word(tmp_path, ran):
    first = Claim("thm-a", "s", "exact", 1.0, None, "b")
    chapters = [write(tmp_path, name, name.title(), [first]) for name in ("one", "two")]
    row = {"label": "thm-a", "statement": "s", "measured": 2.0, "stderr": None}
    gpu = GPU | {
        "chapters": {name: {"digest": digest(tmp_path / f"{name}.md")} for name in ran},
        "claims": {name: [row] for name in ran},
    }
    chapters[0].write_text(chapters[0].read_text() + "\nMore.\n")
    text = pages.ledger(chapters, gpu)
    one, two = text.split("## Two")
    assert "ran on the GPU.\n\n::::{list-table}" in one
    assert "has changed since" not in two
    assert ("misses" in one) == (ran == ["one"])


def test_the_index_lists_statements_and_exercises_in_order(tmp_path):
    body = (
        ":::{prf:theorem} Big, $x_1$\n:label: thm-a\n:::\n"
        ":::{note}\n:label: not-listed\n:::\n"
        ":::{exercise} Try\n:label: ex-b\n:::\n"
        ":::{prf:proof}\n:::\n"
        ":::{prf:definition}\n:label: def-c\n:::\n"
        ":::{prf:lemma} Unlabelled\n:::\n"
    )
    chapters = [write(tmp_path, "b", "Second", [], body), write(tmp_path, "a", "First", [])]
    assert pages.index(chapters) == (
        pages.INDEX_HEAD + "\n## Second\n\n"
        "- {prf:ref}`thm-a`: Big, $x_1$\n- {ref}`ex-b`: Try\n- {prf:ref}`def-c`\n"
        "\n## First\n\n\n"
    )


@pytest.mark.parametrize("recorded", [False, True])
def test_main_writes_both_pages(tmp_path, monkeypatch, recorded):
    page = write(tmp_path, "one", "First", [Claim("thm-a", "s", "exact", 1.0, None, "b")])
    gpu = GPU | {"claims": {}, "chapters": {}}
    if recorded:
        (tmp_path / "gpu.json").write_text(json.dumps(gpu))
    monkeypatch.setattr(pages, "executed_chapters", lambda: [page])
    monkeypatch.setattr(pages, "CHAPTERS", tmp_path)
    monkeypatch.setattr(pages, "RECORDS", tmp_path)
    pages.main()
    assert (tmp_path / "claims.md").read_text() == pages.ledger([page], gpu if recorded else None)
    assert (tmp_path / "theorems.md").read_text() == pages.index([page])


def test_a_trial_on_a_cpu_does_not_reach_the_ledger(tmp_path, monkeypatch):
    (tmp_path / "gpu.json").write_text(json.dumps(GPU | {"device": "cpu"}))
    monkeypatch.setattr(pages, "executed_chapters", lambda: [])
    monkeypatch.setattr(pages, "CHAPTERS", tmp_path)
    monkeypatch.setattr(pages, "RECORDS", tmp_path)
    with pytest.raises(ValueError, match=r"gpu.json: was measured on cpu, not on a GPU"):
        pages.main()
