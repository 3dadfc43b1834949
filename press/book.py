"""Build the notebooks for Colab and the site: ``python -m press.book [colab]``, or ``make book``.

Nothing is run: both are made of what is committed. The site offers the notebooks, so they come first.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from press.address import address
from press.paths import ROOT

COLAB = ROOT / "_build" / "colab"
# The earliest time that a wheel, which is a zip file, can hold: two wheels of one commit are equal.
EPOCH = "315532800"


def builder(*arguments: str) -> list[str]:
    """Write the command that builds the book.

    Args:
        arguments: what makes it another builder than that of the site.

    Returns:
        The words of the command; a warning is an error.
    """
    book = str(Path(sys.executable).with_name("jupyter-book"))
    return [book, "build", "--nitpick", "--warningiserror", "--keep-going", "-q", *arguments, "."]


def wheel(target: Path = COLAB) -> None:
    """Build the wheel that notebooks of an unpublished book install.

    Args:
        target: the folder of the notebooks.

    Raises:
        subprocess.CalledProcessError: if it cannot be built, after it has said why.
    """
    # What an older build left there would go into the wheel.
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target)]
    environment = os.environ | {"SOURCE_DATE_EPOCH": EPOCH}
    subprocess.run([*command, "."], cwd=ROOT, env=environment, check=True, capture_output=True)
    shutil.rmtree(ROOT / "build")


def colab() -> None:
    """Build the notebooks, and the wheel where no repository is named that they could install from.

    Raises:
        subprocess.CalledProcessError: if a step fails, after it has said why.
    """
    shutil.rmtree(COLAB, ignore_errors=True)
    _run([sys.executable, "-m", "press.pages"])
    _run(builder("--builder", "custom", "--custom-builder", "colab"))
    if address() is None:
        wheel()


def main(arguments: list[str]) -> int:
    """Build the book.

    Args:
        arguments: the command line without the program's name.

    Returns:
        The exit status: that of the first step that failed, which has said why.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("what", nargs="?", choices=["colab", "all"], default="all")
    options = parser.parse_args(arguments)
    try:
        colab()
        if options.what == "all":
            _run(builder())
    except subprocess.CalledProcessError as error:
        print((error.stderr or b"").decode(), end="", file=sys.stderr)
        return error.returncode
    return 0


def _run(command: list[str]) -> None:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
