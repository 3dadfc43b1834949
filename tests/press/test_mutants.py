"""The list of mutants is sound, and the runner tells the killed from the survivors."""

import ast
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

from press.mutants import (
    Mutant,
    MutantError,
    Verdict,
    main,
    mutate,
    parse,
    part,
    report,
    run,
    select,
)
from press.paths import CODE, ROOT
from press.targets import unit_tests_of

MUTANTS = parse((ROOT / "tests" / "mutants.toml").read_text())
# Files without a mutant, each with the reason.
EXEMPT = {
    "code/gradbook/__init__.py": "names what the package offers, computes nothing",
    "code/gradbook/estimators/__init__.py": "names what the package offers, computes nothing",
    "code/gradbook/experiments/__init__.py": "a docstring alone",
    "code/gradbook/language/__init__.py": "a docstring alone",
    "code/gradbook/parallel/__init__.py": "a docstring alone",
    "code/gradbook/parallel/backends.py": "names what the package offers, computes nothing",
    "code/gradbook/peft/__init__.py": "a docstring alone",
    "code/gradbook/priors/__init__.py": "names what the package offers, computes nothing",
    "code/gradbook/vqgan_networks.py": "another name of a function, computes nothing",
}


# The list of this book


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_applies_and_still_is_python(mutant):
    source = (ROOT / mutant.file).read_text()
    mutated = mutate(mutant, source)
    # A mutant that does not compile, or differs in a comment alone, shows nothing.
    assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source))
    assert mutant.why.strip()


def test_every_module_has_a_mutant():
    files = {path.relative_to(ROOT).as_posix() for path in CODE.glob("gradbook/**/*.py")}
    assert files - {mutant.file for mutant in MUTANTS} - set(EXEMPT) == set()
    assert set(EXEMPT) <= files


def test_every_mutated_module_has_unit_tests():
    files = {mutant.file for mutant in MUTANTS}
    assert {file for file in files if not (ROOT / unit_tests_of(file)).exists()} == set()


# Reading and applying


ONE = """
[[mutant]]
name = "sign"
file = "code/gradbook/toy.py"
find = "x + 1"
replace = "x - 1"
why = "a sign"
"""
SIGN = Mutant("sign", "code/gradbook/toy.py", "x + 1", "x - 1", "a sign")


def test_parse_reads_mutants_in_order():
    other = ONE.replace('"sign"', '"other"')
    assert parse(ONE + other) == [SIGN, Mutant("other", *list(vars(SIGN).values())[1:])]


def test_parse_refuses_two_mutants_of_one_name():
    with pytest.raises(MutantError, match="mutant sign: two mutants have this name"):
        parse(ONE + ONE)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        (ONE.replace('why = "a sign"', ""), "sign"),
        (ONE + 'because = "x"', "sign"),
        (ONE + '[[mutant]]\nfile = "x"', "number 2"),
    ],
)
def test_parse_refuses_missing_and_unknown_fields(text, title):
    with pytest.raises(MutantError, match=f"mutant {title}: its fields must be file, find, name"):
        parse(text)


def test_parse_refuses_an_empty_list():
    with pytest.raises(MutantError, match="no mutant"):
        parse("")


def test_mutate_replaces_the_one_place():
    assert mutate(SIGN, "y = x + 1\n") == "y = x - 1\n"


@pytest.mark.parametrize(("source", "count"), [("y = x", 0), ("x + 1, x + 1", 2)])
def test_mutate_names_the_mutant_whose_find_is_not_unique(source, count):
    with pytest.raises(MutantError, match=f"mutant sign: find stands {count} times in code/"):
        mutate(SIGN, source)


def test_mutate_refuses_to_change_nothing():
    idle = Mutant("idle", "x.py", "x", "x", "nothing")
    with pytest.raises(MutantError, match="mutant idle: replace is the same as find"):
        mutate(idle, "x")


def test_select_keeps_the_order_of_the_list():
    mutants = [Mutant(name, "x.py", "a", "b", "why") for name in "abc"]
    assert select(mutants, []) == mutants
    assert select(mutants, ["c", "a"]) == [mutants[0], mutants[2]]


def test_select_refuses_unknown_names():
    with pytest.raises(MutantError, match="no mutant has the name x, y"):
        select([SIGN], ["y", "sign", "x"])


# Reporting


