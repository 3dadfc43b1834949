"""Every guard reports its fault, and passes a chapter that lies exactly on its bounds."""

import base64
import copy
import inspect
import json
from pathlib import Path

import pytest

from gradbook.claims import Claim
from press import audit

# Forty lines, the widest of 76 columns: as much as a cell may hold.
CELL = "\n".join(["x" * 76, *["y = 1"] * 39])
FRONT = "---\nchapter:\n  gpu: not needed\n---\n"
BODY = """\
# A chapter

:::{prf:theorem} Sound
:label: thm-a
It holds.
:::

:::{prf:proof}
By words: $$1 = 1$$
:::

```{literalinclude} ../code/gradbook/shown.py
:pyobject: narrow
```

:::{exercise} Why
:label: ex-a
Say why.
:::

:::{solution} ex-a
Because.
:::

```{code-cell} python
these words are code and not counted
```

"""
WIDE = "    " + "z" * 73
MODULE = f"def narrow():\n    {'z' * 72}\n\n\ndef wide():\n{WIDE}\n\n\nclass Kind:\n  def wide(self):\n{WIDE}\n"


def claim_output(label, kind="exact"):
    claim = Claim(label, "it holds", kind, 0.5, None, "= 0.5 within 0")
    data, metadata = claim._repr_mimebundle_()
    return {"output_type": "display_data", "data": data, "metadata": metadata}


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def picture(size=120_000):
    png = base64.b64encode(bytes(size)).decode()
    return {"output_type": "display_data", "data": {"image/png": png}, "metadata": {}}


def cell(source, *outputs, **metadata):
    return {
        "cell_type": "code",
        "source": source,
        "execution_count": 1,
        "outputs": list(outputs),
        "metadata": metadata,
    }


def sound():
    """A chapter as large, wide and heavy as the guards allow: its markdown and its notebook."""
    words = len(
        ["A", "chapter", "Sound", "It", "holds", "By", "words", "Why", "Say", "why", "Because"]
    )
    # The names of directives and labels count too.
    named = [
        "prf",
        "theorem",
        "label",
        "thm-a",
        "prf",
        "proof",
        "x",
        "literalinclude",
        "code",
        "gradbook",
        "shown",
        "py",
    ]
    named += ["pyobject", "narrow", "exercise", "label", "ex-a", "solution", "ex-a"]
    padding = "word " * (6000 - words - len(named))
    described = {
        "figure": {"caption": "what it is", "name": "fig-a"},
        "image": {"alt": "what it shows"},
    }
    cells = [
        {"cell_type": "markdown", "source": BODY, "metadata": {}},
        cell(CELL, stream("error 0.1234\n")),
        cell("claims", claim_output("thm-a"), claim_output("ex-a")),
        cell(["dr", "aw"], picture(), mystnb=described),
        # Jupyter leaves an empty cell unrun.
        cell(" \n") | {"execution_count": None},
    ]
    return FRONT + BODY + padding, {"cells": cells}


def edit_text(old, new):
    def broken(markdown, notebook):
        assert markdown.count(old) == 1, old
        return markdown.replace(old, new), notebook

    return broken


def edit_cell(index, **changes):
    def broken(markdown, notebook):
        notebook["cells"][index] |= changes
        return markdown, notebook

    return broken


def add_output(index, output):
    def broken(markdown, notebook):
        notebook["cells"][index]["outputs"].append(output)
        return markdown, notebook

    return broken


def drop_output(index, position):
    def broken(markdown, notebook):
        del notebook["cells"][index]["outputs"][position]
        return markdown, notebook

    return broken


def undescribed(part, name):
    def broken(markdown, notebook):
        del notebook["cells"][3]["metadata"]["mystnb"][part][name]
        return markdown, notebook

    return broken


def compare_nothing(markdown, notebook):
    del notebook["cells"][1]["outputs"][0]
    for output in notebook["cells"][2]["outputs"]:
        del output["data"]["text/plain"]
    return markdown, notebook


def represent(words):
    return {"output_type": "execute_result", "data": {"text/plain": [words]}, "metadata": {}}


def theorem(kind):
    # Taken from the padding, so that the page stays as long as it may be.
    return edit_text("# A chapter\n", f"# A chapter\n\n:::{{{kind}}} A\n:label: new-a\n:::\n")


