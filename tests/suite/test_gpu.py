"""Profile gpu where there is no GPU: nothing of it passes. Its clauses are tried with the CPU in
the device's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones.mistral import MistralLLMBackbone
from conformance.catalogue import profiles
from conformance.run.judging import judge
from conformance.run.request import RunRequest
from conformance.run.session import open_session
from conformance.subject.target import Target
from conformance.suite import test_gpu
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from tests.mutants import INSTRUCT, PURE
from tests.mutants.numerics import RmsNormInBfloat16

AT_PROBE_SIZE = ["GPU-01", "GPU-03", "GPU-04", "GPU-05"]
"""GPU-02 and GPU-06 need a published size; their parts are GPU-01's, and a count of bytes that is
checked below."""

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.fixture
def cpu_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_gpu, "device", lambda: torch.device("cpu"))


def outcomes(
    factory: Callable[..., Any], clauses: list[str], folder: Path
) -> dict[str, ClauseOutcome]:
    target = Target("a backbone", factory, INSTRUCT)
    with open_session(
        target, RunRequest(target="it"), folder / "hf", lambda phase, detail: None, {}
    ) as session:
        session.construct()
        judged = (
            item for item in judge(session.subject, clauses) if isinstance(item, ClauseOutcome)
        )
        return {outcome.id: outcome for outcome in judged}


@without_cuda
def test_without_a_device_nothing_is_run(tmp_path: Path) -> None:
    found = outcomes(MistralLLMBackbone, list(profiles()["gpu"]), tmp_path)
    states = {outcome.outcome for outcome in found.values()}
    assert states == {
        Outcome.NOT_RUN,
        Outcome.BLOCKED,
    }  # blocked are those that need one that was not run
    assert "there is no CUDA device" in found["GPU-01"].summary


@pytest.mark.usefixtures("cpu_for_a_device")
@pytest.mark.slow
def test_the_reference_passes(tmp_path: Path) -> None:
    found = outcomes(MistralLLMBackbone, AT_PROBE_SIZE, tmp_path)
    assert {outcome.outcome for outcome in found.values()} == {Outcome.PASSED}, found


class OtherBitsEachTime(MistralLLMBackbone):
    """A counter is kept between calls."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls: Iterator[int] = iter(range(1, 10**6))
        self.llm.lm_head.register_forward_hook(
            lambda head, args, out: out * (1 + next(self.calls) / 64)
        )


class CoarseInBatches(MistralLLMBackbone):
    """Larger batches go to a kernel that keeps six bits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.model.layers[0].mlp.register_forward_hook(
            lambda mlp, args, out: (out * 32).round() / 32 if len(out) > 1 else out
        )


@pytest.mark.usefixtures("cpu_for_a_device")
@pytest.mark.parametrize(
    ("factory", "clause"),
    [(RmsNormInBfloat16, "GPU-01"), (OtherBitsEachTime, "GPU-04"), (CoarseInBatches, "GPU-05")],
)
def test_a_planted_defect_dies(factory: Callable[..., Any], clause: str, tmp_path: Path) -> None:
    found = outcomes(factory, [clause], tmp_path)
    assert found[clause].outcome is Outcome.FAILED, found[clause].summary


@pytest.mark.parametrize("tied", [False, True])
def test_the_published_size_is_built_and_holds(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the probe's sizes in place of the published ones."""
    monkeypatch.setattr(test_gpu, "device", lambda: torch.device("cpu"))
    target = Target("it", MistralLLMBackbone, PURE)
    with open_session(
        target, RunRequest(target="it"), tmp_path / "hf", lambda phase, detail: None, {}
    ) as session:
        session.construct()
        subject = session.subject
        small = {**subject.recipe.probe_config(), "tie_word_embeddings": tied}
        monkeypatch.setitem(subject.__dict__, "recipe", replace(subject.recipe, config=small))
        (outcome,) = (
            item for item in judge(subject, ["GPU-02"]) if isinstance(item, ClauseOutcome)
        )
    assert outcome.outcome is Outcome.PASSED, outcome.summary


def test_the_analytic_memory_is_what_is_counted_by_hand(tmp_path: Path) -> None:
    from conformance.suite.models import reference_of

    target = Target("it", MistralLLMBackbone, PURE)
    with open_session(
        target, RunRequest(target="it"), tmp_path / "hf", lambda phase, detail: None, {}
    ) as session:
        session.construct()
        llm = session.subject.training.llm
        found = test_gpu.analytic_bytes(llm, reference_of(session.subject, llm), 100, 4)
    rows, width, inner, layers = 32064, 64, 224, 3
    attention, mlp, norms = (64 + 16 + 16 + 64) * 64, 3 * 224 * 64, 2 * 64
    parameters = 2 * rows * width + layers * (attention + mlp + norms) + width
    buffers = sum(buffer.numel() for buffer in llm.buffers())
    # The head is the larger: 100 logits rows beside the hidden states that they are made of.
    assert 100 * (width + rows) > 100 * (2 * width + 3 * inner)
    assert found == 4 * (parameters + buffers + 100 * (width + rows))
