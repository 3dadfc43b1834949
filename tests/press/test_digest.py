"""The digest covers the page, what it imports at any distance, and the records it names."""

import pytest

from press.digest import digest, modules_of
from press.paths import CODE


def page_of(*lines):
    return (
        "# Title\n\nimport gradbook.prose\n\n```{code-cell} python\n" + "\n".join(lines) + "\n```\n"
    )


@pytest.fixture
def tree(tmp_path):
    """Write modules and records to a folder of their own."""

    class Tree:
        code, records, page = tmp_path / "code", tmp_path / "records", tmp_path / "page.md"

        def write(self, name, text=""):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

        def modules(self, *lines):
            return {
                name.removeprefix("gradbook.") for name in modules_of(page_of(*lines), self.code)
            }

        def digest(self):
            return digest(self.page, self.code, self.records)

    found = Tree()
    for name in ("a", "b", "c", "prose"):
        found.write(f"code/gradbook/{name}.py")
    found.write("code/gradbook/__init__.py")
    found.write("code/gradbook/sub/__init__.py")
    found.write("code/gradbook/sub/deep.py")
    found.write("code/gradbook/sub/other.py")
    return found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import gradbook", set()),
        ("import gradbook.a", {"a"}),
        ("import math, gradbook.a as x, gradbook.b", {"a", "b"}),
        ("from gradbook.a import x", {"a"}),
        ("from gradbook.a import *", {"a"}),
        ("from gradbook import a, b as y, nothing", {"a", "b"}),
        ("from gradbook import (\n    a,\n    c,\n)", {"a", "c"}),
        ("def f():\n    from gradbook import a", {"a"}),
        ("if True:\n    import gradbook.c", {"c"}),
        ("import gradbook.sub", {"sub"}),
        ("import gradbook.sub.deep", {"sub", "sub.deep"}),
        ("from gradbook.sub import deep", {"sub", "sub.deep"}),
        ("from gradbook.sub.deep import x", {"sub", "sub.deep"}),
    ],
)
def test_every_form_of_import_is_found_with_its_packages(tree, line, found):
    assert tree.modules(line) == {"gradbook", *found}


@pytest.mark.parametrize(
    "line",
    ["import math", "from gradbooks import a", "import other.gradbook.a", "x = 'gradbook.a'"],
)
def test_what_is_not_ours_is_left_out(tree, line):
    assert tree.modules(line) == set()


def test_only_code_cells_import(tree):
    text = (
        "```python\nimport gradbook.a\n```\n\nimport gradbook.b\n\n```{code-cell} python\n1\n```\n"
    )
    assert modules_of(text, tree.code) == set()


def test_modules_are_followed_to_any_depth(tree):
    tree.write("code/gradbook/a.py", "from gradbook import b")
    tree.write("code/gradbook/b.py", "def f():\n    import gradbook.sub.deep")
    tree.write("code/gradbook/sub/deep.py", "from gradbook.c import x")
    assert tree.modules("import gradbook.a") == {"gradbook", "a", "b", "sub", "sub.deep", "c"}


def test_a_package_is_followed_through_its_init(tree):
    tree.write("code/gradbook/sub/__init__.py", "from gradbook.sub.other import x")
    tree.write("code/gradbook/__init__.py", "from gradbook.c import x")
    assert tree.modules("import gradbook.sub.deep") == {
        "gradbook",
        "c",
        "sub",
        "sub.deep",
        "sub.other",
    }


def test_a_cycle_ends(tree):
    tree.write("code/gradbook/a.py", "import gradbook.b")
    tree.write("code/gradbook/b.py", "import gradbook.a")
    assert tree.modules("import gradbook.b") == {"gradbook", "a", "b"}


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("a", "from . import b", {"b"}),
        ("a", "from .sub.deep import x", {"sub", "sub.deep"}),
        ("sub/deep", "from . import other", {"sub.other"}),
        ("sub/deep", "from .other import x", {"sub.other"}),
        ("sub/deep", "from .. import c", {"c"}),
        ("sub/deep", "from ..c import x", {"c"}),
        ("sub/__init__", "from .other import x", {"sub.other"}),
    ],
)
def test_relative_imports_of_a_module_are_followed(tree, module, line, found):
    tree.write(f"code/gradbook/{module}.py", line)
    start = {"a": {"a"}}.get(module, {"sub", "sub.deep"})
    assert tree.modules("import gradbook.a" if module == "a" else "import gradbook.sub.deep") == {
        "gradbook",
        *start,
        *found,
    }


def test_the_modules_of_the_book_itself():
    line = "from gradbook import claim\nfrom gradbook.noise import uniform"
    names = {"gradbook", "gradbook.claims", "gradbook.devices", "gradbook.noise"}
    assert modules_of(page_of(line), CODE) == names


@pytest.fixture
def chapter(tree):
    """A page that imports ``a``, which imports ``b``, and names the record ``run`` in a cell."""
    tree.page.write_text(
        page_of("import gradbook.a", "load('run', 'gpu')") + "\nThe record 'prose'.\n"
    )
    tree.write("code/gradbook/a.py", "from gradbook import b")
    for name in ("run", "other", "prose", "gpu"):
        tree.write(f"records/{name}.json", "{}")
    return tree


def test_the_digest_is_repeatable_and_64_digits(chapter):
    assert chapter.digest() == chapter.digest()
    assert len(bytes.fromhex(chapter.digest())) == 32


@pytest.mark.parametrize(
    "name",
    [
        "page.md",
        "code/gradbook/__init__.py",
        "code/gradbook/a.py",
        "code/gradbook/b.py",
        "code/gradbook/book.mplstyle",
        "records/run.json",
    ],
)
def test_the_digest_changes_with_what_the_page_depends_on(chapter, tmp_path, name):
    before = chapter.digest()
    with (tmp_path / name).open("a") as file:
        file.write(" ")
    assert chapter.digest() != before


@pytest.mark.parametrize(
    "name",
    [
        "code/gradbook/c.py",
        "code/gradbook/sub/deep.py",
        "code/gradbook/prose.py",
        "code/elsewhere.py",
        "records/other.json",
        "records/prose.json",
        "records/gpu.json",
        "records/run.txt",
    ],
)
def test_the_digest_stays_when_something_else_changes(chapter, tmp_path, name):
    before = chapter.digest()
    with (tmp_path / name).open("a") as file:
        file.write(" ")
    assert chapter.digest() == before


def test_text_that_moves_between_modules_changes_the_digest(chapter):
    chapter.write("code/gradbook/a.py", "from gradbook import b\nx = 1\n")
    before = chapter.digest()
    chapter.write("code/gradbook/a.py", "from gradbook import b\n")
    chapter.write("code/gradbook/b.py", "x = 1\n")
    assert chapter.digest() != before


def test_a_record_that_appears_or_goes_changes_the_digest(chapter):
    before = chapter.digest()
    (chapter.records / "run.json").unlink()
    assert chapter.digest() != before
    chapter.write("records/run.json", "{}")
    assert chapter.digest() == before


def test_a_page_without_a_folder_of_records_has_a_digest(tree):
    tree.page.write_text(page_of("import gradbook.a"))
    assert len(tree.digest()) == 64
