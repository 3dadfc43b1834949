"""The builder: ``jupyter-book build --builder custom --custom-builder colab``, or ``make colab``."""

import json
import tomllib
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.builders import Builder
from sphinx.errors import SphinxError

from press import needs, outputs, wheels
from press.address import address
from press.colab import install, markdown, notebook
from press.colab.inline import Page, inline
from press.paths import CHAPTERS, ROOT

COVER = """\
*A chapter of **Gradients Through Everything**, an executable book{where}. It follows {article}.
Its outputs were checked on {date}, with torch {torch} on {device}, where it ran for {seconds:.0f} s.*

**GPU:** {gpu}. **Downloads:** {brought}.

The next cell installs what the chapter needs beyond what Colab has; run it first{beside}.
The code of figures and of the set-up is folded: a double click on its title opens it.
The solutions of the exercises are folded too, and a few long outputs: the arrow beside them opens them.
A *claim* holds a number against a bound, and stops the notebook where it misses it."""
BESIDE = """, with `{wheel}` from the same place beside this notebook"""


class ColabBuilder(Builder):
    """Write a notebook of plain Markdown for every chapter that runs."""

    name = "colab"
    format = "text"
    epilog = "The notebooks are in %(outdir)s."

    def get_outdated_docs(self) -> Iterable[str]:
        """Name the pages to write: all of them, they take seconds."""
        return self.env.found_docs

    def get_target_uri(self, docname: str, typ: str | None = None) -> str:
        """Say where a page is on the site."""
        return f"{docname}.html"

    def get_relative_uri(self, from_: str, to: str, typ: str | None = None) -> str:
        """Say where a page is from another: a notebook leaves the site, so always from its root."""
        return self.get_target_uri(to, typ)

    def prepare_writing(self, docnames: Set[str]) -> None:
        """Read once what all notebooks share."""
        self.published = address()
        self.has = install.colab_has(install.LIST.read_text())
        self.pins = wheels.pins(ROOT, self.has["python"])
        self.works = dict(_works(self.env.get_and_resolve_doctree("chapters/bibliography", self)))

    def write_doc(self, docname: str, doctree: nodes.document) -> None:
        """Write a chapter's notebook; other pages stay on the site.

        Raises:
            SphinxError: if the chapter holds what plain Markdown cannot say, or the notebook is not sound.
        """
        path = CHAPTERS / f"{Path(docname).name}.md"
        if not self.env.doc2path(docname).endswith(".ipynb"):
            return
        try:
            made = self._made(path, docname, doctree)
        except ValueError as error:
            raise SphinxError(f"{docname}: the notebook for Colab: {error}") from error
        target = Path(self.outdir, f"{path.stem}.ipynb")
        target.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")

    def _made(self, path: Path, docname: str, doctree: nodes.document) -> dict:
        checked = outputs.load(path)
        numbers = self.env.toc_fignumbers.get(docname, {})
        site = self.published.site if self.published else ""
        page = Page(numbers, site, wanted_in(doctree))
        found = markdown.pieces(doctree, page)
        found += _references(page.cited, self.works)
        made = notebook.assembled(path.stem, found, checked, self._cover(path, checked))
        if left := notebook.myst_left(made):
            raise ValueError("MyST is left: " + "; ".join(left))
        if lost := notebook.links_to_nothing(made):
            raise ValueError(f"links lead nowhere: {', '.join(lost)}")
        return made

    def finish(self) -> None:
        """Nothing is shared by the notebooks but the wheel, which ``make colab`` puts beside them."""

    def _cover(self, path: Path, checked: dict) -> notebook.Cover:
        stamp, front = checked["metadata"]["gradbook"], checked["metadata"]["chapter"]
        facts = dict(stamp, article=front["article"], gpu=front["gpu"])
        # The first cell brings what on a checkout a command does.
        facts["brought"] = front["downloads"].replace(", by make data", "")
        if self.published:
            page = f"{self.published.site}/chapters/{path.stem}.html"
            requirement = self.published.requirement()
            facts |= {"where": f" ([this page on its site]({page}))", "beside": ""}
        else:
            requirement = f"./{wheel_name()}"
            facts |= {"where": "", "beside": BESIDE.format(wheel=wheel_name())}
        pins = install.pinned(install.missing(path, self.has), self.pins)
        cell = install.first_cell(requirement, pins, needs.data_of(path))
        return notebook.Cover(COVER.format(**facts), cell)


def wheel_name() -> str:
    """Name the wheel that ``make colab`` puts beside the notebooks.

    Returns:
        Its file name, with the version that ``pyproject.toml`` says.
    """
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return f"gradbook-{version}-py3-none-any.whl"


def wanted_in(doctree: nodes.document) -> frozenset[str]:
    """Collect the places that a page refers to on itself.

    Args:
        doctree: the page, every reference resolved.

    Returns:
        Their identifiers.
    """
    references = [*doctree.findall(nodes.reference), *doctree.findall(_is_number_reference)]
    inside = {node["refid"] for node in references if node.get("refid")}
    local = {node["refuri"][1:] for node in references if node.get("refuri", "").startswith("#")}
    return frozenset(inside | local)


def _is_number_reference(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Element) and node.tagname == "number_reference"


def _works(bibliography: nodes.document) -> Iterator[tuple[str, str]]:
    """Yield the works of the bibliography, by identifier, in plain Markdown."""
    nobody = Page({})
    for work in bibliography.findall(nodes.citation):
        words = " ".join(
            inline(part, nobody) for part in work.children if part.tagname == "paragraph"
        )
        for name in work["ids"]:
            yield name, words


def _references(cited: list[str], works: dict[str, str]) -> list[markdown.Piece]:
    lines = [f'- <a name="{name}"></a>{works[name]}' for name in cited]
    return ["## References", "\n".join(lines)] if lines else []


def setup(app: Sphinx) -> dict:
    """Connect the builder."""
    app.add_builder(ColabBuilder)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
