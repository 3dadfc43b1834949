"""The archive of the site: the same bytes from the same site, and and no tag of another version."""

import os
import subprocess
import zipfile

import pytest

from press import release
from press.paths import ROOT

DATE = 1_700_000_000  # 2023-11-14 22:13:20 UTC


@pytest.fixture
def book(tmp_path):
    """A repository of one commit with a small site."""
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n')
    site = tmp_path / "_build" / "html"
    (site / "chapters").mkdir(parents=True)
    (site / "index.html").write_text("<p>book")
    (site / "chapters" / "é.html").write_text("<p>chapter")
    (site / ".buildinfo").write_text("config: /home/somebody")
    dated = {"GIT_COMMITTER_DATE": f"{DATE} +0200", "GIT_AUTHOR_DATE": f"{DATE} +0200"}
    for command in ("init -q", "add pyproject.toml", "commit -qm one"):
        subprocess.run(
            ["git", "-c", "user.name=n", "-c", "user.email=n@example.org", *command.split()],
            cwd=tmp_path,
            env=os.environ | dated,
            check=True,
        )
    return tmp_path, site


def test_the_archive_holds_the_site_in_order(book, capsys):
    root, site = book
    assert release.main(root, site) == 0
    archive = root / "_build" / "gradients-through-everything-1.2.0.zip"
    with zipfile.ZipFile(archive) as packed:
        assert packed.testzip() is None
        assert packed.namelist() == [
            "gradients-through-everything-1.2.0/chapters/é.html",
            "gradients-through-everything-1.2.0/index.html",
        ]
        entry = packed.infolist()[1]
        assert entry.date_time == (2023, 11, 14, 22, 13, 20)
        assert entry.external_attr >> 16 == 0o100644
        assert packed.read(entry) == b"<p>book"
    summed = archive.with_name(archive.name + ".sha256").read_text()
    assert summed == f"{release.sha256(archive)}  {archive.name}\n"
    assert summed.split()[0] in capsys.readouterr().out


def test_the_same_site_gives_the_same_archive(book):
    root, site = book
    first, second = root / "a" / "x.zip", root / "b" / "x.zip"
    for path in (first, second):
        path.parent.mkdir()
        release.pack(site, path, DATE)
        os.utime(site / "index.html", (0, 0))
        (site / "index.html").chmod(0o600)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("tag", "refused"), [("v1.2.0", False), ("v1.2.1", True), ("1.2.0", True), ("", True)]
)
def test_a_tag_of_another_version_is_refused(book, tag, refused):
    root, _ = book
    (root / "Makefile").write_text((ROOT / "Makefile").read_text())
    (root / "requirements.txt").write_text("torch==1\n")
    command = ["make", "--silent", "tag", f"TAG={tag}"]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert bool(ran.returncode) is refused
    assert ("is no tag of version 1.2.0" in ran.stdout) is refused


def test_without_a_site_nothing_is_packed(book, capsys):
    root, site = book
    (site / "index.html").unlink()
    assert release.main(root, site) == 1
    assert "run `make book`" in capsys.readouterr().err
