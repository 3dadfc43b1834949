"""nbval, as the chapters are checked with it, really compares; and where it does not, the audit does."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from press import audit
from press.paths import ROOT

pytestmark = pytest.mark.slow


def stream(text):
    return new_output("stream", name="stdout", text=text)


def display(plain, html):
    return new_output("display_data", data={"text/plain": plain, "text/html": html})


CLAIM = 'from gradbook import claim\nclaim("thm-a", "it holds", {value}, equals=1)'
HELD = display("thm-a holds: it holds", "<b>whatever was measured</b>")
OURS = "import warnings\nwarnings.warn_explicit('w', UserWarning, 'x', 1, module='gradbook.a')"
CASES = {
    "same": ("print('a')", [stream("a\n")], 1, True),
    "printed-otherwise": ("print('a')", [stream("b\n")], 1, False),
    "html-alone-differs": (CLAIM.format(value=1), [HELD], 1, True),
    "statement-differs": (
        CLAIM.format(value=1),
        [display("thm-a holds: it held", "<b></b>")],
        1,
        False,
    ),
    "claim-fails": (CLAIM.format(value=2), [HELD], 1, False),
    "own-warning": (OURS, [], 1, False),
    "other-warning": (OURS.replace("gradbook.a", "other"), [], 1, True),
    "never-run": ("print('a')", [], None, True),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Run every case once, each a notebook of one cell, as ``make test`` runs the chapters."""
    folder = tmp_path_factory.mktemp("nbval")
    shutil.copy(ROOT / "conftest.py", folder)
    (folder / "press").mkdir()
    shutil.copytree(ROOT / "press" / "ipython", folder / "press" / "ipython")
    for name, (source, outputs, count, _) in CASES.items():
        cell = new_code_cell(source, outputs=outputs, execution_count=count)
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        nbformat.write(new_notebook(cells=[cell], metadata=kernel), folder / f"{name}.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-rA", "-q"]
    command += ["-p", "no:cacheprovider", f"--rootdir={folder}", str(folder)]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=os.environ, check=False
    )
    return result.stdout


@pytest.mark.parametrize("name", CASES)
def test_nbval_judges(outcomes, name):
    passes = CASES[name][3]
    assert f"{'PASSED' if passes else 'FAILED'} {name}.ipynb::Cell 0" in outcomes


def test_what_nbval_passes_silently_the_audit_refuses():
    cell = new_code_cell("print('a')", execution_count=None)
    assert audit.cells_ran("", new_notebook(cells=[cell])) == ["cell 0 was not run"]
