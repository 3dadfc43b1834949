"""What a site has once it is published, on a tiny book with an address."""

import os
import re
import subprocess
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from docutils import nodes

from press import browser, published
from tests.press.test_build import TOC, build, write_book

COMMIT = "0123456789" * 4
SITE = "https://someone.example/a_book"
WHERE = {
    "GRADBOOK_REPOSITORY": "https://github.com/Someone/a_book",
    "GRADBOOK_COMMIT": COMMIT,
    "GRADBOOK_SITE": SITE,
}
PAGES = ["index", *(f"chapters/{name}" for name in ("bibliography", "claims", "page", "theorems"))]
DAY = 86_400


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A published book whose page was committed on the first day, the rest not at all."""
    folder = tmp_path_factory.mktemp("published") / "book"
    write_book(folder, TOC)
    when = {f"GIT_{who}_DATE": f"@{DAY} +0000" for who in ("AUTHOR", "COMMITTER")}
    identity = ["-c", "user.name=a", "-c", "user.email=a"]
    for command in (["init", "-q"], ["add", "chapters/page.ipynb"], ["commit", "-qm", "a"]):
        subprocess.run(["git", *identity, *command], cwd=folder, env=os.environ | when, check=True)
    done = build(folder, **WHERE)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    return folder


@pytest.fixture(scope="module")
def site(book):
    return book / "_build" / "html"


def listed(site):
    """Read the sitemap: each page with its date."""
    name = "{http://www.sitemaps.org/schemas/sitemap/0.9}"
    root = ElementTree.parse(site / "sitemap.xml").getroot()
    return {url.findtext(f"{name}loc"): url.findtext(f"{name}lastmod") for url in root}


def tags(page):
    """Read what a page's head says of it."""
    found = re.findall(r'<meta (?:name|property)="([\w:]+)" content="([^"]*)" />', page)
    return dict(found)


