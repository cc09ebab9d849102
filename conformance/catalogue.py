"""The requirement catalogue: one entry per clause, generated from the suite and read without torch.

`conformance/catalogue.json` is what `conformance requirements` prints and certificates are keyed
by; the profiles' IDs are kept by hand in `conformance/profiles.toml`, so that deleting a test
cannot shrink what is expected.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from conformance.places import PACKAGE
from conformance.toml import load_toml

MUST = "MUST"
SHOULD = "SHOULD"

FIRST_RELEASE = "0.1.0"
"""The release that all clauses have been in since, unless they say another."""

CATALOGUE_FILE = PACKAGE / "catalogue.json"
PROFILES_FILE = PACKAGE / "profiles.toml"

AREAS = {
    "CON": "Construction",
    "PAD": "Pad token",
    "TOK": "Tokenizer",
    "EMB": "Embeddings",
    "PRM": "Prompts",
    "FSDP": "Sharding",
    "HALF": "Half precision",
    "GEN": "Generation",
    "FWD": "Forward pass",
    "TRN": "Training",
    "SCL": "Published size",
    "GPU": "On a GPU",
}
"""What the clauses of an area are about, by the letters that their IDs begin with."""


def area_of(clause_id: str) -> str:
    """The area of a clause, in words; of an unknown one, the letters of its ID."""
    letters = clause_id.rpartition("-")[0] or clause_id
    return AREAS.get(letters, letters)


@dataclass(frozen=True)
class Requirement:
    """One clause: its ID never changes, its statement is the docstring of the test that checks it.

    `needs` are the clauses without which this one cannot be judged; `uses` the members of the
    contract that it touches (if the subject lacks one, only CON-03 judges that); `since` is the
    release that it came with.
    """

    id: str
    level: str
    profile: str
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    statement: str
    test: str
    since: str = FIRST_RELEASE

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "level": self.level,
            "profile": self.profile,
            "needs": list(self.needs),
            "uses": list(self.uses),
            "statement": self.statement,
            "test": self.test,
            "since": self.since,
        }


Clause = TypeVar("Clause", bound=Callable[..., None])


def requirement(
    clause_id: str,
    level: str,
    *,
    profile: str = "core",
    needs: Sequence[str] = (),
    uses: Sequence[str] = (),
    since: str = FIRST_RELEASE,
) -> Callable[[Clause], Clause]:
    """Declare a test function as the check of one clause, which there is `since` a release; its
    docstring is the clause's statement."""

    def declare(test: Clause) -> Clause:
        statement = inspect.getdoc(test)
        if not statement:
            raise ValueError(
                f"{clause_id}: the test {test.__name__} needs a docstring; it is the clause's "
                f"statement"
            )
        test.requirement = Requirement(  # type: ignore[attr-defined]
            id=clause_id,
            level=level,
            profile=profile,
            needs=tuple(needs),
            uses=tuple(uses),
            statement=" ".join(statement.split()),
            test=f"{test.__module__}:{test.__name__}",
            since=since,
        )
        return test

    return declare


@cache
def catalogue() -> dict[str, Requirement]:
    """All implemented clauses by ID, in the suite's order."""
    entries = json.loads(CATALOGUE_FILE.read_text(encoding="utf-8"))
    return {
        entry["id"]: Requirement(
            **{**entry, "needs": tuple(entry["needs"]), "uses": tuple(entry["uses"])}
        )
        for entry in entries
    }


@cache
def profiles() -> dict[str, tuple[str, ...]]:
    """The exact set of IDs that each implemented profile expects, `default` included."""
    table = load_toml(PROFILES_FILE)["profiles"]
    named = {name: tuple(ids) for name, ids in table.items()}
    default = [name for name in ("core", "numerics", "training", "vla") if name in named]
    named["default"] = tuple(dict.fromkeys(clause for name in default for clause in named[name]))
    return named


def expected_clauses(names: Iterable[str]) -> tuple[str, ...]:
    """The IDs that the named profiles expect, without repeats.

    Raises:
        KeyError: for a profile that is not implemented; the argument is its name.
    """
    known = profiles()
    return tuple(dict.fromkeys(clause for name in names for clause in known[name]))


def in_order_of_need(ids: Iterable[str], requirements: Mapping[str, Requirement]) -> list[str]:
    """`ids`, reordered so that every clause follows those it needs, otherwise as given.

    Raises:
        ValueError: if needs form a cycle.
    """
    wanted = list(ids)
    chosen = set(wanted)
    ordered: list[str] = []
    state: dict[str, str] = {}

    def visit(clause_id: str, path: tuple[str, ...]) -> None:
        if state.get(clause_id) == "done":
            return
        if clause_id in path:
            raise ValueError(f"needs form a cycle: {' -> '.join((*path, clause_id))}")
        for need in requirements[clause_id].needs:
            if need in chosen:
                visit(need, (*path, clause_id))
        state[clause_id] = "done"
        ordered.append(clause_id)

    for clause_id in wanted:
        visit(clause_id, ())
    return ordered
