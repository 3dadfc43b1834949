"""A tiny book built by the real configuration: clean when sound, red for each dead reference."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gradbook.claims import Claim
from press import pages
from press.paths import ROOT

pytestmark = pytest.mark.slow

TOC = """\
format: jb-book
root: index
parts:
  - caption: Part
    numbered: true
    chapters:
      - file: chapters/page
  - caption: Around
    chapters:
      - file: chapters/claims
      - file: chapters/theorems
      - file: chapters/bibliography
"""
BIBLIOGRAPHY = """\
# Bibliography

```{bibliography}
```
"""
BIB = "@article{who1900, author = {Who, A.}, title = {T}, journal = {J}, year = {1900}}\n"
FRONT = """\
---
chapter:
  article: "an article"
  downloads: none
  gpu: not needed
---
"""
PAGE = r"""# A page

Words about $\theta$, {prf:ref}`thm-a`, {eq}`eq-a` and {ref}`ex-a`, after {cite:t}`who1900`.
See [the bibliography](bibliography.md) and {ref}`the mark <mark>`.

$$
\frac{1}{2}=\nabla_\theta x
$$ (eq-a)

(mark)=
A marked sentence.

:::{prf:theorem} First
:label: thm-a
It holds.
:::

:::{exercise} Question
:label: ex-a
Why?
:::

:::{solution} ex-a
:class: dropdown
So.
:::
"""
FAULTS = r"""# Faults

[dead](missing.md)

{ref}`nowhere`

{prf:ref}`thm-nowhere`

{eq}`eq-nowhere`

{numref}`fig-nowhere`

{cite:p}`nobody1900`

$\frac{1}{$
"""
# Statements that a reader should see as they are written, whatever MyST makes of such characters.
STATEMENTS = [
    r"p_theta * q_theta < 1 & |x| > `y` [z] {w} $t$ ~ \n",
    "- no list",
    "1. no list",
    "# no heading",
    "% no comment",
    "+ no list",
    "&lt; no entity",
    "::: no fence",
    "![no](figure.png) <b>no</b> {ref}`no`",
]


def notebook(statements):
    claims = [Claim("mark", s, "exact", 0.5, None, "= 0.5 within 0") for s in statements]
    bundles = [claim._repr_mimebundle_() for claim in claims]
    outputs = [
        {"output_type": "display_data", "data": data, "metadata": metadata}
        for data, metadata in bundles
    ]
    stamp = {
        "digest": "",
        "seconds": 1.0,
        "peak_mb": None,
        "torch": "2.13.0",
        "device": "CPU",
        "date": "2026-01-01",
    }
    cell = {
        "cell_type": "code",
        "id": "b",
        "metadata": {},
        "source": "1",
        "execution_count": 1,
        "outputs": outputs,
    }
    return {
        "cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": PAGE}, cell],
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "gradbook": stamp,
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def write_book(folder: Path, toc: str = TOC, **more: str) -> None:
    """Write a tiny book around copies of the real press and the real configuration."""
    chapters = folder / "chapters"
    chapters.mkdir(parents=True)
    shutil.copytree(ROOT / "press", folder / "press", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_config.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, folder)
    (folder / "node_modules").symlink_to(ROOT / "node_modules")
    (folder / "_toc.yml").write_text(toc)
    (folder / "index.md").write_text("# The book\n\n```{tableofcontents}\n```\n")
    (chapters / "references.bib").write_text(BIB)
    (chapters / "bibliography.md").write_text(BIBLIOGRAPHY)
    page = chapters / "page.md"
    page.write_text(FRONT + PAGE + "\n```{code-cell} python\n1\n```\n")
    page.with_suffix(".ipynb").write_text(json.dumps(notebook(STATEMENTS)))
    (chapters / "claims.md").write_text(pages.ledger([page], None))
    (chapters / "theorems.md").write_text(pages.index([page]))
    for name, text in more.items():
        (chapters / f"{name}.md").write_text(text)


def build(folder: Path, **address: str) -> subprocess.CompletedProcess:
    """Build a book; where it is published is what the test says, whatever the machine says."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("GRADBOOK_")}
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "--nitpick"]
    return subprocess.run(
        [*command, "--warningiserror", "--keep-going", "-q", "."],
        cwd=folder,
        env=own | {"PYTHONPATH": str(folder)} | address,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Build the sound book."""
    folder = tmp_path_factory.mktemp("sound") / "book"
    write_book(folder)
    return build(folder), folder / "_build" / "html" / "chapters"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Build a book that holds every fault, twice."""
    folder = tmp_path_factory.mktemp("faulty") / "book"
    page = "      - file: chapters/page\n"
    toc = TOC.replace(page, page + "      - file: chapters/faults\n")
    write_book(folder, toc, faults=FAULTS)
    return build(folder), build(folder)


def test_a_sound_book_builds_without_a_warning(sound):
    done, _ = sound
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_the_page_is_built_from_its_notebook_and_has_its_strip(sound):
    page = (sound[1] / "page.html").read_text()
    assert '<dl class="strip">' in page
    assert page.count('<div class="claim claim-exact"') == len(STATEMENTS)
    # Numbered, and linked by number.
    assert re.search(r'href="#thm-a"[^>]*>\s*(<[^>]*>)*Theorem 1\.1', page)
    assert re.search(r'href="#equation-eq-a"[^>]*>\(1\.1\)', page)


def test_statements_of_the_ledger_read_as_they_were_written(sound):
    page = (sound[1] / "claims.html").read_text()
    rows = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in page.split("<tr")[2:]]
    assert [row[1] for row in rows] == [
        f"<p>{html.escape(words, quote=False)}</p>" for words in STATEMENTS
    ]
    assert {row[5] for row in rows} == {"<p>= 0.5 within 0</p>"}


def test_the_index_links_theorems_and_exercises(sound):
    page = (sound[1] / "theorems.html").read_text()
    assert 'href="page.html#thm-a"' in page
    assert 'href="page.html#ex-a"' in page


@pytest.mark.parametrize(
    "words",
    [
        "'myst' cross-reference target not found: 'missing.md'",
        "undefined label: 'nowhere'",
        "prf:ref reference target not found: thm-nowhere",
        "equation not found: eq-nowhere",
        "undefined label: 'fig-nowhere'",
        'could not find bibtex key "nobody1900"',
        r"malformed TeX: ParseError: KaTeX parse error:.*\\frac\{1\}\{",
    ],
)
def test_a_fault_turns_the_build_red_and_is_named(faulty, words):
    first, _ = faulty
    assert first.returncode != 0
    assert re.search(r"chapters/faults\.\w+(:\d+)?: WARNING: " + words, first.stderr)


def test_a_red_build_stays_red_when_it_is_run_again(faulty):
    first, again = faulty
    assert again.returncode != 0
    assert sorted(again.stderr.splitlines()) == sorted(first.stderr.splitlines())
