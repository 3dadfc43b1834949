"""How pytest treats the chapters: what nbval compares, and where its kernels start."""

import os
from pathlib import Path
from typing import Any

# The HTML of a claim and of a table holds measured values, which differ between devices and
# releases; their plain text is compared. Warnings of our own modules are errors in a chapter's
# kernel (press/ipython), and those of other packages change with every release.
SKIPPED = ("text/html", "text/markdown", "text/latex", "stderr", "image/svg+xml")
PROFILE = Path(__file__).parent / "press" / "ipython"


def pytest_configure(config: Any) -> None:
    """Start nbval's kernels with our profile, and with figures drawn inline."""
    if config.getoption("nbval", default=False):
        # A kernel starts in the notebook's folder: there a relative path would name no profile,
        # and IPython would take an empty one without a word.
        os.environ["IPYTHONDIR"] = str(PROFILE)
        os.environ.pop("MPLBACKEND", None)


def pytest_collectstart(collector: Any) -> None:
    """Let nbval skip what differs between devices; of itself it skips PNG and JPEG alone."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += SKIPPED
