"""The repository as it stands: every chapter is fresh, listed and sound."""

import re

import yaml

from press import audit, notebooks, outputs
from press.paths import ROOT, executed_chapters

PAGES = executed_chapters()


def listed():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]


def test_every_chapter_is_fresh():
    assert PAGES
    assert [page.name for page in PAGES if notebooks.is_stale(page)] == []


def test_no_guard_finds_a_fault():
    for page in PAGES:
        assert audit.audit(page.read_text(), outputs.load(page)) == []
    claims = [claim for page in PAGES for claim in outputs.claims(outputs.load(page))]
    assert audit.argued_share(claims) <= audit.ARGUED_SHARE


def test_the_table_of_contents_lists_every_chapter_and_only_what_exists():
    generated = {"chapters/claims", "chapters/theorems"}
    files = listed()
    assert {f"chapters/{page.stem}" for page in PAGES} <= set(files)
    assert [f for f in files if f not in generated and not (ROOT / f"{f}.md").exists()] == []
    assert len(files) == len(set(files))


def test_every_module_is_in_the_api_page():
    page = (ROOT / "chapters" / "api.md").read_text()
    shown = set(re.findall(r"automodule:: (\S+)", page))
    modules = {
        ".".join(path.relative_to(ROOT / "code").with_suffix("").parts)
        for path in (ROOT / "code").rglob("*.py")
        if path.name != "__init__.py"
    }
    assert shown == modules


def test_no_path_of_the_machine_that_ran_it_is_named():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("chapters/*.ipynb"), *ROOT.glob("records/*.json")]:
        assert str(ROOT) not in path.read_text(), path
