"""Running a page: the stamp, freshness, and what happens when a cell fails."""

import json

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from press import notebooks
from press.digest import digest

pytestmark = pytest.mark.slow
PAGE = """\
---
kernelspec:
  name: python3
  display_name: Python 3
chapter:
  article: "An article"
  downloads: none
  gpu: not needed
---

# A page

```{{code-cell}} python
{code}
```
"""


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE.format(code="print(1 + 1)"))
    return path


def test_a_page_runs_and_is_stamped(page):
    found = notebooks.run(page)
    stamp = found.metadata["gradbook"]
    assert stamp["digest"] == digest(page)
    assert set(stamp) == {"digest", "seconds", "peak_mb", "torch", "device", "date"}
    assert 0 < stamp["seconds"] < 60
    assert [cell.id for cell in found.cells] == ["page-0", "page-1"]
    assert found.cells[1].execution_count == 1
    assert found.cells[1].outputs[0].text == "2\n"
    assert found.metadata["chapter"]["article"] == "An article"


def test_an_edit_makes_a_notebook_stale(page):
    assert notebooks.is_stale(page)
    nbformat.write(notebooks.run(page), page.with_suffix(".ipynb"))
    assert not notebooks.is_stale(page)
    page.write_text(page.read_text() + "\nOne more sentence.\n")
    assert notebooks.is_stale(page)


def test_a_failing_cell_stops_the_page(page):
    page.write_text(PAGE.format(code="1 / 0"))
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        notebooks.run(page)


def test_main_names_stale_pages_and_writes_nothing_on_failure(page, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "ROOT", page.parent)
    monkeypatch.setattr(notebooks, "executed_chapters", lambda: [page])
    assert notebooks.main(["--check"]) == 1
    assert "stale: page.md" in capsys.readouterr().out
    page.write_text(PAGE.format(code="1 / 0"))
    assert notebooks.main([]) == 1
    assert not page.with_suffix(".ipynb").exists()
    page.write_text(PAGE.format(code="print(2)"))
    assert notebooks.main([]) == 0
    assert notebooks.main(["--check"]) == 0
    assert json.loads(page.with_suffix(".ipynb").read_text())["metadata"]["chapter"]


def test_a_warning_from_our_modules_stops_a_page(page):
    code = (
        "import warnings\n"
        "warnings.warn_explicit('w', UserWarning, 'x.py', 1, module='gradbook.some')"
    )
    page.write_text(PAGE.format(code=code))
    with pytest.raises(CellExecutionError, match="UserWarning"):
        notebooks.run(page)
    page.write_text(PAGE.format(code=code.replace("gradbook.some", "other")))
    assert notebooks.run(page).cells[1].outputs[0].name == "stderr"
