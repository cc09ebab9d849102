"""FWD-12 compiles, which takes too long for the kill matrix: its planted defect is judged here, by
that clause alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones.mistral import MistralLLMBackbone
from conformance.run.judging import judge
from conformance.run.request import RunRequest
from conformance.run.session import open_session
from conformance.subject.target import Target
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from tests.mutants import PURE


class LouderWhenCompiled(MistralLLMBackbone):
    """A branch for tracing was given other arithmetic than the branch for running."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.lm_head.register_forward_hook(
            lambda head, args, logits: logits * 1.001 if torch.compiler.is_compiling() else logits
        )


def test_a_defect_of_compiled_code_dies(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if request.config.getoption("--mutants") != "full":
        pytest.skip("one version compiles, the newest")
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    target = Target("LouderWhenCompiled", LouderWhenCompiled, PURE)
    asked = RunRequest(target=target.text, budget="thorough")
    with open_session(target, asked, tmp_path / "hf", lambda phase, detail: None, {}) as session:
        session.construct()
        (outcome,) = (
            item for item in judge(session.subject, ["FWD-12"]) if isinstance(item, ClauseOutcome)
        )
    assert outcome.outcome is Outcome.FAILED
    assert "compiled, the model gives other logits by a relative RMS of 0.001" in outcome.summary
