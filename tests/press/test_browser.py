"""The parts of the browser checks that need no browser."""

from press import browser


def test_pages_are_found_below_the_site(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("b.html", "a/c.html", "a/d.txt"):
        (tmp_path / name).write_text("")
    assert browser.pages(tmp_path) == [tmp_path / "a" / "c.html", tmp_path / "b.html"]
    assert browser.pages(tmp_path / "none") == []


def test_only_files_and_data_stay_on_the_site():
    assert not browser.leaves("file:///a/b.html")
    assert not browser.leaves("data:image/png;base64,AA")
    assert browser.leaves("https://example.invalid/x.js")
    assert browser.leaves("http://localhost/x.js")


def test_no_chromium_is_none(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert browser.find_chromium() is None
