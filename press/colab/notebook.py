"""Put a notebook for Colab together: resolved Markdown, checked cells, a first cell that installs."""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from press.colab.markdown import Cell, Folded, Piece

# Colab and Jupyter hide the same things under different names.
CODE_HIDDEN = {"cellView": "form", "jupyter": {"source_hidden": True}}
OUTPUT_HIDDEN = {"jupyter": {"outputs_hidden": True}, "collapsed": True}
MYST_LEFT = (
    (r"^:{3,}", "a directive"),
    (r"\{[a-z]+(:[a-z]+)?\}$", "a role"),
    (r"^\([\w-]+\)=$", "a target"),
    (r"\$\$ *\([\w-]+\)$", "a label of an equation"),
    (r"^:(label|name|class|pyobject):", "an option of a directive"),
    (r"^\+\+\+", "a break between cells"),
)


@dataclass(frozen=True)
class Cover:
    """What comes before a chapter's own text: a few words, and the cell that installs."""

    words: str
    install: str


def assembled(name: str, found: list[Piece], checked: dict[str, Any], cover: Cover) -> dict:
    """Put a notebook together.

    Args:
        name: the chapter's file name without its ending.
        found: its Markdown and the places of its cells, in order.
        checked: the notebook that was run, whose cells and outputs are taken as they are.
        cover: what comes first.

    Returns:
        The parsed ``.ipynb``.

    Raises:
        ValueError: if a code cell is left out or comes twice.
    """
    places = [piece.index for piece in found if isinstance(piece, Cell)]
    code = [i for i, cell in enumerate(checked["cells"]) if cell["cell_type"] == "code"]
    if places != code:
        raise ValueError(
            f"{name}: code cells {code} of the notebook are cells {places} of the page"
        )
    first = [
        _markdown(f"{found[0]}\n\n{cover.words}", f"{name}-0"),
        _install(cover.install, f"{name}-1"),
    ]
    groups = enumerate(_grouped(found[1:]), len(first))
    cells = first + [_cell(group, f"{name}-{i}", checked["cells"]) for i, group in groups]
    closed = [cell["id"] for cell in cells if "heading_collapsed" in cell["metadata"]]
    metadata = _metadata(name, checked["metadata"], closed)
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _cell(group: Piece, name: str, checked: list[dict[str, Any]]) -> dict[str, Any]:
    if isinstance(group, Cell):
        return code_cell(checked[group.index], name)
    if isinstance(group, Folded):
        cell = _markdown(group.heading, name)
        # Jupyter's own names for a section that is closed; Colab lists such cells in one place.
        cell["metadata"] |= {"heading_collapsed": True, "jp-MarkdownHeadingCollapsed": True}
        return cell
    return _markdown(group, name)


def code_cell(cell: dict[str, Any], name: str) -> dict[str, Any]:
    """Copy a checked cell with its outputs, hidden where the page hides it.

    Args:
        cell: a code cell of the notebook that was run.
        name: its new identifier.

    Returns:
        The cell, with Colab's and Jupyter's names for what is hidden, and texts for its images.
    """
    old = cell["metadata"]
    tags = old.get("tags", [])
    source = "".join(cell["source"])
    metadata: dict[str, Any] = {"id": name}
    if "hide-input" in tags:
        metadata |= copy.deepcopy(CODE_HIDDEN)
        prompt = old.get("mystnb", {}).get("code_prompt_show", "Show the code")
        source = f"#@title {prompt}\n{source}"
    if "hide-output" in tags:
        metadata |= copy.deepcopy(OUTPUT_HIDDEN)
    outputs = copy.deepcopy(cell["outputs"])
    alt = " ".join(old.get("mystnb", {}).get("image", {}).get("alt", "").split())
    for output in outputs:
        if alt and "image/png" in output.get("data", {}):
            output["metadata"]["image/png"] = {"alt": alt}
    return {
        "cell_type": "code",
        "execution_count": cell["execution_count"],
        "id": name,
        "metadata": metadata,
        "outputs": outputs,
        "source": source,
    }


def myst_left(notebook: dict[str, Any]) -> list[str]:
    """Find MyST that a notebook's reader would see as it is written.

    Args:
        notebook: the parsed ``.ipynb``.

    Returns:
        What was found, in words, with its cell; listings and inline code are not looked into.
    """
    found = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            for token in MarkdownIt("commonmark").enable("table").parse(cell["source"]):
                if token.type == "fence" and token.info.startswith("{"):
                    found.append(f"{cell['id']}: a directive: {token.info!r}")
                found += [f"{cell['id']}: {fault}" for fault in _left_in(token.children or [])]
    return found


def _left_in(tokens: list[Token]) -> Iterator[str]:
    """Look at words; a role ends where its code begins."""
    for token, after in zip_longest(tokens, tokens[1:]):
        for pattern, what in MYST_LEFT:
            match = re.search(pattern, token.content) if token.type == "text" else None
            if match and (what != "a role" or (after and after.type == "code_inline")):
                yield f"{what}: {match[0]!r}"


def links_to_nothing(notebook: dict[str, Any]) -> list[str]:
    """Find links to places of the notebook that it does not name.

    Args:
        notebook: the parsed ``.ipynb``.

    Returns:
        The names, sorted.
    """
    words = "\n".join(x["source"] for x in notebook["cells"] if x["cell_type"] == "markdown")
    named = set(re.findall(r'<a name="([^"]*)">', words))
    return sorted(set(re.findall(r"\]\(#([^)]*)\)", words)) - named)


def _grouped(found: list[Piece]) -> list[Piece]:
    """Join Markdown that stands together; a heading opens a cell, so that it can close its section."""
    groups: list[Piece] = []
    for piece in found:
        words = isinstance(piece, str) and not piece.startswith("#")
        if words and groups and isinstance(groups[-1], str):
            groups[-1] += f"\n\n{piece}"
        else:
            groups.append(piece)
    return groups


def _markdown(source: str, name: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": name, "metadata": {"id": name}, "source": source}


def _install(source: str, name: str) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": name,
        "metadata": {"id": name} | copy.deepcopy(CODE_HIDDEN),
        "outputs": [],
        "source": f"#@title Fetch what this chapter needs\n{source}",
    }


def _metadata(name: str, checked: dict[str, Any], closed: list[str]) -> dict[str, Any]:
    colab = {"name": f"{name}.ipynb", "provenance": [], "collapsed_sections": closed}
    metadata = {
        "kernelspec": checked["kernelspec"],
        "language_info": checked["language_info"],
        "colab": colab,
        "gradbook": checked["gradbook"],
    }
    if checked["chapter"]["gpu"] != "not needed":
        metadata["accelerator"] = "GPU"
        colab["gpuType"] = "T4"
    return metadata
