"""What a page can run: its cells, what its imports run, and every definition that these name.

A module that is imported runs its loose statements; a function or class in it counts only once
something that runs names it. A module that is named without an attribute could be asked for anything,
so all of it counts. Names that stand in strings, as for ``getattr``, are not followed.
"""

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

from press.digest import code_of, modules_of, path_of
from press.paths import CODE

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Module(NamedTuple):
    """A text of Python taken apart.

    ``definitions`` are its functions and classes, ``loose`` its other statements, ``bindings`` what
    its imports bind to which dotted name, ``constants`` its names for strings.
    """

    name: str
    loose: list[ast.stmt]
    definitions: dict[str, ast.stmt]
    bindings: dict[str, str]
    constants: dict[str, str]


class Reached(NamedTuple):
    """What a page can run: dotted names of definitions, and code with the module it stands in."""

    names: set[str]
    code: list[tuple[Module, ast.stmt]]


def reached(page: Path, code: Path = CODE) -> Reached:
    """Follow a page's code through the modules that it imports.

    Args:
        page: the ``.md`` file.
        code: the folder that holds the package.

    Returns:
        The definitions of our modules that the page can run, by dotted name, and all that runs.
    """
    text = page.read_text()
    modules = {name: _module(name, code) for name in modules_of(text, code)}
    cells = _taken_apart("", "", code_of(text))
    waiting = [(module, node) for module in modules.values() for node in module.loose]
    waiting += [(cells, node) for node in (*cells.loose, *cells.definitions.values())]
    found = Reached(set(), [])
    while waiting:
        module, node = waiting.pop()
        found.code.append((module, node))
        for dotted in _named(node, module):
            for owner, name in _definitions(dotted, modules):
                if f"{owner.name}.{name}" not in found.names:
                    found.names.add(f"{owner.name}.{name}")
                    waiting.append((owner, owner.definitions[name]))
    return found


def _module(name: str, code: Path) -> Module:
    path = path_of(name, code)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return _taken_apart(name, package, path.read_text())


def _taken_apart(name: str, package: str, source: str) -> Module:
    tree = ast.parse(source)
    definitions = {node.name: node for node in tree.body if isinstance(node, _DEFINITIONS)}
    loose = [node for node in tree.body if not isinstance(node, _DEFINITIONS)]
    bindings = {}
    for node in ast.walk(tree):
        bindings |= dict(_bound(node, package))
    constants = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }
    return Module(name, loose, definitions, bindings, constants)


def _bound(node: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            first = alias.name.split(".")[0]
            yield (alias.asname, alias.name) if alias.asname else (first, first)
    elif isinstance(node, ast.ImportFrom):
        base = resolve_name("." * node.level + (node.module or ""), package)
        for alias in node.names:
            yield alias.asname or alias.name, f"{base}.{alias.name}"


def _named(node: ast.AST, module: Module) -> Iterator[str]:
    """Yield the dotted names that code mentions, each as long as it is written."""
    if isinstance(node, ast.Attribute | ast.Name):
        first, *rest = (chain := _chain(node)).split(".")
        if first in module.bindings:
            yield ".".join([module.bindings[first], *rest])
            return
        if chain and first in module.definitions:
            yield f"{module.name}.{first}"
    for child in ast.iter_child_nodes(node):
        yield from _named(child, module)


def _chain(node: ast.AST) -> str:
    """Write ``a.b.c`` for such a chain of attributes, and nothing for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _chain(node.value)):
        return f"{before}.{node.attr}"
    return ""


def _definitions(dotted: str, modules: dict[str, Module]) -> Iterator[tuple[Module, str]]:
    """Find the definitions behind a dotted name, through what a module imports to pass on."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        module = modules.get(".".join(parts[:end]))
        if module is None:
            continue
        if end == len(parts):
            yield from ((module, name) for name in module.definitions)
        elif parts[end] in module.definitions:
            yield module, parts[end]
        elif parts[end] in module.bindings:
            passed_on = ".".join([module.bindings[parts[end]], *parts[end + 1 :]])
            if passed_on != dotted:
                yield from _definitions(passed_on, modules)
        return
