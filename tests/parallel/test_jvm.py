"""The listing of a Java program: parsed, recorded, and measured where there is a JDK."""

import os
import sys

import pytest

from gradbook.parallel import jvm
from gradbook.parallel.systems import Unsupported

LINES = """version||21
java|1|main
java|3|a|b
system|77|java
alive||true
state|NEW|NEW
deadlocked|16|17
deadlocked|17|16
"""


def sound(listing):
    assert "main" in listing.java.values()
    assert len(listing.system) > len(listing.java)
    assert listing.states == {state: {state} for state in jvm.STATES}
    assert listing.alive
    assert len(listing.deadlocked) == 2
    assert all(listing.deadlocked[other] == one for one, other in listing.deadlocked.items())


def test_lines_are_read():
    assert jvm.parse(LINES) == jvm.Listing(
        "21", {1: "main", 3: "a|b"}, {77: "java"}, {"NEW": {"NEW"}}, True, {16: 17, 17: 16}
    )
    assert not jvm.parse(LINES.replace("alive||true", "alive||false")).alive
    assert jvm.parse(LINES.split("deadlocked")[0]).deadlocked == {}


def test_every_thread_of_a_state_counts():
    for lines in ("BLOCKED|RUNNABLE\nstate|BLOCKED|BLOCKED", "BLOCKED|BLOCKED\nstate|BLOCKED|NEW"):
        found = jvm.parse(LINES.replace("NEW|NEW", lines)).states["BLOCKED"]
        assert len(found) == 2


def test_hidden_tasks():
    """Of two tasks that have the launcher's name one is main."""
    found = jvm.parse(jvm.RECORDED)
    names = jvm.hidden(found)
    assert len(names) == len(found.system) - len(found.java)
    assert names.count("java") == 1
    assert "VM Thread" in names
    assert "Reference Handl" not in names


@pytest.mark.parametrize("kind", ["version", "java", "system", "state", "alive"])
def test_a_part_that_is_missing(kind):
    kept = [line for line in LINES.splitlines() if not line.startswith(kind)]
    with pytest.raises(ValueError, match=f"no line of kind '{kind}'"):
        jvm.parse("\n".join(kept))


def test_a_line_of_another_form():
    with pytest.raises(ValueError, match="lines are kind"):
        jvm.parse("Picked up JAVA_TOOL_OPTIONS")


def test_the_recorded_listing():
    sound(jvm.parse(jvm.RECORDED))


def test_the_listing_of_a_program_that_runs():
    try:
        java = jvm.find_java()
        jvm.require_compiler(java)
    except Unsupported as error:
        pytest.skip(str(error))
    sound(jvm.measure(java))


def test_without_java_the_recorded_one_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(Unsupported, match="java: not found"):
        jvm.find_java()
    assert jvm.listing() == (jvm.parse(jvm.RECORDED), False)


def test_the_home_of_java_comes_first(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    launcher = tmp_path / "bin" / "java"
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert jvm.find_java() == str(launcher)


def stand_in(tmp_path, body, modules="jdk.compiler@17.0.1"):
    """A launcher that lists these modules, and does this with a program."""
    launcher = tmp_path / "java"
    lines = [f"#!{sys.executable}", "import sys, time", "if sys.argv[1] == '--list-modules':"]
    lines += [f"    sys.exit(print({modules!r}))", body]
    launcher.write_text("\n".join(lines))
    launcher.chmod(0o755)
    return str(launcher)


@pytest.mark.parametrize("modules", ["java.base@17", "java.compiler@17", "jdk.compiler@10.0.2"])
def test_a_java_that_cannot_compile(modules, monkeypatch, tmp_path):
    java = stand_in(tmp_path, "sys.exit(1)", modules)
    with pytest.raises(Unsupported, match="a JDK, 11 or later, has"):
        jvm.measure(java)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert not jvm.listing()[1]


def test_a_program_that_fails_is_not_replaced_by_the_record(monkeypatch, tmp_path):
    java = stand_in(tmp_path, "sys.exit('does not compile')")
    with pytest.raises(RuntimeError, match="ended with exit code 1: does not compile"):
        jvm.measure(java)
    monkeypatch.setattr(jvm, "find_java", lambda: java)
    with pytest.raises(RuntimeError, match="does not compile"):
        jvm.listing()


def test_a_java_that_prints_and_one_that_hangs(tmp_path):
    java = stand_in(tmp_path, f"assert open(sys.argv[1]).read(); print('''{LINES}''')")
    assert jvm.measure(java) == jvm.parse(LINES)
    java = stand_in(tmp_path, "time.sleep(60)")
    with pytest.raises(TimeoutError, match="within 0.5 s"):
        jvm.measure(java, 0.5)
