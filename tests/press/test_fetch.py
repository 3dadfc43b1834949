import gzip
import hashlib
import os
import struct

import pytest

from gradbook import data
from press import fetch

APT_GET = """#!/bin/sh
for word in "$@"; do case "$word" in
  update) echo "no network" >&2; exit 100;;
  download) {download};;
esac; done
"""
DPKG = """#!/bin/sh
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
    """Put an apt-get and a dpkg of our own first on the path."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in (
        ("apt-get", APT_GET.format(download=download)),
        ("dpkg", DPKG.format(source=source)),
    ):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin")


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


def test_without_apt_the_error_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "ROOT", tmp_path)
    monkeypatch.setattr(fetch.shutil, "which", lambda _: None)
    monkeypatch.setattr(data, "fashion_mnist_folder", lambda: tmp_path / "absent")
    assert fetch.main() == 1
    assert "There is no apt on this machine. Install" in capsys.readouterr().err


def test_what_is_there_is_not_brought_again(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GRADBOOK_DATA", str(tmp_path))
    published.rename(tmp_path / "fashion-mnist")
    monkeypatch.setattr(fetch.shutil, "which", lambda _: None)
    assert fetch.main() == 0
    assert str(tmp_path / "fashion-mnist") in capsys.readouterr().out
