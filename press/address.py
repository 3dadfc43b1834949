"""Where the book is published: the one place that names its repository.

Nothing in the book holds an address. Whoever publishes it says where, and a fork publishes its own book:
``GRADBOOK_REPOSITORY`` names the repository, as the workflows do from what GitHub tells them. Without it
a build has no buttons that lead outside, and its Colab notebooks install a wheel that lies beside them.
"""

import os
import re
from typing import NamedTuple

from press.git import GitError, commit
from press.paths import ROOT

NOTEBOOKS = "colab"  # the branch that holds the notebooks for Colab, and nothing else
GITHUB = "https://github.com/"
COLAB = "https://colab.research.google.com/github"
_REPOSITORY = re.compile(
    r"https://(?P<host>[\w.-]+)/(?P<owner>[\w.-]+)/(?P<name>[\w.-]+?)(\.git)?/?", re.ASCII
)
_SITE = re.compile(r"https?://[\w.:/-]+", re.ASCII)


class Address(NamedTuple):
    """Where a book is published.

    ``repository`` and ``site`` are addresses without a slash at the end; ``commit`` has forty digits.
    """

    repository: str
    commit: str
    site: str

    def colab(self, chapter: str) -> str | None:
        """Where Colab opens a chapter; None on other hosts than GitHub, whose notebooks alone it reads."""
        if not self.repository.startswith(GITHUB):
            return None
        path = self.repository.removeprefix(GITHUB)
        return f"{COLAB}/{path}/blob/{NOTEBOOKS}/{chapter}.ipynb"

    def requirement(self) -> str:
        """What pip installs: the package as it was in the commit that was published."""
        return f"gradbook @ git+{self.repository}@{self.commit}"


def address() -> Address | None:
    """Read where the book is published from the environment.

    ``GRADBOOK_REPOSITORY`` is the repository's address; ``GRADBOOK_SITE`` the site's, by default that of
    GitHub's pages for a repository there; ``GRADBOOK_COMMIT`` the commit, by default the one that is
    checked out, if it holds all that lies there.

    Returns:
        The address, or None where no repository is named.

    Raises:
        ValueError: if one of them is not what it must be, or is not said where nothing else tells it:
            the site on another host, the commit outside a checkout or beside changes.
    """
    repository = os.environ.get("GRADBOOK_REPOSITORY")
    if not repository:
        return None
    match = _REPOSITORY.fullmatch(repository)
    if not match:
        raise ValueError(
            f"GRADBOOK_REPOSITORY: must be https://HOST/OWNER/NAME, got {repository!r}"
        )
    host, owner, name = match["host"].lower(), match["owner"], match["name"]
    site = os.environ.get("GRADBOOK_SITE") or _pages(host, owner.lower(), name)
    if not _SITE.fullmatch(site):
        raise ValueError(f"GRADBOOK_SITE: must be an address, got {site!r}")
    of = os.environ.get("GRADBOOK_COMMIT") or _checked_out()
    if not re.fullmatch(r"[0-9a-f]{40}", of):
        raise ValueError(f"GRADBOOK_COMMIT: must be forty hexadecimal digits, got {of!r}")
    return Address(f"https://{host}/{owner}/{name}", of, site.rstrip("/"))


def _pages(host: str, owner: str, name: str) -> str:
    """Where GitHub serves a repository's site; of another host's a stranger might hold the address."""
    if f"https://{host}/" != GITHUB:
        raise ValueError(f"GRADBOOK_SITE: must be said for a repository on {host}")
    root = f"{owner}.github.io"
    return f"https://{root}" if name.lower() == root else f"https://{root}/{name}"


def _checked_out() -> str:
    """What is stamped must be what was built."""
    try:
        return commit(ROOT)
    except GitError as error:
        raise ValueError(f"GRADBOOK_COMMIT: must be said, since {error}") from error
