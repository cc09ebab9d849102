"""What answers mean: one departure from a sound machine at a time, and no process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from conformance.doctor import diagnosis
from conformance.doctor.checks import CUDA, HALF_PRODUCTS, HUB, LIBRARY_CACHE, PROCESS_GROUP
from conformance.doctor.diagnosis import Diagnosis, ProfileState, diagnose
from conformance.doctor.examination import Answer
from conformance.doctor.packages import PACKAGES
from conformance.doctor.report import lines
from tests import schemas

ALL = ("core", "numerics", "training", "scale", "gpu")
LLAMA = "meta-llama/Llama-2-7b-hf"
PHI = "microsoft/phi-2"
CARD = {
    "name": "NVIDIA H100 80GB HBM3",
    "memoryBytes": 85_000_000_000,
    "freeBytes": 84_000_000_000,
    "capability": "9.0",
    "bfloat16": True,
    "trouble": None,
}
BROKEN = Answer(None, "raises ImportError: undefined symbol")
MISSING = Answer(None, "raises ModuleNotFoundError", missing=True)


def checkpoint(hub_id: str, built: str | None = "whole") -> dict[str, Any]:
    return {
        "hub": hub_id,
        "parameters": 6_738_415_616,
        "built": built,
        "needs": ["mistral-common", "sentencepiece"],
    }


def hub(*checkpoints: Mapping[str, Any], **facts: Any) -> Answer:
    return Answer(
        {
            "root": "/hub",
            "writable": True,
            "freeBytes": 10**10,
            "entries": len(checkpoints),
            "bytes": 10**8,
            "damaged": [],
            "checkpoints": list(checkpoints),
            **facts,
        }
    )


def cuda(*devices: Mapping[str, Any], build: str | None = "12.4", driver: bool = True) -> Answer:
    return Answer({"build": build, "driver": driver, "devices": list(devices)})


SOUND = {
    **{package.name: Answer({"version": package.least or "1.0"}) for package in PACKAGES},
    HALF_PRODUCTS: Answer({"native": True, "inFloat32": True}),
    CUDA: cuda(CARD),
    PROCESS_GROUP: Answer({"gloo": True, "nccl": True}),
    HUB: hub(checkpoint(LLAMA), checkpoint(PHI)),
    LIBRARY_CACHE: Answer({"root": "/cache", "exists": False, "models": []}),
}


def found(**answers: Answer) -> Diagnosis:
    """The diagnosis of a sound machine with these answers in place of its own, described by the
    schema and printed within 80 columns."""
    spelled = {name.replace("_", "-"): answer for name, answer in answers.items()}
    told = diagnose({**SOUND, **spelled})
    schemas.check("doctor", told.as_json())
    assert max(map(len, lines(told))) < 80
    return told


def profile(told: Diagnosis, name: str) -> ProfileState:
    return next(state for state in told.profiles if state.name == name)


def answers_of(told: Diagnosis) -> dict[str, str]:
    return {state.name: state.assessable for state in told.profiles}


@pytest.fixture(autouse=True)
def enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "memory", lambda name: 16 << 30)


def test_a_sound_machine_assesses_everything() -> None:
    told = found()
    assert answers_of(told) == dict.fromkeys(ALL, "yes")
    assert told.assessable
    assert not any(state.why or state.remedies for state in told.profiles)


@pytest.mark.parametrize(
    ("answer", "why", "remedy"),
    [
        (BROKEN, "torch: its import raises ImportError: undefined symbol", "--force-reinstall"),
        (MISSING, "torch is not installed", 'pip install "torch>=2.2"'),
        (
            Answer({"version": "2.1.2"}),
            "torch is 2.1.2, but should be >=2.2",
            'pip install "torch>=2.2"',
        ),
        (
            Answer(None, "does not answer within 30 s", late=True),
            "does not answer within 30 s",
            "--timeout",
        ),
    ],
)
def test_without_torch_nothing_is_assessed(answer: Answer, why: str, remedy: str) -> None:
    told = found(torch=answer)
    assert answers_of(told) == dict.fromkeys(ALL, "no")
    assert not told.assessable
    core = profile(told, "core")
    assert why in core.why[0]
    assert remedy in core.remedies[0]


@pytest.mark.parametrize("name", ["matplotlib", "pytest", "securesystemslib", "mistral-common"])
def test_what_no_profile_needs_denies_nothing(name: str) -> None:
    assert found(**{name: BROKEN}).assessable


def test_streaming_needs_accelerate() -> None:
    told = found(accelerate=MISSING)
    assert answers_of(told) == {**dict.fromkeys(ALL, "yes"), "scale": "no", "gpu": "no"}
    assert told.assessable


def test_a_package_that_was_not_tried_is_not_called_broken() -> None:
    told = found(torch=BROKEN, transformers=Answer(None, "is not tried", untried=True))
    states = {state.name: state for state in told.packages}
    assert states["transformers"].state in {"unknown", "missing"}
    assert states["transformers"].remedy is None or states["transformers"].state == "missing"


@pytest.mark.parametrize(
    ("answers", "assessable", "words"),
    [
        ({HUB: hub(checkpoint(LLAMA, None))}, "yes", ""),
        ({HUB: hub(checkpoint(LLAMA, "tokenizer")), "mistral-common": MISSING}, "yes", ""),
        (
            {HUB: hub(checkpoint(LLAMA, None)), "mistral-common": MISSING},
            "no",
            "1 of 1 checkpoints cannot be built: mistral-common is not installed",
        ),
        (
            {HUB: hub(checkpoint(LLAMA, None), checkpoint(PHI)), "sentencepiece": BROKEN},
            "partly",
            "1 of 2 checkpoints cannot be built: sentencepiece: its import raises",
        ),
        (
            {HUB: hub(checkpoint(LLAMA, "tokenizer"), checkpoint(PHI), writable=False)},
            "partly",
            "/hub cannot be written to",
        ),
        ({HUB: hub(checkpoint(LLAMA), writable=False, freeBytes=0)}, "yes", ""),
        ({HUB: hub(checkpoint(LLAMA, None), freeBytes=10**6)}, "no", "the disk of /hub is full"),
        ({HUB: BROKEN}, "no", "the hub of checkpoints: its check raises ImportError"),
    ],
)
def test_checkpoints_are_built_or_can_be(
    answers: dict[str, Answer], assessable: str, words: str
) -> None:
    core = profile(found(**answers), "core")
    assert core.assessable == assessable
    assert words in " ".join(core.why)
    assert bool(core.why) == bool(core.remedies) == bool(words)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(None, "does not answer within 30 s"), "of one does not answer within 30 s"),
        (Answer({"gloo": False, "nccl": True}), "torch was built without gloo"),
    ],
)
def test_sharding_needs_a_process_group(answer: Answer, words: str) -> None:
    told = found(**{PROCESS_GROUP: answer})
    assert answers_of(told)["core"] == answers_of(told)["numerics"] == "partly"
    assert answers_of(told)["training"] == answers_of(told)["gpu"] == "yes"
    assert not told.assessable
    assert words in profile(told, "core").why[0]


@pytest.mark.parametrize(
    ("answer", "assessable", "words"),
    [
        (cuda(build=None, driver=False), "no", "this torch was built without CUDA"),
        (cuda(build=None), "no", "built without CUDA, and the machine has a driver"),
        (cuda(), "no", "torch sees no CUDA device, although there is a driver"),
        (cuda(driver=False), "no", "there is no CUDA device, and no driver of one"),
        (Answer(None, "ends its process, which was killed by SIGSEGV"), "no", "killed by SIGSEGV"),
        (cuda({**CARD, "trouble": "no kernel image"}), "no", "does not compute: no kernel image"),
        (cuda({**CARD, "bfloat16": False, "capability": "7.0"}), "partly", "capability 7.0"),
        (cuda({**CARD, "freeBytes": 12 * 10**9}), "partly", "they take up to 14.8 GB"),
    ],
)
def test_the_device_profile_needs_a_device(answer: Answer, assessable: str, words: str) -> None:
    told = found(**{CUDA: answer})
    assert told.assessable
    assert answers_of(told) == {**dict.fromkeys(ALL, "yes"), "gpu": assessable}
    assert words in profile(told, "gpu").why[0]
    assert profile(told, "gpu").remedies


def test_what_is_slower_or_left_out_is_noted() -> None:
    told = found(
        **{HALF_PRODUCTS: Answer({"native": False, "inFloat32": False}), "flash-attn": MISSING}
    )
    assert told.assessable
    assert "slow loop" in profile(told, "numerics").notes[0]
    assert "flash attention is not judged" in profile(told, "gpu").notes[0]


def test_too_little_memory_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "memory", lambda name: 2 * 10**9)
    assert answers_of(found())["core"] == "yes"
    assert answers_of(found())["scale"] == "no"
    monkeypatch.setattr(diagnosis, "memory", lambda name: 10**9)
    assert "1.0 GB of memory are free, and 1.6 GB are needed" in profile(found(), "core").why[0]
    monkeypatch.setattr(diagnosis, "memory", lambda name: None)
    assert found().assessable


def test_an_old_python_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "PYTHON", (9, 9))
    assert "should be >=9.9" in profile(found(), "core").why[0]


def test_the_published_size_is_what_the_clauses_ask_for() -> None:
    on_device = pytest.importorskip("conformance.suite.on_device")
    assert on_device._ROOM == diagnosis.ROOM
