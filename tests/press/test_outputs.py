"""What is read from a page and from its notebook."""

import json

import pytest

from gradbook.claims import Claim
from press import outputs
from press.outputs import Directive, Included

PAGE = """\
---
title: "front matter counts for nothing"
---
# Title

:::{prf:theorem} With a title, and $x_1$
:label: thm-a
:nonumber: yes

Text.
:::

````{prf:lemma}
:label: lem-b
```{note}
Nested.
```
````

:::{prf:proposition}   Spaced title
:::

::::{prf:corollary} C
:class: dropdown
:label:   cor-c
::::

:::{prf:definition} D
:label: def-d
:::

```{math}
:label: eq-math
x
```

$$
y
$$ (eq-dollar)

(marked-sentence)=
A sentence with (not-a-target)= inside.

:::{exercise} E
:label: ex-e
:::

:::{solution-start} ex-e
:class: dropdown
:::

:::{solution-end}
:::
"""


def test_directives_are_listed_in_order_with_title_and_label():
    assert outputs.directives(PAGE) == [
        Directive("prf:theorem", "With a title, and $x_1$", "thm-a"),
        Directive("prf:lemma", "", "lem-b"),
        Directive("note", "", ""),
        Directive("prf:proposition", "Spaced title", ""),
        Directive("prf:corollary", "C", "cor-c"),
        Directive("prf:definition", "D", "def-d"),
        Directive("math", "", "eq-math"),
        Directive("exercise", "E", "ex-e"),
        Directive("solution-start", "ex-e", ""),
        Directive("solution-end", "", ""),
    ]


def test_a_label_in_the_body_is_not_an_option():
    (found,) = outputs.directives(":::{note} N\nText.\n:label: no\n:::\n")
    assert found.label == ""


def test_labels_are_those_of_blocks_equations_and_marked_sentences():
    blocks = {"thm-a", "lem-b", "cor-c", "def-d", "ex-e"}
    assert outputs.labels(PAGE) == blocks | {"eq-math", "eq-dollar", "marked-sentence"}


def test_theorems_are_four_kinds_labelled_or_not():
    assert [(t.kind, t.label) for t in outputs.theorems(PAGE)] == [
        ("prf:theorem", "thm-a"),
        ("prf:lemma", "lem-b"),
        ("prf:proposition", ""),
        ("prf:corollary", "cor-c"),
    ]


def code(source, *found):
    return {"cell_type": "code", "source": source, "outputs": list(found)}


def shown(claim):
    data, metadata = claim._repr_mimebundle_()
    return {"output_type": "display_data", "data": data, "metadata": metadata}


def test_code_cells_hold_source_and_keep_their_place():
    markdown = {"cell_type": "markdown", "source": "x"}
    notebook = {"cells": [markdown, code("a"), code(" \n"), code([]), code(["b", "c"])]}
    assert [(i, outputs.text(c["source"])) for i, c in outputs.code_cells(notebook)] == [
        (1, "a"),
        (4, "bc"),
    ]


def test_claims_are_collected_in_order_as_json_holds_them():
    first = Claim("thm-a", "s", "statistical", 0.5, 0.1, "b")
    second = Claim("thm-b", "t", "bound", float("inf"), None, "b")
    plain = {"output_type": "stream", "name": "stdout", "text": "x"}
    figure = {"output_type": "display_data", "data": {}, "metadata": {"other": 1}}
    notebook = {"cells": [code("a", plain, shown(first)), code("b", figure, shown(second))]}
    assert outputs.claims(json.loads(json.dumps(notebook))) == [
        {
            "label": "thm-a",
            "statement": "s",
            "kind": "statistical",
            "measured": 0.5,
            "stderr": 0.1,
            "bound": "b",
        },
        {
            "label": "thm-b",
            "statement": "t",
            "kind": "bound",
            "measured": "inf",
            "stderr": None,
            "bound": "b",
        },
    ]


def test_load_reads_the_notebook_beside_the_page(tmp_path):
    (tmp_path / "x.ipynb").write_text('{"cells": []}')
    assert outputs.load(tmp_path / "x.md") == {"cells": []}


def test_load_says_how_to_make_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"y.ipynb is missing: make notebooks"):
        outputs.load(tmp_path / "y.md")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (":pyobject: f\n", [Included("gradbook/a.py", "f")]),
        (":language: python\n:pyobject: C.f\n", [Included("gradbook/a.py", "C.f")]),
        (":lines: 1-3\n", []),
        ("", []),
    ],
)
def test_included_objects(options, found):
    text = "```{literalinclude} ../code/gradbook/a.py\n" + options + "```\n"
    assert outputs.included(text) == found
    assert outputs.included("Words.\n\n" + text + "\n" + text) == found * 2


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One two, three.\n", 3),
        ("It's a well-known word\n", 4),
        ("12 + 3.5 %\n", 0),
        ("---\nfront: matter here\n---\nword\n", 1),
        ("word\n\n```{code-cell} python\nnot = counted\n```\n\nword\n", 2),
        # A formula is read as one word.
        ("let $a b c$ be\n", 3),
        ("so\n\n$$\na b\n$$\n\nholds\n", 3),
    ],
)
def test_words_that_a_reader_reads(text, count):
    assert outputs.words(text) == count