RAISED = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
PROOF = ":::{prf:proof}\nBy words: $$1"
EXERCISE = ":::{exercise} Why\n:label: ex-a"
# Each guard with ways to break a sound chapter, and all that the audit then says.
CASES = [
    (audit.cells_ran, edit_cell(1, execution_count=None), ["cell 1 was not run"]),
    (audit.something_is_compared, compare_nothing, ["no output of this chapter is compared"]),
    (audit.no_errors, add_output(1, RAISED), ["cell 1 holds an error: ValueError"]),
    (
        audit.no_warnings,
        add_output(2, stream(["Old", "Warning: x\n"], "stderr")),
        ["cell 2 writes to stderr: OldWarning: x"],
    ),
    (audit.figures_described, undescribed("figure", "caption"), ["cell 3: figure without caption"]),
    (audit.figures_described, undescribed("figure", "name"), ["cell 3: figure without name"]),
    (audit.figures_described, undescribed("image", "alt"), ["cell 3: figure without alt text"]),
    (
        audit.figures_described,
        edit_cell(3, metadata={}),
        [f"cell 3: figure without {missing}" for missing in ("caption", "name", "alt text")],
    ),
    (
        audit.figures_light,
        add_output(3, picture(120_600)),
        ["cell 3: figure of 121 kB (at most 120)"],
    ),
    (audit.cells_short, edit_cell(1, source=CELL + "\nz"), ["cell 1: 41 lines (at most 40)"]),
    (
        audit.cells_short,
        edit_cell(1, source=["a\n", "x" * 77]),
        [f"cell 1: wider than 76: {'x' * 77}"],
    ),
    *[
        (audit.theorems_claimed, theorem(kind), ["theorem without a claim: new-a"])
        for kind in ("prf:theorem", "prf:proposition", "prf:lemma", "prf:corollary")
    ],
    (
        audit.theorems_claimed,
        edit_text("# A chapter\n", "# A chapter\n\n:::{prf:lemma} Nameless\n:::\n"),
        ["theorem without a label: Nameless"],
    ),
    (
        audit.claims_labelled,
        add_output(2, claim_output("thm-b")),
        ["claim without a label on its page: thm-b"],
    ),
    (
        audit.exercises_solved,
        edit_text("{solution} ex-a", "{admonition} ex-a"),
        ["exercise without a solution: ex-a"],
    ),
    (audit.exercises_solved, drop_output(2, 1), ["exercise without a claim: ex-a"]),
    (
        audit.exercises_solved,
        edit_text("# A chapter\n", "# A chapter\n\n:::{exercise-start} New\n:label: ex-b\n:::\n"),
        ["exercise without a solution: ex-b"],
    ),
    (audit.nothing_raw, add_output(1, stream("0.12345")), ["cell 1: prints raw numbers: 0.12345"]),
    (
        audit.nothing_raw,
        add_output(2, represent("tensor(0.5)")),
        ["cell 2: prints raw numbers: tensor("],
    ),
    (
        audit.proofs_begin_with_words,
        edit_text(PROOF, ":::{prf:proof}\n$$1"),
        ["a proof begins with display mathematics"],
    ),
    (
        audit.proofs_begin_with_words,
        edit_text(PROOF, ":::{prf:proof}\n:nonumber: yes\n\n$$1"),
        ["a proof begins with display mathematics"],
    ),
    (
        audit.included_lines_fit,
        edit_text(":pyobject: narrow", ":pyobject: wide"),
        [f"gradbook/shown.py: wider than 76: {WIDE}"],
    ),
    (
        audit.included_lines_fit,
        edit_text(":pyobject: narrow", ":pyobject: absent"),
        ["gradbook/shown.py has no absent"],
    ),
    (
        audit.included_lines_fit,
        edit_text(":pyobject: narrow", ":pyobject: Kind.wide"),
        [f"gradbook/shown.py: wider than 76: {WIDE}"],
    ),
    (
        audit.included_lines_fit,
        edit_text(":pyobject: narrow", ":pyobject: Kind.narrow"),
        ["gradbook/shown.py has no Kind.narrow"],
    ),
    (
        audit.page_short,
        lambda text, notebook: (f"{text}more", notebook),
        ["6001 words (at most 6000)"],
    ),
]


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch):
    folder = tmp_path / "code"
    (folder / "gradbook").mkdir(parents=True)
    (folder / "gradbook" / "shown.py").write_text(MODULE)
    monkeypatch.setattr(audit, "CODE", folder)


def shorten(markdown):
    """Make room for the words that a fault adds, except where the length is the fault."""
    return markdown.replace("word " * 20, "", 1)


def test_a_sound_chapter_passes_every_guard():
    markdown, notebook = sound()
    assert audit.outputs.words(markdown) == audit.PAGE_WORDS
    assert audit.audit(markdown, notebook) == []


