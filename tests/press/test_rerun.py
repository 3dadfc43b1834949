"""What a second run of an experiment may differ by."""

import json

import pytest
import torch

from press import records, rerun

EXPERIMENT = """
SEEDS = (3, 4)

def data_digest():
    return "none"

def run(seed):
    return {{"value": {value} + seed, 7: (1 / 3, float("inf")), "seconds": {seconds}, "word": "{word}"}}
"""


@pytest.fixture
def rooms(tmp_path, monkeypatch):
    """An experiment of two quick seeds with its record."""
    monkeypatch.setattr(records, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(rerun, "device", lambda: torch.device("cpu"))
    (tmp_path / "experiments").mkdir()
    write(tmp_path / "experiments" / "quick.py")
    rooms = tmp_path / "experiments", tmp_path / "records"
    assert records.main([], *rooms) == 0
    return rooms


def write(path, value=10, seconds=1.0, word="old"):
    path.write_text(EXPERIMENT.format(value=value, seconds=seconds, word=word))


def test_what_has_not_changed_is_as_recorded(rooms, capsys):
    capsys.readouterr()
    assert rerun.main([], *rooms) == 0
    assert capsys.readouterr().out == "quick: as recorded, 0 s\n"


def test_times_and_texts_may_differ(rooms):
    write(rooms[0] / "quick.py", seconds=99, word="new")
    assert rerun.main(["quick"], *rooms) == 0


def test_a_number_farther_away_than_seeds_are_is_named(rooms, capsys):
    write(rooms[0] / "quick.py", value=14)
    assert rerun.main(["quick"], *rooms) == 1
    assert "  value: 1 of 1, first 17 was 13\n" in capsys.readouterr().out


def test_without_a_record_nothing_is_said_to_be_sound(rooms, capsys):
    (rooms[1] / "quick.json").unlink()
    assert rerun.main([], *rooms) == 1
    assert "no record of a run on cpu" in capsys.readouterr().out


def test_a_record_of_another_device_is_none(rooms):
    record = json.loads((rooms[1] / "quick.json").read_text())
    assert rerun.compare(rooms[0] / "quick.py", record, "cuda") == [
        "there is no record of a run on cuda"
    ]


def test_an_unknown_name_is_refused(rooms, capsys):
    with pytest.raises(SystemExit):
        rerun.main(["quik"], *rooms)
    assert "no such experiment: quik" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "was", "seeds", "away"),
    [
        (13.0, 10.0, [10.0, 11.0], False),  # three ranges
        (13.1, 10.0, [10.0, 11.0], True),
        (102.0, 100.0, [100.0, 100.0], False),  # two in a hundred of the greater
        (102.1, 100.0, [100.0, 100.0], True),
        (0.0, 0.0, [0.0], False),
        (None, None, [None, 1.0], False),
        (None, 1.0, [1.0, 2.0], True),
        (1.0, None, [None, 1.0], True),
        (1.0, 1.0, [1.0, None], False),
    ],
)
def test_how_far_is_far(number, was, seeds, away):
    assert rerun.strayed(number, was, seeds) is away


@pytest.mark.parametrize(
    ("strays", "faults"), [(1, []), (2, ["curve: 2 of 10, first 9.0 was 1.0"])]
)
def test_one_point_in_ten_of_a_curve_may_stray(strays, faults):
    recorded = {"0": {"curve": [1.0] * 10}, "1": {"curve": [1.1] * 10}}
    again = {"curve": [9.0] * strays + [1.0] * (10 - strays)}
    assert rerun.differences("0", recorded, again) == faults


def test_what_only_the_first_seed_holds_is_compared_with_itself():
    recorded = {"0": {"extra": 1.0, "shared": 2.0}, "1": {"shared": 2.5}}
    assert rerun.differences("0", recorded, {"extra": 1.5, "shared": 2.0}) == [
        "extra: 1 of 1, first 1.5 was 1.0"
    ]


def test_other_names_are_a_difference():
    recorded = {"0": {"a": 1.0, "b": 1.0}}
    assert rerun.differences("0", recorded, {"a": 1.0, "c": 1.0}) == ["not in both: b, c"]


def test_the_times_of_an_experiment_on_times_are_left_out():
    found = dict(rerun.numbers({"plain": 1.0, "short": 2}, ("seconds", "plain")))
    assert found == {("short",): 2}
    assert {path.stem for path in records.experiments()} >= set(rerun.TIMED_OF)


def test_what_an_experiment_on_times_measures_is_left_out_of_the_comparison(rooms, monkeypatch):
    write(rooms[0] / "quick.py", value=99)
    assert rerun.main(["quick"], *rooms) == 1
    monkeypatch.setattr(rerun, "TIMED_OF", {"quick": ("value",)})
    assert rerun.main(["quick"], *rooms) == 0
