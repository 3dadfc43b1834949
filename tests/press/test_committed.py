"""The repository as it stands: every chapter is fresh, sound, and in the table of contents."""

import jupytext
import nbformat
import pytest
import yaml

from press import audit, notebooks
from press.paths import ROOT, executed_chapters

PAGES = executed_chapters()


@pytest.fixture(scope="module")
def listed():
    """The files that the table of contents names."""

    def files(entry):
        if isinstance(entry, dict):
            named = [entry[key] for key in ("root", "file") if key in entry]
            return named + [name for value in entry.values() for name in files(value)]
        return [name for item in entry for name in files(item)] if isinstance(entry, list) else []

    return files(yaml.safe_load((ROOT / "_toc.yml").read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_chapter_was_run_as_it_is_written(page):
    assert not notebooks.is_stale(page), "make notebooks runs it"


def test_the_audit_finds_nothing(capsys):
    status = audit.main()
    assert (status, capsys.readouterr().out.splitlines()[1:]) == (0, [])


def test_the_table_of_contents_names_pages_that_are_there(listed):
    generated = {"chapters/claims", "chapters/theorems"}
    assert len(listed) == len(set(listed)) > len(PAGES)
    assert [x for x in listed if not (ROOT / f"{x}.md").exists() and x not in generated] == []


def test_every_chapter_that_runs_is_in_the_table_of_contents(listed):
    assert {f"chapters/{page.stem}" for page in PAGES} - set(listed) == set()


def test_every_notebook_has_its_page():
    notebooks_there = {path.stem for path in (ROOT / "chapters").glob("*.ipynb")}
    assert notebooks_there == {page.stem for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_notebook_holds_the_cells_of_its_page(page):
    """The digest is of the page: it would not see a notebook that was edited by hand."""
    written = jupytext.reads(page.read_text(), fmt="md:myst").cells
    ran = nbformat.read(page.with_suffix(".ipynb"), as_version=4).cells
    assert [(c.cell_type, c.source, c.metadata) for c in ran] == [
        (c.cell_type, c.source, c.metadata) for c in written
    ]
