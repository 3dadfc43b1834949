"""Which checks judge which file."""

import pytest

from press.targets import chapters_of, module_of, unit_tests_of


@pytest.mark.parametrize(
    ("file", "module", "tests"),
    [
        ("code/gradbook/claims.py", "gradbook.claims", "tests/test_claims.py"),
        ("code/gradbook/peft/svd.py", "gradbook.peft.svd", "tests/peft/test_svd.py"),
        ("code/gradbook/peft/__init__.py", "gradbook.peft", "tests/peft/test___init__.py"),
        ("code/gradbook/__init__.py", "gradbook", "tests/test___init__.py"),
        ("press/digest.py", "press.digest", "tests/press/test_digest.py"),
    ],
)
def test_module_and_unit_tests_follow_the_path(file, module, tests):
    assert module_of(file) == module
    assert unit_tests_of(file) == tests


@pytest.fixture
def book(tmp_path):
    """Two chapters: one imports ``a``, which imports ``b``; the other imports ``b`` alone."""
    files = {
        "code/gradbook/__init__.py": "",
        "code/gradbook/a.py": "from gradbook.b import x",
        "code/gradbook/b.py": "x = 1",
        "code/gradbook/c.py": "",
        "chapters/first.md": "```{code-cell} ipython3\nimport gradbook.a\n```\n",
        "chapters/second.md": "```{code-cell} ipython3\nfrom gradbook import b\n```\n",
        "chapters/unrun.md": "```{code-cell} ipython3\nimport gradbook.a\n```\n",
        "chapters/prose.md": "import gradbook.a\n",
        "chapters/first.ipynb": "{}",
        "chapters/second.ipynb": "{}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "chapters"), [("a", ["first"]), ("b", ["first", "second"]), ("c", [])]
)
def test_chapters_import_a_module_directly_or_through_another(book, name, chapters):
    found = chapters_of(f"code/gradbook/{name}.py", book)
    assert found == [f"chapters/{chapter}.ipynb" for chapter in chapters]
