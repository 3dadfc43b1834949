"""A tiny book built by the real configuration: clean when sound, red for each dead reference."""

import json
import os
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
    'it\'s "quoted" -- and --- so ...',
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
    shutil.copy(ROOT / "_config.yml", folder)
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


def build(folder: Path) -> subprocess.CompletedProcess:
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "--nitpick"]
    return subprocess.run(
        [*command, "--warningiserror", "--keep-going", "-q", "."],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
