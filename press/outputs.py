"""Read a chapter: its claims and figures from the notebook, its labels from the text."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

THEOREM_KINDS = ("theorem", "proposition", "lemma", "corollary")
_DIRECTIVE = re.compile(
    r"^(?P<fence>:{3,}|`{3,})\{(?P<kind>[\w:-]+)\}[ \t]*(?P<title>[^\n]*)\n"
    r"(?P<options>(?::[\w-]+:.*\n)*)",
    re.MULTILINE,
)
_TARGET = re.compile(r"^\((?P<label>[\w-]+)\)=\s*$", re.MULTILINE)
_EQUATION = re.compile(r"^\$\$\s*\((?P<label>[\w-]+)\)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Directive:
    """A labelled block of a page: its kind (``prf:theorem``, ``exercise``), title and label."""

    kind: str
    title: str
    label: str


def directives(markdown: str) -> list[Directive]:
    """List the blocks of a page in order.

    Args:
        markdown: the text of a MyST page.

    Returns:
        Every directive; its label is empty where it has none.
    """
    found = []
    for match in _DIRECTIVE.finditer(markdown):
        label = re.search(r"^:label:\s*(\S+)", match["options"], re.MULTILINE)
        found.append(Directive(match["kind"], match["title"].strip(), label[1] if label else ""))
    return found


def labels(markdown: str) -> set[str]:
    """Collect what a claim of this page may name.

    Args:
        markdown: the text of a MyST page.

    Returns:
        The labels of blocks, equations and marked sentences.
    """
    blocks = {block.label for block in directives(markdown) if block.label}
    targets = {match["label"] for match in _TARGET.finditer(markdown)}
    equations = {match["label"] for match in _EQUATION.finditer(markdown)}
    return blocks | targets | equations


def theorems(markdown: str) -> list[Directive]:
    """List the statements of a page that need a claim.

    Args:
        markdown: the text of a MyST page.

    Returns:
        Its theorems, propositions, lemmas and corollaries, labelled or not.
    """
    return [
        block for block in directives(markdown) if block.kind.removeprefix("prf:") in THEOREM_KINDS
    ]


def code_cells(notebook: dict) -> Iterator[tuple[int, dict]]:
    """Yield the code cells that hold source, with their place in the notebook."""
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code" and text(cell["source"]).strip():
            yield index, cell


def claims(notebook: dict) -> list[dict]:
    """Collect the claims that a notebook's outputs hold, in order.

    Args:
        notebook: the parsed ``.ipynb``.

    Returns:
        The fields of ``gradbook.claims.Claim`` as dictionaries.
    """
    return [
        output["metadata"]["gradbook"]
        for _, cell in code_cells(notebook)
        for output in cell["outputs"]
        if "gradbook" in output.get("metadata", {})
    ]


def load(page: Path) -> dict:
    """Read the notebook beside a page.

    Args:
        page: the ``.md`` file.

    Returns:
        The parsed notebook.

    Raises:
        FileNotFoundError: if the page has not been run; ``make notebooks`` runs it.
    """
    path = page.with_suffix(".ipynb")
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: make notebooks")
    return json.loads(path.read_text())


def text(source: str | list[str]) -> str:
    """Join what a notebook may store as a list of lines."""
    return source if isinstance(source, str) else "".join(source)


@dataclass(frozen=True)
class Included:
    """A function of a module that a page shows: the file below ``code/`` and the name in it."""

    path: str
    name: str


def included(markdown: str) -> list[Included]:
    """List the module objects that a page includes by ``literalinclude`` and ``:pyobject:``.

    Args:
        markdown: the text of a MyST page.

    Returns:
        Their files and names, in order.
    """
    pattern = (
        r"\{literalinclude\}\s+\.\./code/(\S+)\s*\n(?::(?!pyobject)[\w-]+:.*\n)*:pyobject:\s*(\S+)"
    )
    return [Included(path, name) for path, name in re.findall(pattern, markdown)]


def words(markdown: str) -> int:
    """Count the words of a page that a reader reads: prose and captions, not code or mathematics.

    Args:
        markdown: the text of a MyST page.

    Returns:
        The number of words.
    """
    prose = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    prose = re.sub(r"^```\{code-cell\}.*?^```$", "", prose, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", " x ", prose, flags=re.DOTALL)
    return len(re.findall(r"[A-Za-z][A-Za-z'’-]*", prose))
