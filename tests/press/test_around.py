"""What stands around the chapters, on a tiny book that nobody has published."""

import re
from types import SimpleNamespace

import pytest
from docutils import nodes

from press import around, browser, edition, moved
from tests.press.test_build import TOC, build, write_book

VERSIONS = "# Versions\n\n{{ versions }}\n"
MOVED = '[moved]\n"chapters/old" = "chapters/page"\n"older" = "chapters/page"\n'
LOST = '[moved]\n"chapters/old" = "chapters/nowhere"\n"chapters/claims" = "chapters/page"\n'


def written(folder, table):
    """Write a tiny book with a page of versions and a table of moved pages."""
    write_book(folder, TOC + "      - file: chapters/versions\n", versions=VERSIONS)
    (folder / "press" / "moved.toml").write_text(table)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = written(tmp_path_factory.mktemp("around") / "book", MOVED)
    done = build(folder)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    return folder / "_build" / "html"


@pytest.fixture
def tab():
    executable = browser.find_chromium()
    if executable is None:
        pytest.skip("no Chromium; tests/press/test_site.py insists on it in CI")
    with browser.chromium(executable) as running, browser.offline(running, "light") as opened:
        opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
        yield opened


@pytest.mark.slow
def test_a_chapter_says_how_to_cite_it_and_other_pages_do_not(site):
    page = (site / "chapters" / "page.html").read_text()
    (block,) = re.findall(r'<details class="cite">.*?</details>', page, re.DOTALL)
    text = re.sub("<[^>]*>", "", block)
    book = edition.edition()
    assert f"“A page”, in {book.title}, version {book.version} of" in text
    assert "@incollection{gradbook-page," in text
    assert "url" not in text
    for other in ("claims", "versions", "bibliography"):
        assert 'class="cite"' not in (site / "chapters" / f"{other}.html").read_text()
    # What every chapter has would be found by every search.
    assert "incollect" not in (site / "searchindex.js").read_text()


@pytest.mark.slow
def test_the_button_copies_the_entry_and_nothing_else(site, tab):
    page = tab.open(site / "chapters" / "page.html")
    page.click("details.cite summary")
    page.hover("details.cite pre")
    page.click("details.cite button.copybtn")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("@incollection{gradbook-page,\n  author = {")
    assert copied.rstrip().endswith("}")
    assert tab.complaints == []


@pytest.mark.slow
def test_every_page_names_the_version_and_none_an_address(site):
    line = edition.footer(edition.edition(), None)
    for page in ("index", "search", "chapters/page", "chapters/versions"):
        text = (site / f"{page}.html").read_text()
        assert line in text
        assert "canonical" not in text
        assert "og:" not in text
    assert "It was built without being told" in (site / "chapters" / "versions.html").read_text()
    assert not {"404.html", "sitemap.xml", "card.png"} & {path.name for path in site.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("old", ["older.html", "chapters/old.html"])
def test_who_follows_an_old_link_is_led_to_the_same_place_of_the_page(site, tab, old):
    page = tab.context.new_page()
    page.goto(f"file://{site / old}#thm-a")
    page.wait_for_url(f"file://{site / 'chapters' / 'page.html'}#thm-a", timeout=10_000)
    assert page.locator("article h1", has_text="A page").count() == 1
    assert tab.requests == []


@pytest.mark.slow
def test_without_a_script_there_is_a_link(site):
    page = (site / "chapters" / "old.html").read_text()
    assert '<a href="page.html">' in page
    assert '<noscript><meta http-equiv="refresh" content="0; url=page.html"></noscript>' in page


@pytest.mark.slow
def test_a_redirect_that_leads_nowhere_or_hides_a_page_stops_the_build(tmp_path):
    done = build(written(tmp_path / "book", LOST))
    assert done.returncode != 0
    assert "moved.toml: chapters/old moved to chapters/nowhere, which is no page" in done.stderr
    assert "moved.toml: chapters/claims is said to have moved, and is a page" in done.stderr


@pytest.fixture
def config(monkeypatch, tmp_path):
    monkeypatch.delenv("GRADBOOK_REPOSITORY", raising=False)
    table = tmp_path / "moved.toml"
    table.write_text(MOVED)
    monkeypatch.setattr(moved.read, "__defaults__", (table,))
    return SimpleNamespace(
        html_theme_options={"extra_footer": "<p>Licence.</p>"},
        myst_substitutions={"other": "words"},
        html_css_files=["book.css"],
    )


def test_what_was_configured_stays(config):
    around.configure(None, config)
    assert config.html_theme_options["extra_footer"].startswith("<p>Licence.</p><p>Version ")
    assert config.myst_substitutions.keys() == {"other", "versions"}
    assert config.html_css_files == ["book.css", "around.css"]
    assert config.redirects == {"chapters/old": "page.html", "older": "chapters/page.html"}


@pytest.mark.parametrize(
    ("source", "doctree"), [("/x/page.md", nodes.document(None, None)), ("/x/page.ipynb", None)]
)
def test_pages_that_are_no_chapters_are_left_alone(source, doctree):
    app = SimpleNamespace(env=SimpleNamespace(doc2path=lambda _: source))
    context = {"body": "text"}
    around.add_citation(app, "page", "page.html", context, doctree)
    assert context == {"body": "text"}
