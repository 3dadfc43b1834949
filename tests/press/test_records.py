import json
import math

import pytest
import torch

from gradbook import records as reader
from press import records

EXPERIMENT = """
SEEDS = (0, 1)

def data_digest():
    return "{data}"

def run(seed):
    return {{"value": {value} + seed, "curve": [1 / 3, seed]}}
"""
CPU = torch.device("cpu")


@pytest.fixture
def rooms(tmp_path, monkeypatch):
    """An experiment of two quick seeds, and an empty folder of records."""
    monkeypatch.setattr(records, "device", lambda: CPU)
    experiments = tmp_path / "experiments"
    experiments.mkdir()
    (experiments / "__init__.py").write_text("")
    write(experiments / "quick.py")
    return experiments, tmp_path / "records"


def write(path, data="d0", value=10, extra=""):
    path.write_text(EXPERIMENT.format(data=data, value=value) + extra)


def check(rooms, capsys):
    status = records.main(["--check"], *rooms)
    return status, capsys.readouterr().err


def test_a_run_makes_a_fresh_record_that_a_page_can_load(rooms, capsys, monkeypatch):
    experiments, folder = rooms
    assert check(rooms, capsys) == (1, "quick has no record: run `make records`\n")
    assert records.main([], *rooms) == 0
    assert check(rooms, capsys) == (0, "")
    below = folder.parent / "chapters"
    below.mkdir()
    monkeypatch.chdir(below)
    record = reader.load("quick")
    assert record["command"] == "python -m press.records quick"
    run = record["runs"]["cpu"]
    assert run["results"] == {
        "0": {"value": 10, "curve": [0.333333, 0]},
        "1": {"value": 11, "curve": [0.333333, 1]},
    }
    assert run["device"] == "cpu"
    assert {"python", "torch", "numpy"} <= set(run["versions"])
    assert run["seconds"] >= 0
    assert "reference" not in record


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value": 11}, "its experiment changed"),
        ({"extra": "EXTRA = 1\n"}, "its experiment changed"),
        ({"extra": "'a text that is no docstring'\n"}, "its experiment changed"),
        ({"data": "d1"}, "its experiment and its data changed"),
    ],
)
def test_a_changed_experiment_is_stale_until_it_runs_again(rooms, capsys, change, words):
    records.main([], *rooms)
    write(rooms[0] / "quick.py", **change)
    status, said = check(rooms, capsys)
    assert status == 1
    assert said == f"quick is stale: {words} since it ran: run `make records`\n"
    records.main([], *rooms)
    assert check(rooms, capsys) == (0, "")


DOCUMENTED = """
def outer(x):
    class Inner:
        y = 1
    async def later():
        pass
    return "x"
"""
COMMENTED = """
# A comment.
def outer(x):
    'Of a function.'

    class Inner:
        '''Of a class.'''
        y = (1)  # another
    async def later():
        "Of a coroutine."
        pass
    return "x"
"""


def test_comments_docstrings_and_layout_do_not_make_a_record_stale(rooms, capsys):
    quick = rooms[0] / "quick.py"
    write(quick, extra=DOCUMENTED)
    records.main([], *rooms)
    before = records.read("quick", rooms[1])
    write(quick, extra=COMMENTED)
    quick.write_text('"""Of the module."""\n' + quick.read_text())
    assert check(rooms, capsys) == (0, "")
    assert records.digests(quick) == before["digests"]
    # A text that is returned is no docstring.
    quick.write_text(quick.read_text().replace('return "x"', 'return "y"'))
    assert check(rooms, capsys)[0] == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = None", "x = []"),
        ("x = {**a, b: c}", "x = {a: c, **b}"),
        ("def f(a=1): return a", "def f(*, a=1): return a"),
        ("def f(a, b=1): return a", "def f(a=1, b=1): return a"),
        ("a = b\nc = d", "c = d\na = b"),
        ("x = a - b", "x = b - a"),
        ("x = a - b", "x = a + b"),
        ("x = f'{a}'", "x = f'{a!r}'"),
    ],
)
def test_programs_that_differ_have_digests_that_differ(rooms, one, other):
    found = []
    for body in (one, other):
        body = body.replace("\n", "\n    ")
        write(rooms[0] / "quick.py", extra=f"def never(a, b, c, d):\n    {body}\n")
        found.append(records.digests(rooms[0] / "quick.py")["experiment"])
    assert found[0] != found[1]


def test_the_digest_is_the_same_in_every_version_of_python(rooms):
    """Versions differ in which empty fields a syntax tree has."""
    digest = records.digests(rooms[0] / "quick.py")["experiment"]
    assert digest == "e7d9f5e12855ce91f87159ee5e30cf677a238e5b7023160a238f59ede6fee633"


