"""A child process that makes checks, one after the other, and tells its parent of each."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from conformance.doctor.checks import CHECKS
from conformance.run.launch import end_with_parent

BEGUN = "begun"
FACTS = "facts"
TROUBLE = "trouble"
MISSING = "missing"
"""Whether the trouble is that the package is not installed."""


def main() -> None:
    fd, request = sys.argv[1:]
    asked = json.loads(request)
    end_with_parent()
    for name in asked["checks"]:
        _say(int(fd), {"check": name, BEGUN: True})
        _say(int(fd), {"check": name, **_answer(name, asked["places"])})
    # Threads and exit handlers of what was imported must not turn answers into a crash or a hang.
    os._exit(0)


def _answer(name: str, places: dict[str, Any]) -> dict[str, Any]:
    try:
        return {FACTS: CHECKS[name](places)}
    except BaseException as error:  # SystemExit, too, is what a broken package may raise
        said = " ".join(str(error).split())
        told = f"raises {type(error).__name__}" + (f": {said}" if said else "")
        return {TROUBLE: told, MISSING: _is_missing(name, error)}


def _is_missing(name: str, error: BaseException) -> bool:
    from conformance.doctor.packages import PACKAGES

    modules = {package.name: package.module for package in PACKAGES}
    return isinstance(error, ModuleNotFoundError) and error.name == modules.get(name)


def _say(fd: int, answer: dict[str, Any]) -> None:
    data = (json.dumps(answer) + "\n").encode()
    while data:
        data = data[os.write(fd, data) :]
