import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from press.colab import check

CLAIM = {
    "output_type": "display_data",
    "data": {"text/plain": "ok"},
    "metadata": {"gradbook": {"label": "thm-a", "statement": "it holds"}},
}


def notebook(*sources, outputs=()):
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    made.cells[-1].outputs = [nbformat.from_dict(output) for output in outputs]
    return made


def test_the_same_claims_are_counted():
    both = notebook("1", outputs=[CLAIM, CLAIM])
    assert check.compared(both, both) == 2


@pytest.mark.parametrize(("ran", "wanted"), [([], [CLAIM]), ([CLAIM], [CLAIM, CLAIM]), ([], [])])
def test_claims_that_are_missing_are_a_fault(ran, wanted):
    with pytest.raises(check.CheckError, match=f"{len(ran)} claims instead of {len(wanted)}"):
        check.compared(notebook("1", outputs=ran), notebook("1", outputs=wanted))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A fresh environment over the packages of the Python that runs this."""
    return check.over(Path(sys.executable), tmp_path_factory.mktemp("over") / "environment")


@pytest.mark.slow
def test_a_fresh_environment_sees_the_packages_of_its_base_and_keeps_its_own(environment):
    lines = "import numpy, sys; print(sys.prefix); print(numpy.__file__)"
    asked = subprocess.run([environment, "-c", lines], capture_output=True, text=True, check=True)
    prefix, numpy = asked.stdout.split()
    assert prefix == str(environment.parent.parent)
    assert numpy.startswith(sys.prefix)
    lines = "import sysconfig; print(sysconfig.get_path('purelib'))"
    asked = subprocess.run([environment, "-c", lines], capture_output=True, text=True, check=True)
    assert asked.stdout.startswith(prefix)


@pytest.mark.slow
def test_a_notebook_runs_in_its_folder_with_that_python_and_without_our_variables(
    environment, tmp_path, monkeypatch
):
    monkeypatch.setenv("GRADBOOK_DATA", "/ours")
    monkeypatch.setenv("PYTHONPATH", "/ours")
    path = tmp_path / "n.ipynb"
    lines = ["import os, sys", "!python -c 'import sys; print(sys.prefix)'"]
    lines += [
        "print(sys.prefix, os.getcwd(), 'GRADBOOK_DATA' in os.environ)",
        "'/ours' in sys.path",
    ]
    nbformat.write(notebook("\n".join(lines)), path)
    ran = check.run(path, environment, tmp_path)
    prefix = str(environment.parent.parent)
    said = "".join(output.get("text", "") for output in ran.cells[0].outputs)
    assert said.split() == [prefix, prefix, str(tmp_path), "False"]
    assert ran.cells[0].outputs[-1]["data"]["text/plain"] == "False"


@pytest.mark.slow
def test_a_cell_that_raises_stops_the_notebook(environment, tmp_path):
    path = tmp_path / "n.ipynb"
    nbformat.write(notebook("1 / 0", "open('later', 'w')"), path)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        check.run(path, environment, tmp_path)
    assert not (tmp_path / "later").exists()


@pytest.mark.slow
def test_no_kernel_is_left_behind(environment, tmp_path):
    path = tmp_path / "n.ipynb"
    nbformat.write(notebook("import os; os.getpid()"), path)
    number = int(check.run(path, environment, tmp_path).cells[0].outputs[0]["data"]["text/plain"])
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


@pytest.mark.parametrize(
    ("torches", "expected"),
    [
        ([["2.11.0"], ["2.11.0"]], "ok: 1 claims hold with torch 2.11.0"),
        ([["2.11.0"], ["2.11.0", "2.13.0"]], "failed: torch was"),
        ([[], []], "failed: torch was"),
    ],
)
def test_a_second_torch_is_a_fault(tmp_path, monkeypatch, torches, expected):
    one = notebook("1", outputs=[CLAIM])
    built, chapters = tmp_path / "built", tmp_path / "chapters"
    for folder in (built, chapters):
        folder.mkdir()
        nbformat.write(one, folder / "a.ipynb")
    (built / "gradbook.whl").touch()
    seen = []
    answers = iter(torches)
    monkeypatch.setattr(check, "BUILT", built)
    monkeypatch.setattr(check, "CHAPTERS", chapters)
    monkeypatch.setattr(check, "over", lambda _, folder: folder / "bin" / "python")
    monkeypatch.setattr(check, "torches", lambda _: next(answers))

    def run(path, _, folder):
        seen.extend(sorted(file.name for file in folder.iterdir()))
        return json.loads(path.read_text())

    monkeypatch.setattr(check, "run", run)
    assert check.checked("a", None).startswith(expected)
    assert seen == ["a.ipynb", "gradbook.whl"]


def test_the_base_is_made_once_for_a_list(tmp_path, monkeypatch):
    listed = tmp_path / "colab.txt"
    listed.write_text("# dated\npython==3.12\ntorch==2.11.0\nnumpy==2.0.2\n")
    monkeypatch.setattr(check, "LIST", listed)
    asked = []
    folder = tmp_path / "base"

    def venv(command, **_):
        asked.append(command)
        folder.mkdir(exist_ok=True)

    monkeypatch.setattr(check.subprocess, "run", venv)
    assert check.made_base("python3.12", folder) == folder / "bin" / "python"
    assert asked[0] == ["python3.12", "-m", "venv", str(folder)]
    assert asked[1][-1] == "torch==2.11.0"
    assert asked[2][-2:] == ["--no-deps", "numpy==2.0.2"]
    check.made_base("python3.12", folder)
    assert len(asked) == 3
    listed.write_text("python==3.13\ntorch==2.13.0\n")
    check.made_base("python3.13", folder)
    assert len(asked) == 6


def test_without_notebooks_the_check_says_what_builds_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "BUILT", tmp_path)
    with pytest.raises(SystemExit, match="2"):
        check.main([])
    assert "there are no notebooks: make colab" in capsys.readouterr().err
    (tmp_path / "vae.ipynb").touch()
    with pytest.raises(SystemExit, match="2"):
        check.main(["vea"])
    assert "no such notebook: vea" in capsys.readouterr().err


@pytest.mark.slow
def test_the_torch_of_a_python_is_named(environment):
    assert check.torches(environment) == [metadata.version("torch")]


@pytest.mark.parametrize(
    "fault", [DeadKernelError("died"), CellTimeoutError("slow"), check.CheckError("x")]
)
def test_a_notebook_that_fails_does_not_end_the_check(tmp_path, monkeypatch, fault):
    def fail(*_):
        raise fault

    (tmp_path / "a.ipynb").touch()
    monkeypatch.setattr(check, "BUILT", tmp_path)
    monkeypatch.setattr(check, "over", fail)
    assert check.checked("a", None) == f"failed: {fault}"


@pytest.mark.parametrize(("said", "status"), [("ok: 3 claims", 0), ("failed: died", 1)])
def test_the_exit_status_says_whether_all_notebooks_held(
    tmp_path, monkeypatch, capsys, said, status
):
    for name in ("a", "b"):
        (tmp_path / f"{name}.ipynb").touch()
    monkeypatch.setattr(check, "BUILT", tmp_path)
    monkeypatch.setattr(check, "ProcessPoolExecutor", lambda _: ThreadPoolExecutor(1))
    monkeypatch.setattr(check, "checked", lambda name, _: "ok: 1 claim" if name == "a" else said)
    assert check.main(["--base", "python"]) == status
    assert capsys.readouterr().out == f"a: ok: 1 claim\nb: {said}\n"
