"""What a chapter's outputs depend on: its text, the modules it imports, the records it reads."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from importlib.util import resolve_name
from pathlib import Path

import jupytext

from press.paths import CODE, RECORDS

PACKAGE = "gradbook"


def modules_of(markdown: str, code: Path = CODE) -> set[str]:
    """Find the ``gradbook`` modules that a page imports, directly or through another module.

    Args:
        markdown: the text of a MyST page.
        code: the folder that holds the package.

    Returns:
        Dotted module names, such as ``gradbook.claims``.
    """
    found: set[str] = set()
    waiting = list(_imports(code_of(markdown), code))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            path = path_of(name, code)
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            waiting.extend(_imports(path.read_text(), code, package))
    return found


def digest(page: Path, code: Path = CODE, records: Path = RECORDS) -> str:
    """Summarize everything that a page's outputs depend on.

    jupyter-cache looks at the page alone and misses a changed module; this does not.

    Args:
        page: the ``.md`` file.
        code: the folder that holds the package.
        records: the folder of records.

    Returns:
        Sixty-four hexadecimal digits.
    """
    text = page.read_text()
    paths = [path_of(name, code) for name in sorted(modules_of(text, code))]
    paths += sorted((code / PACKAGE).glob("*.mplstyle"))  # the figures' style
    paths += _records_of(text, records)
    summary = hashlib.sha256(text.encode())
    for path in paths:
        summary.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return summary.hexdigest()


def code_of(markdown: str) -> str:
    """Join the code cells of a page.

    Args:
        markdown: the text of a MyST page.

    Returns:
        Their source, cell after cell.
    """
    cells = jupytext.reads(markdown, fmt="md:myst").cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def _imports(source: str, code: Path, package: str = "") -> Iterator[str]:
    """Yield the modules that a source text imports; relative names start at ``package``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names: Iterable[str] = (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield from _with_parents(name, code)


def _with_parents(name: str, code: Path) -> Iterator[str]:
    """Importing a module runs its packages too."""
    parts = name.split(".")
    if parts[0] == PACKAGE:
        for end in range(1, len(parts) + 1):
            prefix = ".".join(parts[:end])
            if path_of(prefix, code).exists():
                yield prefix


def path_of(name: str, code: Path) -> Path:
    """Say where a module's text is, whether or not it is there.

    Args:
        name: a dotted name.
        code: the folder that holds the package.

    Returns:
        The file of the module, or the ``__init__.py`` of a package.
    """
    base = code.joinpath(*name.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _records_of(markdown: str, records: Path) -> list[Path]:
    """A page reads a record by its name, a string in one of its cells."""
    strings = {
        node.value
        for node in ast.walk(ast.parse(code_of(markdown)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    # What was measured on a GPU is for the ledger: no chapter goes stale by it.
    found = [path for path in sorted(records.glob("*.json")) if path.name != "gpu.json"]
    return [path for path in found if path.stem in strings]
