"""Build the notebooks for Colab and the site: ``python -m press.book [colab]``, or ``make book``.

Nothing is run: both are made of what is committed. The site offers the notebooks, so they come first.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from press import wheels
from press.address import address
from press.paths import ROOT

COLAB = ROOT / "_build" / "colab"
ENVIRONMENT = ROOT / "_build" / ".doctrees" / "environment.pickle"


def builder(*arguments: str) -> list[str]:
    """Write the command that builds the book.

    Args:
        arguments: what makes it another builder than that of the site.

    Returns:
        The words of the command; a warning is an error.
    """
    book = str(Path(sys.executable).with_name("jupyter-book"))
    return [book, "build", "--nitpick", "--warningiserror", "--keep-going", "-q", *arguments, "."]


def colab() -> None:
    """Build the notebooks, and the wheel where no repository is named that they could install from.

    Raises:
        subprocess.CalledProcessError: if a step fails, after it has said why.
        PipError: if the wheel cannot be built.
    """
    shutil.rmtree(COLAB, ignore_errors=True)
    _run([sys.executable, "-m", "press.pages"])
    _run(builder("--builder", "custom", "--custom-builder", "colab"))
    # What this build has read again the site's would take for written: it must read all anew.
    ENVIRONMENT.unlink(missing_ok=True)
    if address() is None:
        wheels.build(ROOT, COLAB)


def main(arguments: list[str]) -> int:
    """Build the book.

    Args:
        arguments: the command line without the program's name.

    Returns:
        The exit status: that of the first step that failed, after the reason was printed.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("what", nargs="?", choices=["colab", "all"], default="all")
    options = parser.parse_args(arguments)
    try:
        colab()
        if options.what == "all":
            _run(builder())
    except wheels.PipError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


def _run(command: list[str]) -> None:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
