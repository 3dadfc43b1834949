"""Run a function of this package in a fresh interpreter that has one thread and no torch.

A notebook's process has threads of its own, and torch brings more: to fork it is unsafe, to make it
crash ends the notebook, and its size would be measured with everything else. So an experiment runs
in an interpreter of its own, which ends with all its children whatever happens.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_PACKAGE = str(Path(__file__).parents[1])
_PROGRAM = """\
import importlib, json, sys, types
folder, module, name, arguments = sys.argv[1:]
# Stands for the package, whose own __init__ would import torch.
package = types.ModuleType("gradbook")
package.__path__ = [folder]
sys.modules["gradbook"] = package
function = getattr(importlib.import_module(module), name)
print(json.dumps(function(**json.loads(arguments))))
"""


class Ended(NamedTuple):
    """How an interpreter ended.

    Attributes:
        code: the exit code; minus the signal's number if a signal ended it (POSIX).
        output: what it wrote to standard output.
        errors: what it wrote to standard error.
    """

    code: int
    output: str
    errors: str


def run(
    function: Callable[..., Any],
    timeout: float = 60.0,
    variables: Mapping[str, str] | None = None,
    **arguments: Any,
) -> Ended:
    """Run a function in a fresh interpreter and say how that ended.

    Args:
        function: of a module of ``gradbook.parallel`` that imports no torch.
        timeout: seconds; then the interpreter and all its children are killed.
        variables: of the environment, beside those of this process.
        **arguments: of the function; what JSON can hold.

    Returns:
        The exit code, and what was written; the result stands in the output as JSON.

    Raises:
        TimeoutError: if it takes longer; its last words are in the message.
    """
    command = [sys.executable, "-P", "-c", _PROGRAM, _PACKAGE]
    command += [function.__module__, function.__name__, json.dumps(arguments)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(variables or {})},
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        late = f"{function.__name__}: not done within {timeout:g} s, and killed"
        last = _killed(process).strip()[-400:]
        raise TimeoutError(f"{late}: {last}" if last else late) from None
    except BaseException:
        _killed(process)
        raise
    return Ended(process.returncode, output, errors)


def call(
    function: Callable[..., Any],
    timeout: float = 60.0,
    variables: Mapping[str, str] | None = None,
    **arguments: Any,
) -> Any:
    """Run a function in a fresh interpreter and return its result.

    Args:
        function: as for ``run``.
        timeout: seconds.
        variables: of the environment, beside those of this process.
        **arguments: of the function; what JSON can hold.

    Returns:
        What the function returns, as JSON brings it back: tuples have become lists.

    Raises:
        TimeoutError: if it takes longer.
        RuntimeError: if it ends with an exit code other than 0, or without a result; its last words
            are in the message.
    """
    ended = run(function, timeout, variables, **arguments)
    if ended.code != 0:
        last = ended.errors.strip()[-400:]
        raise RuntimeError(f"{function.__name__}: ended with exit code {ended.code}: {last}")
    lines = ended.output.splitlines()
    if not lines:
        raise RuntimeError(f"{function.__name__}: ended without a result")
    return json.loads(lines[-1])


def _killed(process: subprocess.Popen) -> str:
    """Kill an interpreter and whatever it has started, and tell what it wrote to standard error."""
    # Its children hold the pipes too, so that it is not reaped yet and its number is its own.
    if process.returncode is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    try:
        return process.communicate(timeout=5)[1]
    except subprocess.TimeoutExpired:
        return ""  # someone who has left the group holds the pipes
    finally:
        process.wait()
        process.stdout.close()
        process.stderr.close()
