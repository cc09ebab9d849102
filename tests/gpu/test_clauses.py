"""The clauses of profile gpu on the device: the reference passes, planted defects die, each by the
clause that names it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import __version__ as transformers_version

from backbones.mistral import MistralLLMBackbone
from conformance.catalogue import catalogue, profiles
from conformance.parity.device_memory import held_bytes
from conformance.parity.streaming import SeededWeights
from conformance.run.judging import judge
from conformance.run.request import RunRequest
from conformance.run.session import open_session
from conformance.subject.subject import Subject
from conformance.subject.target import Target
from conformance.suite import on_device
from conformance.suite.models import published_shapes
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from tests.gpu import planted
from tests.mutants import INSTRUCT
from tests.mutants.numerics import RmsNormInBfloat16

GPU = profiles()["gpu"]
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 448,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "sliding_window": 128,
}
"""In place of the published size, where that would be computed on a CPU."""
RETURNS_FLOAT32 = Version(transformers_version) < Version("4.45")
HUNGRY = {
    **SMALL,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 64 if RETURNS_FLOAT32 else 24,
    "num_attention_heads": 64 if RETURNS_FLOAT32 else 32,
    "num_key_value_heads": 64 if RETURNS_FLOAT32 else 32,
}
"""The same for defects of memory: keys and values of all layers, and scores of one, are about as
large beside the logits as at the published size."""


@contextmanager
def subject_of(factory: Callable[..., Any], folder: Path) -> Iterator[Subject]:
    target = Target("a backbone", factory, INSTRUCT)
    request = RunRequest(target="it")
    with open_session(target, request, folder / "hf", lambda phase, detail: None, {}) as session:
        session.construct()
        yield session.subject


def judged(subject: Subject, clauses: list[str]) -> dict[str, ClauseOutcome]:
    found = (item for item in judge(subject, clauses) if isinstance(item, ClauseOutcome))
    return {outcome.id: outcome for outcome in found}


@contextmanager
def at_a_small_size(
    subject: Subject, device: torch.device, sizes: Mapping[str, int] = SMALL
) -> Iterator[None]:
    published = subject.recipe
    if device.type != "cuda":
        config = {**published.config, **sizes}
        subject.__dict__["recipe"] = replace(published, config=config)
    try:
        yield
    finally:
        subject.__dict__["recipe"] = published


def test_without_a_device_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with subject_of(MistralLLMBackbone, tmp_path) as subject:
        found = judged(subject, list(GPU))
    # Blocked are those that need one that was not run.
    assert {found[clause].outcome for clause in GPU} == {Outcome.NOT_RUN, Outcome.BLOCKED}
    assert "there is no CUDA device" in found["GPU-01"].summary


def test_the_reference_passes(device: torch.device, tmp_path: Path) -> None:
    with subject_of(MistralLLMBackbone, tmp_path) as subject, at_a_small_size(subject, device):
        found = judged(subject, [clause for clause in GPU if clause != "GPU-06"])
        assert {outcome.outcome for outcome in found.values()} == {Outcome.PASSED}, found
    kernels = found["GPU-04"].evidence["kernels"]
    assert kernels["eager"] == ["chosen by torch"]
    assert kernels["sdpa"][0] == "chosen by torch"
    assert {"flash", "math"} <= set(kernels["sdpa"]), "each that takes the inputs was judged"
    assert found["GPU-02"].evidence["built"] == "by the subject's constructor"
    assert found["GPU-01"].evidence["measured"]["rounding ratio"]["calibrated on"] in (
        "cpu, none for this device",
        device.type,
    )


def test_the_reference_takes_the_memory_it_must(device: torch.device, tmp_path: Path) -> None:
    with subject_of(MistralLLMBackbone, tmp_path) as subject, at_a_small_size(subject, device):
        found = judged(subject, ["GPU-06"])["GPU-06"]
    assert found.outcome is Outcome.PASSED, found.summary
    (measured,) = found.evidence["measured"].values()
    # On the emulated device nothing but tensors takes memory.
    assert 0.99 < measured["worst"] < (1.02 if device.type != "cuda" else 1.5)


DEFECTS = [
    (RmsNormInBfloat16, "GPU-01"),
    (planted.ConstantOfInference, "GPU-02"),
    (planted.ConstantLeftBehind, "GPU-03"),
    (planted.LogitsComeBack, "GPU-03"),
    (planted.OtherBitsEachTime, "GPU-04"),
    (planted.CoarseInBatches, "GPU-05"),
    (planted.KeepsItsCache, "GPU-06"),
    (planted.StoresScores, "GPU-06"),
    (planted.FloatLogits, "GPU-06"),
    (planted.MaskMadeOnTheCpu, "GPU-07"),
    (planted.LookupMadeOnTheCpu, "GPU-07"),
    (planted.StatesOfTheCpu, "GPU-07"),
    (planted.MaskOfTheCacheMadeOnTheCpu, "GPU-08"),
    (planted.PositionsForgottenOnTheDevice, "GPU-08"),
    (planted.HalvesGradientsOnTheDevice, "GPU-09"),
    (planted.CoarseUnderAutocast, "GPU-09"),
    (planted.GeneratesTheSecondBest, "GPU-10"),
]


@pytest.mark.parametrize(
    ("factory", "clause"), DEFECTS, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_planted_defect_dies_by_its_clause(
    device: torch.device, factory: Callable[..., Any], clause: str, tmp_path: Path
) -> None:
    if factory is planted.FloatLogits and RETURNS_FLOAT32:
        pytest.skip(f"transformers {transformers_version} returns float32 logits itself")
    sizes = HUNGRY if clause == "GPU-06" else SMALL
    with subject_of(factory, tmp_path) as subject, at_a_small_size(subject, device, sizes):
        # Those that it needs must pass, but for the published size, which takes a while.
        needs = [need for need in catalogue()[clause].needs if need in GPU and need != "GPU-02"]
        found = judged(subject, [clause, *needs])
    failed = {name for name, outcome in found.items() if outcome.outcome is Outcome.FAILED}
    assert failed == {clause}, {name: outcome.summary for name, outcome in found.items()}


def test_memory_that_does_not_suffice_is_not_run_with_the_numbers(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_device, "free_bytes", lambda on: 10**6)
    with subject_of(MistralLLMBackbone, tmp_path) as subject, at_a_small_size(subject, device):
        found = judged(subject, ["GPU-02"])["GPU-02"]
    assert found.outcome is Outcome.NOT_RUN
    assert "0.0 GB are free" in found.summary


def test_out_of_memory_is_never_blamed_on_the_subject(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(on_device, "published", out_of_memory)
    with subject_of(MistralLLMBackbone, tmp_path) as subject:
        found = judged(subject, ["GPU-02"])["GPU-02"]
    assert found.outcome is Outcome.NOT_RUN
    assert "the device's memory does not suffice" in found.summary


def test_without_room_in_float32_the_class_of_llm_is_judged(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subject_of(MistralLLMBackbone, tmp_path) as subject, at_a_small_size(subject, device):
        shapes = published_shapes(subject.recipe.config).values()
        parameters = sum(math.prod(shape) for shape in shapes)
        monkeypatch.setattr(on_device, "free_bytes", lambda on: 3 * parameters)
        found = judged(subject, ["GPU-02"])["GPU-02"]
    assert found.outcome is Outcome.PASSED, found.summary
    assert found.evidence["built"].startswith("from the class of `llm` alone: the device has no")


def test_what_waits_for_the_garbage_collector_is_not_held(device: torch.device) -> None:
    before = held_bytes(device)
    kept: list[Any] = [torch.empty(10**6, device=device)]
    assert held_bytes(device) > before
    kept.append(kept)
    del kept
    assert held_bytes(device) == before


class LargestOnCpu(TorchDispatchMode):
    """Elements of the largest tensor that an operation returns on the CPU."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.device.type == "cpu":
            self.elements = max(self.elements, out.numel())
        return out


def test_weights_are_made_on_the_device(device: torch.device) -> None:
    name, shape = "model.layers.0.mlp.up_proj.weight", (3000, 4096)
    here, there = torch.empty(shape), torch.empty(shape, device=device)
    with LargestOnCpu() as largest:
        seeded = SeededWeights({name: shape}, seed=0, vocabulary=7, tied=False, on=device)
        seeded.write(name, there)
    assert 0 < largest.elements < here.numel() / 2, "one block alone is drawn on the CPU"
    SeededWeights({name: shape}, seed=0, vocabulary=7, tied=False).write(name, here)
    assert torch.equal(there.cpu(), here)
