"""The buttons at the head of a chapter: they lead to the notebook that reads well elsewhere.

The theme would offer the notebook that was run, whose MyST another program shows as it is written.
"""

import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from press.address import address
from press.book import COLAB

FOLDER = "notebooks"


def lead_to_the_notebook(app: Sphinx, name: str, _: str, context: dict[str, Any], __: Any) -> None:
    """Offer a chapter's notebook for download, and in Colab where that can open it."""
    chapter = Path(name).name
    if not (COLAB / f"{chapter}.ipynb").exists():
        return
    for group in context["header_buttons"]:
        for button in group.get("buttons", ()):
            if button.get("label") == "download-source-button":
                button["url"] = context["pathto"](f"{FOLDER}/{chapter}.ipynb", 1)
                button["tooltip"] = "Download the notebook"
    if (published := address()) and (url := published.colab(chapter)):
        context["header_buttons"].insert(0, colab_button(url))


def colab_button(url: str) -> dict[str, Any]:
    """Describe the button that opens Colab, as the theme describes its own.

    Args:
        url: where it leads.

    Returns:
        A group of one button.
    """
    button = {
        "type": "link",
        "text": "Colab",
        "tooltip": "Open in Colab",
        "icon": "_static/images/logo_colab.png",
        "url": url,
    }
    return {
        "type": "group",
        "tooltip": "Run this chapter elsewhere",
        "icon": "fas fa-rocket",
        "buttons": [button],
        "label": "launch-buttons",
    }


def bring_the_notebooks(app: Sphinx, error: Exception | None) -> None:
    """Put the notebooks among the pages, so that they can be downloaded from a folder on disk."""
    if error is None and app.builder.name == "html" and COLAB.exists():
        target = Path(app.outdir, FOLDER)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(COLAB, target, ignore=shutil.ignore_patterns("_static", ".*"))


def setup(app: Sphinx) -> dict:
    """Connect the buttons."""
    # After the theme, which makes its own at 501.
    app.connect("html-page-context", lead_to_the_notebook, priority=502)
    app.connect("build-finished", bring_the_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
