"""What a site has once its address is known: sitemap, canonical links, social card, a page for lost readers.

:mod:`press.around` loads this extension where :func:`press.address.address` names the site, and only there.
"""

import html
import os
import re
import textwrap
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment

from press import card, history
from press.address import address
from press.paths import ROOT

EXTENSIONS = ("sphinx_sitemap", "sphinxext.opengraph", "notfound.extension")
NOT_FOUND = "404"
LISTS = ("genindex", "prf-prf", "py-modindex", "search")  # pages without a text of their own
DESCRIPTION = 200  # characters, about what is shown of one beside a link
NOT_FOUND_BODY = (
    "<h1>Page not found</h1>\n<p>There is no page at this address. "
    '<a href="index.html">The book</a> begins here, and '
    '<a href="search.html">the search</a> finds words in it.</p>'
)
_LINK = re.compile(r'(?<=\s)(href|src|action|data-content_root)="([^"]*)"')


def configure(app: Sphinx, config: Config) -> None:
    """Tell each extension where the site is."""
    site = f"{address().site}/"
    config.html_baseurl = site  # canonical links, and the sitemap's
    config.sitemap_url_scheme = "{link}"
    config.sitemap_excludes = [f"{name}.html" for name in (NOT_FOUND, *LISTS)]
    config.sitemap_indent = 2
    config.sitemap_show_lastmod = True
    config.ogp_site_url = site
    config.ogp_site_name = config.html_title
    config.ogp_image = card.NAME
    config.ogp_image_alt = card.words(config.html_title)
    config.ogp_custom_meta_tags = [
        f'<meta property="og:image:width" content="{card.WIDTH}" />',
        f'<meta property="og:image:height" content="{card.HEIGHT}" />',
        '<meta name="twitter:card" content="summary_large_image" />',
    ]
    config.notfound_urls_prefix = urlsplit(site).path
    config.notfound_context = {"title": "Page not found", "body": NOT_FOUND_BODY}


def date_pages(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Date every page by the commits of what it was made from, and have all pages written.

    The sitemap lists the pages that a build writes: one that writes some would lose the others.
    """
    changes = history.last_changes(ROOT)
    dates = {name: history.latest(changes, _sources(env, name)) for name in env.found_docs}
    # Where the sitemap looks for them, as pairs.
    env.git_last_updated = {name: (seconds, False) for name, seconds in dates.items() if seconds}
    return sorted(env.found_docs)


def _sources(env: BuildEnvironment, name: str) -> list[str]:
    """The file of a page and those that it includes, from the root."""
    files = [env.doc2path(name), *(Path(env.srcdir, x) for x in env.dependencies[name])]
    return [os.path.relpath(file, ROOT) for file in files]


def description(doctree: nodes.document) -> str:
    """Describe a page by its first paragraph, with dots for formulas.

    Args:
        doctree: the page.

    Returns:
        One line of plain text, cut between words; empty where there is no paragraph.
    """
    paragraph = next(iter(doctree.findall(nodes.paragraph)), nodes.paragraph())
    parts = [
        "…" if isinstance(text.parent, nodes.math) else text.astext()
        for text in paragraph.findall(nodes.Text)
    ]
    return textwrap.shorten("".join(parts), DESCRIPTION, placeholder=" …")


def describe(_: Sphinx, name: str, __: str, context: dict, doctree: nodes.document | None) -> None:
    """Hand the description to the social card and to search engines, where the page has none."""
    if name == NOT_FOUND:
        context["pageurl"] = None  # an address that leads nowhere has no canonical one
    if doctree is None or not (words := html.escape(description(doctree))):
        return
    context["meta"] = {"og:description": words} | (context["meta"] or {})
    if 'name="description"' not in context["metatags"]:
        context["metatags"] += f'<meta name="description" content="{words}" />\n'


def rooted(page: str, prefix: str) -> str:
    """Let the links of a page work from wherever it is shown.

    Args:
        page: HTML with links that are relative to the site's root.
        prefix: the path of the root on its server, with a slash at both ends.

    Returns:
        The HTML with links that begin with the prefix; places of the page itself stay as they are.
    """

    def absolute(found: re.Match) -> str:
        name, link = found[1], html.unescape(found[2])
        if link and not link.startswith("#"):
            link = urljoin(prefix, link)
        return f'{name}="{html.escape(link)}"'

    return _LINK.sub(absolute, page)


def finish(app: Sphinx, error: Exception | None) -> None:
    """Draw the social card, and root the links of the page that the server shows at any depth."""
    if error or app.builder.name != "html":
        return
    card.draw(app.config.html_title, Path(app.outdir, card.NAME))
    page = Path(app.outdir, f"{NOT_FOUND}.html")
    page.write_text(rooted(page.read_text(), app.config.notfound_urls_prefix))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the extension."""
    for name in EXTENSIONS:
        app.setup_extension(name)
    app.connect("config-inited", configure)
    app.connect("env-updated", date_pages)
    app.connect("html-page-context", describe, priority=400)  # before the social card's own
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
