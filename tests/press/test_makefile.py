"""What the Makefile does with its targets, tried on a copy whose Python only says what it was asked for."""

import shutil
import subprocess

import pytest

from press import workflows
from press.paths import ROOT

PYTHON = """#!/bin/sh
echo "begin $*" >> "$LOG"
sleep 0.1
echo "end $*" >> "$LOG"
"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A folder with a space in its name that holds the Makefile and a ready environment."""
    folder = tmp_path / "a house"
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "requirements.txt").write_text("torch==1\n")
    python = folder / ".venv" / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    monkeypatch.setenv("LOG", str(folder / "log"))
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        monkeypatch.delenv(name, raising=False)
    return folder


def make(folder, *words):
    command = ["make", "-o", ".venv/.ready", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_targets_never_build_at_once(house):
    make(house, "-j", "4", "book", "colab", "zip")
    said = (house / "log").read_text().splitlines()
    begun, ended = said[::2], said[1::2]
    assert [line.removeprefix("begin ") for line in begun] == [
        x.removeprefix("end ") for x in ended
    ]
    assert begun[-1] == "begin -m press.release"
    assert len(begun) == 5


def test_the_kernels_find_their_folder_where_its_path_has_a_space(house):
    said = make(house, "--dry-run", "test-chapters", "WORKERS=1")
    assert f"IPYTHONDIR='{house}/press/ipython' .venv/bin/python -m pytest --nbval" in said


def test_the_site_is_built_before_it_is_looked_at(house):
    make(house, "test-site", "zip")
    begun = [x for x in (house / "log").read_text().splitlines() if x.startswith("begin")]
    assert begun[-3:] == [
        "begin -m press.book",
        "begin -m pytest -n 2 tests/press/test_site.py",
        "begin -m press.release",
    ]


def test_help_lists_every_target_that_says_what_it_does(house):
    listed = {line.split()[0] for line in make(house, "help").splitlines()}
    text = (house / "Makefile").read_text()
    said = {line.split(":")[0] for line in text.splitlines() if "## " in line and line[0].islower()}
    assert listed == said
    assert listed <= workflows.targets(text)
