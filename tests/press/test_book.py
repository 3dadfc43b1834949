import subprocess

import pytest

from press import book


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What would be run, in order; nothing is."""
    found = []
    monkeypatch.setattr(book, "_run", found.append)
    monkeypatch.setattr(book, "COLAB", tmp_path / "colab")
    monkeypatch.setattr(book, "ENVIRONMENT", tmp_path / "environment.pickle")
    monkeypatch.setattr(book.wheels, "build", lambda *where: found.append(("wheel", *where)))
    monkeypatch.setattr(book, "address", lambda: None)
    return found


def kinds(asked):
    return [
        "wheel" if one[0] == "wheel" else "pages" if "press.pages" in one else
        "colab" if "--custom-builder" in one else "html"
        for one in asked
    ]  # fmt: skip


def test_the_notebooks_come_before_the_site_that_offers_them(asked, tmp_path):
    (tmp_path / "colab").mkdir()
    (tmp_path / "colab" / "old.ipynb").touch()
    assert book.main([]) == 0
    assert kinds(asked) == ["pages", "colab", "wheel", "html"]
    assert not (tmp_path / "colab").exists()


def test_the_site_reads_anew_what_the_notebooks_have_read(asked, tmp_path, monkeypatch):
    def run(command):
        asked.append(command)
        if "--custom-builder" in command:
            (tmp_path / "environment.pickle").touch()
        elif "--nitpick" in command:
            assert not (tmp_path / "environment.pickle").exists()

    monkeypatch.setattr(book, "_run", run)
    assert book.main([]) == 0
    assert kinds(asked)[-1] == "html"


def test_notebooks_alone(asked):
    assert book.main(["colab"]) == 0
    assert kinds(asked) == ["pages", "colab", "wheel"]
    assert asked[-1][1:] == (book.ROOT, book.COLAB)


def test_a_published_book_needs_no_wheel(asked, monkeypatch):
    monkeypatch.setattr(book, "address", lambda: "somewhere")
    assert book.main(["colab"]) == 0
    assert kinds(asked) == ["pages", "colab"]


def test_a_step_that_fails_ends_the_build_with_its_status(monkeypatch, asked):
    def fail(command):
        asked.append(command)
        raise subprocess.CalledProcessError(3, command)

    monkeypatch.setattr(book, "_run", fail)
    assert book.main([]) == 3
    assert kinds(asked) == ["pages"]


def test_a_wheel_that_cannot_be_built_ends_the_build(asked, monkeypatch, capsys):
    def fail(*_):
        raise book.wheels.PipError("no backend")

    monkeypatch.setattr(book.wheels, "build", fail)
    assert book.main([]) == 1
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
