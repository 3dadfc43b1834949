"""Repairs of the theme's pages, for those who read offline, by keyboard, or by screen reader.

The theme is pinned and its templates are long, so its markup is mended after it is written instead of being
copied: each repair is a function from the text of a page to the text of a page. What styles and scripts can
mend is in ``assets/a11y.css`` and ``assets/book.js``.
"""

import re
from functools import reduce
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.jinja2glue import BuiltinTemplateLoader

_FONT_PRELOAD = re.compile(r'[ \t]*<link rel="preload" as="font"[^>]*>\n?')
_MODE_SCRIPT = re.compile(r'<script data-cfasync="false">.*?</script>', re.DOTALL)
_UNNAMED_ASIDE = re.compile(r'<aside class="((?:margin|sidebar|topic)\b[^"]*)"')
_DOWNLOAD = re.compile(
    r'(href="[^"]*(\.\w+)"[^>]*btn-download-source-button[^>]*>.*?btn__text-container">)\.\w+',
    re.DOTALL,
)
_CHOOSE_MODE = """<script data-cfasync="false">
    (root => {
      const mode = localStorage.getItem("mode") || "auto";
      const auto = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
      root.dataset.mode = mode;
      root.dataset.theme = mode === "auto" ? auto : mode;
    })(document.documentElement);
  </script>"""


def without_font_preloads(page: str) -> str:
    """From ``file://`` a browser refuses them, with an error each; the style asks for the fonts itself."""
    return _FONT_PRELOAD.sub("", page)


def mode_known_at_once(page: str) -> str:
    """The theme leaves the mode empty until its last script, which calls an empty mode an error.

    A reader without scripts gets the light theme, with the colours of the code.
    """
    page = re.sub(r"<html(?![^>]*data-theme)", '<html data-theme="light"', page, count=1)
    return _MODE_SCRIPT.sub(lambda _: _CHOOSE_MODE, page, count=1)


def landmarks_named(page: str) -> str:
    """Every part of the page belongs to a landmark, and landmarks of one kind differ by name."""
    page = page.replace(
        '<div class="bd-sidebar-primary bd-sidebar',
        '<div role="navigation" aria-label="The book" class="bd-sidebar-primary bd-sidebar',
    )
    return page.replace(
        '<nav class="bd-toc-nav page-toc">',
        '<nav class="bd-toc-nav page-toc" aria-label="On this page">',
    )


def asides_are_notes(page: str) -> str:
    """An aside inside the main text is a note: as a landmark of its own it may not stand there."""
    page = page.replace(
        '<aside class="footnote-list brackets">',
        '<aside class="footnote-list brackets" role="none">',
    )
    return _UNNAMED_ASIDE.sub(r'<aside role="note" class="\1"', page)


def citations_are_items(page: str) -> str:
    """The role that docutils gives to an entry is deprecated and not allowed in the list around it."""
    return page.replace('role="doc-biblioentry"', 'role="listitem"')


def downloads_named(page: str) -> str:
    """A download is named after the file that comes: the notebook, not the page it was run from."""
    return _DOWNLOAD.sub(r"\1\2", page)


REPAIRS = (
    without_font_preloads,
    mode_known_at_once,
    landmarks_named,
    asides_are_notes,
    citations_are_items,
    downloads_named,
)


def mend(page: str) -> str:
    """Make every repair.

    Args:
        page: the HTML of a page, as the theme wrote it.

    Returns:
        The mended HTML; mending it again changes nothing.
    """
    return reduce(lambda text, repair: repair(text), REPAIRS, page)


class MendedTemplates(BuiltinTemplateLoader):
    """Sphinx's templates, with every page mended before it is written."""

    def render(self, template: str, context: dict) -> str:
        """Render a page and mend it.

        Args:
            template: the name of its template.
            context: its variables.

        Returns:
            The mended HTML.
        """
        return mend(super().render(template, context))


def configure(app: Sphinx, config: Config) -> None:
    """Put our templates and our style in place."""
    config.template_bridge = f"{__name__}.{MendedTemplates.__name__}"
    config.html_css_files = [*config.html_css_files, "a11y.css"]


def finish(app: Sphinx, error: Exception | None) -> None:
    """Remove the theme's template sources, which it copies among its assets and which are no pages."""
    if error is None and app.builder.name == "html":
        for source in Path(app.outdir, "_static").glob("*-macros.html"):
            source.unlink()


def setup(app: Sphinx) -> dict:
    """Connect the repairs."""
    app.connect("config-inited", configure)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
