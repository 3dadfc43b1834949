import math

import pytest
import torch

from gradbook import records as reader


def test_load_names_the_command_that_brings_a_missing_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no records/absent.json .* run `make records`"):
        reader.load("absent")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="damaged: run `make records`"):
        reader.load("broken")


def test_across_seeds_stacks_one_quantity():
    results = {"0": {"a": {"b": [1, 2.5]}}, "1": {"a": {"b": [None, 4]}}}
    record = {"runs": {"cpu": {"results": results}}}
    found = reader.across_seeds(record, "a", "b")
    expected = torch.tensor([[1, 2.5], [math.nan, 4]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(KeyError):
        reader.across_seeds(record, "a", "b", device="cuda")


def test_spread_covers_one_more_seed_as_often_as_it_says():
    """(new - mean) / stderr follows Student's t with n - 1 degrees of freedom, exactly."""
    generator = torch.Generator().manual_seed(0)
    draws = 3 + 2 * torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    inside = 0
    for row in draws:
        mean, stderr = reader.spread(row[:5])
        inside += abs(row[5] - mean) <= 2.776445 * stderr  # the 97.5 % point of t with 4
    share = inside / len(draws)
    assert abs(share - 0.95) <= 4.5 * math.sqrt(0.95 * 0.05 / len(draws))


@pytest.mark.parametrize("values", [[1.0], [1.0, math.nan], [[1.0, 2.0]]])
def test_spread_refuses_what_has_none(values):
    with pytest.raises(ValueError, match="values: "):
        reader.spread(torch.tensor(values))


def test_a_wheel_holds_the_records_and_the_current_folder_comes_first(tmp_path, monkeypatch):
    packaged = tmp_path / "site-packages"
    packaged.mkdir()
    (packaged / "one.json").write_text('{"from": "the package"}')
    monkeypatch.setattr(reader, "PACKAGED", packaged)
    monkeypatch.chdir(tmp_path)
    assert reader.load("one") == {"from": "the package"}
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "one.json").write_text('{"from": "the folder"}')
    assert reader.load("one") == {"from": "the folder"}
