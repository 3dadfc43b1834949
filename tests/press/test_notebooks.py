"""Tiny pages run for real: what is written, what is stamped, and what is stale."""

import datetime
import json

import nbformat
import pytest
import torch
from nbclient.exceptions import CellExecutionError

from press import notebooks
from press.digest import digest
from press.paths import ROOT

FRONT = """\
---
kernelspec:
  name: python3
  display_name: Python 3
chapter:
  gpu: not needed
---
"""
PAGE = (
    FRONT
    + """\
# A tiny page

```{code-cell} python
---
tags: [hide-input]
---
import os
value = 6 * 7
```

```{code-cell} python
print(value)
for name in ("OMP_NUM_THREADS", "IPYTHONDIR", "MPLBACKEND", "NVIDIA_TF32_OVERRIDE"):
    print(os.environ[name])
print(os.getcwd())
```
"""
)
# A warning that a module of ours raises is an error in a chapter's kernel.
WARNS = (
    FRONT
    + """\
# A page that stops

```{code-cell} python
1
```

Markdown is no cell to count.

```{code-cell} python
import warnings
warnings.warn_explicit("loud", UserWarning, "other.py", 1, module="other")
warnings.warn_explicit("our own", UserWarning, "x.py", 1, module="gradbook.x")
```
"""
)


@pytest.fixture
def chapters(tmp_path, monkeypatch):
    """A folder of chapters that main() works on; write() adds a page."""

    def write(name="tiny", text=PAGE):
        page = tmp_path / f"{name}.md"
        page.write_text(text)
        return page

    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "CHAPTERS", tmp_path)
    listed = notebooks.executed_chapters
    monkeypatch.setattr(notebooks, "executed_chapters", lambda: listed(tmp_path))
    return write


def stamped(page, stamp):
    """What run() returns, without a kernel."""
    metadata = nbformat.from_dict({"gradbook": {"digest": stamp, "seconds": 0.5}})
    notebook = nbformat.v4.new_notebook(metadata=metadata)
    nbformat.write(notebook, page.with_suffix(".ipynb"))
    return notebook


@pytest.mark.slow
def test_a_page_is_run_stamped_and_fresh_until_it_is_edited(chapters, monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    page = chapters()
    assert notebooks.is_stale(page)
    today = datetime.datetime.now(tz=datetime.UTC).date()
    assert notebooks.main([]) == 0
    said = capsys.readouterr().out
    found = json.loads(page.with_suffix(".ipynb").read_text())

    assert [cell["id"] for cell in found["cells"]] == ["tiny-0", "tiny-1", "tiny-2"]
    assert [cell.get("execution_count") for cell in found["cells"]] == [None, 1, 2]
    assert found["cells"][1]["metadata"] == {"tags": ["hide-input"]}
    assert found["cells"][1]["outputs"] == []
    (output,) = found["cells"][2]["outputs"]
    assert "".join(output["text"]).splitlines() == [
        "42",
        "1",
        str(ROOT / "press" / "ipython"),
        "module://matplotlib_inline.backend_inline",
        "0",
        str(page.parent),
    ]

    stamp = found["metadata"].pop("gradbook")
    assert said == f"ran tiny.md in {stamp['seconds']} s\n"
    assert datetime.date.fromisoformat(stamp.pop("date")) - today <= datetime.timedelta(1)
    assert 0 < stamp.pop("seconds") < 60
    # A Python kernel takes tens of megabytes; only Linux tells.
    assert (stamp.pop("peak_mb") or 50) in range(10, 2000)
    assert stamp == {
        "digest": digest(page),
        "torch": torch.__version__.split("+")[0],
        "device": "CPU, one thread",
    }
    assert found["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "chapter": {"gpu": "not needed"},
    }

    assert not notebooks.is_stale(page)
    page.write_text(PAGE.replace("tiny page", "small page"))
    assert notebooks.is_stale(page)


@pytest.mark.slow
@pytest.mark.parametrize(("where", "stamp"), [("cpu", "CPU, one thread"), ("meta", "meta")])
def test_a_page_runs_on_the_device_that_is_asked_for(chapters, monkeypatch, where, stamp):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cuda")
    cell = "from gradbook import device\nassert device().type == WHERE"
    page = chapters("where", f"{FRONT}# W\n\n```{{code-cell}} python\n{cell}\n```\n")
    page.write_text(page.read_text().replace("WHERE", repr(where)))
    assert notebooks.run(page, where).metadata["gradbook"]["device"] == stamp


@pytest.mark.slow
def test_a_warning_of_ours_stops_the_run_and_nothing_is_written(chapters):
    page = chapters("stops", WARNS)
    with pytest.raises(CellExecutionError) as caught:
        notebooks.run(page)
    assert caught.value.__notes__ == ["cell 1"]
    assert (caught.value.ename, caught.value.evalue) == ("UserWarning", "our own")
    assert not page.with_suffix(".ipynb").exists()


def test_main_reports_an_error_and_keeps_the_old_notebook(chapters, monkeypatch, capsys):
    page = chapters("stops")
    stamped(page, "old")
    before = page.with_suffix(".ipynb").read_text()

    def fail(_):
        raise CellExecutionError("Traceback: it broke", "ValueError", "it broke")

    monkeypatch.setattr(notebooks, "run", fail)
    assert notebooks.main([]) == 1
    assert page.with_suffix(".ipynb").read_text() == before
    said = capsys.readouterr()
    assert said.out == ""
    assert "stops.md stopped:\nTraceback: it broke" in said.err


@pytest.mark.parametrize("stamp", [{}, {"gradbook": {}}, {"gradbook": {"digest": "0" * 64}}])
def test_a_notebook_without_the_digest_of_its_page_is_stale(chapters, stamp):
    page = chapters()
    page.with_suffix(".ipynb").write_text(json.dumps({"metadata": stamp}))
    assert notebooks.is_stale(page)


def test_check_names_what_is_stale_and_runs_nothing(chapters, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "run", lambda _: pytest.fail("a check runs nothing"))
    fresh, stale, _ = chapters("a-fresh"), chapters("stale"), chapters("prose", "# Words\n")
    stamped(fresh, digest(fresh))
    assert notebooks.main(["--check"]) == 1
    assert capsys.readouterr().out == "stale: stale.md (make notebooks runs it)\n"
    stamped(stale, digest(stale))
    assert notebooks.main(["--check"]) == 0
    assert capsys.readouterr().out == ""


def test_check_of_a_named_chapter_tells_about_it_alone(chapters, capsys):
    fresh, _ = chapters("fresh"), chapters("stale")
    stamped(fresh, digest(fresh))
    assert notebooks.main(["--check", "fresh"]) == 0
    assert notebooks.main(["--check", "stale"]) == 1


@pytest.mark.parametrize(
    ("arguments", "ran"),
    [([], ["stale"]), (["fresh"], ["fresh"]), (["fresh", "stale"], ["fresh", "stale"])],
)
def test_main_runs_what_is_stale_or_named(chapters, monkeypatch, arguments, ran):
    fresh, _ = chapters("fresh"), chapters("stale")
    stamped(fresh, digest(fresh))
    seen = []

    def run(page):
        seen.append(page.stem)
        return stamped(page, digest(page))

    monkeypatch.setattr(notebooks, "run", run)
    assert notebooks.main(arguments) == 0
    assert seen == ran
    assert notebooks.is_stale(fresh.with_name("stale.md")) == ("stale" not in ran)
