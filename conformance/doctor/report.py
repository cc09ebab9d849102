"""The diagnosis as text: aligned columns, at most 79 wide."""

from __future__ import annotations

import os
import platform
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conformance.doctor.diagnosis import MISSING, OK, Diagnosis, PackageState, ProfileState
from conformance.doctor.packages import EVERYTHING

_WIDTH = 79
_NAME_COLUMNS = 20
_VERSION_COLUMNS = 14
_ANSWER_COLUMNS = 8


def lines(found: Diagnosis) -> Iterator[str]:
    """The report, profiles last: what a person asked for is above the prompt."""
    told = found.as_json()
    yield "software"
    python = told["python"]
    remark = OK if python["state"] == OK else f"should be {python['supported']}"
    yield from _row("python", python["version"], remark)
    for package in found.packages:
        yield from _row(package.name, package.version or "-", _remark(package))
    yield ""
    yield "machine"
    for name, text in _machine(told):
        yield from _fact(name, text)
    yield ""
    yield "profiles"
    for profile in found.profiles:
        yield from _profile(profile)
    yield ""
    default = [state.name for state in found.profiles if state.default]
    can = "can" if found.assessable else "CANNOT"
    yield from textwrap.wrap(
        f"The default profiles ({', '.join(default)}) {can} be assessed here, with Python "
        f"{platform.python_version()} of {_at_home(sys.prefix)}.",
        _WIDTH,
    )


def _remark(package: PackageState) -> str:
    if package.state == OK:
        return "ok"
    optional = "" if package.usedFor == EVERYTHING else f" (for {package.usedFor})"
    if package.state == MISSING:
        return f"not installed{optional}"
    if package.trouble is None:
        return f"should be {package.supported}{optional}"
    return f"{package.state}: its import {package.trouble}{optional}"


def _machine(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    machine = told["machine"]
    total, free = machine["memoryBytes"], machine["availableMemoryBytes"]
    yield "system", machine["platform"]
    yield "processors", str(machine["cpus"] or "unknown")
    yield "memory", f"{_size(total)}, {_size(free)} free" if total and free else "unknown"
    yield from _each(machine["bfloat16Products"], "bfloat16 (CPU)", _half_products)
    yield from _each(told["cuda"], "CUDA", _cuda)
    yield from _each(told["distributed"], "torch.distributed", _distributed)
    yield from _each(told["hub"], "hub of checkpoints", _hub)
    yield from _each(told["huggingFaceCache"], "Hugging Face cache", _library_cache)


def _each(checked: Mapping[str, Any], name: str, told: Any) -> Iterator[tuple[str, str]]:
    if checked["facts"] is None:
        yield name, f"the check {checked['trouble']}"
        return
    for number, text in enumerate(told(checked["facts"])):
        yield name if number == 0 else "", text


def _half_products(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts["native"]:
        yield "the processor has instructions for it"
    else:
        instead = "float32, rounded once" if facts["inFloat32"] else "a slow loop of torch's"
        yield f"no instructions for it: products are computed in {instead}"


def _cuda(facts: Mapping[str, Any]) -> Iterator[str]:
    if not facts["devices"]:
        build = f"torch built for {facts['build']}" if facts["build"] else "torch built without it"
        yield f"no device; {build}, {'a' if facts['driver'] else 'no'} driver"
    for device in facts["devices"]:
        half = "with" if device["bfloat16"] else "without"
        trouble = f"; does not compute: {device['trouble']}" if device["trouble"] else ""
        free = f", {_size(device['freeBytes'])} free" if device["freeBytes"] else ""
        yield (
            f"{device['name']}, {_size(device['memoryBytes'])}{free}, capability "
            f"{device['capability']}, {half} bfloat16{trouble}"
        )


def _distributed(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "gloo: a process group of one works" if facts["gloo"] else "built without gloo"
    yield "nccl: there" if facts["nccl"] else "nccl: not built in"


def _hub(facts: Mapping[str, Any]) -> Iterator[str]:
    can = "can" if facts["writable"] else "CANNOT"
    yield f"{_at_home(facts['root'])} ({can} be written to, {_size(facts['freeBytes'])} free)"
    built = [one["built"] for one in facts["checkpoints"]]
    later = built.count("tokenizer")
    yield (
        f"{facts['entries']} entries of {_size(facts['bytes'])}; of {len(built)} recipes "
        f"{len(built) - built.count(None)} are built"
        + (f", {later} of them without weights, made when first used" if later else "")
    )
    for path in facts["damaged"]:
        yield f"damaged, to be built anew when it is next used: {_at_home(path)}"


def _library_cache(facts: Mapping[str, Any]) -> Iterator[str]:
    root = _at_home(facts["root"])
    if not facts["exists"]:
        yield f"{root} (not there; nothing here needs it)"
        return
    yield f"{root}, models: {len(facts['models'])}"
    for model in facts["models"]:
        has = [kind for kind in ("config", "tokenizer") if model[kind]]
        yield f"{model['hub']}: {' and '.join(has) or 'neither config nor tokenizer'}"


def _profile(state: ProfileState) -> Iterator[str]:
    name = f"{state.name} (default)" if state.default else state.name
    first = f"  {name:<{_NAME_COLUMNS}}{state.assessable:<{_ANSWER_COLUMNS}}"
    said = [
        *state.why,
        *(f"to mend: {remedy}" for remedy in state.remedies),
        *state.notes,
    ]
    if not said:
        yield first.rstrip()
    for number, text in enumerate(said):
        yield from _wrapped(first if number == 0 else "", text, len(first))


def _row(name: str, version: str, remark: str) -> Iterator[str]:
    first = f"  {name:<{_NAME_COLUMNS}}{version:<{_VERSION_COLUMNS}} "
    yield from _wrapped(first, remark, 2 + _NAME_COLUMNS + _VERSION_COLUMNS + 1)


def _fact(name: str, text: str) -> Iterator[str]:
    yield from _wrapped(f"  {name:<{_NAME_COLUMNS}}", text, 2 + _NAME_COLUMNS)


def _wrapped(first: str, text: str, indent: int) -> Iterator[str]:
    rest = " " * indent
    yield from textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        initial_indent=first.ljust(indent),
        subsequent_indent=rest,
        break_on_hyphens=False,
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _at_home(path: str) -> str:
    """A path with `~` for the user's home, as a person would write it."""
    home = str(Path.home())
    return "~" + path[len(home) :] if path.startswith(home + os.sep) else path
