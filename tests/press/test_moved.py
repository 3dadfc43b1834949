"""The table of moved pages, and its faults; tests/press/test_around.py follows a redirect."""

import pytest
import yaml

from press import moved
from press.paths import ROOT


@pytest.fixture
def table(tmp_path):
    def read(text):
        path = tmp_path / "moved.toml"
        path.write_text(text)
        return moved.read(path)

    return read


def test_the_table_is_read(table):
    assert table("[moved]\n") == {}
    assert table('[moved]\n"chapters/old" = "chapters/new"\n') == {"chapters/old": "chapters/new"}


@pytest.mark.parametrize(
    "text", ["", "moved = 1\n", '[moved]\n[other]\n"a" = "b"\n', "a = 1\n[moved]\n"]
)
def test_a_file_holds_one_table(table, text):
    with pytest.raises(ValueError, match=r"moved\.toml: must hold the table \[moved\]"):
        table(text)


# The last would be taken for a pattern by the extension that writes the redirects.
@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "../a", "a.html", "https://example.org/a", 'a"b', "chapters/*"]
)
def test_a_name_is_that_of_a_page_without_its_ending(table, name):
    with pytest.raises(ValueError, match="no name of a page"):
        table(f"[moved]\n'{name}' = 'chapters/new'\n")
    with pytest.raises(ValueError, match="no name of a page"):
        table(f"[moved]\n'chapters/old' = '{name}'\n")


def test_a_name_is_a_text(table):
    with pytest.raises(ValueError, match="no name of a page: 3"):
        table("[moved]\na = 3\n")


def test_redirects_are_relative_to_the_old_page():
    names = {"old": "chapters/new", "chapters/old": "chapters/new", "a/b/old": "new"}
    assert moved.redirects(names) == {
        "old": "chapters/new.html",
        "chapters/old": "new.html",
        "a/b/old": "../../new.html",
    }


def test_each_fault_is_named():
    names = {"old": "new", "here": "new", "older": "old"}
    assert moved.faults(names, {"new", "here"}) == [
        "older moved to old, which is no page",
        "here is said to have moved, and is a page",
    ]
    assert moved.faults({"old": "new"}, {"new"}) == []


def test_the_book_s_own_table_is_sound():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = {chapter["file"] for part in toc["parts"] for chapter in part["chapters"]}
    assert moved.faults(moved.read(), pages | {toc["root"]}) == []
