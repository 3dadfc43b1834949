"""The guards over a chapter: ``python -m press.audit`` prints every fault and fails on one.

Each guard is a function from a page's text and notebook to a list of faults in words, and each has
a test that makes it fail.
"""

import ast
import base64
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from press import outputs
from press.paths import CODE, ROOT, executed_chapters

CELL_LINES = 40
COLUMNS = 76
PNG_BYTES = 120_000
PAGE_WORDS = 6_000
PRINTED_DIGITS = 4
ARGUED_SHARE = 0.1

Guard = Callable[[str, dict], list[str]]


def cells_ran(_: str, notebook: dict) -> list[str]:
    """nbval compares nothing, silently, in a cell that was not run."""
    return [
        f"cell {index} was not run"
        for index, cell in outputs.code_cells(notebook)
        if not cell["execution_count"]
    ]


def something_is_compared(_: str, notebook: dict) -> list[str]:
    """A chapter whose outputs are all skipped by nbval passes whatever it does."""
    return [] if any(_compared(notebook)) else ["no output of this chapter is compared"]


def no_errors(_: str, notebook: dict) -> list[str]:
    """An error output must not become the reference."""
    return [
        f"cell {index} holds an error: {output['ename']}"
        for index, cell in outputs.code_cells(notebook)
        for output in cell["outputs"]
        if output["output_type"] == "error"
    ]


def no_warnings(_: str, notebook: dict) -> list[str]:
    """A warning on the page is noise to the reader and a future error."""
    return [
        f"cell {index} writes to stderr: {outputs.text(output['text']).strip()[:80]}"
        for index, cell in outputs.code_cells(notebook)
        for output in cell["outputs"]
        if output.get("name") == "stderr"
    ]


def figures_described(_: str, notebook: dict) -> list[str]:
    """Every figure has a caption, a name to refer to, and a text for those who do not see it."""
    faults = []
    for index, cell in outputs.code_cells(notebook):
        if any("image/png" in output.get("data", {}) for output in cell["outputs"]):
            render = cell["metadata"].get("mystnb", {})
            wanted = {
                "caption": render.get("figure", {}).get("caption"),
                "name": render.get("figure", {}).get("name"),
                "alt text": render.get("image", {}).get("alt"),
            }
            faults += [f"cell {index}: figure without {k}" for k, v in wanted.items() if not v]
    return faults


def figures_light(_: str, notebook: dict) -> list[str]:
    """A heavy figure slows every reader."""
    faults = []
    for index, cell in outputs.code_cells(notebook):
        for output in cell["outputs"]:
            png = outputs.text(output.get("data", {}).get("image/png", ""))
            size = len(base64.b64decode(png))
            if size > PNG_BYTES:
                faults.append(f"cell {index}: figure of {size / 1000:.0f} kB (at most 120)")
    return faults


def cells_short(_: str, notebook: dict) -> list[str]:
    """A cell is read on the page: short, and no wider than the page."""
    faults = []
    for index, cell in outputs.code_cells(notebook):
        lines = outputs.text(cell["source"]).splitlines()
        if len(lines) > CELL_LINES:
            faults.append(f"cell {index}: {len(lines)} lines (at most {CELL_LINES})")
        faults += [f"cell {index}: wider than {COLUMNS}: {x}" for x in lines if len(x) > COLUMNS]
    return faults


def theorems_claimed(markdown: str, notebook: dict) -> list[str]:
    """Every theorem is labelled, and something that could fail was run for it."""
    claimed = {claim["label"] for claim in outputs.claims(notebook)}
    faults = []
    for theorem in outputs.theorems(markdown):
        if not theorem.label:
            faults.append(f"theorem without a label: {theorem.title}")
        elif theorem.label not in claimed:
            faults.append(f"theorem without a claim: {theorem.label}")
    return faults


def claims_labelled(markdown: str, notebook: dict) -> list[str]:
    """A claim names a statement that stands on its page."""
    known = outputs.labels(markdown)
    wrong = {claim["label"] for claim in outputs.claims(notebook)} - known
    return [f"claim without a label on its page: {label}" for label in sorted(wrong)]


