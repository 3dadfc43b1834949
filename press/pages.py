"""Write the generated pages, the ledger and the index: ``python -m press.pages``."""

import json
import re
from pathlib import Path

from press import audit, outputs
from press.digest import digest
from press.paths import CHAPTERS, RECORDS, executed_chapters

LEDGER_HEAD = """\
# The ledger of claims

Every statement of the book that is marked as a claim is run whenever the book is checked.
This page lists all of them:
{claims} claims in {chapters} chapters, {argued} of them argued rather than run.
The kinds are *exact* (equal to rounding in float64), *approximate* (equal within a stated
tolerance), *statistical* (equal or better within stated standard errors), *bound* (on one side of
a number), and *argued*.
{gpu}
"""
INDEX_HEAD = """\
# Theorems and exercises

Every numbered statement of the book, in the order of its chapters.
"""


def reference(label: str) -> str:
    """Write the MyST reference to a label by what its prefix says it is.

    Args:
        label: such as ``thm-leibniz``, ``eq-objective``, ``ex-uniform`` or ``float32-tail``.

    Returns:
        A role that shows the number where there is one, and the label otherwise.
    """
    prefix = label.split("-")[0]
    if prefix in ("thm", "prop", "lem", "cor", "def"):
        return f"{{prf:ref}}`{label}`"
    if prefix == "eq":
        return f"{{eq}}`{label}`"
    if prefix == "ex":
        return f"{{ref}}`{label}`"
    return f"{{ref}}`{label.replace('-', ' ')} <{label}>`"


def ledger(pages: list[Path], gpu: dict | None) -> str:
    """Write the ledger page from the outputs of the chapters.

    Args:
        pages: the ``.md`` files of the chapters that run.
        gpu: the committed record of a run on a GPU, or None.

    Returns:
        MyST text.
    """
    found = {page.stem: outputs.claims(outputs.load(page)) for page in pages}
    everything = [claim for claims in found.values() for claim in claims]
    head = LEDGER_HEAD.format(
        claims=len(everything),
        chapters=len(pages),
        argued=round(audit.argued_share(everything) * len(everything)),
        gpu=_gpu_words(gpu, [page.stem for page in pages]),
    )
    sections = [_section(page, found[page.stem], gpu) for page in pages]
    return "\n".join([head, *sections])


def index(pages: list[Path]) -> str:
    """Write the index of theorems and exercises.

    Args:
        pages: the ``.md`` files of the chapters that run.

    Returns:
        MyST text.
    """
    parts = [INDEX_HEAD]
    for page in pages:
        blocks = outputs.directives(page.read_text())
        listed = [b for b in blocks if b.label and b.kind.startswith(("prf:", "exercise"))]
        rows = [f"- {reference(b.label)}{': ' + b.title if b.title else ''}" for b in listed]
        parts.append(f"## {_title(page)}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _section(page: Path, claims: list[dict], gpu: dict | None) -> str:
    if not claims:  # a table of a header alone is an error
        return f"## {_title(page)}\n\nNo claims.\n"
    lines = [
        f"## {_title(page)}\n",
        *_changed_words(page, gpu),
        "::::{list-table}\n:header-rows: 1\n:class: ledger\n",
        "* - Where\n  - Statement\n  - Kind\n  - Measured on CPU\n  - Measured on GPU\n  - Bound",
    ]
    for claim in claims:
        cells = (
            reference(claim["label"]),
            _literal(claim["statement"]),
            claim["kind"],
            _measured(claim),
            _measured(_on_gpu(gpu, page.stem, claim)),
            _literal(claim["bound"]),
        )
        lines.append("* - " + "\n  - ".join(cells))
    return "\n".join([*lines, "::::\n"])


def _on_gpu(gpu: dict | None, chapter: str, claim: dict) -> dict | None:
    key = ("label", "statement")
    rows = (gpu or {}).get("claims", {}).get(chapter, [])
    return next((row for row in rows if all(row[k] == claim[k] for k in key)), None)


def _measured(claim: dict | None) -> str:
    if claim is None or claim["measured"] is None:
        return "–"
    spread = "" if claim["stderr"] is None else f" ± {claim['stderr']:.2g}"
    value = claim["measured"]
    return (value if isinstance(value, str) else f"{value:.6g}") + spread


def _gpu_words(gpu: dict | None, chapters: list[str]) -> str:
    if gpu is None:
        return "The book has not been run on a GPU yet: that column is empty."
    words = (
        "The GPU column was measured on {card}, driver {driver}, with torch {torch} on {date}, "
        "of commit `{commit:.12}`."
    ).format(**gpu)
    if missing := [name for name in chapters if name not in gpu["chapters"]]:
        words += f" It misses {len(missing)} of the chapters: {', '.join(missing)}."
    return words


def _changed_words(page: Path, gpu: dict | None) -> list[str]:
    """Values of another text are not shown without a word."""
    ran = (gpu or {}).get("chapters", {}).get(page.stem)
    if ran is None or ran["digest"] == digest(page):
        return []
    return ["The chapter, or code that it runs, has changed since it ran on the GPU.\n"]


def _recorded(path: Path) -> dict | None:
    """Read what was measured on a GPU, where it has been; a trial on a CPU is no such record."""
    gpu = json.loads(path.read_text()) if path.exists() else None
    if gpu is not None and gpu["device"] != "cuda":
        raise ValueError(f"{path}: was measured on {gpu['device']}, not on a GPU")
    return gpu


def _literal(text: str) -> str:
    """A statement is words on one line: escape all punctuation, any of it may begin markup."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def _title(page: Path) -> str:
    return re.search(r"^# (.+)$", page.read_text(), re.MULTILINE)[1]


def main() -> None:
    """Write ``chapters/claims.md`` and ``chapters/theorems.md``."""
    pages = executed_chapters()
    gpu = _recorded(RECORDS / "gpu.json")
    (CHAPTERS / "claims.md").write_text(ledger(pages, gpu))
    (CHAPTERS / "theorems.md").write_text(index(pages))


if __name__ == "__main__":
    main()
