import subprocess

import pytest

from press import address as place
from press.address import Address, address

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    for name in ("REPOSITORY", "SITE", "COMMIT"):
        monkeypatch.delenv(f"GRADBOOK_{name}", raising=False)


def test_a_book_that_nobody_published_has_no_address(monkeypatch):
    assert address() is None
    monkeypatch.setenv("GRADBOOK_REPOSITORY", "")
    assert address() is None


@pytest.mark.parametrize("end", ["", "/", ".git", ".git/"])
def test_a_repository_is_enough_and_the_rest_follows(monkeypatch, tmp_path, end):
    head = checked_out(monkeypatch, tmp_path)
    monkeypatch.setenv("GRADBOOK_REPOSITORY", f"https://github.com/Some-One/a.book{end}")
    site = "https://some-one.github.io/a.book"
    assert address() == Address("https://github.com/Some-One/a.book", head, site)


def checked_out(monkeypatch, folder):
    """Make the book a repository of one commit, and return that."""
    monkeypatch.setattr(place, "ROOT", folder)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(folder)]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    return subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()


def test_outside_a_checkout_the_commit_must_be_said(monkeypatch, tmp_path):
    monkeypatch.setattr(place, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GRADBOOK_REPOSITORY", "https://github.com/o/n")
    with pytest.raises(ValueError, match="GRADBOOK_COMMIT: must be said.*not a git repository"):
        address()


def test_a_commit_is_not_stamped_on_what_it_does_not_hold(monkeypatch, tmp_path):
    checked_out(monkeypatch, tmp_path)
    monkeypatch.setenv("GRADBOOK_REPOSITORY", "https://github.com/o/n")
    (tmp_path / "page.md").touch()
    with pytest.raises(ValueError, match="GRADBOOK_COMMIT: must be said.*\n.*page.md"):
        address()
    monkeypatch.setenv("GRADBOOK_COMMIT", COMMIT)
    assert address().commit == COMMIT


@pytest.mark.parametrize(
    ("repository", "site"),
    [
        ("One/one.github.io", "https://one.github.io"),
        ("One/One.GitHub.io", "https://one.github.io"),
        ("one/other.github.io", "https://one.github.io/other.github.io"),
    ],
)
def test_the_repository_of_an_owners_site_is_served_at_its_root(monkeypatch, repository, site):
    monkeypatch.setenv("GRADBOOK_COMMIT", COMMIT)
    monkeypatch.setenv("GRADBOOK_REPOSITORY", f"https://GitHub.com/{repository}")
    assert address() == Address(f"https://github.com/{repository}", COMMIT, site)


@pytest.mark.parametrize("host", ["git.example", "github.com.example", "notgithub.com"])
def test_on_another_host_the_site_must_be_said_and_colab_opens_nothing(monkeypatch, host):
    monkeypatch.setenv("GRADBOOK_COMMIT", COMMIT)
    monkeypatch.setenv("GRADBOOK_REPOSITORY", f"https://{host}/o/n")
    with pytest.raises(ValueError, match=f"GRADBOOK_SITE: must be said .* on {host}"):
        address()
    monkeypatch.setenv("GRADBOOK_SITE", "https://book.example")
    found = address()
    assert found == Address(f"https://{host}/o/n", COMMIT, "https://book.example")
    assert found.colab("vae") is None


def test_what_is_said_is_taken(monkeypatch):
    monkeypatch.setenv("GRADBOOK_REPOSITORY", "https://github.com/o/n")
    monkeypatch.setenv("GRADBOOK_SITE", "https://book.example/next/")
    monkeypatch.setenv("GRADBOOK_COMMIT", COMMIT)
    assert address() == Address("https://github.com/o/n", COMMIT, "https://book.example/next")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REPOSITORY", "http://github.com/o/n"),
        ("REPOSITORY", "github.com/o/n"),
        ("REPOSITORY", "https://github.com/o"),
        ("REPOSITORY", "https://github.com/o/n/tree/main"),
        ("REPOSITORY", "https://github.com/o/n; rm -r x"),
        ("REPOSITORY", "https://gıthub.com/o/n"),
        ("REPOSITORY", "https://github.com/o/ñ"),
        ("SITE", "book.example"),
        ("SITE", "https://böok.example"),
        ("SITE", 'https://book.example/"><script>'),
        ("COMMIT", COMMIT[:-1]),
        ("COMMIT", "main"),
    ],
)
def test_what_is_no_address_is_refused(monkeypatch, name, value):
    monkeypatch.setenv("GRADBOOK_REPOSITORY", "https://github.com/o/n")
    monkeypatch.setenv("GRADBOOK_COMMIT", COMMIT)
    monkeypatch.setenv(f"GRADBOOK_{name}", value)
    with pytest.raises(ValueError, match=f"GRADBOOK_{name}: must be"):
        address()


def test_colab_opens_the_branch_of_notebooks_and_pip_takes_the_commit():
    where = Address("https://github.com/o/n", COMMIT, "https://o.github.io/n")
    found = where.colab("vae")
    assert found == "https://colab.research.google.com/github/o/n/blob/colab/vae.ipynb"
    assert where.requirement() == f"gradbook @ git+https://github.com/o/n@{COMMIT}"