def exercises_solved(markdown: str, notebook: dict) -> list[str]:
    """Every exercise has a solution, and its solution is checked by a claim."""
    blocks = outputs.directives(markdown)
    solved = {block.title for block in blocks if block.kind in ("solution", "solution-start")}
    claimed = {claim["label"] for claim in outputs.claims(notebook)}
    faults = []
    for block in blocks:
        if block.kind not in ("exercise", "exercise-start"):
            continue
        if block.label not in solved:
            faults.append(f"exercise without a solution: {block.label or block.title}")
        elif block.label not in claimed:
            faults.append(f"exercise without a claim: {block.label}")
    return faults


def nothing_raw(_: str, notebook: dict) -> list[str]:
    """Compared text holds no long decimals: they differ between devices and releases."""
    long = re.compile(rf"\b\d*\.\d{{{PRINTED_DIGITS + 1},}}|\btensor\(")
    return [
        f"cell {index}: prints raw numbers: {found[0]}"
        for index, shown in _compared(notebook)
        if (found := long.search(shown))
    ]


def proofs_begin_with_words(markdown: str, _: dict) -> list[str]:
    """Display mathematics first in a proof is glued to the word Proof and shows as raw text."""
    bad = re.findall(r"\{prf:proof\}[^\n]*\n(?::[\w-]+:.*\n)*\s*\$\$", markdown)
    return ["a proof begins with display mathematics"] * len(bad)


def included_lines_fit(markdown: str, _: dict) -> list[str]:
    """Lines of a module that a page shows are no wider than the page."""
    faults = []
    for shown in outputs.included(markdown):
        path = CODE / shown.path
        node: ast.AST | None = ast.parse(path.read_text())
        for name in shown.name.split("."):
            within = getattr(node, "body", [])
            node = next((n for n in within if getattr(n, "name", "") == name), None)
        if node is None:
            faults.append(f"{shown.path} has no {shown.name}")
            continue
        lines = path.read_text().splitlines()[node.lineno - 1 : node.end_lineno]
        faults += [f"{shown.path}: wider than {COLUMNS}: {x}" for x in lines if len(x) > COLUMNS]
    return faults


def page_short(markdown: str, _: dict) -> list[str]:
    """A page is at most six thousand words."""
    count = outputs.words(markdown)
    return [f"{count} words (at most {PAGE_WORDS})"] if count > PAGE_WORDS else []


GUARDS: tuple[Guard, ...] = (
    cells_ran,
    something_is_compared,
    no_errors,
    no_warnings,
    figures_described,
    figures_light,
    cells_short,
    theorems_claimed,
    claims_labelled,
    exercises_solved,
    nothing_raw,
    proofs_begin_with_words,
    included_lines_fit,
    page_short,
)


def audit(markdown: str, notebook: dict) -> list[str]:
    """Hold every guard over a chapter.

    Args:
        markdown: the text of the page.
        notebook: its parsed notebook.

    Returns:
        The faults in words; empty for a sound chapter.
    """
    return [fault for guard in GUARDS for fault in guard(markdown, notebook)]


def argued_share(claims: list[dict]) -> float:
    """Measure how much of the book rests on argument alone.

    Args:
        claims: the claims of all chapters.

    Returns:
        The share of claims marked ``argued``, 0 where there are none.
    """
    return sum(claim["kind"] == "argued" for claim in claims) / max(len(claims), 1)


def _compared(notebook: dict) -> Iterator[tuple[int, str]]:
    """Yield the texts that nbval compares: standard output and plain-text representations."""
    for index, cell in outputs.code_cells(notebook):
        for output in cell["outputs"]:
            if output.get("name") == "stdout":
                yield index, outputs.text(output["text"])
            elif "text/plain" in output.get("data", {}):
                yield index, outputs.text(output["data"]["text/plain"])


def main() -> int:
    """Audit every chapter and print the faults.

    Returns:
        The exit status.
    """
    found, claims = [], []
    pages: list[Path] = executed_chapters()
    for page in pages:
        notebook = outputs.load(page)
        claims += outputs.claims(notebook)
        found += [f"{page.relative_to(ROOT)}: {f}" for f in audit(page.read_text(), notebook)]
    if not pages:
        found.append("no chapter holds code cells")
    if argued_share(claims) > ARGUED_SHARE:
        found.append(f"{argued_share(claims):.0%} of the claims are argued, not run (at most 10 %)")
    print("\n".join(found) or f"{len(pages)} chapters, {len(claims)} claims: no fault found")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
