from types import SimpleNamespace

import pytest

from press import buttons

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def context(tmp_path, monkeypatch):
    """The head of a page as the theme leaves it, and a folder of one notebook."""
    for name in ("REPOSITORY", "SITE", "COMMIT"):
        monkeypatch.delenv(f"GRADBOOK_{name}", raising=False)
    folder = tmp_path / "colab"
    (folder / "_static").mkdir(parents=True)
    (folder / "vae.ipynb").write_text("{}")
    (folder / "gradbook.whl").write_text("x")
    monkeypatch.setattr(buttons, "COLAB", folder)
    download = {"label": "download-source-button", "url": "../_sources/vae.ipynb"}
    printing = {"label": "download-pdf-button"}
    return {
        "header_buttons": [{"buttons": [download, printing]}, {"label": "fullscreen-button"}],
        "pathto": lambda path, _: f"../{path}",
    }


def test_the_download_is_the_notebook_of_plain_markdown(context):
    buttons.lead_to_the_notebook(None, "chapters/vae", "", context, None)
    assert context["header_buttons"][0]["buttons"][0]["url"] == "../notebooks/vae.ipynb"
    assert len(context["header_buttons"]) == 2


def test_a_page_without_a_notebook_keeps_its_buttons(context):
    buttons.lead_to_the_notebook(None, "chapters/glossary", "", context, None)
    assert context["header_buttons"][0]["buttons"][0]["url"] == "../_sources/vae.ipynb"


def test_colab_is_offered_where_the_book_is_published(context, monkeypatch):
    monkeypatch.setenv("GRADBOOK_REPOSITORY", "https://github.com/o/n")
    monkeypatch.setenv("GRADBOOK_COMMIT", COMMIT)
    buttons.lead_to_the_notebook(None, "chapters/vae", "", context, None)
    (button,) = context["header_buttons"][0]["buttons"]
    assert button["url"].endswith("colab.research.google.com/github/o/n/blob/colab/vae.ipynb")


def test_colab_is_not_offered_where_it_cannot_open_the_repository(context, monkeypatch):
    monkeypatch.setenv("GRADBOOK_REPOSITORY", "https://git.example/o/n")
    monkeypatch.setenv("GRADBOOK_SITE", "https://book.example")
    monkeypatch.setenv("GRADBOOK_COMMIT", COMMIT)
    buttons.lead_to_the_notebook(None, "chapters/vae", "", context, None)
    assert len(context["header_buttons"]) == 2
    assert context["header_buttons"][0]["buttons"][0]["url"] == "../notebooks/vae.ipynb"


def test_notebooks_and_the_wheel_stand_among_the_pages(context, tmp_path):
    app = SimpleNamespace(outdir=tmp_path / "html", builder=SimpleNamespace(name="html"))
    (tmp_path / "html" / "notebooks").mkdir(parents=True)
    (tmp_path / "html" / "notebooks" / "old.ipynb").touch()
    buttons.bring_the_notebooks(app, None)
    found = sorted(path.name for path in (tmp_path / "html" / "notebooks").iterdir())
    assert found == ["gradbook.whl", "vae.ipynb"]


@pytest.mark.parametrize(("name", "error"), [("colab", None), ("html", ValueError())])
def test_other_builds_bring_nothing(context, tmp_path, name, error):
    app = SimpleNamespace(outdir=tmp_path / "html", builder=SimpleNamespace(name=name))
    buttons.bring_the_notebooks(app, error)
    assert not (tmp_path / "html").exists()
