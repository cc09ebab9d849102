"""Planted defects: reference backbones with one edit each that a tired person would make, and what
must notice it.

Each is a class under `@planted`: the clause that names the defect, any other clauses that the same
edit breaks, and the entries of the defect list that it stands for. The suite must fail exactly
those clauses on it; what they block does not count.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import __version__ as transformers_version

from conformance.verdict.outcomes import ClauseOutcome, Outcome

INSTRUCT = "mistral-v0.1-7b-instruct"
PURE = "mistral-v0.1-7b-pure"
LLAMA_CHAT = "llama2-7b-chat"
LLAMA_PURE = "llama2-7b-pure"
VICUNA = "vicuna-v15-7b"
PHI = "phi-2-3b"


@dataclass(frozen=True)
class Mutant:
    """One planted defect. `fails` is the exact set of clauses that it fails, `clause` the one that
    names it, `budget` the smallest at which it dies."""

    name: str
    statement: str
    factory: Callable[..., Any]
    clause: str
    fails: frozenset[str]
    defects: tuple[str, ...]
    backbone_id: str
    declared: dict[str, Any]
    module: str
    budget: str

    def expected(self, outcomes: Mapping[str, ClauseOutcome]) -> set[str]:
        """The clauses that must fail in this run: a known defect of the installed library may stand
        before the planted one."""
        return {clause for clause in self.fails if outcomes[clause].outcome is not Outcome.UPSTREAM}


_PLANTED: list[Mutant] = []

Planted = TypeVar("Planted", bound=Callable[..., Any])


def planted(
    clause: str,
    *also: str,
    defects: tuple[str, ...] = (),
    on: str = INSTRUCT,
    since: str | None = None,
    before: str | None = None,
    declared: dict[str, Any] | None = None,
    module: str = "",
    budget: str = "quick",
) -> Callable[[Planted], Planted]:
    """Register a class or factory as a planted defect that `clause` must catch, and `also` too, and
    nothing else.

    `since` and `before` bound the transformers versions on which the defect can be planted;
    `declared` goes into the subject's `[subject]` table. `module` is where the defect was planted,
    which the report must say; `budget` is the smallest at which it dies.
    """

    def register(factory: Planted) -> Planted:
        if (since is None or _version(transformers_version) >= _version(since)) and (
            before is None or _version(transformers_version) < _version(before)
        ):
            _PLANTED.append(
                Mutant(
                    name=factory.__name__,
                    statement=" ".join((factory.__doc__ or "").split()),
                    factory=factory,
                    clause=clause,
                    fails=frozenset({clause, *also}),
                    defects=defects,
                    backbone_id=on,
                    declared=declared or {},
                    module=module,
                    budget=budget,
                )
            )
        return factory

    return register


def all_mutants() -> list[Mutant]:
    """Every planted defect, in the order of the modules."""
    for info in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{info.name}")
    return list(_PLANTED)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
