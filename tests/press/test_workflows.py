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


RUNNER = "[self-hosted, gpu]"
GUARD = "github.event.pull_request.head.repo.full_name == github.repository"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("permissions: {}\n", "", "must stand at the top"),
        ("permissions: {}\n", "permissions:\n  contents: read\n", "must stand at the top"),
        ("-euo pipefail", "-e", "the default shell must be bash -euo pipefail {0}"),
        ("concurrency:", "env:", "needs a concurrency group"),
        ("  pull_request:", "  pull_request_target:", "pull_request_target: it runs code"),
        ("  pull_request:", "  pull_request:\n  workflow_run:", "workflow_run: it runs code"),
        ("    timeout-minutes: 5\n", "", "one: it needs timeout-minutes"),
        ("    permissions:\n      contents: read", "    env:\n      c: read", "one: it needs perm"),
        ("persist-credentials: false", "fetch-depth: 0", "must not keep credentials"),
        ("persist-credentials: false", "persist-credentials: true", "must not keep credentials"),
        ("@08c6903cd8c0fde910a37f88322edcfb5dd907a8 # v5.0.0", "@v5", "checkout@v5: pin"),
        (" # v5.0.0", "", "name the version in a comment"),
        ("contents: read", "contents: write", "one: a pull request may write nothing"),
        ("make check", "echo ${{ secrets.X }}", "it gets no secret"),
        ("make check", "echo ${{ github.token }}", "it gets no secret"),
        ("ubuntu-latest", RUNNER, "takes no pull request from another repository"),
        ("make check", "make chek", "make chek: the Makefile has no such target"),
        ("make check", "make X=1 check PY", None),
        ("ubuntu-latest", f"{RUNNER}\n    if: {GUARD}", None),
        ("  pull_request:", "  push:", None),
    ],
)
def test_the_rules_of_this_house(repository, old, new, fault):
    broken(repository, old, new)
    text = (repository / ".github" / "workflows" / "good.yml").read_text()
    found = workflows.faults(text, {"check"})
    assert found == [] if fault is None else len(found) == 1 and fault in found[0], found


def test_what_the_house_finds_turns_it_red(repository, capfd):
    broken(repository, "make check", "make chek")
    assert workflows.main(repository) == 1
    assert "good.yml: make chek: the Makefile has no such target" in capfd.readouterr().out


def test_a_matrix_of_targets_is_called():
    rows = [{"target": "audit"}, {"target": "x", "part": "1/2"}, {"python": "3.11"}]
    workflow = {"jobs": {"a": {"steps": [], "strategy": {"matrix": {"include": rows}}}}}
    assert workflows.called(workflow) == {"audit", "x"}


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
        ([], "issue create --title The book fails --body It failed in "),
        (
            [{"number": 4, "title": "The book fails again"}],
            "issue create --title The book fails --b",
        ),
        ([{"number": 7, "title": "The book fails"}], "issue comment 7 --body It failed in "),
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
