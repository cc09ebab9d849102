"""What other people's CI runs: the action, the hook, the snippets of docs/ci.md, and what GitHub is
told; as far as a machine without a network can."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.front_doors import test_drift
from tests.front_doors.test_other_doors import PAD_IS_EOS

yaml = pytest.importorskip("yaml")

DOCUMENT = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
ID = "mistral-v0.1-7b-instruct"
MINE = PAD_IS_EOS.replace("PadIsEos", "MyBackbone")


def snippet(language: str, heading: str) -> str:
    """The first block of a section of docs/ci.md."""
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert section is not None
    block = re.search(rf"```{language}\n(.*?)```", section[1], re.DOTALL)
    assert block is not None
    return block[1]


def action() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def step(name: str) -> dict[str, Any]:
    return next(one for one in action()["runs"]["steps"] if one.get("name") == name)


def environment(**further: str) -> dict[str, str]:
    """This process's, with `conformance` of this checkout on the path and none of GitHub's."""
    ours = test_drift.environment()
    kept = {name: value for name, value in ours.items() if not name.startswith("GITHUB_")}
    scripts = os.path.dirname(sys.executable)
    return {**kept, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", **further}


def on_github(repository: Path, **further: str) -> dict[str, str]:
    """The environment of a step of a workflow, whose files lie beside the repository."""
    beside = repository.parent
    return environment(
        GITHUB_ACTIONS="true",
        GITHUB_WORKSPACE=str(repository),
        GITHUB_STEP_SUMMARY=str(beside / "summary"),
        GITHUB_OUTPUT=str(beside / "output"),
        **further,
    )


def ran(
    command: list[str], folder: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=dict(variables), capture_output=True, text=True, timeout=300
    )


def certify_step(
    folder: Path, variables: Mapping[str, str], **inputs: str
) -> subprocess.CompletedProcess[str]:
    """The action's own script, as the runner starts it."""
    known = action()["inputs"]
    assert set(inputs) <= set(known)
    given = {name: str(inputs.get(name, one.get("default", ""))) for name, one in known.items()}
    script = step("Certify")
    own = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: given[found[1]], value)
        for name, value in script["env"].items()
        if name != "CONFORMANCE_HUB"
    }
    return ran(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script["run"]],
        folder,
        {**variables, **own},
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "robots").mkdir(parents=True)
    (folder / "robots" / "mine.py").write_text(MINE)
    return folder


@pytest.mark.slow
def test_the_action_annotates_the_line_summarises_and_sets_its_outputs(repository: Path) -> None:
    found = certify_step(
        repository / "robots",
        on_github(repository),
        target="mine.py:MyBackbone",
        id=ID,
        budget="quick",
        arguments="--only 'PAD-03'  --seed 3",
    )
    assert found.returncode == 1, found.stderr
    told = [line for line in found.stderr.splitlines() if line.startswith("::")]
    assert told[0].startswith("::error file=robots/mine.py,line=")
    assert "title=PAD-03 failed::the pad id 2 is also eos" in told[0]
    assert "%0Ato mend: add a token of its own" in told[0]
    line = int(told[0].split("line=")[1].split(",")[0])
    assert (
        "class MyBackbone" in MINE.splitlines()[line - 1]
        or "__init__" in (MINE.splitlines()[line - 1])
    )
    assert (repository.parent / "output").read_text() == "result=FAILED\ncertified=false\n"
    assert "## PAD-03 failed" in (repository.parent / "summary").read_text()
    assert (repository / "robots" / "conformance-report" / "certificate.json").is_file()


@pytest.mark.slow
def test_what_cannot_be_assessed_is_an_annotation_too(repository: Path) -> None:
    found = certify_step(repository, on_github(repository), target="robots/mine.py:Misspelt")
    assert found.returncode == 2
    assert "::error title=conformance could not assess::" in found.stderr
    assert not (repository.parent / "output").exists()


@pytest.mark.slow
def test_a_summary_that_cannot_be_written_changes_no_verdict(repository: Path) -> None:
    variables = on_github(repository) | {"GITHUB_STEP_SUMMARY": str(repository / "no" / "such")}
    command = [sys.executable, "-m", "conformance", "certify", ID, "--only", "PAD-01", "--json"]
    found = ran(command, repository, variables)
    assert found.returncode == 0, found.stderr
    assert "is not written: No such file or directory" in found.stderr
    assert found.stdout.startswith("{")


def test_what_users_give_reaches_no_script_but_as_a_variable() -> None:
    for one in action()["runs"]["steps"]:
        assert "${{" not in one.get("run", "")


def test_the_snippet_for_github_gives_inputs_that_the_action_has() -> None:
    steps = yaml.safe_load(snippet("yaml", "GitHub Actions"))["jobs"]["conformance"]["steps"]
    given = next(one for one in steps if "backbone-conformance" in one.get("uses", ""))["with"]
    known = action()["inputs"]
    assert set(given) <= set(known)
    assert {name for name, one in known.items() if one.get("required")} <= set(given)
    section = DOCUMENT.split("## GitHub Actions")[1].split("## Any other CI")[0]
    for name in (*known, *action()["outputs"]):
        assert f"`{name}`" in section or f"{name}:" in section


@pytest.mark.slow
def test_the_hook_runs_before_a_push(tmp_path: Path) -> None:
    pytest.importorskip("pre_commit")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "mine.py").write_text(MINE)
    config = yaml.safe_load(snippet("yaml", "pre-commit"))
    repo = config["repos"][0]
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    manifest = ROOT / ".pre-commit-hooks.yaml"
    (hooks / manifest.name).write_text(manifest.read_text())
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    variables = environment(PRE_COMMIT_HOME=str(tmp_path / "cache"))
    for folder in (hooks, theirs):
        ran([*git, "init", "-q"], folder, variables)
        ran([*git, "add", "-A"], folder, variables)
        ran([*git, "commit", "-qm", "one"], folder, variables)
    repo["repo"] = str(hooks)
    repo["rev"] = ran([*git, "rev-parse", "HEAD"], hooks, variables).stdout.strip()
    arguments = repo["hooks"][0]["args"]
    arguments[arguments.index("my-7b-instruct")] = ID
    arguments += ["--only", "PAD-03"]
    (theirs / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files", "--hook-stage"]
    found = ran([*command, "pre-push"], theirs, variables)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "PAD-03 failed: the pad id 2 is also eos" in found.stdout
    # A minute is too long for every commit.
    assert "PAD-03" not in ran([*command, "pre-commit"], theirs, variables).stdout


@pytest.mark.slow
def test_the_snippet_for_tox_names_a_command_that_runs(repository: Path) -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read_string(snippet("ini", "tox"))
    command = tox["testenv:conformance"]["commands"]
    written = (
        command.replace("my_package.backbones", "mine")
        .replace("my-7b-instruct", ID)
        .replace("{env_tmp_dir}{/}", "")
        .split()
    )
    found = ran([*written, "--only", "PAD-03"], repository / "robots", environment())
    assert found.returncode == 1, found.stderr
    assert (repository / "robots" / "report" / "junit.xml").is_file()


def test_the_image_is_built_from_files_that_reach_it() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    reaching = {
        line[1:].strip()
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    assert "constraints.txt" in text
    # What hatchling needs to build the wheel.
    wanted = {"pyproject.toml", "README.md", "LICENSE", "conformance", "backbones", "fixtures"}
    assert wanted | {"docs", "constraints.txt"} <= reaching
    assert all((ROOT / name).exists() for name in reaching)
