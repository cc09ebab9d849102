"""From a folder of published files to a verdict: a class of somebody else's, a model without a
recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from conformance.catalogue import catalogue
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from tests.forks import Case, judge_in_forks
from tests.published import backbones, write_published
from tests.published.defects import PLANTED, Planted
from tests.published.strangers import FAMILY, class_for, declared_for, is_there, named_folder

pytestmark = pytest.mark.slow

QWEN = "qwen25-0_5b-instruct"
FILE = Path(backbones.__file__)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All families and their own defects under `--mutants full`; otherwise one of each."""
    full = metafunc.config.getoption("--mutants") == "full"
    if "backbone_id" in metafunc.fixturenames:
        metafunc.parametrize("backbone_id", list(FAMILY) if full else [QWEN])
    if "planted" in metafunc.fixturenames:
        metafunc.parametrize("planted", PLANTED if full else PLANTED[-1:], ids=_named)


def _named(planted: Planted) -> str:
    return f"{planted.factory.__name__}-{planted.backbone_id}"


def _judged(factory: Any, backbone_id: str, home: Path, **options: Any) -> dict[str, ClauseOutcome]:
    case = Case(
        factory.__name__,
        factory,
        backbone_id,
        declared_for(backbone_id),
        models=(named_folder(backbone_id, home),),
        **options,
    )
    ((_, outcomes),) = judge_in_forks([case], None, jobs=1)
    return outcomes


def test_a_sound_class_is_certified(backbone_id: str, tmp_path: Path) -> None:
    if not is_there(backbone_id):
        pytest.skip(f"transformers {transformers.__version__} has no {FAMILY[backbone_id]}")
    outcomes = _judged(class_for(backbone_id), backbone_id, tmp_path, budget="quick")
    unmet = {
        clause: found.summary
        for clause, found in outcomes.items()
        if found.outcome not in (Outcome.PASSED, Outcome.NOT_APPLICABLE, Outcome.UPSTREAM)
        and catalogue()[clause].level == "MUST"
    }
    assert not unmet
    assert len(outcomes) > 90


@pytest.mark.parametrize(
    ("defect", "clause"),
    [
        (backbones.PadIsEndOfText, "PAD-03"),
        (backbones.WrapsTheMlpAlone, "FSDP-02"),
        (backbones.EndsInTheWrongToken, "TOK-02"),
    ],
)
def test_a_planted_defect_is_refused_by_name(defect: Any, clause: str, tmp_path: Path) -> None:
    outcomes = _judged(
        defect, QWEN, tmp_path, profile=None, budget="quick", also=frozenset({"CON-01", clause}),
    )  # fmt: skip
    assert outcomes["CON-01"].outcome is Outcome.PASSED
    assert outcomes[clause].outcome is Outcome.FAILED


def test_a_defect_of_a_familys_own_kind_is_refused(planted: Planted, tmp_path: Path) -> None:
    if not is_there(planted.backbone_id):
        pytest.skip(f"transformers {transformers.__version__} has no such family")
    outcomes = _judged(
        planted.factory, planted.backbone_id, tmp_path, profile=None, budget="quick",
        also=frozenset({"CON-01", planted.clause}),
    )  # fmt: skip
    assert outcomes["CON-01"].outcome is Outcome.PASSED
    assert outcomes[planted.clause].outcome is Outcome.FAILED


def _certify(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "conformance", "certify", f"{FILE}:AnyBackbone", "--id", QWEN,
         "--only", "CON-01,PAD-01", *arguments],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_the_command_takes_anamed_folder(tmp_path: Path) -> None:
    run = _certify("--model", named_folder(QWEN, tmp_path), "--out", str(tmp_path / "out"))
    assert "2 passed" in run.stderr + run.stdout, run.stderr
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text(encoding="utf-8"))
    (entry,) = certificate["predicate"]["hub"].values()
    assert entry["recipe"] == "derived"
    assert len(entry["digest"]) == 64


def test_the_users_own_cache_is_searched(tmp_path: Path) -> None:
    repository = tmp_path / "home" / "hub" / "models--Qwen--Qwen2-0.5B-Instruct"
    write_published(repository / "snapshots" / "abc")
    before = sorted(repository.rglob("*"))
    run = _certify(HF_HOME=str(tmp_path / "home"))
    assert "2 passed" in run.stderr + run.stdout, run.stderr
    assert "deriving recipe Qwen/Qwen2-0.5B-Instruct" in run.stderr
    assert sorted(repository.rglob("*")) == before


def test_a_model_that_is_nowhere_is_named_with_what_to_do(tmp_path: Path) -> None:
    write_published(tmp_path / "hub" / "models--Qwen--Qwen2-0.5B-Instruct-v2" / "snapshots" / "abc")
    run = _certify(HF_HOME=str(tmp_path))
    assert run.returncode == 2
    assert "  Qwen/Qwen2-0.5B-Instruct-v2\n" in run.stderr
    assert "--model Qwen/Qwen2-0.5B-Instruct=FOLDER" in " ".join(run.stderr.split())
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("model", "told"),
    [("Qwen/Qwen2-0.5B-Instruct", "should be ORG/NAME=FOLDER"), ("a/b=/nowhere", "not a folder")],
)
def test_a_model_that_cannot_be_meant_is_refused(model: str, told: str) -> None:
    run = _certify("--model", model)
    assert run.returncode == 2
    assert told in " ".join(run.stderr.split())


def test_files_that_are_no_decoder_are_exit_2(tmp_path: Path) -> None:
    folder = write_published(tmp_path, architectures=["BertForMaskedLM"], model_type="bert")
    run = _certify("--model", f"Qwen/Qwen2-0.5B-Instruct={folder}")
    assert run.returncode == 2
    assert "no decoder of text" in " ".join(run.stderr.split())
