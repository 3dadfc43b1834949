"""What stands around the chapters: which edition this is, how to cite it, and where pages have moved.

What needs the site's own address is in :mod:`press.published`, and is left out where no address is known.
"""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

from press import cite, edition, moved
from press.address import address

STYLE = "around.css"


def configure(app: Sphinx, config: Config) -> None:
    """Name the edition at the foot of every page and on its own, and lead on from moved pages."""
    book, where = edition.edition(), address()
    options = config.html_theme_options
    options["extra_footer"] = options.get("extra_footer", "") + edition.footer(book, where)
    words = {"versions": edition.versions(book, where)}
    config.myst_substitutions = {**(config.myst_substitutions or {}), **words}
    config.redirects = moved.redirects(moved.read())
    config.redirect_html_template_file = "press/redirect.html"
    config.html_css_files = [*config.html_css_files, STYLE]


def add_citation(
    app: Sphinx, name: str, _: str, context: dict, doctree: nodes.document | None
) -> None:
    """Say at the foot of a chapter how to cite it; the search does not index that."""
    if doctree is None or Path(app.env.doc2path(name)).suffix != ".ipynb":
        return
    book, where = edition.edition(), address()
    title = app.env.titles[name].astext()
    page = context.get("pageurl") or ""
    note = cite.note(book, where.commit if where else "")
    entry = cite.bibtex(book, Path(name).name, title, note, page)
    words = cite.sentence(book, title, note, page)
    context["body"] += cite.block(words, entry, app.builder.highlighter.highlight_block)


def check_moves(app: Sphinx, env: BuildEnvironment) -> None:
    """A redirect that leads nowhere is a warning, and a warning stops the build of the book."""
    for fault in moved.faults(moved.read(), env.found_docs):
        logging.getLogger(__name__).warning("%s: %s", moved.TABLE.name, fault)


def setup(app: Sphinx) -> dict:
    """Connect the extension, and with an address that of a published site."""
    app.setup_extension("sphinx_reredirects")
    if address():
        app.setup_extension("press.published")
    app.connect("config-inited", configure)
    app.connect("env-check-consistency", check_moves)
    app.connect("html-page-context", add_citation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
