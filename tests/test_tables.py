import IPython.display
import numpy as np
import pytest
import torch

from gradbook.tables import table


@pytest.fixture
def shown(monkeypatch):
    found = []
    monkeypatch.setattr(IPython.display, "display", lambda thing: found.append(thing))
    return found


def rows_of(markdown):
    assert isinstance(markdown, IPython.display.Markdown)
    return [[x.strip() for x in line.strip("|").split("|")] for line in markdown.data.splitlines()]


def test_the_whole_text(shown):
    table(["n", "error (nats)"], [[10, 0.123456], [100, 2.0]])
    assert [thing.data for thing in shown] == [
        "|   n |   error (nats) |\n"
        "|-----|----------------|\n"
        "|  10 |         0.1235 |\n"
        "| 100 |         2      |"
    ]


@pytest.mark.parametrize(
    ("digits", "cell"), [(1, "0.1"), (2, "0.12"), (4, "0.1235"), (6, "0.123457")]
)
def test_numbers_are_rounded_to_significant_digits(shown, digits, cell):
    table(["x"], [[0.1234567]], digits=digits)
    assert rows_of(shown[0])[2:] == [[cell]]


def test_tensors_and_numpy_numbers_are_numbers(shown):
    table(["a", "b", "c"], [[torch.tensor(0.25), np.float64(0.5), torch.tensor([[3]])]])
    assert rows_of(shown[0])[2:] == [["0.25", "0.5", "3"]]


def test_a_tensor_that_requires_a_gradient_is_shown_without_a_warning(shown):
    table(["a"], [[torch.tensor(0.25, requires_grad=True)]])
    assert rows_of(shown[0])[2:] == [["0.25"]]


def test_words_stay_words(shown):
    table(["method", "works"], [["score", True], ["path", None]])
    assert [row[0] for row in rows_of(shown[0])] == ["method", "-" * 10, "score", "path"]


def test_no_rows_leave_the_header(shown):
    table(["a", "b"], [])
    assert rows_of(shown[0])[0] == ["a", "b"]


@pytest.mark.parametrize("row", [[1], [1, 2, 3], []])
def test_a_row_of_another_length_is_refused(shown, row):
    with pytest.raises(ValueError, match=r"rows: \[.*\] has not 2 cells"):
        table(["a", "b"], [[1, 2], row])
    assert not shown


def test_rows_may_come_from_an_iterator(shown):
    table(["a", "b"], zip((1, 2), (3, 4), strict=True))
    assert rows_of(shown[0])[2:] == [["1", "3"], ["2", "4"]]
