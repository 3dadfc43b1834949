"""nbval compares what it should, with the flags and the conftest.py that the chapters are run with.

Each cell of one tiny notebook is a case of its own: its source is run, its stored output is what a
chapter would have committed.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from gradbook.claims import Claim
from press import audit
from press.paths import ROOT

pytestmark = pytest.mark.slow

FLAGS = "--nbval --nbval-current-env --nbval-cell-timeout 120 --nbval-kernel-startup-timeout 180"
HOLDS = Claim("thm-a", "two is two", "exact", 2.0, None, "= 2 within 0")
CLAIM = 'claim("thm-a", "two is two", {}, equals=2, rtol=0)'
# A module of ours whose warning no other filter would stop.
NOISY = "import warnings\n\n\ndef old():\n    warnings.warn('old', FutureWarning)\n"


def printed(text):
    return {"output_type": "stream", "name": "stdout", "text": text}


def shown(claim, **other):
    data, metadata = claim._repr_mimebundle_()
    return {"output_type": "display_data", "data": data | other, "metadata": metadata}


def complaint(text):
    return {"output_type": "stream", "name": "stderr", "text": text}


def display(kind):
    return f"from IPython.display import display\ndisplay({{{kind!r}: 'new'}}, raw=True)"


def stored(kind):
    return {"output_type": "display_data", "data": {kind: "old"}, "metadata": {}}


SKIPPED = ["text/html", "text/markdown", "text/latex", "image/svg+xml", "image/png", "image/jpeg"]
# Name: source, stored output, and what nbval says of it, or None where it passes.
CASES = {
    "imports": ("from gradbook import claim", [], None),
    "same line": ("print('a')", [printed("a\n")], None),
    "changed line": ("print('b')", [printed("a\n")], "Cell outputs differ"),
    "missing line": ("pass", [printed("a\n")], "Cell outputs differ"),
    "further line": ("print('a')", [], "Cell outputs differ"),
    "error": ("1 / 0", [], "Cell execution caused an exception"),
    "same claim": (CLAIM.format(2), [shown(HOLDS)], None),
    "claim measured anew": (CLAIM.format(2), [shown(HOLDS, **{"text/html": "1.99"})], None),
    "claim restated": (CLAIM.format(2).replace("is", "equals"), [shown(HOLDS)], "outputs differ"),
    "claim broken": (CLAIM.format(2.1), [shown(HOLDS)], "claim thm-a does not hold: two is two"),
    "claim dropped": ("pass", [shown(HOLDS)], "Cell outputs differ"),
    "plain text changed": (display("text/plain"), [stored("text/plain")], "Cell outputs differ"),
    **{f"{kind} changed": (display(kind), [stored(kind)], None) for kind in SKIPPED},
    "warning of another": ("import warnings\nwarnings.warn('new')", [complaint("old")], None),
    "warning of ours": (
        "import gradbook\ngradbook.__path__.append('.')\nimport gradbook.noisy\n"
        "gradbook.noisy.old()",
        [],
        "FutureWarning",
    ),
    "figure": (
        "import matplotlib\nprint('inline' in matplotlib.get_backend())",
        [printed("True\n")],
        None,
    ),
}


def notebook(cells):
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def cell(index, source, outputs, count):
    return {
        "cell_type": "code",
        "id": f"c{index}",
        "metadata": {},
        "source": source,
        "execution_count": count,
        "outputs": outputs,
    }


UNRUN = notebook([cell(0, "print('never compared')", [], None)])


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """Run both notebooks and return what pytest said of each cell."""
    folder = tmp_path_factory.mktemp("book")
    chapters = folder / "chapters"
    chapters.mkdir()
    shutil.copy(ROOT / "conftest.py", folder)
    shutil.copytree(ROOT / "press" / "ipython", folder / "press" / "ipython")
    (chapters / "noisy.py").write_text(NOISY)
    cells = [cell(i, s, outputs, i + 1) for i, (s, outputs, _) in enumerate(CASES.values())]
    (chapters / "cases.ipynb").write_text(json.dumps(notebook(cells)))
    (chapters / "unrun.ipynb").write_text(json.dumps(UNRUN))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *FLAGS.split()]
        + ["chapters/cases.ipynb", "chapters/unrun.ipynb"],
        cwd=folder,
        # conftest.py mends both: neither must reach a kernel as it is.
        env=os.environ | {"IPYTHONDIR": "press/ipython", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    plain = re.sub(r"\x1b\[\d*m", "", done.stdout)
    found = {}
    for verdict, place in re.findall(r"^(PASSED|FAILED) (\S+::Cell \d+)", plain, re.MULTILINE):
        section = re.search(rf"^_+ {re.escape(place)} _+$(.*?)^(?:_+ \S|=+ )", plain, re.M | re.S)
        found[place] = (verdict, section[1] if section else "")
    left_behind = {path.name for path in (folder / "press").rglob("*") if path.is_file()}
    return found, left_behind


@pytest.mark.parametrize("name", CASES)
def test_a_cell_passes_or_fails_as_it_should(verdicts, name):
    index = list(CASES).index(name)
    verdict, said = verdicts[0][f"chapters/cases.ipynb::Cell {index}"]
    words = CASES[name][2]
    assert verdict == ("FAILED" if words else "PASSED"), said
    assert (words or "") in said


def test_every_cell_was_judged(verdicts):
    assert len(verdicts[0]) == len(CASES) + 1


def test_an_unrun_cell_passes_silently_which_is_why_the_audit_asks(verdicts):
    """nbval compares nothing in a cell without an execution count, whatever it prints."""
    assert verdicts[0]["chapters/unrun.ipynb::Cell 0"][0] == "PASSED"
    assert audit.cells_ran("", UNRUN) == ["cell 0 was not run"]
    assert audit.something_is_compared("", UNRUN) != []


def test_kernels_leave_nothing_in_the_profile(verdicts):
    """A history would be written beside our files, by two kernels at once."""
    committed = {path.name for path in (ROOT / "press" / "ipython").rglob("*") if path.is_file()}
    assert verdicts[1] == committed
