"""Whose fault a failure is: the same clause is judged on the canonical control, by the same inputs.

Only the same observation excuses a subject. That the control fails too is not enough: where the
library's window is off by one, a subject without any window fails the same clause otherwise.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conformance.assertions import ClauseFailure, listening
from conformance.catalogue import MUST, Requirement
from conformance.subject.subject import Subject
from conformance.suite.collection import Test

_OF_THE_LIBRARY = ("FWD", "HALF", "GEN", "FSDP")
"""The areas in which the library computes. In the others a subject decides, and the control's
decisions excuse nobody's."""
_BESIDE_THE_CONTROL = tuple(
    f"conformance.suite.test_{name}"
    for name in ("building", "calls", "histories", "generation_states")
)
"""Modules of clauses that compare with a control as it is."""
_SAME_VALUE = 1e-3
"""The relative difference up to which two readings of one quantity are the same."""


def seen_on_control(
    subject: Subject, clause: Requirement, test: Test, error: BaseException
) -> Mapping[str, Any] | None:
    """What the canonical control shows by the inputs that `error` was found with, if it is the
    same; None if it shows something else, or nothing."""
    if (
        clause.level != MUST
        or clause.id.partition("-")[0] not in _OF_THE_LIBRARY
        or test.__module__ in _BESIDE_THE_CONTROL
    ):
        return None
    inputs = getattr(error, "counterexample", None)
    try:
        control = subject.canonical()
        with listening():
            if inputs is None:
                test(control)
            else:
                test.check(control, **inputs)  # type: ignore[attr-defined]
    except Exception as shown:
        return _as_evidence(shown) if _is_same(error, shown) else None
    return None


def _is_same(error: BaseException, shown: BaseException) -> bool:
    if isinstance(error, ClauseFailure) and isinstance(shown, ClauseFailure):
        one, other = error.evidence, shown.evidence
        found, control = one.get("value"), other.get("value")
        if isinstance(found, (int, float)) and isinstance(control, (int, float)):
            return one.get("quantity") == other.get("quantity") and (
                abs(found - control) <= _SAME_VALUE * abs(found)
            )
        return bool(one["observed"] == other["observed"])
    place = _place(error)
    return type(error) is type(shown) and place == _place(shown) and bool(place)


def _place(error: BaseException) -> str:
    """The file and line of transformers that raised, or called what raised in torch; empty if
    neither did."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        parts = Path(frame.filename).parts
        if "transformers" in parts:
            return f"{frame.filename}:{frame.lineno}"
        if "torch" not in parts:
            break
    return ""


def _as_evidence(shown: BaseException) -> dict[str, Any]:
    if isinstance(shown, ClauseFailure):
        return {
            name: shown.evidence[name]
            for name in ("observed", "quantity", "value")
            if name in shown.evidence
        }
    return {"observed": f"{type(shown).__name__}: {shown}", "where": _place(shown)}
