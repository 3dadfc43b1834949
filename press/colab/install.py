"""The first cell of a notebook for Colab: it brings what the chapter needs and Colab lacks.

What Colab has is a dated list, ``press/colab/colab.txt``. The package comes from the commit that was
published; all that comes besides is pinned and checked against the hashes of the repository's locks. torch
is never among it, since Colab's fits its machine.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from packaging.utils import canonicalize_name

from press import needs

LIST = Path(__file__).with_name("colab.txt")


def colab_has(text: str) -> dict[str, str]:
    """Read the list of what Colab has.

    Args:
        text: lines ``name==version``; one of them names Python's own version.

    Returns:
        Versions by normalized name.
    """
    pins = re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def missing(page: Path, has: dict[str, str]) -> set[str]:
    """Name the distributions that a chapter needs and Colab lacks.

    Args:
        page: the ``.md`` file.
        has: from :func:`colab_has`.

    Returns:
        Normalized names, those that hold weights included.
    """
    asked = needs.distributions_of(page) | needs.weights_of(page)
    return needs.closed(asked, has["python"], {"torch", *has})


def pinned(names: Iterable[str], pins: dict[str, str]) -> list[str]:
    """Find the pins of distributions, with the hashes of their files.

    Args:
        names: normalized names.
        pins: requirements with hashes by normalized name, from :func:`press.wheels.pins`.

    Returns:
        One line for each, as pip reads it, in alphabetical order.

    Raises:
        LookupError: if one is not pinned with a hash.
    """
    names = sorted(names)
    if lost := [name for name in names if "--hash=sha256:" not in pins.get(name, "")]:
        raise LookupError(f"no hash is locked for {', '.join(lost)}: make lock")
    return [pins[name] for name in names]


def first_cell(requirement: str, pins: list[str], data: Iterable[str]) -> str:
    """Write the cell.

    Args:
        requirement: what pip installs as ``gradbook``.
        pins: from :func:`pinned`.
        data: the sets to bring, by the names that ``gradbook.fetch`` takes.

    Returns:
        Its source. Nothing that pip brings asks for more, so no second torch comes along.
    """
    # A magic or a command that fails does not stop a cell by itself.
    lines = [f'%pip install -q --no-deps "{requirement}"', must("the package")]
    if pins:
        lines += ['with open("needs.txt", "w") as file:', '    file.write("""']
        lines += [line.replace(" --hash", " \\\\\n  --hash") for line in pins]
        lines += ['""")', "%pip install --no-deps --require-hashes -r needs.txt"]
        lines += [must("what it needs")]
    if data:
        lines += [f"!python -m gradbook.fetch {' '.join(sorted(data))}", must("the data")]
    return "\n".join(lines)


def must(what: str) -> str:
    """Write a line that stops a cell where its last command failed.

    Args:
        what: what the command should have brought.

    Returns:
        An assertion; IPython and Colab keep the exit status under this name.
    """
    return f'assert _exit_code == 0, "{what} did not come: see above"'