@pytest.mark.slow
def test_the_sitemap_lists_the_pages_with_the_dates_of_their_commits(site):
    assert listed(site) == {f"{SITE}/{name}.html": None for name in PAGES} | {
        f"{SITE}/chapters/page.html": "1970-01-02T00:00:00Z"
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_every_page_says_where_it_is(site, name):
    page = (site / f"{name}.html").read_text()
    address = f"{SITE}/{name}.html"
    assert re.findall(r'<link rel="canonical" href="([^"]*)"', page) == [address]
    assert tags(page)["og:url"] == address
    assert tags(page)["og:image"] == f"{SITE}/card.png"
    assert tags(page)["og:site_name"] == "Gradients Through Everything"
    assert (site / "card.png").is_file()


@pytest.mark.slow
def test_a_page_has_its_own_title_and_description(site):
    found = tags((site / "chapters" / "page.html").read_text())
    assert found["og:title"].endswith("A page")
    words = "Words about …, Theorem 1.1, (1.1) and Exercise 1.1, after Who [1900]."
    assert found["og:description"].startswith(words)
    assert found["description"] == found["og:description"]


@pytest.mark.slow
def test_a_chapter_is_cited_with_its_address_and_commit(site):
    page = (site / "chapters" / "page.html").read_text()
    assert f'<a href="{SITE}/chapters/page.html">' in page
    assert f'commit <a href="https://github.com/Someone/a_book/commit/{COMMIT}">0123456</a>' in page


@pytest.mark.slow
def test_the_page_for_lost_readers_works_at_any_depth(site):
    """A browser asks for a page that is not there, deep in the site, and gets 404.html."""
    executable = browser.find_chromium()
    if executable is None:
        pytest.skip("no Chromium; tests/press/test_site.py insists on it in CI")
    missing = []

    def serve(route):
        path = route.request.url.removeprefix(SITE).lstrip("/").split("?")[0].split("#")[0]
        if (site / path).is_file():
            route.fulfill(path=site / path)
            return
        missing.append(path)
        route.fulfill(path=site / "404.html", status=404)

    with browser.chromium(executable) as running, browser.offline(running, "light") as tab:
        tab.context.route(f"{SITE}/**", serve)
        page = tab.context.new_page()
        page.goto(f"{SITE}/chapters/gone/deep")
        assert page.locator("h1", has_text="Page not found").count() >= 1
        assert browser.violations(page, browser.AXE.read_text()) == []
        page.click("article a:has-text('The book')")
        page.wait_for_url(f"{SITE}/index.html")
        asked = [address for address in tab.requests if not address.startswith(f"{SITE}/")]
    assert missing == ["chapters/gone/deep"]
    assert asked == []


@pytest.mark.slow
def test_a_published_page_still_fetches_nothing(site):
    executable = browser.find_chromium()
    if executable is None:
        pytest.skip("no Chromium; tests/press/test_site.py insists on it in CI")
    with browser.chromium(executable) as running, browser.offline(running, "light") as tab:
        for name in PAGES:
            tab.open(site / f"{name}.html")
            assert (tab.requests, tab.complaints) == ([], [])


@pytest.mark.slow
def test_lost_readers_find_every_link_of_their_page(site):
    page = (site / "404.html").read_text()
    assert "canonical" not in page
    inside = [x for x in re.findall(r'(?:href|src|action)="(/[^"]*)"', page)]
    assert len(inside) > 20
    for link in inside:
        assert link.startswith("/a_book/")
        assert (site / link.removeprefix("/a_book/").split("?")[0]).is_file(), link


@pytest.mark.slow
def test_a_build_that_reads_one_page_again_still_lists_all(book, site):
    before = listed(site)
    with (book / "chapters" / "bibliography.md").open("a") as page:
        page.write("\nMore words.\n")
    assert build(book, **WHERE).returncode == 0
    assert listed(site) == before


PREFIX = "/a_book/"


@pytest.mark.parametrize(
    ("link", "absolute"),
    [
        ('<a href="chapters/x.html#y">', '<a href="/a_book/chapters/x.html#y">'),
        ('<script src="_static/a.js?v=1&amp;w">', '<script src="/a_book/_static/a.js?v=1&amp;w">'),
        ('<form action="search.html">', '<form action="/a_book/search.html">'),
        ('<html data-content_root="./">', '<html data-content_root="/a_book/">'),
        ('<a href="#place">', '<a href="#place">'),
        ('<a href="">', '<a href="">'),
        ('<a href="/a_book/x.html">', '<a href="/a_book/x.html">'),
        ('<a href="https://example.org/x">', '<a href="https://example.org/x">'),
        ('<a data-href="x">', '<a data-href="x">'),
    ],
)
def test_links_are_rooted_and_others_stay(link, absolute):
    assert published.rooted(link, PREFIX) == absolute
    assert published.rooted(absolute, PREFIX) == absolute


def paragraph(*parts):
    document = nodes.document(None, None)
    document += nodes.title("", "A title")
    document += nodes.paragraph("", "", *parts)
    document += nodes.paragraph("", "A second one.")
    return document


def test_a_description_is_the_first_paragraph_without_its_formulas():
    words = paragraph(
        nodes.strong("", "You will see"),
        nodes.Text("\nwhat "),
        nodes.math("", r"\nabla"),
        nodes.Text(" is."),
    )
    assert published.description(words) == "You will see what … is."


def test_a_long_description_is_cut_between_words():
    found = published.description(paragraph(nodes.Text("words " * 99)))
    assert found.endswith("words …")
    assert 190 < len(found) <= 200


def test_a_page_without_a_paragraph_has_no_description():
    assert published.description(nodes.document(None, None)) == ""


def described(document, **context):
    found = {"meta": None, "metatags": ""} | context
    published.describe(None, "page", "page.html", found, document)
    return found


def test_a_description_is_escaped():
    found = described(paragraph(nodes.Text('a < "b" & c')))
    words = "a &lt; &quot;b&quot; &amp; c"
    assert found["meta"] == {"og:description": words}
    assert found["metatags"] == f'<meta name="description" content="{words}" />\n'


def test_what_a_page_says_of_itself_stays():
    own = {"meta": {"og:description": "own"}, "metatags": '<meta name="description" content="own">'}
    assert described(paragraph(nodes.Text("words")), **own) == own


def test_pages_that_sphinx_makes_have_no_description():
    assert described(None) == {"meta": None, "metatags": ""}


def test_an_address_without_an_end_is_given_one(monkeypatch):
    for key, value in WHERE.items():
        monkeypatch.setenv(key, value)
    config = SimpleNamespace(html_title="The Book")
    published.configure(None, config)
    assert config.html_baseurl == config.ogp_site_url == f"{SITE}/"
    assert config.notfound_urls_prefix == PREFIX
    assert config.ogp_image_alt.startswith("The Book. ")