def test_changed_data_alone_are_stale(rooms, capsys):
    """The experiment's file stays as it is; the file of data that it reads changes."""
    data = rooms[0].parent / "data.csv"
    data.write_text("1,2")
    source = (
        (rooms[0] / "quick.py")
        .read_text()
        .replace('"d0"', f"__import__('pathlib').Path({str(data)!r}).read_text()")
    )
    (rooms[0] / "quick.py").write_text(source)
    records.main([], *rooms)
    assert check(rooms, capsys) == (0, "")
    data.write_text("1,3")
    assert check(rooms, capsys)[1].startswith("quick is stale: its data changed")


def test_a_fresh_record_is_not_run_again_unless_it_is_named(rooms):
    records.main([], *rooms)
    path = rooms[1] / "quick.json"
    path.write_text(path.read_text().replace('"value": 10', '"value": 999'))
    records.main([], *rooms)
    assert "999" in path.read_text()
    records.main(["quick"], *rooms)
    assert "999" not in path.read_text()


@pytest.mark.slow
def test_two_workers_write_what_one_writes(rooms):
    results = []
    for workers in ("1", "2"):
        records.main(["quick", "--workers", workers], *rooms)
        run = records.read("quick", rooms[1])["runs"]["cpu"]
        assert run["machine"].endswith(f"processes: {workers}")
        results.append(run["results"])
    assert results[0] == results[1]
    assert list(results[1]) == ["0", "1"]


@pytest.mark.parametrize("arguments", [["slow"], ["quick", "--workers", "0"]])
def test_an_unknown_name_and_no_workers_are_refused(rooms, arguments):
    with pytest.raises(SystemExit, match="2"):
        records.main(arguments, *rooms)


def test_a_run_on_another_device_stands_beside_the_first(rooms, monkeypatch):
    records.main([], *rooms)
    monkeypatch.setattr(records, "device", lambda: torch.device("meta"))
    records.main([], *rooms)
    assert list(records.read("quick", rooms[1])["runs"]) == ["cpu", "meta"]
    write(rooms[0] / "quick.py", value=20)
    records.main([], *rooms)
    assert list(records.read("quick", rooms[1])["runs"]) == ["meta"]


def test_the_reference_is_computed_once_for_all_devices(rooms, monkeypatch):
    place = rooms[0].parent / "place"
    place.mkdir()
    body = f"return {{'calls': len(__import__('os').listdir({str(place)!r}))}}"
    write(rooms[0] / "quick.py", extra=f"\ndef reference():\n    {body}\n")
    records.main([], *rooms)
    (place / "later").touch()
    monkeypatch.setattr(records, "device", lambda: torch.device("meta"))
    records.main([], *rooms)
    record = records.read("quick", rooms[1])
    assert list(record["runs"]) == ["cpu", "meta"]
    assert record["reference"]["results"] == {"calls": 0}
    assert record["reference"]["device"] == "cpu"


def test_the_reference_names_the_device_that_it_ran_on(rooms, monkeypatch):
    write(rooms[0] / "quick.py", extra="\ndef reference():\n    return 1\n")
    monkeypatch.setattr(records, "device", lambda: torch.device("meta"))
    records.main([], *rooms)
    assert records.read("quick", rooms[1])["reference"]["device"] == "meta"


def test_missing_data_are_a_fault_in_words(rooms, capsys):
    source = (rooms[0] / "quick.py").read_text()
    raising = source.replace('return "d0"', 'raise FileNotFoundError("run `make setup`")')
    (rooms[0] / "quick.py").write_text(raising)
    status, said = check(rooms, capsys)
    assert status == 1
    assert said == "quick cannot be checked: run `make setup`\n"


def test_an_experiment_without_its_parts_is_refused(rooms):
    (rooms[0] / "quick.py").write_text("SEEDS = ()\n")
    with pytest.raises(ValueError, match="quick.py: an experiment needs data_digest"):
        records.main([], *rooms)


def test_rounding_keeps_six_significant_digits_and_writes_null_for_no_number():
    value = {"a": [123456.789, 1.23456789e-9, 7, math.inf, math.nan], "b": "1.23456789"}
    assert records.rounded(value) == {"a": [123457.0, 1.23457e-9, 7, None, None], "b": "1.23456789"}


def test_lists_of_numbers_stand_on_one_line_and_read_back():
    record = {"rows": [[1.5, 2], [3, None]], "names": ["a [cm]", "b  c"], "empty": []}
    text = records.to_json(record)
    assert json.loads(text) == record
    assert "[1.5, 2]" in text


def test_the_committed_records_are_fresh():
    assert records.main(["--check"]) == 0
