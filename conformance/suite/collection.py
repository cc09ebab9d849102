"""Finds which tests of the suite's modules check which clause."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

import conformance.suite
from conformance.catalogue import Requirement
from conformance.subject.subject import Subject

Test = Callable[[Subject], None]


@cache
def clause_tests() -> dict[str, tuple[Test, ...]]:
    """Every clause's tests by ID, in the order of the suite's modules. Imports the suite, and with
    it torch."""
    tests: dict[str, tuple[Test, ...]] = {}
    for module in _suite_modules():
        for value in vars(module).values():
            clause = getattr(value, "requirement", None)
            if isinstance(clause, Requirement) and value.__module__ == module.__name__:
                tests[clause.id] = (*tests.get(clause.id, ()), value)
    return tests


def requirements_of_suite() -> dict[str, Requirement]:
    """The requirements as the suite's decorators state them; `catalogue.json` is written from
    this."""
    return {clause_id: tests[0].requirement for clause_id, tests in clause_tests().items()}  # type: ignore[attr-defined]


def _suite_modules() -> list[Any]:
    names = (
        info.name
        for info in pkgutil.iter_modules(conformance.suite.__path__)
        if info.name.startswith("test_")
    )
    return [importlib.import_module(f"conformance.suite.{name}") for name in names]