def test_report_names_the_killer_and_the_survivor():
    killed = Verdict(SIGN, "tests/test_toy.py::test_a", 1.26)
    survivor = Verdict(Mutant("lives", "code/gradbook/toy.py", "a", "b", "a | b"), "", 2)
    lines = report([killed, survivor]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert cells[0] == ["mutant", "file", "why", "killed by", "seconds"]
    where = "`code/gradbook/toy.py`"
    assert cells[2] == ["`sign`", where, "a sign", "tests/test_toy.py::test_a", "1.3"]
    assert lines[3].count(r"a \| b") == 1
    assert "**survived**" in lines[3]
    assert lines[-1] == "2 mutants, 1 killed"


# The whole run, on a small repository


TOY = '''"""A toy."""


def successor(x):
    """Add one."""
    return x + 1


def double(x):
    """Add x to itself."""
    return 2 * x


def half(x):
    """Nobody checks this."""
    return x / 2
'''
TOY_TEST = """
from gradbook.toy import successor


def test_successor():
    assert successor(1) == 2
"""
PAGE = """# A page

```{code-cell} ipython3
from gradbook.claims import claim
from gradbook.toy import double

claim("thm-double", "double doubles", double(2), equals=4)
```
"""
TOY_MUTANTS = (
    ONE
    + """
[[mutant]]
name = "constant"
file = "code/gradbook/toy.py"
find = "2 * x"
replace = "3 * x"
why = "a constant"

[[mutant]]
name = "unseen"
file = "code/gradbook/toy.py"
find = "x / 2"
replace = "x / 3"
why = "nobody looks"
"""
)


@pytest.fixture
def toy(tmp_path):
    """A repository with a module, one test of it, one chapter, and three mutants."""
    files = {
        "code/gradbook/__init__.py": "",
        "code/gradbook/toy.py": TOY,
        "code/gradbook/claims.py": (CODE / "gradbook" / "claims.py").read_text(),
        "tests/test_toy.py": TOY_TEST,
        "tests/mutants.toml": TOY_MUTANTS,
        "chapters/page.md": PAGE,
        "pytest.ini": "[pytest]\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    return tmp_path


def add_notebook(toy: Path) -> None:
    cell = nbformat.v4.new_code_cell(
        PAGE.split("ipython3\n")[1].removesuffix("```\n"), execution_count=1
    )
    shown = {"text/plain": "thm-double holds: double doubles"}
    cell.outputs = [nbformat.v4.new_output("display_data", data=shown)]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata["kernelspec"] = {"display_name": "x", "language": "python", "name": "python3"}
    nbformat.write(notebook, toy / "chapters" / "page.ipynb")
    # The box of a claim is not compared; this stands for the book's own conftest.
    hook = "def pytest_collectstart(collector):\n    if hasattr(collector, 'skip_compare'):\n"
    hook += "        collector.skip_compare += ('text/html',)\n"
    (toy / "conftest.py").write_text(hook)


@pytest.mark.slow
def test_a_unit_test_kills_a_chapter_kills_and_one_survives(toy, capsys):
    add_notebook(toy)
    before = (toy / "code/gradbook/toy.py").read_text()
    assert main([], toy) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "tests/test_toy.py::test_successor" in lines[2]
    assert "chapters/page.ipynb: claim thm-double" in lines[3]
    assert "**survived**" in lines[4]
    assert lines[-1] == "3 mutants, 2 killed"
    assert (toy / "code/gradbook/toy.py").read_text() == before


@pytest.mark.slow
def test_all_killed_is_exit_status_0(toy, capsys):
    assert main(["sign"], toy) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 mutants, 1 killed"


def test_a_mutant_without_any_check_survives(toy, capsys):
    (toy / "tests/test_toy.py").unlink()
    assert main(["sign"], toy) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 mutants, 0 killed"


def test_red_tests_stop_the_run_before_any_mutant(toy, capsys):
    (toy / "tests/test_toy.py").write_text("def test_red():\n    assert False\n")
    assert main(["sign"], toy) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "red without any mutant: tests/test_toy.py::test_red" in captured.err


def test_a_test_file_without_tests_is_not_green(toy, capsys):
    (toy / "tests/test_toy.py").write_text("")
    assert main(["sign"], toy) == 2
    assert "red without any mutant: tests/test_toy.py" in capsys.readouterr().err


def test_a_missing_file_is_named(toy):
    shutil.rmtree(toy / "code/gradbook")
    with pytest.raises(MutantError, match="mutant sign: there is no code/gradbook/toy.py"):
        run(toy, [SIGN])


def test_the_parts_of_a_list_are_the_list():
    mutants = [Mutant(str(i), "f", "a", "b", "w") for i in range(11)]
    for n in (1, 2, 3, 11):
        parts = [part(mutants, f"{k}/{n}") for k in range(1, n + 1)]
        assert [mutant for each in parts for mutant in each] == mutants
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("which", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b"])
def test_a_part_that_is_none_is_refused(which):
    with pytest.raises(MutantError, match="must be K/N"):
        part([Mutant("m", "f", "a", "b", "w")], which)


def test_an_empty_part_is_not_green(toy, capsys):
    assert main(["sign", "--part", "1/2"], toy) == 2
    assert "1 mutants have no such part" in capsys.readouterr().err
