"""Where the book is published: the one place that names its repository.

Nothing in the book holds an address. Whoever publishes it says where, and a fork publishes its own book:
``GRADBOOK_REPOSITORY`` names the repository, as the workflows do from what GitHub tells them. Without it
a build has no buttons that lead outside, and its Colab notebooks install a wheel that lies beside them.
"""

import os
import re
import subprocess
from typing import NamedTuple

from press.paths import ROOT

NOTEBOOKS = "colab"  # the branch that holds the notebooks for Colab, and nothing else
COLAB = "https://colab.research.google.com/github"
_REPOSITORY = re.compile(
    r"https://(?P<host>[\w.-]+)/(?P<owner>[\w.-]+)/(?P<name>[\w.-]+?)(\.git)?/?"
)


class Address(NamedTuple):
    """Where a book is published.

    ``repository`` and ``site`` are addresses without a slash at the end; ``commit`` has forty digits.
    """

    repository: str
    commit: str
    site: str

    def colab(self, chapter: str) -> str:
        """Where Colab opens a chapter: it reads notebooks of GitHub's repositories alone."""
        path = self.repository.removeprefix("https://github.com/")
        return f"{COLAB}/{path}/blob/{NOTEBOOKS}/{chapter}.ipynb"

    def requirement(self) -> str:
        """What pip installs: the package as it was in the commit that was published."""
        return f"gradbook @ git+{self.repository}@{self.commit}"


def address() -> Address | None:
    """Read where the book is published from the environment.

    ``GRADBOOK_REPOSITORY`` is the repository's address; ``GRADBOOK_SITE`` the site's, by default that of
    GitHub's pages; ``GRADBOOK_COMMIT`` the commit, by default the one that is checked out.

    Returns:
        The address, or None where no repository is named.

    Raises:
        ValueError: if an address is not one of ``https``, or the commit has no forty digits.
    """
    repository = os.environ.get("GRADBOOK_REPOSITORY")
    if not repository:
        return None
    match = _REPOSITORY.fullmatch(repository)
    if not match:
        raise ValueError(
            f"GRADBOOK_REPOSITORY: must be https://HOST/OWNER/NAME, got {repository!r}"
        )
    owner, name = match["owner"], match["name"]
    site = os.environ.get("GRADBOOK_SITE") or f"https://{owner.lower()}.github.io/{name}"
    if not re.fullmatch(r"https?://[\w.:/-]+", site):
        raise ValueError(f"GRADBOOK_SITE: must be an address, got {site!r}")
    commit = os.environ.get("GRADBOOK_COMMIT") or _checked_out()
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise ValueError(f"GRADBOOK_COMMIT: must be forty hexadecimal digits, got {commit!r}")
    return Address(f"https://{match['host']}/{owner}/{name}", commit, site.rstrip("/"))


def _checked_out() -> str:
    command = ["git", "rev-parse", "HEAD"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return asked.stdout.strip()  # nothing outside a checkout, which is no commit
