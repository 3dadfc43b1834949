"""The workflows: linted, within the rules of this house, and each rule seen to refuse."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml

from press import workflows
from press.paths import ROOT

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
GOOD = """\
# A workflow that nobody may complain about.
name: good

on:
  pull_request:

permissions: {}

concurrency:
  group: good
  cancel-in-progress: true

defaults:
  run:
    shell: bash -euo pipefail {0}

jobs:
  one:
    name: one
    runs-on: ubuntu-latest
    timeout-minutes: 5
    permissions:
      contents: read # to check the code out
    steps:
      - uses: actions/checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8 # v5.0.0
        with:
          persist-credentials: false
      - run: make check
"""


@pytest.fixture
def repository(tmp_path):
    """A repository with one good workflow."""
    (tmp_path / "Makefile").write_text("check: lint ## all\nPY := python\n")
    (tmp_path / ".github" / "workflows").mkdir(parents=True)
    (tmp_path / ".github" / "workflows" / "good.yml").write_text(GOOD)
    return tmp_path


def broken(repository, old, new):
    assert GOOD.count(old) == 1
    (repository / ".github" / "workflows" / "good.yml").write_text(GOOD.replace(old, new))


def test_the_workflows_are_clean(capfd):
    assert workflows.main() == 0, capfd.readouterr().out
    assert {file.stem for file in FILES} == {
        "ci",
        "colab",
        "gpu",
        "publish",
        "scheduled",
        "upstream",
    }


def test_a_good_workflow_passes(repository, capfd):
    assert workflows.main(repository) == 0, capfd.readouterr().out


def test_actionlint_finds_what_is_not_the_language(repository, capfd):
    broken(repository, "runs-on: ubuntu-latest", "runs-on: ubuntu-lastest")
    assert workflows.main(repository) == 1
    said = capfd.readouterr().out
    assert re.search(r'good\.yml:20:14: label "ubuntu-lastest" is unknown', said)


def test_actionlint_lets_a_repositorys_variables_be(repository, capfd):
    broken(repository, "    timeout-minutes: 5", "    timeout-minutes: 5\n    if: vars.ANY != ''")
    assert workflows.main(repository) == 0, capfd.readouterr().out


def test_zizmor_finds_a_way_in(repository, capfd):
    broken(repository, "make check", "echo ${{ github.event.pull_request.title }}")
    assert workflows.main(repository) == 1
    assert "template-injection" in capfd.readouterr().out


def test_zizmor_reads_the_updaters_file(repository, capfd):
    (repository / ".github" / "dependabot.yml").write_text(
        "version: 2\nupdates:\n  - package-ecosystem: npm\n    directory: /\n    schedule:\n      interval: daily\n"
    )
    assert workflows.main(repository) == 1
    assert "dependabot-cooldown" in capfd.readouterr().out


def test_each_linter_alone_turns_it_red(repository, monkeypatch):
    for status in ([0, 1], [1, 0]):
        codes = [[sys.executable, "-c", f"raise SystemExit({code})"] for code in status]
        monkeypatch.setattr(workflows, "commands", lambda _, codes=codes: codes)
        assert workflows.main(repository) == 1


def test_a_repository_without_workflows_is_not_clean(repository, capsys):
    (repository / ".github" / "workflows" / "good.yml").unlink()
    assert workflows.main(repository) == 1
    assert "holds no workflow" in capsys.readouterr().err


OWN = "github.event.pull_request.head.repo.full_name == github.repository"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("permissions: {}\n", "", "must stand at the top"),
        ("permissions: {}\n", "permissions:\n  contents: read\n", "must stand at the top"),
        ("-euo pipefail", "-e", "the default shell must be bash -euo pipefail {0}"),
        ("concurrency:", "env:", "needs a concurrency group"),
        ("  pull_request:", "  pull_request_target:", "pull_request_target: it may run code"),
        ("  pull_request:", "  pull_request:\n  workflow_run:", "workflow_run: it may run code"),
        ("    timeout-minutes: 5\n", "", "one: it needs timeout-minutes"),
        ("    permissions:\n      contents: read", "    env:\n      c: read", "one: it needs perm"),
        ("persist-credentials: false", "fetch-depth: 0", "must not keep credentials"),
        ("persist-credentials: false", "persist-credentials: true", "must not keep credentials"),
        ("@08c6903cd8c0fde910a37f88322edcfb5dd907a8 # v5.0.0", "@v5", "checkout@v5: pin"),
        (" # v5.0.0", "", "name the version in a comment"),
        ("contents: read", "contents: write", "one: a pull request may write nothing"),
        ("  pull_request:", "  pull_request_review:", "pull_request_review: it may run code"),
        ("permissions:\n      contents: read", "permissions: write-all", "not write-all"),
        ("permissions:\n      contents: read", "permissions: read-all", "not read-all"),
        (
            "  pull_request:\n\npermissions: {}\n",
            "  pull_request:\n\npermissions: write-all\n",
            "at the top",
        ),
        (
            "defaults:\n  run:\n    shell: bash -euo pipefail {0}\n",
            "defaults:\n",
            "the default shell",
        ),
        (
            "    timeout-minutes: 5\n",
            "    timeout-minutes: 5\n    if: failure()\n",
            "ask for its result",
        ),
        ("make check", "echo ${{ secrets.X }}", "it gets no secret"),
        ("make check", "echo ${{ github.token }}", "it gets no secret"),
        ("make check", "make chek", "make chek: the Makefile has no such target"),
        ("make check", "make X=1 check PY", None),
        ("  pull_request:", "  push:", None),
    ],
)
def test_the_rules_of_this_house(repository, old, new, fault):
    broken(repository, old, new)
    text = (repository / ".github" / "workflows" / "good.yml").read_text()
    found = workflows.faults(text, {"check"})
    assert found == [] if fault is None else len(found) == 1 and fault in found[0], found


RUNNERS = [
    "[self-hosted, gpu]",
    "self-hosted",
    "${{ vars.GPU_RUNNER }}",
    "[ubuntu-latest, gpu]",
    "{group: gpu}",
    "ubuntu-lastest",
]
ELSEWHERE = "is no runner of GitHub's: no pull request from elsewhere may get there"


def found_of(condition, runner="self-hosted"):
    job = f"runs-on: {runner}\n    if: {json.dumps(condition)}"
    return workflows.faults(GOOD.replace("runs-on: ubuntu-latest", job), {"check"})


@pytest.mark.parametrize("runner", RUNNERS)
def test_only_the_guarded_job_leaves_githubs_runners(runner):
    (fault,) = workflows.faults(GOOD.replace("ubuntu-latest", runner), {"check"})
    assert fault.startswith("one: ")
    assert fault.endswith(ELSEWHERE)
    assert found_of(OWN, runner) == []


def test_the_guard_is_asked_for_whatever_starts_the_workflow():
    text = GOOD.replace("  pull_request:", "  push:").replace("ubuntu-latest", "self-hosted")
    assert [fault.endswith(ELSEWHERE) for fault in workflows.faults(text, {"check"})] == [True]


@pytest.mark.parametrize(
    "condition",
    [
        f"vars.X != '' && {OWN} && github.event.label.name == 'gpu'",
        f"${{{{ {OWN} }}}}",
        f"vars.X != '' && (github.event_name != 'pull_request' || ({OWN}))",
        f"(github.event_name != 'pull_request' ||\n(vars.A == 'b' && {OWN})) && vars.X != ''",
    ],
)
def test_a_guard_that_holds_is_taken(condition):
    assert found_of(condition) == []


@pytest.mark.parametrize(
    "condition",
    [
        "vars.X != ''",
        f"always() || {OWN}",
        f"{OWN} || always()",
        f"vars.A == 'b' || {OWN}",
        f"vars.A == 'b' && vars.B == 'c' || {OWN}",
        f"!({OWN})",
        f"vars.X != '' && !({OWN} && vars.A == 'b')",
        OWN.replace("==", "!="),
        f"{OWN} == false",
        f"github.event_name == 'pull_request' || ({OWN})",
        f"(github.event_name != 'pull_request' || ({OWN})) || vars.X != ''",
        f"(github.event_name != 'push' || ({OWN}))",
        f"${{{{ vars.X }}}} && {OWN}",
        f"'a && {OWN} && b'",
        f"x.{OWN}",
        f"{OWN}_owner",
    ],
)
def test_a_guard_with_a_way_round_it_is_none(condition):
    assert [fault.endswith(ELSEWHERE) for fault in found_of(condition)] == [True]


@pytest.mark.parametrize(
    "script",
    [
        "make nope",
        "cd x && make nope",
        "cd x; make check nope",
        "if make nope; then :; fi",
        "A=1 make -k nope",
        "make check && make nope",
        "make check\nmake nope",
        "make \\\n  nope",
        "make X=$(date +%s) nope",
        "x=$(make nope)",
        "bash -c 'make nope'",
        'make "$TARGET" "nope"',
        "/usr/bin/make nope",
    ],
)
def test_a_target_is_found_wherever_it_is_called(script):
    assert "nope" in workflows.called({"jobs": {"a": {"steps": [{"run": script}]}}})


@pytest.mark.parametrize(
    "script",
    ["# make nope", "cmake nope", "make-do nope", "make X=nope", "make; nope", "make >nope"],
)
def test_what_calls_no_target_names_none(script):
    assert workflows.called({"jobs": {"a": {"steps": [{"run": script}]}}}) == set()


def test_what_the_house_finds_turns_it_red(repository, capfd):
    broken(repository, "make check", "make chek")
    assert workflows.main(repository) == 1
    assert "good.yml: make chek: the Makefile has no such target" in capfd.readouterr().out


def test_a_matrix_of_targets_is_called():
    rows = [{"target": "audit"}, {"target": "x", "part": "1/2"}, {"python": "3.11"}]
    matrix = {"include": rows, "target": ["y", "z"]}
    workflow = {"jobs": {"a": {"steps": [], "strategy": {"matrix": matrix}}}}
    assert workflows.called(workflow) == {"audit", "x", "y", "z"}
    workflow["jobs"]["a"]["strategy"]["matrix"] = "${{ fromJSON(vars.X) }}"
    assert workflows.called(workflow) == set()


def test_the_parts_of_the_mutants_are_all_mutants():
    text = (ROOT / ".github" / "workflows" / "scheduled.yml").read_text()
    rows = yaml.safe_load(text)["jobs"]["check"]["strategy"]["matrix"]["include"]
    parts = [row["part"] for row in rows if row["target"] == "mutants"]
    assert parts == [f"{k}/{len(parts)}" for k in range(1, len(parts) + 1)]
    assert {row["target"] for row in rows} == {"audit", "mutants", "records-check"}


def test_a_makefiles_targets_are_not_its_variables():
    assert workflows.targets("all: x ## y\nPY := 1\nabc := 2\nb-c:\n\tz: 1\n") == {"all", "b-c"}


def test_ci_has_the_pinned_torch_and_the_oldest_that_the_code_supports():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    matrix = jobs["versions"]["strategy"]["matrix"]
    pinned = re.search(r"^torch==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    assert matrix["torch"] == ["2.6.0", pinned]
    assert "torch>=2.6" in (ROOT / "pyproject.toml").read_text()
    # The leg that the matrix leaves out is the one that runs all.
    assert matrix["exclude"] == [{"python": "3.11", "torch": pinned}]
    runs = [step.get("run") for step in jobs["everything"]["steps"]]
    assert ".ci/run" in runs
    assert {"python-version": "3.11"} in [step.get("with") for step in jobs["everything"]["steps"]]


@pytest.mark.parametrize("name", ["colab", "scheduled"])
def test_a_weekly_job_is_reported_unless_it_succeeded(name):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
    report = workflow["jobs"].pop("report")
    (needed,) = workflow["jobs"]
    assert report["needs"] == needed
    assert report["if"] == f"always() && needs.{needed}.result != 'success'"
    assert workflow["concurrency"]["cancel-in-progress"] is False


@pytest.mark.parametrize("name", ["colab", "publish"])
def test_what_readers_get_is_built_with_the_address(name):
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    building = [
        s for s in steps if re.search(r"make .*(colab$|reproducible|site)", s.get("run", ""))
    ]
    assert len(building) == {"colab": 1, "publish": 2}[name]
    for step in building:
        assert step["env"] == {
            "GRADBOOK_REPOSITORY": "${{ github.server_url }}/${{ github.repository }}",
            "GRADBOOK_SITE": "${{ vars.SITE }}",
        }


def test_only_what_runs_alone_may_publish():
    text = (ROOT / ".github" / "workflows" / "publish.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["build"]["permissions"] == {"contents": "read"}
    assert {
        name for name, job in jobs.items() if job["permissions"].get("contents") == "write"
    } == {
        "colab",
        "release",
    }
    assert all("build" in str(job.get("needs", "build")) for job in jobs.values())


FAKE = """#!/bin/sh
echo "$@" >> "$CALLS"
if [ "$2" = list ]; then cat "$ISSUES"; fi
"""


@pytest.mark.parametrize(
    ("issues", "call"),
    [
        ([], "issue create --title The book fails --body It failed, "),
        (
            [{"number": 4, "title": "The book fails again"}],
            "issue create --title The book fails --b",
        ),
        ([{"number": 7, "title": "The book fails"}], "issue comment 7 --body It failed, "),
    ],
)
def test_a_failure_is_reported_in_one_issue(tmp_path, issues, call):
    (tmp_path / "gh").write_text(FAKE)
    (tmp_path / "gh").chmod(0o755)
    (tmp_path / "issues").write_text(json.dumps(issues))
    told = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "ISSUES": str(tmp_path / "issues"),
        "GITHUB_SERVER_URL": "https://example.org",
        "GITHUB_REPOSITORY": "a/b",
        "GITHUB_RUN_ID": "9",
        "GITHUB_SHA": "f" * 40,
    }
    subprocess.run([ROOT / ".ci" / "report", "The book fails"], env=told, check=True)
    listed, said = (tmp_path / "calls").read_text().splitlines()
    assert listed.startswith("issue list --state open")
    assert said.startswith(call)
    assert said.endswith(f"https://example.org/a/b/actions/runs/9, on commit {'f' * 40}.")


def test_the_notebooks_are_all_that_the_branch_holds(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "requirements.txt").write_text("torch==1\n")
    (tmp_path / "_build" / "colab").mkdir(parents=True)
    remote = tmp_path / "remote.git"
    subprocess.run(["git", "init", "--quiet", "--bare", remote], check=True)
    git = ["git", "--git-dir", remote]

    def push():
        command = ["make", "--silent", "push-colab", f"TO={remote}"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode

    assert push() != 0  # there are no notebooks
    (tmp_path / "_build" / "colab" / "a.ipynb").write_text("{}")
    (tmp_path / "_build" / "colab" / "beside.whl").write_text("x")
    assert push() == 0
    (tmp_path / "_build" / "colab" / "a.ipynb").rename(tmp_path / "_build" / "colab" / "b.ipynb")
    assert push() == 0
    files = subprocess.check_output([*git, "ls-tree", "-r", "--name-only", "colab"], text=True)
    commits = subprocess.check_output([*git, "rev-list", "--count", "colab"], text=True)
    assert (files, commits) == ("b.ipynb\n", "1\n")
