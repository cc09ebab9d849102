"""`conformance scaffold` as users run it: published files, the project, and the command that it
prints."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conformance.toml import load_toml
from tests import ROOT
from tests.cli.test_scaffold import BOS_PER_TURN, DEFAULT, INST
from tests.published import write_published

pytestmark = pytest.mark.slow

NAME, MODEL = "my-models", "acme/Some-7B"
FILES = {
    "conformance.toml", "my_models.py", "my_models_prompts.py", "pyproject.toml",
    "recipes/acme--Some-7B.toml", "recipes/acme--Some-7B/tokenizer.json",
    "recipes/acme--Some-7B/tokenizer_config.json", "tests/test_conformance.py",
}  # fmt: skip
OF_SMALL_VOCABULARIES = {"TOK-07"}
"""What a vocabulary of twelve thousand tokens fails, whatever the class does."""


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
    )


def scaffolded(home: Path, *options: str, bos: str | None = None, **published: Any) -> Path:
    """The project around published files, in `home`."""
    folder = write_published(home / "published", **published)
    if bos is not None:
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**config, "bos_token": bos}), encoding="utf-8")
    done = run(
        "conformance", "scaffold", NAME, "--model", MODEL, "--from", str(folder), *options,
        cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (home / "said").write_text(done.stdout)
    return home / NAME


def certified(home: Path, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status of the printed command, and every outcome but passed ones, by clause."""
    command = shlex.split((home / "said").read_text().splitlines()[-1])
    assert command[:2] == ["conformance", "certify"]
    done = run(*command, "--budget", "quick", "--json", *options, cwd=home)
    assert done.stdout, done.stderr
    rows = json.loads(done.stdout)["predicate"]["requirements"]
    return done.returncode, {row["id"]: row for row in rows if row["outcome"] != "passed"}


def with_outcome(rows: dict[str, dict[str, Any]], *outcomes: str) -> set[str]:
    return {clause for clause, row in rows.items() if row["outcome"] in outcomes}


def require_the_house_style(project: Path) -> None:
    if shutil.which("ruff") is None:
        pytest.skip("ruff is not installed")
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            ["ruff", *command, "--no-cache", "."],
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def written(project: Path) -> dict[str, str]:
    return {
        path.relative_to(project).as_posix(): path.read_text(encoding="utf-8")
        for path in project.rglob("*")
        if path.is_file()
    }


def test_chatml_is_certified_with_nothing_written_by_hand(tmp_path: Path) -> None:
    project = scaffolded(tmp_path)
    files = written(project)
    assert set(files) == FILES
    assert not any(
        "backbones import" in text or "import backbones" in text for text in files.values()
    )
    packaged = load_toml(project / "pyproject.toml")["project"]
    assert packaged["entry-points"]["conformance.backbones"] == {
        "some-7b": "my_models:MyModelsBackbone"
    }
    status, rows = certified(tmp_path)
    assert status == 0, rows
    assert with_outcome(rows, "failed", "blocked", "error", "not-run") == OF_SMALL_VOCABULARIES
    require_the_house_style(project)


def test_without_a_template_the_prompts_alone_fail_and_say_what_to_decide(tmp_path: Path) -> None:
    project = scaffolded(tmp_path, family="gpt_neox", template=None)
    assert "publishes no chat template" in " ".join((tmp_path / "said").read_text().split())
    status, rows = certified(tmp_path)
    assert status == 1
    assert with_outcome(rows, "failed", "error", "not-run") - OF_SMALL_VOCABULARIES == {"PRM-16"}
    # TOK-02 is about the token that ends an answer.
    blocked = with_outcome(rows, "blocked")
    assert blocked == {clause for clause in rows if clause.startswith("PRM")} - {"PRM-16"} | {
        "TOK-02"
    }
    told = rows["PRM-16"]["summary"]
    assert "publishes no chat template" in told
    assert "a person decides how prompts read: fill in the strings of my_models_prompts.py" in told
    require_the_house_style(project)


@pytest.mark.parametrize(
    ("published", "bos"),
    [
        ({"family": "llama3", "template": INST}, "<|im_start|>"),
        ({"family": "llama3", "template": BOS_PER_TURN}, "<|im_start|>"),
        ({"template": DEFAULT}, None),
    ],
    ids=["inst", "bos-per-turn", "default-system-prompt"],
)
def test_other_formats_follow_their_templates(
    published: dict[str, Any], bos: str | None, tmp_path: Path
) -> None:
    project = scaffolded(tmp_path, bos=bos, **published)
    status, rows = certified(tmp_path, "--profile", "core")
    assert status == 0, rows
    assert with_outcome(rows, "failed", "blocked", "error", "not-run") == OF_SMALL_VOCABULARIES
    assert "PRM-10" not in rows
    require_the_house_style(project)


def test_nothing_is_written_over_unasked(tmp_path: Path) -> None:
    project = scaffolded(tmp_path)
    before = written(project)
    (project / "notes").write_text("mine")
    (project / "my_models.py").write_text("mine")
    again = ["conformance", "scaffold", NAME, "--model", MODEL, "--from", "published"]
    refused = run(*again, cwd=tmp_path)
    assert refused.returncode == 2
    assert "add --replace" in " ".join(refused.stderr.split())
    assert (project / "my_models.py").read_text() == "mine"
    told = json.loads(run(*again, "--replace", "--json", cwd=tmp_path).stdout)
    assert set(told["files"]) == FILES
    assert told["undecided"] is None
    assert written(project) == {**before, "notes": "mine"}
    assert {path.name for path in tmp_path.iterdir()} == {NAME, "published", "said"}


def test_the_command_finds_the_project_wherever_it_lies(tmp_path: Path) -> None:
    """Its folder has a blank and a quote in its name, which the shell would take apart."""
    scaffolded(tmp_path, "--out", "who's here")
    status, rows = certified(tmp_path, "--only", "CON-01,PRM-16")
    assert status == 0, rows
