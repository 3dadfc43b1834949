"""The strip of facts under a chapter's title, and the button that edits its source."""

import html
import os
import re
from types import SimpleNamespace

import pytest

from press import site

STAMP = {
    "seconds": 12.4,
    "peak_mb": 640,
    "torch": "2.13.0",
    "device": "CPU, one thread",
    "date": "2026-01-02",
}
FRONT = """\
---
chapter:
  article: "An <article> & its 'title'"
  downloads: none
  gpu: not needed
---
"""
REPOSITORY = "https://example.org/some/book"


@pytest.fixture(autouse=True)
def _unpublished(monkeypatch):
    monkeypatch.delenv("GRADBOOK_REPOSITORY", raising=False)
    monkeypatch.setenv("GRADBOOK_SITE", "https://book.example")
    monkeypatch.setenv("GRADBOOK_COMMIT", "0123456789" * 4)


def facts(words=900, **stamp):
    notebook = {"metadata": {"gradbook": STAMP | stamp}}
    found = site.strip_html(FRONT + "word " * words, notebook)
    assert re.fullmatch(r'<dl class="strip">(<div><dt>[^<]*</dt><dd>[^<]*</dd></div>)+</dl>', found)
    pairs = re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", found)
    return {html.unescape(k): html.unescape(v) for k, v in pairs}


def test_all_facts_in_order():
    assert list(facts().items()) == [
        ("To read", "5 min"),
        ("To run", "12 s, 640 MB"),
        ("Downloads", "none"),
        ("GPU", "not needed"),
        ("Follows", "An <article> & its 'title'"),
        ("Last checked", "2026-01-02, torch 2.13.0, CPU, one thread"),
    ]


@pytest.mark.parametrize(("words", "minutes"), [(1, 1), (180, 1), (360, 2), (6000, 33)])
def test_the_time_to_read(words, minutes):
    assert facts(words)["To read"] == f"{minutes} min"


def test_memory_is_left_out_where_it_was_not_measured():
    assert facts(peak_mb=None, seconds=0.2)["To run"] == "0 s"


def test_the_device_is_escaped():
    assert facts(device="<b>Card</b>")["Last checked"].endswith("torch 2.13.0, <b>Card</b>")


@pytest.mark.parametrize(("name", "suffix"), [("chapters/a", ".md"), ("chapters/b", ".ipynb")])
def test_the_edit_button_leads_to_the_hand_written_page(tmp_path, monkeypatch, name, suffix):
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters" / "a.md").touch()
    monkeypatch.setattr(site, "ROOT", tmp_path)
    context = {"page_source_suffix": ".ipynb"}
    site.edit_the_source(None, name, "page.html", context, None)
    assert context == {"page_source_suffix": suffix}


BUTTONS = ("use_repository_button", "use_issues_button", "use_edit_page_button")


@pytest.fixture
def options(monkeypatch, tmp_path):
    """Configure Sphinx and return the options of its theme."""

    def configured():
        monkeypatch.setattr(site, "_vendor_katex", lambda: tmp_path)
        monkeypatch.setattr(site, "executed_chapters", lambda: [tmp_path / "x.md"])
        config = SimpleNamespace(
            exclude_patterns=["docs/**"],
            html_static_path=[],
            html_css_files=["a.css"],
            html_js_files=["a.js"],
            html_theme_options={},
        )
        site.configure(None, config)
        assert config.exclude_patterns == ["docs/**", "chapters/x.md"]
        assert config.html_static_path == ["press/assets", os.path.relpath(tmp_path, site.ROOT)]
        assert config.html_css_files == ["a.css", "book.css"]
        assert config.html_js_files == ["a.js", "book.js"]
        return config.html_theme_options

    return configured


def test_buttons_are_left_out_where_no_repository_is_known(options):
    assert options() == {}


def test_buttons_appear_when_the_repository_is_set(options, monkeypatch):
    monkeypatch.setenv("GRADBOOK_REPOSITORY", REPOSITORY)
    found = options()
    assert found["repository_url"] == REPOSITORY
    assert found["repository_branch"] == "main"
    assert all(found[button] for button in BUTTONS)


def test_without_katex_the_build_says_what_brings_it(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "KATEX", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none is missing: make setup"):
        site._vendor_katex()


def test_malformed_tex_is_a_warning_in_words(monkeypatch):
    said = []
    logger = SimpleNamespace(warning=lambda *args, **where: said.append((args, where)))
    monkeypatch.setattr(site.logging, "getLogger", lambda _: logger)
    body = '<span class="katex-error" title="ParseError: x &lt; y" style="">x</span>'
    site.report_malformed_tex(None, "chapters/a", "page.html", {"body": body}, None)
    assert said == [(("%s", "malformed TeX: ParseError: x < y"), {"location": "chapters/a"})]
    said.clear()
    site.report_malformed_tex(None, "chapters/a", "page.html", {"body": "<p>katex</p>"}, None)
    site.report_malformed_tex(None, "search", "search.html", {}, None)
    assert said == []


def test_fields_of_named_tuples_are_not_listed_by_number():
    from gradbook.estimators import Family, pathwise

    assert site.skip_field_aliases(None, "class", "sample", Family.sample, False, None)
    assert not site.skip_field_aliases(None, "module", "pathwise", pathwise, False, None)
    assert site.skip_field_aliases(None, "module", "pathwise", pathwise, True, None)
