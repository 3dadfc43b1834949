"""Fresh interpreters: results, exit codes, and children that end whatever happens."""

import os
import sys
import time
from pathlib import Path

import pytest

from gradbook.parallel import crashes, fresh, races


def test_a_result_comes_back_as_json():
    found = fresh.call(races._lost_as_it_happens, times=1)
    assert set(found) == set(races.lost_as_it_happens(1))
    assert all(0 <= lost <= 2 for lost in found.values())


def test_the_exit_code_and_the_words_come_back():
    ended = fresh.run(crashes._exit_at_once)
    assert (ended.code, ended.output, ended.errors) == (3, "", "")
    ended = fresh.run(crashes._raise)
    assert ended.code == 1
    assert ended.errors.strip().endswith("ValueError: a mistake in a thread")


def test_a_failure_names_the_function_and_its_words():
    with pytest.raises(RuntimeError, match=r"(?s)_raise: ended with exit code 1: .*a mistake"):
        fresh.call(crashes._raise)


def test_variables_are_added_to_the_environment():
    ended = fresh.run(crashes._exit_at_once, variables={"PYTHONTRACEMALLOC": "x"})
    assert ended.code == 1
    assert "PYTHONTRACEMALLOC" in ended.errors


def test_what_takes_too_long_is_killed_with_its_children():
    """The interpreter waits for its child, and the child for a lock that no one gives back."""
    with pytest.raises(TimeoutError, match=r"_fork_while_locked: not done within 1.5 s"):
        fresh.run(crashes._fork_while_locked, timeout=1.5, wait=20.125)
    deadline = time.monotonic() + 10
    while (left := _with("20.125")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def test_an_interrupt_kills_too(monkeypatch):
    def interrupted(*_, **__):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(fresh.subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fresh.run(crashes._fork_while_locked, wait=20.25)
    deadline = time.monotonic() + 10
    while (left := _with("20.25")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def _with(words):
    """The processes whose command line holds these words."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = Path("/proc", pid, "cmdline").read_text()
        except OSError:
            continue
        if words in text and fresh._PROGRAM in text:
            found.append(pid)
    return found


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Functions of a module that a fresh interpreter finds and imports in no time."""
    lines = ["import os, time", "def leave(): os._exit(0)"]
    lines += ["def hang(): os.write(2, b'began to wait'); time.sleep(600)"]
    (tmp_path / "stand_ins.py").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    import stand_ins

    yield stand_ins
    del sys.modules["stand_ins"]


def test_a_result_that_is_missing_is_told(stand_ins):
    with pytest.raises(RuntimeError, match="leave: ended without a result"):
        fresh.call(stand_ins.leave)


def test_the_last_words_of_what_is_killed_are_told(stand_ins):
    with pytest.raises(TimeoutError, match="hang: not done .*, and killed: began to wait"):
        fresh.run(stand_ins.hang, timeout=8)
