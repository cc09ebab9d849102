"""What the answers of the checks mean: the state of each package, and for each profile whether it
can be assessed here, why not, and what to do about it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from conformance.catalogue import profiles
from conformance.doctor import checks
from conformance.doctor.examination import Answer
from conformance.doctor.packages import (
    PACKAGES,
    PYTHON,
    STREAMING,
    Package,
    named,
)
from conformance.run.environment import cpus, memory
from conformance.run.request import DEVICE_PROFILE, STREAMING_PROFILE

ROOM = 1.1
"""Memory of a device over what the published size takes in half precision, as
`suite.on_device` wants it free."""
_HALF_BYTES = 2
_PROBE_MEMORY = int(1.2e9)
"""Bytes of the largest process of `certify` on a probe (docs/performance.md: 1.17 GB)."""
_STREAMED_MEMORY = int(1.7e9)
"""Bytes for Mistral-7B a layer at a time (docs/performance.md: 1.65 GB)."""
_PROCESS_SHARE = 3 / 4
"""The share of the available memory that `certify` lets a process have."""
_BUILD_BYTES = 64 << 20
"""Free bytes with which a checkpoint is surely built: each takes about 13 MB."""

OK = "ok"
MISSING = "missing"
BROKEN = "broken"
UNSUPPORTED = "unsupported"
LATE = "late"
UNKNOWN = "unknown"

YES = "yes"
PARTLY = "partly"
NO = "no"


@dataclass(frozen=True)
class PackageState:
    """A package as it is installed here: `state` is ok, missing, broken, unsupported, late
    where its import takes too long, or unknown where torch keeps it from being imported."""

    name: str
    version: str | None
    supported: str
    state: str
    trouble: str | None
    usedFor: str
    """Named as in JSON, as all fields here are."""

    @property
    def imports(self) -> bool:
        """Whether it can be imported, supported or not."""
        return self.state in (OK, UNSUPPORTED)

    @property
    def reason(self) -> str | None:
        """What is wrong with it, in words."""
        match self.state:
            case "missing":
                return f"{self.name} is not installed"
            case "broken" | "late" | "unknown":
                return f"{self.name}: its import {self.trouble}"
            case "unsupported":
                return f"{self.name} is {self.version}, but should be {self.supported}"
        return None

    @property
    def remedy(self) -> str | None:
        """What to do about it."""
        if self.state == LATE:
            return _LONGER
        again = "--force-reinstall " if self.state == BROKEN else ""
        return (
            f"pip install {again}{named(self.name).requirement}"
            if self.state in (MISSING, BROKEN, UNSUPPORTED)
            else None
        )


@dataclass
class ProfileState:
    """Whether a profile can be assessed here: `yes`, `partly` (some clauses, or some of the
    references, cannot) or `no`. `notes` are reasons that deny nothing."""

    name: str
    default: bool
    assessable: str = YES
    why: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def denied(self, assessable: str, why: str, remedy: str | None = None) -> None:
        """Lower the answer to `no` or `partly`, for a reason."""
        if self.assessable != NO:
            self.assessable = assessable
        self.why.append(why)
        if remedy and remedy not in self.remedies:
            self.remedies.append(remedy)


@dataclass(frozen=True)
class Diagnosis:
    """What this machine has, and what can be assessed on it."""

    packages: Sequence[PackageState]
    profiles: Sequence[ProfileState]
    answers: Mapping[str, Answer]

    @property
    def assessable(self) -> bool:
        """Whether all of the default profiles can be assessed."""
        return all(state.assessable == YES for state in self.profiles if state.default)

    def as_json(self) -> dict[str, Any]:
        """The document that `conformance/schemas/doctor.schema.json` describes."""
        return {
            "assessable": self.assessable,
            "profiles": [asdict(state) for state in self.profiles],
            "python": {
                "version": platform.python_version(),
                "supported": _python_range(),
                "state": OK if _python_is_supported() else UNSUPPORTED,
            },
            "packages": [asdict(state) for state in self.packages],
            "machine": {
                "platform": platform.platform(),
                "cpus": cpus(),
                "memoryBytes": memory("MemTotal"),
                "availableMemoryBytes": memory("MemAvailable"),
                "bfloat16Products": self._checked(checks.HALF_PRODUCTS),
            },
            "cuda": self._checked(checks.CUDA),
            "distributed": self._checked(checks.PROCESS_GROUP),
            "hub": self._checked(checks.HUB),
            "huggingFaceCache": self._checked(checks.LIBRARY_CACHE),
        }

    def _checked(self, name: str) -> dict[str, Any]:
        answer = self.answers[name]
        return {"facts": answer.facts, "trouble": answer.trouble}


def diagnose(answers: Mapping[str, Answer]) -> Diagnosis:
    """Say what the answers of all checks mean."""
    packages = [_package_state(package, answers[package.name]) for package in PACKAGES]
    by_name = {state.name: state for state in packages}
    default = set(profiles()["default"])
    states = []
    for name, clauses in profiles().items():
        if name == "default":
            continue
        state = ProfileState(name, default=default.issuperset(clauses))
        _judge_software(state, packages)
        _judge_memory(state)
        _judge_hub(state, answers[checks.HUB], by_name)
        if any(clause.startswith("FSDP") for clause in clauses):
            _judge_process_group(state, answers[checks.PROCESS_GROUP], by_name)
        if name == DEVICE_PROFILE:
            _judge_device(state, answers, by_name)
        else:
            _note_half_products(state, clauses, answers[checks.HALF_PRODUCTS])
        states.append(state)
    return Diagnosis(packages, states, answers)


def _package_state(package: Package, answer: Answer) -> PackageState:
    found = (answer.facts or {}).get("version") or _installed(package.name)
    trouble = answer.trouble
    if answer.facts is not None:
        supported = found is None or package.supports(found)
        state, trouble = (OK if supported else UNSUPPORTED), None
    elif answer.missing or (package.on_torch and found is None):
        state, trouble = MISSING, None
    else:
        state = UNKNOWN if answer.untried else LATE if answer.late else BROKEN
    return PackageState(package.name, found, package.range, state, trouble, package.used_for)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _python_range() -> str:
    return f">={'.'.join(map(str, PYTHON))}"


def _python_is_supported() -> bool:
    return sys.version_info >= PYTHON


def _judge_software(state: ProfileState, packages: Sequence[PackageState]) -> None:
    if not _python_is_supported():
        state.denied(
            NO,
            f"Python is {platform.python_version()}, but should be {_python_range()}",
            "make a virtual environment of a newer Python",
        )
    streams = state.name in (STREAMING_PROFILE, DEVICE_PROFILE)
    for package in packages:
        needed = named(package.name).required or (streams and package.usedFor == STREAMING)
        if needed and package.reason:
            state.denied(NO, package.reason, package.remedy)


def _judge_memory(state: ProfileState) -> None:
    available = memory("MemAvailable")
    wanted = _STREAMED_MEMORY if state.name == STREAMING_PROFILE else _PROBE_MEMORY
    if available is not None and available * _PROCESS_SHARE < wanted:
        state.denied(
            NO,
            f"{available / 1e9:.1f} GB of memory are free, and {wanted / _PROCESS_SHARE / 1e9:.1f} "
            f"GB are needed",
            "end other programs, or take a machine with more memory",
        )


def _judge_hub(state: ProfileState, answer: Answer, packages: Mapping[str, PackageState]) -> None:
    if answer.facts is None:
        remedy = _LONGER if answer.late else _AMISS_IN_HUB
        state.denied(NO, f"the hub of checkpoints: its check {answer.trouble}", remedy)
        return
    hub = answer.facts
    missing = [one for one in hub["checkpoints"] if one["built"] != "whole"]
    if not missing:
        return
    obstacle: tuple[str, str] | None = None
    unserved = missing
    if not hub["writable"]:
        obstacle = f"{hub['root']} cannot be written to", _OTHER_HUB
    elif hub["freeBytes"] < _BUILD_BYTES:
        obstacle = f"the disk of {hub['root']} is full", _OTHER_HUB
    else:
        unserved = [one for one in missing if any(_lacking(one, packages))]
        lacking = dict.fromkeys(name for one in unserved for name in _lacking(one, packages))
        if lacking:
            states = [packages[name] for name in lacking]
            obstacle = (
                "; ".join(filter(None, (one.reason for one in states))),
                " && ".join(filter(None, (one.remedy for one in states)))
                + ", or carry a hub from a machine that has them: `conformance hub build`",
            )
    if obstacle is None:
        return
    total = len(hub["checkpoints"])
    why, remedy = obstacle
    state.denied(
        NO if len(unserved) == total else PARTLY,
        f"{len(unserved)} of {total} checkpoints cannot be built: {why}",
        remedy,
    )


_LONGER = "give it longer, with --timeout SECONDS"
_AMISS_IN_HUB = (
    "correct or remove what it names: recipes are read from CONFORMANCE_RECIPES too, checkpoints "
    "from CONFORMANCE_HUB"
)
_OTHER_HUB = "name a folder that can be written to, with --hub DIR or CONFORMANCE_HUB"


def _lacking(checkpoint: Mapping[str, Any], packages: Mapping[str, PackageState]) -> Iterator[str]:
    """The packages without which this checkpoint cannot be built."""
    if checkpoint["built"] is None:
        yield from (name for name in checkpoint["needs"] if packages[name].state != OK)


def _judge_process_group(
    state: ProfileState, answer: Answer, packages: Mapping[str, PackageState]
) -> None:
    if not packages["torch"].imports:
        return
    if answer.facts is None:
        why = f"a gloo process group of one {answer.trouble}"
    elif not answer.facts["gloo"]:
        why = "torch was built without gloo"
    else:
        return
    state.denied(
        PARTLY,
        f"clauses about FSDP are not run: {why}",
        "install torch's own build (https://pytorch.org/get-started); look at TMPDIR and "
        "GLOO_SOCKET_IFNAME",
    )


def _judge_device(
    state: ProfileState, answers: Mapping[str, Answer], packages: Mapping[str, PackageState]
) -> None:
    answer = answers[checks.CUDA]
    if not packages["torch"].imports:
        return
    if answer.facts is None:
        state.denied(NO, f"asking CUDA for its devices {answer.trouble}", _DRIVER)
        return
    devices = answer.facts["devices"]
    if not devices:
        state.denied(NO, *_why_no_device(answer.facts))
        return
    first = devices[0]
    if first["trouble"]:
        state.denied(NO, f"{first['name']} does not compute: {first['trouble']}", _DRIVER)
        return
    if not first["bfloat16"]:
        state.denied(
            PARTLY,
            f"{first['name']} has no instructions for bfloat16 (capability "
            f"{first['capability']}, 8.0 has them)",
            "take a newer device",
        )
    hub = answers[checks.HUB].facts
    needed = {
        one["hub"]: one["parameters"] * _HALF_BYTES * ROOM
        for one in (hub["checkpoints"] if hub else ())
        if one["parameters"]
    }
    free = first["freeBytes"] or first["memoryBytes"]
    too_large = {name: size for name, size in needed.items() if size > free}
    if too_large:
        state.denied(
            PARTLY,
            f"GPU-02 and GPU-06 are not run for {', '.join(too_large)}: they take up to "
            f"{max(too_large.values()) / 1e9:.1f} GB of the device, and {free / 1e9:.1f} are free",
            "take a larger device, or judge the published size by --profile scale",
        )
    if packages["flash-attn"].state != OK:
        reason = packages["flash-attn"].reason or ""
        state.notes.append(f"flash attention is not judged: {reason}")


_DRIVER = "look at `nvidia-smi`, at CUDA_VISIBLE_DEVICES, and whether torch's build goes with both"


def _why_no_device(facts: Mapping[str, Any]) -> tuple[str, str]:
    elsewhere = "run it on a machine that has a CUDA device"
    if facts["build"] is None:
        why = "there is no CUDA device for it: this torch was built without CUDA"
        if facts["driver"]:
            return (
                f"{why}, and the machine has a driver",
                "install a build with CUDA (https://pytorch.org/get-started)",
            )
        return why, elsewhere
    if facts["driver"]:
        return "torch sees no CUDA device, although there is a driver", _DRIVER
    return "there is no CUDA device, and no driver of one", elsewhere


def _note_half_products(state: ProfileState, clauses: Sequence[str], answer: Answer) -> None:
    halves = any(clause.startswith(("HALF", "SCL")) for clause in clauses)
    if not halves or answer.facts is None or answer.facts["native"]:
        return
    state.notes.append(
        "slower here: the processor has no instructions for bfloat16, so its products are "
        + (
            "computed in float32"
            if answer.facts["inFloat32"]
            else "computed in a slow loop (torch 2.10 and later avoid it)"
        )
    )
