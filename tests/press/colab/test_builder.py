"""A tiny book of every kind of MyST that the chapters use, built in this process."""

import json

import nbformat
import pytest
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.docutils import docutils_namespace

from press import wheels
from press.colab import builder, markdown, notebook
from press.colab.inline import Page
from press.paths import ROOT

pytestmark = pytest.mark.slow

CONF = """\
extensions = ["myst_nb", "sphinx_proof", "sphinx_exercise", "sphinxcontrib.bibtex", "press.colab.builder"]
myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
nb_execution_mode = "off"
nb_mime_priority_overrides = [("colab", "image/png", 20), ("colab", "text/plain", 30)]
bibtex_bibfiles = ["chapters/references.bib"]
bibtex_reference_style = "author_year"
exclude_patterns = ["chapters/page.md", "_build"]
numfig = True
math_numfig = True
numfig_secnum_depth = 1
root_doc = "index"
"""
PAGE = r"""# A page

{prf:ref}`thm-a`, {eq}`eq-a`, {ref}`ex-a`, {numref}`fig-a` and {ref}`the mark <mark>`, after {cite:t}`who1900`.
See [the other page](other.md) and {prf:ref}`thm-other`.

$$
a<b
$$ (eq-a)

(mark)=
A marked sentence.

:::{prf:theorem} First
:label: thm-a
It holds, {cite:p}`who1900`.
:::

:::{prf:proof}
So it is.
:::

:::{admonition} Takeaway
:class: tip
Draw.
:::
"""
TAIL = r"""## Exercises

:::{exercise} Question
:label: ex-a
Why?
:::

:::{solution-start} ex-a
:class: dropdown
:::

So, and
"""
OTHER = r"""# Other

:::{prf:theorem} Other
:label: thm-other
It holds elsewhere.
:::
"""
FIGURE = {"figure": {"name": "fig-a", "caption": "a curve"}, "image": {"alt": "It rises."}}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def words(name, source):
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": source}


def code(name, source, *outputs, **metadata):
    return {
        "cell_type": "code",
        "id": name,
        "metadata": metadata,
        "source": source,
        "execution_count": 1,
        "outputs": list(outputs),
    }


def run_notebook():
    figure = {"output_type": "display_data", "data": {"image/png": PIXEL}, "metadata": {}}
    cells = [
        words("a", PAGE),
        code("b", "plot()", figure, tags=["hide-input"], mystnb=FIGURE),
        words("c", TAIL),
        code("d", "2 + 2"),
        words("e", ":::{solution-end}\n:::\n"),
    ]
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
        "chapter": {
            "gpu": "not needed",
            "downloads": "a set, 3 MB, by make data; weights",
            "article": "an article",
        },
        "gradbook": {"date": "2026-01-02", "torch": "2.13.0", "device": "CPU", "seconds": 4.2},
    }
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def build(folder, monkeypatch, **address):
    chapters = folder / "chapters"
    chapters.mkdir(parents=True)
    (folder / "conf.py").write_text(CONF)
    toc = "# Book\n\n```{toctree}\n:numbered:\nchapters/page\nchapters/other\nchapters/bibliography\n```\n"
    (folder / "index.md").write_text(toc)
    (chapters / "page.ipynb").write_text(json.dumps(run_notebook()))
    (chapters / "page.md").write_text("```{code-cell} python\nimport gguf\n```\n")
    (chapters / "other.md").write_text(OTHER)
    (chapters / "bibliography.md").write_text("# Works\n\n```{bibliography}\n```\n")
    bib = "@article{who1900, author = {Who, A.}, title = {On it}, journal = {J}, year = {1900}}\n"
    (chapters / "references.bib").write_text(bib)
    monkeypatch.setattr(builder, "CHAPTERS", chapters)
    for name in ("REPOSITORY", "SITE", "COMMIT"):
        monkeypatch.delenv(f"GRADBOOK_{name}", raising=False)
    for name, value in address.items():
        monkeypatch.setenv(f"GRADBOOK_{name}", value)
    out = folder / "_build" / "colab"
    with docutils_namespace():
        app = Sphinx(folder, folder, out, folder / "_build" / "doctrees", "colab", status=None)
        app.build()
    assert app._warncount == 0
    return out


