"""The copy in which mutants are judged."""

import subprocess
import time

import pytest

from press import sandbox as module
from press.sandbox import first_failure, run_tests, sandbox

pytestmark = pytest.mark.slow


@pytest.fixture
def repository(tmp_path):
    """A repository with one file that git ignores, one that is staged and deleted."""
    files = {
        ".gitignore": "build/\n",
        "code/gradbook/__init__.py": "",
        "tests/test_green.py": "def test_green():\n    pass\n",
        "build/large": "x",
        "gone": "x",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "gone"], cwd=tmp_path, check=True)
    (tmp_path / "gone").unlink()
    return tmp_path


def test_the_copy_holds_what_git_would_track_and_goes_away(repository):
    with sandbox(repository) as copy:
        names = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
        assert names == {".gitignore", "code/gradbook/__init__.py", "tests/test_green.py"}
    assert not copy.exists()


def test_the_copy_uses_what_npm_brought_and_leaves_it(repository):
    (repository / ".gitignore").write_text("node_modules/\n")
    brought = repository / "node_modules" / "katex" / "package.json"
    brought.parent.mkdir(parents=True)
    brought.write_text("{}")
    with sandbox(repository) as copy:
        assert (copy / "node_modules" / "katex" / "package.json").read_text() == "{}"
    assert brought.read_text() == "{}"


def test_a_copy_that_would_not_be_imported_is_refused(repository):
    (repository / "code/gradbook/__init__.py").unlink()
    with pytest.raises(RuntimeError, match="not the copy"), sandbox(repository):
        pass


def test_tests_import_the_copy_and_not_the_installed_package(repository):
    source = "import gradbook\n\n\ndef test_file():\n    assert gradbook.__file__ == 'elsewhere'\n"
    (repository / "tests/test_file.py").write_text(source)
    with sandbox(repository) as copy:
        assert run_tests(copy, "tests/test_green.py") == ""
        assert run_tests(copy, "tests/test_file.py") == "tests/test_file.py::test_file"
        check = f"'{copy}/code/gradbook/__init__.py'"
        (copy / "tests/test_file.py").write_text(source.replace("'elsewhere'", check))
        assert run_tests(copy, "tests/test_file.py") == ""


def test_tests_have_one_thread_and_kernels_their_inline_figures(repository, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    source = "import os\n\n\ndef test_environment():\n"
    source += "    assert os.environ['OMP_NUM_THREADS'] == '1'\n"
    source += "    assert 'MPLBACKEND' not in os.environ\n"
    (repository / "tests/test_environment.py").write_text(source)
    with sandbox(repository) as copy:
        assert run_tests(copy, "tests/test_environment.py") == ""


def test_a_file_that_cannot_be_imported_is_red(repository):
    (repository / "tests/test_broken.py").write_text("import gradbook.missing\n")
    with sandbox(repository) as copy:
        assert run_tests(copy, "tests/test_broken.py") == "tests/test_broken.py"


def test_running_out_of_time_is_red_and_ends_the_processes(repository, monkeypatch):
    source = "import subprocess\n\n\ndef test_slow():\n    subprocess.run(['sleep', '60'])\n"
    (repository / "tests/test_slow.py").write_text(source)
    monkeypatch.setattr(module, "UNIT_SECONDS", 3)
    started = time.perf_counter()
    with sandbox(repository) as copy:
        assert run_tests(copy, "tests/test_slow.py") == "timeout (tests/test_slow.py, 3 s)"
    # communicate() waits for whoever still holds the pipe: the sleep is gone too.
    assert time.perf_counter() - started < 30


TESTS = """
=== short test summary info ===
FAILED tests/test_x.py::test_a[1 - 2] - assert [1] == [2]
FAILED tests/test_x.py::test_b
"""
CLAIM = "\x1b[31mClaimError\x1b[39m: claim thm-max does not hold: it is distributed as p\n"
CELL = "FAILED chapters/x.ipynb::Cell 3\n"


@pytest.mark.parametrize(
    ("output", "target", "killer"),
    [
        (TESTS, "tests/test_x.py", "tests/test_x.py::test_a[1 - 2]"),
        ("FAILED tests/x.py::test_b - assert x[1]", "tests/x.py", "tests/x.py::test_b"),
        ("FAILED tests/x.py::test_b", "tests/x.py", "tests/x.py::test_b"),
        ("ERROR tests/x.py - KeyError: 'a'", "tests/x.py", "tests/x.py"),
        ("Killed", "tests/x.py", "tests/x.py"),
        (CLAIM + CELL, "chapters/x.ipynb", "chapters/x.ipynb: claim thm-max"),
        (CELL, "chapters/x.ipynb", "chapters/x.ipynb::Cell 3"),
        # A unit test may print the words of a failing claim; it is named by its id.
        (CLAIM + TESTS, "tests/test_x.py", "tests/test_x.py::test_a[1 - 2]"),
    ],
)
def test_the_first_failure_is_named(output, target, killer):
    assert first_failure(output, target) == killer
