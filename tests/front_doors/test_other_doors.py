"""The doors beside `certify`: pytest's plugin, `check_backbone`, and the scripts that show a
counterexample."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from conformance import check_backbone
from conformance.errors import CannotAssess
from conformance.run.request import InvalidRequest
from conformance.verdict.outcomes import Outcome

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
INSTRUCT = "mistral-v0.1-7b-instruct"
PAD_IS_EOS = """
from backbones.mistral import MISTRAL_MODELS, MistralLLMBackbone


class PadIsEos(MistralLLMBackbone):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.llm.config.pad_token_id = self.tokenizer.eos_token_id
        self.llm.generation_config.pad_token_id = self.tokenizer.eos_token_id
"""


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "PYTEST_ADDOPTS": ""}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


def suite(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # An installed plugin registers itself; a second registration by -p is one and the same module.
    return python(
        "-m",
        "pytest",
        "-p",
        "conformance.plugin",
        "--pyargs",
        "conformance.suite",
        *arguments,
        cwd=cwd,
    )


def test_the_plugin_reports_each_clause_as_its_test(tmp_path: Path) -> None:
    done = suite("--backbone", INSTRUCT, "-v", "-k", "pad_token", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "test_pad_is_a_token_of_its_own PASSED" in done.stdout
    assert done.stdout.count(" PASSED") == done.stdout.count("test_pad_token.py::")


def test_the_plugin_fails_what_the_suite_fails(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PAD_IS_EOS)
    done = suite(
        "--backbone", "mine.py:PadIsEos", "--backbone-id", INSTRUCT, "-k", "pad_token", cwd=tmp_path
    )
    assert done.returncode == 1, done.stdout
    assert "PAD-03 (MUST) failed" in done.stdout


def test_the_plugin_wants_a_backbone(tmp_path: Path) -> None:
    done = suite(cwd=tmp_path)
    assert done.returncode == 4
    assert "--backbone" in done.stdout + done.stderr


def test_the_plugin_refuses_what_cannot_be_assessed(tmp_path: Path) -> None:
    done = suite("--backbone", "no-such-id", cwd=tmp_path)
    assert done.returncode == 4
    assert "no-such-id" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--backbone-budget", "huge", "--backbone-budget is 'huge', but should be one of quick"),
        ("--backbone-seed", "-1", "--backbone-seed is -1, but should be 0 or more"),
        ("--backbone-profile", "croe", "profile `croe` is not implemented"),
        ("--backbone-weights", "full", "--backbone-weights full is for profile scale"),
    ],
)
def test_the_plugin_refuses_wrong_values_before_anything_runs(
    tmp_path: Path, option: str, value: str, told: str
) -> None:
    done = suite("--backbone", INSTRUCT, option, value, cwd=tmp_path)
    assert done.returncode == 4
    assert told in done.stdout + done.stderr
    assert "error" not in done.stdout.lower().replace("usageerror", "")


def test_the_plugin_costs_other_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "def test_mine():\n    import sys\n    assert 'torch' not in sys.modules\n"
    )
    done = python("-m", "pytest", "-p", "conformance.plugin", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stdout


HOST = """
import os, random, sys, threading, warnings
from conformance import check_backbone

def state():
    return {
        "hooks": (sys.excepthook, threading.excepthook, sys.breakpointhook),
        "streams": (sys.stdout, sys.stderr),
        "threads": {thread.name for thread in threading.enumerate()},
        "filters": (list(warnings.filters), warnings.showwarning),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "random": random.getstate(),
    }

before, lines = state(), []
verdict = check_backbone(
    "mine.py:PadIsEos", "mistral-v0.1-7b-instruct", budget="quick", on_progress=lines.append,
    only=["CON-05", "PAD-03", "HALF-01", "FSDP-08", "TRN-05"],
)
after = state()
for name in before:
    assert before[name] == after[name], (name, before[name], after[name])
