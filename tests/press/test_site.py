"""The rendered site in a real browser, from disk and with the network off."""

import json
import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import sphinxcontrib.katex

from press import browser
from press.paths import HTML, ROOT, executed_chapters

pytestmark = pytest.mark.slow
PAGES = browser.pages()
NAMES = [page.relative_to(HTML).as_posix() for page in PAGES]
CHAPTERS = [f"chapters/{page.stem}.html" for page in executed_chapters()]
SCHEMES = ("light", "dark")


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


def dead_links(page: Path) -> list[str]:
    """List the links of a page that lead nowhere inside the site."""
    faults = []
    for target in Links(page).targets:
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not file.is_file():
            faults.append(f"no file: {target}")
        elif parts.fragment and file.suffix == ".html":
            place = unquote(parts.fragment)
            if place not in Links(file).places:
                faults.append(f"no such place: {target}")
    return faults


def undescribed(page: Path) -> list[str]:
    """List what a page lacks for those who cannot see it, or who find it by its icon and title."""
    tags = Links(page).tags
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
def tabs(chromium):
    with browser.offline(chromium, "light") as light, browser.offline(chromium, "dark") as dark:
        yield {"light": light, "dark": dark}


@pytest.fixture(scope="session")
def axe():
    return browser.AXE.read_text()


def test_the_site_is_built_from_the_committed_notebooks():
    assert PAGES, "no site: make book"
    built = json.loads((HTML / "checked.json").read_text())
    for page in executed_chapters():
        notebook = json.loads(page.with_suffix(".ipynb").read_text())
        assert built[page.stem] == notebook["metadata"]["gradbook"], "stale site: make book"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NAMES)
def test_a_page_reads_offline_and_by_everyone(tabs, axe, name, scheme):
    page = tabs[scheme].open(HTML / name)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    page.wait_for_timeout(50)
    faults = [f"asks for {address}" for address in tabs[scheme].requests]
    faults += tabs[scheme].complaints + browser.unrendered(page) + browser.fonts_missing(page)
    faults += browser.too_wide(page, 390) + browser.too_wide(page, 1280)
    assert faults == []
    assert browser.violations(page, axe) == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    assert dead_links(HTML / name) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_described(name):
    assert undescribed(HTML / name) == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_can_be_downloaded_and_its_code_copied(tabs, name):
    page = tabs["light"].open(HTML / name)
    download = page.locator("a.btn-download-source-button").first.get_attribute("href")
    assert download.endswith(".ipynb")
    assert (HTML / name).parent.joinpath(download).resolve().is_file()
    assert page.locator("button.copybtn").count() > 10
    assert page.locator(".claim").count() > 10
    assert page.locator("dl.strip").count() == 1


def test_the_search_works_offline(tabs):
    page = tabs["light"].open(Path(f"{HTML / 'search.html'}?q=reparameterization"))
    page.wait_for_selector("#search-results li a", timeout=10_000)
    assert tabs["light"].requests == []


def test_the_style_of_the_formulas_is_of_the_version_that_renders_them():
    script = Path(sphinxcontrib.katex.__file__).with_name("katex.min.js").read_text()
    version = json.loads((ROOT / "package.json").read_text())["dependencies"]["katex"]
    assert f'"{version}"' in script


BAD = """<!doctype html><html><head><title>Bad</title></head><body>
<main><h1>Bad</h1><p>Raw $$x$$ and {eq}`a`.</p><img src="https://example.invalid/x.png">
<a href="#nowhere">dead</a><a href="missing.html">dead</a><div style="width:3000px">wide</div>
<script>console.error("complaint"); document.documentElement.dataset.theme = "light";</script>
</main></body></html>"""


def test_each_check_reports_its_fault(chromium, axe, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(BAD)
    with browser.offline(chromium, "light") as tab:
        page = tab.open(bad)
        page.wait_for_timeout(100)
        assert tab.requests == ["https://example.invalid/x.png"]
        assert "complaint" in tab.complaints
        assert len(browser.unrendered(page)) == 2
        assert browser.too_wide(page, 390)
        rules = {fault.split(":")[0] for fault in browser.violations(page, axe)}
    assert {"html-has-lang", "image-alt"} <= rules
    assert dead_links(bad) == ["no such place: #nowhere", "no file: missing.html"]
    assert undescribed(bad) == [
        "image without alt: https://example.invalid/x.png",
        "no language",
        "no favicon",
    ]
