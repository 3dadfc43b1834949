"""The rendered site in a real browser, from disk and with the network off."""

import json
import os
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import sphinxcontrib.katex
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from press import browser, moved
from press.paths import HTML, ROOT, executed_chapters

pytestmark = pytest.mark.slow
PAGES = browser.pages()
# What leads on to another page, and what a server alone shows (tests/press/test_published.py does).
ELSEWHERE = {f"{name}.html" for name in ("404", *moved.read())}
NAMES = [x for page in PAGES if (x := page.relative_to(HTML).as_posix()) not in ELSEWHERE]
CHAPTERS = [f"chapters/{page.stem}.html" for page in executed_chapters()]


class Links(HTMLParser):
    """What a page links to and loads, and the places in it that can be linked to."""

    def __init__(self, page: Path):
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()
        self.tags: list[tuple[str, dict]] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        self.places |= {found[key] for key in ("id", "name") if found.get(key)}
        self.targets += [found[key] for key in ("href", "src") if found.get(key)]


@cache
def links(page: Path) -> Links:
    """Read a page once, though every other page links to it."""
    return Links(page)


def dead_links(page: Path) -> list[str]:
    """List the links of a page that lead nowhere inside the site."""
    faults = []
    for target in links(page).targets:
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not file.is_file():
            faults.append(f"no file: {target}")
        elif parts.fragment and file.suffix == ".html":
            place = unquote(parts.fragment)
            if place not in links(file).places:
                faults.append(f"no such place: {target}")
    return faults


def undescribed(page: Path) -> list[str]:
    """List what a page lacks for those who cannot see it, or who find it by its icon and title."""
    tags = links(page).tags
    images = [a for tag, a in tags if tag == "img" and "alt" not in a]
    faults = [f"image without alt: {a.get('src', '')[:60]}" for a in images]
    if not any(tag == "html" and a.get("lang") for tag, a in tags):
        faults.append("no language")
    if not any(tag == "link" and "icon" in (a.get("rel") or "") for tag, a in tags):
        faults.append("no favicon")
    if not any(tag == "title" for tag, _ in tags):
        faults.append("no title")
    return faults


@pytest.fixture(scope="session")
def chromium():
    executable = browser.find_chromium()
    if executable is None:
        message = f"no Chromium: install Debian's package {browser.PACKAGE} to check the site"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with browser.chromium(executable) as running:
        yield running


@pytest.fixture(scope="session")
def tab(chromium):
    with browser.offline(chromium, "light") as opened:
        yield opened


@pytest.fixture(scope="session")
def axe():
    return browser.AXE.read_text()


def test_the_site_is_built_from_the_committed_notebooks():
    assert PAGES, "no site: make book"
    built = json.loads((HTML / "checked.json").read_text())
    for page in executed_chapters():
        notebook = json.loads(page.with_suffix(".ipynb").read_text())
        assert built[page.stem] == notebook["metadata"]["gradbook"], "stale site: make book"


@pytest.mark.parametrize("name", NAMES)
def test_a_page_reads_offline_and_by_everyone(tab, axe, name):
    page = tab.open(HTML / name)
    faults = browser.unrendered(page)
    for width in (390, 1280):
        faults += browser.too_wide(page, width) + browser.hidden_formulas(page)
    faults += browser.violations(page, axe)
    browser.turn(page, "dark")
    faults += browser.too_wide(page, 390) + browser.too_wide(page, 1280)
    # Its structure is the same; of what axe looks at, only the colours have changed.
    faults += [f"dark: {fault}" for fault in browser.violations(page, axe, browser.COLOURS)]
    faults += browser.fonts_missing(page) + tab.complaints
    assert faults + [f"asks for {address}" for address in tab.requests] == []


def test_a_reader_who_prefers_dark_is_met_in_dark(chromium):
    with browser.offline(chromium, "dark") as tab:
        page = tab.open(HTML / "index.html")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert tab.complaints == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    assert dead_links(HTML / name) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_described(name):
    assert undescribed(HTML / name) == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_can_be_downloaded_and_its_code_copied(tab, name):
    page = tab.open(HTML / name)
    download = page.locator("a.btn-download-source-button").first.get_attribute("href")
    assert download == f"../notebooks/{Path(name).stem}.ipynb"
    assert (HTML / name).parent.joinpath(download).resolve().is_file()
    cells = page.locator("div.cell_input div.highlight")
    assert cells.count() == cells.locator("button.copybtn").count() > 10
    assert page.locator(".claim").count() > 10
    assert page.locator("dl.strip").count() == 1


def test_the_search_works_offline(tab):
    page = tab.open(Path(f"{HTML / 'search.html'}?q=reparameterization"))
    page.wait_for_selector("#search-results li a", timeout=10_000)
    assert tab.requests == []


def test_the_style_of_the_formulas_is_of_the_version_that_renders_them():
    script = Path(sphinxcontrib.katex.__file__).with_name("katex.min.js").read_text()
    version = json.loads((ROOT / "package.json").read_text())["dependencies"]["katex"]
    assert f'"{version}"' in script


BAD = """<!doctype html><html><head><title>Bad</title></head><body>
<main><h1>Bad</h1><p>Raw $$x$$ and {eq}`a`.</p><img src="https://example.invalid/x.png">
<a href="#nowhere">dead</a><a href="missing.html">dead</a><div style="width:3000px">wide</div>
<p style="color:#bbb">pale</p>
<div class="math" style="overflow:hidden"><span class="katex-display">
<i style="display:block;width:4000px">x</i><annotation>x+y</annotation></span></div>
<div class="math"><span class="eqno" style="position:absolute">(1)</span>
<span class="katex-display"><annotation>z</annotation></span></div>
<script>console.error("complaint"); document.documentElement.dataset.theme = "light";</script>
</main></body></html>"""


def test_each_check_reports_its_fault(chromium, axe, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(BAD)
    with browser.offline(chromium, "light") as tab:
        page = tab.open(bad)
        assert len(browser.too_wide(page, 390)) == 1
        assert tab.requests == ["https://example.invalid/x.png"]
        assert "complaint" in tab.complaints
        assert len(browser.unrendered(page)) == 2
        assert browser.hidden_formulas(page) == ["cut off: x+y", "under its number: z"]
        rules = {fault.split(":")[0] for fault in browser.violations(page, axe)}
        assert {"html-has-lang", "image-alt", "color-contrast"} <= rules
        colours = {f.split(":")[0] for f in browser.violations(page, axe, browser.COLOURS)}
        assert colours == {"color-contrast"}
        with pytest.raises(PlaywrightTimeout):
            browser.turn(page, "dark")
    assert dead_links(bad) == ["no such place: #nowhere", "no file: missing.html"]
    assert undescribed(bad) == [
        "image without alt: https://example.invalid/x.png",
        "no language",
        "no favicon",
    ]


PALE = """<!doctype html><html lang="en"><head><title>Pale</title></head><body><main><h1>Pale</h1>
<style>span.k { color: #ccc } .dim span.k { color: #000 }</style>
<pre><span class="k">first</span> <span class="k">second</span> <b class="dim"><span class="k">third</span></b></pre>
<details><summary>more</summary><pre><span class="k">fourth</span></pre></details></main></body></html>"""


def test_one_pale_token_of_each_block_is_reported_even_where_it_is_folded(chromium, axe, tmp_path):
    path = tmp_path / "pale.html"
    path.write_text(PALE)
    with browser.offline(chromium, "light") as tab:
        found = browser.violations(tab.open(path), axe)
    assert [fault.split("</span>")[0].split(">")[1] for fault in found] == ["first", "fourth"]
