import copy

import nbformat
import pytest

from press.colab import notebook
from press.colab.markdown import Cell, Folded

PNG = {"output_type": "display_data", "data": {"image/png": "iVBO"}, "metadata": {}}


def code(source, *outputs, **metadata):
    return {
        "cell_type": "code",
        "execution_count": 3,
        "metadata": metadata,
        "outputs": list(outputs),
        "source": source,
    }


def checked(*cells, gpu="not needed"):
    return {
        "cells": [{"cell_type": "markdown", "metadata": {}, "source": "# T"}, *cells],
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3"},
            "language_info": {"name": "python"},
            "gradbook": {"digest": "x"},
            "chapter": {"gpu": gpu},
        },
    }


COVER = notebook.Cover("*Some words.*", "%pip install x")


def made(found, *cells, gpu="not needed"):
    return notebook.assembled("page", ["# T", *found], checked(*cells, gpu=gpu), COVER)


def test_the_cover_comes_first_then_the_cell_that_installs():
    cells = made(["words", Cell(1)], code("1 + 1"))["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code", "markdown", "code"]
    assert cells[0]["source"] == "# T\n\n*Some words.*"
    assert cells[1]["source"] == "#@title Fetch what this chapter needs\n%pip install x"
    assert cells[1]["metadata"]["cellView"] == "form"
    assert cells[1]["outputs"] == []


def test_what_is_made_is_a_notebook():
    found = made(["words", Cell(1), Folded("### S"), Cell(2)], code("1"), code("2"))
    nbformat.validate(nbformat.from_dict(copy.deepcopy(found)))
    names = [cell["id"] for cell in found["cells"]]
    assert len(set(names)) == len(names)
    assert all(cell["metadata"]["id"] == cell["id"] for cell in found["cells"])


def test_words_stand_together_and_a_heading_opens_a_cell():
    found = made(["one", "two", "## Part", "three", Cell(1), "four"], code("1"))["cells"][2:]
    assert [cell["source"] for cell in found] == ["one\n\ntwo", "## Part\n\nthree", "1", "four"]


def test_a_solution_is_closed_in_colab_and_in_jupyter():
    found = made(["## Exercise", "Why?", Folded("### Solution"), "So.", Cell(1)], code("1"))
    (closed,) = found["metadata"]["colab"]["collapsed_sections"]
    place = next(i for i, cell in enumerate(found["cells"]) if cell["id"] == closed)
    cell = found["cells"][place]
    # Alone, so that no word of the solution is seen.
    assert cell["source"] == "### Solution"
    assert found["cells"][place + 1]["source"] == "So."
    assert cell["metadata"]["heading_collapsed"]
    assert cell["metadata"]["jp-MarkdownHeadingCollapsed"]
    others = [c for c in found["cells"] if c is not cell and c["cell_type"] == "markdown"]
    assert all("heading_collapsed" not in c["metadata"] for c in others)


@pytest.mark.parametrize("found", [[], [Cell(1), Cell(1)], [Cell(2)], [Cell(1), Cell(2)]])
def test_a_cell_that_is_lost_or_doubled_is_refused(found):
    with pytest.raises(ValueError, match="page: code cells"):
        made(found, code("1"))


def test_outputs_come_along_as_they_were_checked():
    claim = {
        "output_type": "display_data",
        "data": {"text/html": "x"},
        "metadata": {"gradbook": {}},
    }
    original = code("1", claim)
    found = notebook.code_cell(original, "n")
    assert found["outputs"] == [claim]
    assert found["execution_count"] == 3
    assert found["source"] == "1"


def test_folded_code_has_the_name_that_the_page_gives_it():
    figure = code("plot()", PNG, tags=["hide-input"])
    figure["metadata"]["mystnb"] = {"image": {"alt": "a\n curve"}}
    found = notebook.code_cell(figure, "n")
    assert found["source"] == "#@title Show the code\nplot()"
    assert found["metadata"]["jupyter"] == {"source_hidden": True}
    assert found["outputs"][0]["metadata"] == {"image/png": {"alt": "a curve"}}
    assert figure["outputs"][0]["metadata"] == {}
    figure["metadata"]["mystnb"] = {"code_prompt_show": "Show the set-up"}
    assert notebook.code_cell(figure, "n")["source"].startswith("#@title Show the set-up\n")


def test_outputs_that_the_page_folds_are_folded():
    metadata = notebook.code_cell(code("1", tags=["hide-output"]), "n")["metadata"]
    assert metadata["jupyter"] == {"outputs_hidden": True}
    assert "cellView" not in metadata


def test_a_gpu_is_asked_for_only_where_one_is_used():
    assert "accelerator" not in made([Cell(1)], code("1"))["metadata"]
    assert made([Cell(1)], code("1"), gpu="used")["metadata"]["accelerator"] == "GPU"


@pytest.mark.parametrize(
    "left",
    [
        ":::{prf:theorem} First",
        "```{figure} x.png",
        "see {ref}`there`",
        "> quoted {ref}`there`",
        "by {prf:ref}`thm-a`",
        "(mark)=",
        "$$x$$ (eq-a)",
        ":label: thm-a",
        "+++",
    ],
)
def test_myst_that_is_left_is_found(left):
    words = {"cell_type": "markdown", "id": "a", "source": f"words\n\n{left}\n"}
    assert len(notebook.myst_left({"cells": [words]})) == 1


@pytest.mark.parametrize(
    "fine",
    [
        "Write `` {ref}`x` `` here",
        "```c++\n+++\n:label: x\n```",
        "```python\n+++\n:label: x\n```",
        "$$x \\tag{1}$$",
        "a set {a}",
        "f(x)=1",
        "`{x}`",
        "$\\{a\\}$",
    ],
)
def test_plain_markdown_is_no_myst(fine):
    words = {"cell_type": "markdown", "id": "a", "source": fine}
    listing = {"cell_type": "code", "id": "b", "source": ":::{note}"}
    assert notebook.myst_left({"cells": [words, listing]}) == []


def test_links_to_nothing_are_found():
    words = {"cell_type": "markdown", "source": '<a name="a"></a>[one](#a) [two](#b) [three](x#c)'}
    code = {"cell_type": "code", "source": '[four](#d) <a name="b">'}
    assert notebook.links_to_nothing({"cells": [words, code]}) == ["b"]
