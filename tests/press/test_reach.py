"""What a page can run: definitions count when something that runs names them."""

import ast

import pytest

from press.reach import reached


@pytest.fixture
def tree(tmp_path):
    """Write modules and a page; names() says which definitions the page's cells reach."""

    class Tree:
        def write(self, name, text=""):
            path = tmp_path / "code" / "gradbook" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

        def reached(self, *lines):
            page = tmp_path / "page.md"
            cell = "\n".join(lines)
            page.write_text(f"# Title\n\n```{{code-cell}} python\n{cell}\n```\n")
            return reached(page, tmp_path / "code")

        def names(self, *lines):
            return {name.removeprefix("gradbook.") for name in self.reached(*lines).names}

    found = Tree()
    found.write("__init__.py", "from gradbook.a import f as passed_on\n")
    found.write(
        "a.py",
        "from gradbook import b\n"
        "LIMIT = 3\n"
        "def f(x):\n    return b.g(x)\n"
        "def unused():\n    return b.h(1)\n"
        "class C:\n    def method(self):\n        return other()\n"
        "def other():\n    return LIMIT\n",
    )
    found.write("b.py", "def g(x):\n    return x\ndef h(x):\n    import secret\n    return x\n")
    return found


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["from gradbook.a import f"], set()),
        (["from gradbook.a import f", "f(1)"], {"a.f", "b.g"}),
        (["from gradbook.a import f as mine", "mine(1)"], {"a.f", "b.g"}),
        (["from gradbook import a", "a.f(1)"], {"a.f", "b.g"}),
        (["import gradbook.a", "gradbook.a.f(1)"], {"a.f", "b.g"}),
        (["import gradbook.a as short", "short.f(1)"], {"a.f", "b.g"}),
        (["from gradbook import passed_on", "passed_on(1)"], {"a.f", "b.g"}),
        (["import gradbook", "gradbook.passed_on(1)"], {"a.f", "b.g"}),
        (["from gradbook.a import f", "map(f, [1])"], {"a.f", "b.g"}),
        (["from gradbook.a import f", "def mine():", "    return f(1)"], {"a.f", "b.g"}),
        (["from gradbook import a", "a.b.h(1)"], {"b.h"}),
        (["from gradbook.a import C", "C().method()"], {"a.C", "a.other"}),
        (["from gradbook import b", "keep = [b]"], {"b.g", "b.h"}),
        (["from gradbook import a", "a.LIMIT"], set()),
        (["from gradbook import a", "a.missing"], set()),
        (["import math", "math.f(1)", "f = 1"], set()),
    ],
)
def test_what_a_cell_names_is_followed(tree, lines, names):
    assert tree.names(*lines) == names


def test_a_loose_statement_of_an_imported_module_runs(tree):
    tree.write("b.py", "def g(x):\n    return x\nTABLE = {1: g}\n")
    assert tree.names("import gradbook.b") == {"b.g"}


def test_definitions_that_name_each_other_end(tree):
    tree.write("b.py", "def g(x):\n    return h(x)\ndef h(x):\n    return g(x)\n")
    assert tree.names("from gradbook.b import g", "g(1)") == {"b.g", "b.h"}


def test_a_name_that_modules_pass_in_a_circle_ends(tree):
    tree.write("__init__.py", "from gradbook import lost\n")
    assert tree.names("import gradbook", "gradbook.lost(1)") == set()


def test_relative_imports_are_followed(tree):
    tree.write("sub/__init__.py", "from .deep import deep_one\n")
    tree.write("sub/deep.py", "from ..b import h\ndef deep_one():\n    return h(1)\n")
    assert tree.names("from gradbook.sub import deep_one", "deep_one()") == {
        "sub.deep.deep_one",
        "b.h",
    }


def test_code_comes_with_its_module_and_only_once_it_is_reached(tree):
    def secret(*lines):
        found = tree.reached(*lines).code
        return [m.name for m, node in found if "import secret" in ast.unparse(node)]

    assert secret("from gradbook.a import f", "f(1)") == []
    assert secret("from gradbook.a import unused", "unused()") == ["gradbook.b"]


def test_constants_of_a_module_are_its_names_for_strings(tree):
    tree.write("b.py", "PLACE = 'there'\nNUMBER = 1\nx.y = 'no'\n")
    (module,) = {
        m.name: m for m, _ in tree.reached("import gradbook.b").code if m.constants
    }.values()
    assert (module.name, module.constants) == ("gradbook.b", {"PLACE": "there"})