@pytest.mark.parametrize(
    ("guard", "breaks", "words"), CASES, ids=[f"{c[0].__name__}-{i}" for i, c in enumerate(CASES)]
)
def test_a_guard_reports_its_fault_and_no_other_guard_does(guard, breaks, words):
    markdown, notebook = sound()
    if guard is not audit.page_short:
        markdown = shorten(markdown)
    before = copy.deepcopy((markdown, notebook))
    assert guard(markdown, notebook) == []
    broken = breaks(markdown, notebook)
    assert broken != before
    assert guard(*broken) == words
    assert audit.audit(*broken) == words


def test_guards_and_their_tests_are_in_one_to_one_correspondence():
    assert {guard for guard, *_ in CASES} == set(audit.GUARDS)
    assert len(set(audit.GUARDS)) == len(audit.GUARDS)


def test_no_guard_is_written_and_not_held():
    def is_guard(thing):
        return inspect.isfunction(thing) and thing.__module__ == audit.__name__

    written = {
        function
        for _, function in inspect.getmembers(audit, is_guard)
        if list(function.__annotations__.values()) == [str, dict, list[str]]
    }
    assert written - {audit.audit} == set(audit.GUARDS)


@pytest.mark.parametrize(
    "output",
    [
        stream("words", "stderr"),
        picture(),
        {"output_type": "display_data", "data": {"text/html": "x"}, "metadata": {}},
    ],
    ids=["stderr", "picture", "html"],
)
def test_what_nbval_skips_does_not_count_as_compared(output):
    notebook = {"cells": [cell("x", output)]}
    assert audit.something_is_compared("", notebook) == ["no output of this chapter is compared"]
    notebook["cells"].append(cell("y", stream("words")))
    assert audit.something_is_compared("", notebook) == []


@pytest.mark.parametrize("number", ["1.2345", "12345", "1e-10", "0.5", "v1.2.3", "-0.1234 0.4321"])
def test_short_numbers_may_be_printed(number):
    assert audit.nothing_raw("", {"cells": [cell("x", stream(number))]}) == []


@pytest.mark.parametrize("kind", ["prf:definition", "prf:remark", "prf:example", "prf:proof"])
def test_what_is_no_theorem_needs_no_claim(kind):
    markdown, notebook = theorem(kind)(*sound())
    assert audit.theorems_claimed(markdown, notebook) == []


@pytest.mark.parametrize(
    ("kinds", "share"), [([], 0), (["exact"], 0), (["argued", "exact", "bound", "argued"], 0.5)]
)
def test_the_argued_share(kinds, share):
    assert audit.argued_share([{"kind": kind} for kind in kinds]) == share


@pytest.fixture
def book(tmp_path, monkeypatch):
    """Write chapters to a folder that main() audits."""

    def write(*chapters):
        pages = []
        for number, (markdown, notebook) in enumerate(chapters):
            page = tmp_path / f"page{number}.md"
            page.write_text(markdown)
            page.with_suffix(".ipynb").write_text(json.dumps(notebook))
            pages.append(page)
        monkeypatch.setattr(audit, "executed_chapters", lambda: pages)
        monkeypatch.setattr(audit, "ROOT", tmp_path)

    return write


def test_main_passes_sound_chapters(book, capsys):
    book(sound(), sound())
    assert audit.main() == 0
    assert capsys.readouterr().out == "2 chapters, 4 claims: no fault found\n"


def test_main_fails_and_names_the_page_and_the_fault(book, capsys):
    book(sound(), edit_cell(1, execution_count=None)(*sound()))
    assert audit.main() == 1
    assert capsys.readouterr().out == "page1.md: cell 1 was not run\n"


def test_main_fails_where_there_is_no_chapter(book, capsys):
    book()
    assert audit.main() == 1
    assert capsys.readouterr().out == "no chapter holds code cells\n"


@pytest.mark.parametrize(("argued", "status"), [(1, 0), (2, 1)])
def test_main_bounds_the_argued_share_of_the_whole_book(book, capsys, argued, status):
    chapters = [sound() for _ in range(5)]
    for _, notebook in chapters[:argued]:
        notebook["cells"][2]["outputs"][0] = claim_output("thm-a", "argued")
    book(*chapters)
    assert audit.main() == status
    said = "20% of the claims are argued, not run (at most 10 %)\n"
    assert (capsys.readouterr().out == said) == bool(status)


def test_main_says_how_to_make_a_missing_notebook(book, tmp_path):
    book(sound())
    Path(tmp_path / "page0.ipynb").unlink()
    with pytest.raises(FileNotFoundError, match="page0.ipynb is missing: make notebooks"):
        audit.main()
