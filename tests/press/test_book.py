import subprocess
import zipfile
from pathlib import Path

import pytest

from press import book


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What would be run, in order; nothing is."""
    found = []
    monkeypatch.setattr(book, "_run", found.append)
    monkeypatch.setattr(book, "COLAB", tmp_path / "colab")
    monkeypatch.setattr(book, "wheel", lambda: found.append("wheel"))
    monkeypatch.setattr(book, "address", lambda: None)
    return found


def kinds(asked):
    return [
        one if isinstance(one, str) else "pages" if "press.pages" in one else
        "colab" if "--custom-builder" in one else "html"
        for one in asked
    ]  # fmt: skip


def test_the_notebooks_come_before_the_site_that_offers_them(asked, tmp_path):
    (tmp_path / "colab").mkdir()
    (tmp_path / "colab" / "old.ipynb").touch()
    assert book.main([]) == 0
    assert kinds(asked) == ["pages", "colab", "wheel", "html"]
    assert not (tmp_path / "colab").exists()


def test_notebooks_alone(asked):
    assert book.main(["colab"]) == 0
    assert kinds(asked) == ["pages", "colab", "wheel"]


def test_a_published_book_needs_no_wheel(asked, monkeypatch):
    monkeypatch.setattr(book, "address", lambda: "somewhere")
    assert book.main(["colab"]) == 0
    assert kinds(asked) == ["pages", "colab"]


def test_a_step_that_fails_ends_the_build_with_its_status(asked, monkeypatch, capsys):
    def fail():
        raise subprocess.CalledProcessError(3, "build", stderr=b"no backend\n")

    monkeypatch.setattr(book, "wheel", fail)
    assert book.main([]) == 3
    assert kinds(asked) == ["pages", "colab"]
    assert capsys.readouterr().err == "no backend\n"


def test_a_warning_is_an_error():
    assert {"--nitpick", "--warningiserror"} <= set(book.builder())
    assert book.builder("--builder", "custom")[-3:] == ["--builder", "custom", "."]


def test_the_modules_of_the_checkout_are_documented(monkeypatch):
    said = {}
    monkeypatch.setattr(book.subprocess, "run", lambda command, **how: said.update(how))
    monkeypatch.setenv("PYTHONPATH", "theirs")
    book._run(["x"])
    assert said["env"]["PYTHONPATH"].split(":") == [str(book.ROOT), "theirs"]
    assert said["check"]


@pytest.mark.slow
def test_the_wheel_holds_code_and_records_and_nothing_old(tmp_path):
    (book.ROOT / "build" / "lib" / "gradbook").mkdir(parents=True, exist_ok=True)
    (book.ROOT / "build" / "lib" / "gradbook" / "left_behind.py").touch()
    for name in ("one", "two"):
        book.wheel(tmp_path / name)
    one, two = (next(Path(tmp_path / name).glob("*.whl")) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    held = {name for name in zipfile.ZipFile(one).namelist() if ".dist-info" not in name}
    code = book.ROOT / "code"
    wanted = {p.relative_to(code).as_posix() for p in (code / "gradbook").rglob("*.py")}
    wanted |= {
        f"gradbook/packaged_records/{p.name}" for p in (book.ROOT / "records").glob("*.json")
    }
    wanted |= {f"gradbook/{p.name}" for p in (code / "gradbook").glob("*.mplstyle")}
    assert held == wanted