assert lines[0] == "constructing mistral-v0.1-7b-instruct", lines
assert "PAD-03 failed" in lines, lines
warnings.warn("a host's own is still shown")
"""


@pytest.mark.parametrize("first", ["import torch, transformers", "pass"])
def test_check_backbone_leaves_its_host_as_it_was_and_is_silent(tmp_path: Path, first: str) -> None:
    (tmp_path / "mine.py").write_text(PAD_IS_EOS)
    (tmp_path / "host.py").write_text(f"{first}\n{HOST}")
    done = python("host.py", first, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 2, done.stderr
    assert "is still shown" in done.stderr


def test_progress_and_output_are_shown_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def talkative(*arguments: object, **options: object) -> None:
        print("said by the backbone")
        raise RuntimeError("no")

    check_backbone(talkative, INSTRUCT, only=["CON-01"], on_progress=print)
    assert capsys.readouterr().out == f"constructing {INSTRUCT}\nCON-01 failed\n"
    check_backbone(talkative, INSTRUCT, only=["CON-01"], output=True)
    assert "said by the backbone" in capsys.readouterr().out


def test_check_backbone_judges_in_this_process() -> None:
    from backbones.mistral import MistralLLMBackbone

    before = dict(os.environ)
    verdict = check_backbone(
        MistralLLMBackbone, INSTRUCT, budget="quick", only=["PAD-01", "PAD-03"]
    )
    judged = {outcome.id: outcome.outcome for outcome in verdict.asked}
    assert judged["PAD-03"] is Outcome.PASSED
    assert not verdict.certified, "a few clauses never certify"
    assert dict(os.environ) == before


def test_a_host_that_turns_warnings_into_errors_decides_nothing() -> None:
    from backbones.mistral import MistralLLMBackbone

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        verdict = check_backbone(MistralLLMBackbone, INSTRUCT, only=["CON-05", "EMB-10", "PRM-16"])
        assert warnings.filters == before
    assert not verdict.root_causes, verdict


def test_check_backbone_is_never_fail_fast() -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no")

    verdict = check_backbone(broken, INSTRUCT, profiles=["core"])
    assert not verdict.certified
    assert [cause.outcome.id for cause in verdict.root_causes][:1] == ["CON-01"]
    with pytest.raises(AssertionError, match="CON-01"):
        verdict.raise_if_failed()


@pytest.mark.parametrize(
    "wrong", [{"budget": "huge"}, {"seed": -1}, {"only": ["PAD-99"]}, {"weights": "full"}]
)
def test_check_backbone_refuses_wrong_arguments_before_anything_is_built(
    wrong: dict[str, Any],
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("it was called")

    with pytest.raises(InvalidRequest, match=f"`{next(iter(wrong))}`"):
        check_backbone(never, INSTRUCT, **wrong)


def test_check_backbone_refuses_an_unknown_target() -> None:
    with pytest.raises(CannotAssess, match="no-such-id"):
        check_backbone("no-such-id")


def test_check_backbone_refuses_a_misspelt_id() -> None:
    from backbones.mistral import MistralLLMBackbone

    with pytest.raises(CannotAssess, match=f"did you mean `{INSTRUCT}`"):
        check_backbone(MistralLLMBackbone, "mistral-v0.1-7b-instrct")


def test_a_counterexample_shows_its_failure_again(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PAD_IS_EOS)
    out = tmp_path / "out"
    python(
        "-m",
        "conformance",
        "certify",
        "mine.py:PadIsEos",
        "--id",
        INSTRUCT,
        "--only",
        "PAD-03",
        "--out",
        str(out),
        cwd=tmp_path,
    )
    script = out / "counterexamples" / "PAD-03.py"
    shown = python(str(script), cwd=tmp_path)
    assert shown.returncode == 1, shown.stdout + shown.stderr
    assert "PAD-03 fails" in shown.stdout
    (tmp_path / "mine.py").write_text(
        PAD_IS_EOS.replace("self.tokenizer.pad_token = self.tokenizer.eos_token", "return")
    )
    mended = python(str(script), cwd=tmp_path)
    assert mended.returncode == 0, mended.stdout + mended.stderr


PARAMETRIZED = f"""
from conformance.testing import parametrize_with_clauses
from mine import PadIsEos

@parametrize_with_clauses(PadIsEos, "{INSTRUCT}")
def test_conformance(clause):
    clause.check()

@parametrize_with_clauses(PadIsEos, "{INSTRUCT}x", only=("PAD-02",))
def test_of_an_id_that_is_misspelt(clause):
    clause.check()
"""


def test_clauses_are_tests_of_ones_own(tmp_path: Path) -> None:
    """Only those that `-k` leaves are judged, as `clause.check()` alone would take a minute."""
    (tmp_path / "mine.py").write_text(PAD_IS_EOS)
    (tmp_path / "test_mine.py").write_text(PARAMETRIZED)
    chosen = ("-k", "PAD-02 or PAD-03 or CON-14", "-p", "no:cacheprovider")
    result = python("-m", "pytest", "-p", "conformance.plugin", "-rfs", *chosen, cwd=tmp_path)
    assert "FAILED test_mine.py::test_conformance[PAD-03]" in result.stdout, result.stdout
    assert "PAD-03 failed: " in result.stdout
    assert "to mend: " in result.stdout
    assert "FAILED test_mine.py::test_of_an_id_that_is_misspelt[PAD-02]" in result.stdout
    assert f"did you mean `{INSTRUCT}`?" in result.stdout
    assert "2 failed, 2 passed" in result.stdout
    assert result.returncode == 1
