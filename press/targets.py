"""Which checks concern a file of the code: its unit tests, and the chapters that import it."""

from pathlib import Path, PurePosixPath

from press.digest import modules_of
from press.paths import executed_chapters


def module_of(file: str) -> str:
    """Name the module that a file holds.

    Args:
        file: a path below ``code/`` or ``press/``, with forward slashes.

    Returns:
        Its dotted name: ``code/gradbook/peft/svd.py`` gives ``gradbook.peft.svd``.
    """
    parts = list(PurePosixPath(file).with_suffix("").parts)
    if parts[0] == "code":
        del parts[0]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_tests_of(file: str) -> str:
    """Name the file that holds the unit tests of a module.

    Tests mirror the code: ``code/gradbook/x.py`` is tested by ``tests/test_x.py``,
    ``code/gradbook/peft/svd.py`` by ``tests/peft/test_svd.py`` and ``press/x.py`` by
    ``tests/press/test_x.py``.

    Args:
        file: a path below ``code/gradbook/`` or ``press/``, with forward slashes.

    Returns:
        The path of the tests, whether or not it exists.
    """
    path = PurePosixPath(file.removeprefix("code/gradbook/"))
    return str(PurePosixPath("tests") / path.parent / f"test_{path.name}")


def chapters_of(file: str, root: Path) -> list[str]:
    """List the notebooks of the chapters that import a module.

    Args:
        file: the path of the module from the root.
        root: the repository.

    Returns:
        Paths of notebooks from the root, in alphabetical order.
    """
    pages = executed_chapters(root / "chapters")
    notebooks = [
        page.with_suffix(".ipynb")
        for page in pages
        if module_of(file) in modules_of(page.read_text(), root / "code")
    ]
    return [path.relative_to(root).as_posix() for path in notebooks if path.exists()]
