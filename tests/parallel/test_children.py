"""Children by fork: what they bring back, and how they fail."""

import os
import signal
import sys
import time

import pytest

from gradbook.parallel import children

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # 3.12 on, threads


def test_a_result_comes_back():
    pid, numbers = children.in_child(lambda: (os.getpid(), [1, 2]))
    assert pid != os.getpid()
    assert numbers == [1, 2]


def test_an_error_in_a_child_is_an_error():
    def fails():
        raise ValueError

    for body in (fails, object, lambda: sys.exit(0)):  # JSON cannot hold an object
        with pytest.raises(RuntimeError, match=r"child \d+: it ended with exit code 1"):
            children.in_child(body)


def test_an_error_is_printed(capfd):
    with pytest.raises(RuntimeError, match="exit code 1"):
        children.reap(children.fork(lambda: 1 / 0))
    assert "ZeroDivisionError: division by zero" in capfd.readouterr().err


def test_work_and_bad_ends():
    idle = children.reap(children.fork(int))
    assert children.reap(children.fork(lambda: sum(range(5_000_000)))) > idle
    pid = children.fork(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError, match=f"child {pid}: it ended with exit code -9"):
        children.reap(pid)


def test_a_child_is_killed_and_gone():
    pid = children.fork(lambda: time.sleep(60))
    children.kill(pid)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)
