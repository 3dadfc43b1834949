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
    monkeypatch.setattr(place, "ROOT", tmp_path)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path)]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    monkeypatch.setenv("GRADBOOK_REPOSITORY", f"https://github.com/Some-One/a.book{end}")
    assert address() == Address(
        "https://github.com/Some-One/a.book",
        head.stdout.strip(),
        "https://some-one.github.io/a.book",
    )


def test_outside_a_checkout_the_commit_must_be_said(monkeypatch, tmp_path):
    monkeypatch.setattr(place, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GRADBOOK_REPOSITORY", "https://github.com/o/n")
    with pytest.raises(ValueError, match="GRADBOOK_COMMIT: must be"):
        address()


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
        ("SITE", "book.example"),
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