@pytest.fixture
def built(tmp_path, monkeypatch):
    return build(tmp_path / "book", monkeypatch)


def sources(path):
    return [cell["source"].replace("\xa0", " ") for cell in nbformat.read(path, 4).cells]


def test_every_kind_of_myst_becomes_plain_markdown(built):
    found = sources(built / "page.ipynb")
    assert found[2:] == [
        "[Theorem 1.1](#thm-a), [(1.1)](#equation-eq-a), [Exercise 1.1](#ex-a), [Fig. 1.1](#fig-a) "
        "and [the mark](#mark), after Who \\[[1900](#id2)\\]. See the other page and Theorem 2.1.\n\n"
        '<a name="equation-eq-a"></a>\n\n$$a\\lt b \\tag{1.1}$$\n\n'
        '<a name="mark"></a>A marked sentence.\n\n'
        '> <a name="thm-a"></a>**Theorem 1.1** (First)\n>\n> It holds, \\[[Who, 1900](#id2)\\].\n\n'
        "*Proof.* So it is. $\\square$\n\n> **Takeaway**\n>\n> Draw.\n\n"
        '<a name="fig-a"></a>',
        "#@title Show the code\nplot()",
        "*Figure 1.1: a curve*",
        '## Exercises\n\n<a name="ex-a"></a>',
        "### Exercise 1.1 (Question)\n\nWhy?",
        "#### Solution to Exercise 1.1 (Question)",
        "So, and",
        "2 + 2",
        '## References\n\n- <a name="id2"></a>A. Who. On it. *J*, 1900.',
    ]


def test_only_pages_that_run_become_notebooks(built):
    assert [path.name for path in built.glob("*.ipynb")] == ["page.ipynb"]


def test_the_cover_says_what_was_checked_and_the_cell_installs_the_wheel_beside_it(built):
    cover, cell = sources(built / "page.ipynb")[:2]
    assert cover.startswith("# A page\n\n*A chapter of **Gradients Through Everything**")
    assert "on 2026-01-02, with torch 2.13.0 on CPU, where it ran for 4 s." in cover
    assert "**Downloads:** a set, 3 MB; weights." in cover
    assert "It follows an article." in cover
    assert f"with `{builder.wheel_name()}` from the same place beside this notebook" in cover
    assert f'%pip install -q --no-deps "./{builder.wheel_name()}"' in cell
    assert wheels.pins(ROOT, "3.12")["gguf"].split()[0] in cell


def test_a_published_book_is_installed_from_its_commit_and_links_to_its_site(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    where = {"REPOSITORY": "https://github.com/o/n", "COMMIT": commit}
    found = sources(build(tmp_path / "book", monkeypatch, **where) / "page.ipynb")
    assert f'"gradbook @ git+https://github.com/o/n@{commit}"' in found[1]
    assert "(https://o.github.io/n/chapters/page.html)" in found[0]
    assert "beside this notebook" not in found[0]
    assert "[Theorem 2.1](https://o.github.io/n/chapters/other.html#thm-other)" in found[2]


def test_myst_that_is_left_stops_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "MYST_LEFT", ((r"Takeaway", "a word"),))
    with pytest.raises(
        SphinxError, match="chapters/page: .*MyST is left: page-2: a word: 'Takeaway'"
    ):
        build(tmp_path / "book", monkeypatch)


def test_a_link_to_nothing_stops_the_build_and_so_does_a_node_without_a_rule(tmp_path, monkeypatch):
    monkeypatch.setattr(Page, "anchors", lambda *_: "")
    with pytest.raises(SphinxError, match="chapters/page: .*links lead nowhere: equation-eq-a"):
        build(tmp_path / "one", monkeypatch)
    monkeypatch.setitem(markdown.BLOCKS, "admonition", None)
    with pytest.raises(SphinxError, match="chapters/page: .*line .*<admonition> has no rule"):
        build(tmp_path / "two", monkeypatch)
