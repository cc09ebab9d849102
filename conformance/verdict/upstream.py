"""Known defects of the libraries, kept in `fixtures/upstream.toml`.

A clause that fails because transformers itself is wrong, in that version and for that model class,
is *upstream*: it is shown and does not deny the certificate. An entry whose clause passes is out of
date, and an error until it is removed: otherwise the list would go on excusing a defect that is
gone. A failure that the canonical control shows by the same inputs is upstream without an entry; an
entry adds the explanation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conformance.catalogue import catalogue
from conformance.errors import CannotAssess
from conformance.toml import TOMLDecodeError, load_toml
from conformance.verdict.outcomes import ClauseOutcome, Outcome

_FIELDS = ("transformers", "model", "clause", "issue", "measured", "shows")
_OPTIONAL_FIELDS = ("only_with",)


class InvalidDefects(CannotAssess):
    """The list of known library defects cannot be read as one."""


@dataclass(frozen=True)
class KnownDefect:
    """One defect of transformers.

    `transformers` is a version specifier (PEP 440), `model` the class of the wrapped model, `issue`
    where the defect is described, `measured` what was observed, and `shows` a part of the summary
    that only this defect has: another failure of the same clause is the subject's own. `only_with`
    names a piece of the clause's evidence without which the defect cannot show, such as a window.
    """

    transformers: str
    model: str
    clause: str
    issue: str
    measured: str
    shows: str
    only_with: str = ""

    def as_json(self) -> dict[str, str]:
        """What a report shows of it."""
        return {
            "transformers": self.transformers,
            "model": self.model,
            "issue": self.issue,
            "measured": self.measured,
        }

    def concerns(self, environment: Mapping[str, Any]) -> bool:
        """Whether the run used a version and a model class that this entry is about."""
        from packaging.specifiers import SpecifierSet
        from packaging.version import InvalidVersion

        if environment.get("model_class") != self.model:
            return False
        try:
            return SpecifierSet(self.transformers).contains(
                str(environment.get("packages", {}).get("transformers")), prereleases=True
            )
        except InvalidVersion:
            return False


def known_defects() -> tuple[KnownDefect, ...]:
    """The defects that this project knows of.

    Raises:
        InvalidDefects: if its own list is broken.
    """
    from conformance.places import fixtures_directory

    return read_defects(fixtures_directory() / "upstream.toml")


def read_defects(path: Path) -> tuple[KnownDefect, ...]:
    """The `[[defect]]` entries of a TOML file.

    Raises:
        InvalidDefects: for a file that cannot be read, or an entry that is incomplete or names no
            known clause.
    """
    try:
        entries = load_toml(path).get("defect", [])
    except OSError as error:
        raise InvalidDefects(
            f"the known defects `{path}` cannot be read: {error.strerror or error}"
        ) from error
    except (TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidDefects(f"the known defects `{path}` are not TOML: {error}") from error
    return tuple(
        _defect(entry, f"defect {number} in `{path}`")
        for number, entry in enumerate(entries, start=1)
    )


def apply_defects(
    outcomes: Iterable[ClauseOutcome],
    defects: Sequence[KnownDefect],
    environment: Mapping[str, Any],
) -> tuple[ClauseOutcome, ...]:
    """The outcomes with known defects recognised."""
    concerning: dict[str, list[KnownDefect]] = {}
    for defect in defects:
        if defect.concerns(environment):
            concerning.setdefault(defect.clause, []).append(defect)
    # A class that derives from the library's may have mended what the library got wrong.
    must_reproduce = environment.get("model_class_is_the_librarys", True)
    return tuple(
        _recognised(outcome, concerning[outcome.id], must_reproduce)
        if outcome.id in concerning
        else outcome
        for outcome in outcomes
    )


def _recognised(
    outcome: ClauseOutcome, known: Sequence[KnownDefect], must_reproduce: bool
) -> ClauseOutcome:
    shown = next((defect for defect in known if defect.shows in outcome.summary), None)
    if outcome.outcome in (Outcome.FAILED, Outcome.UPSTREAM) and shown is not None:
        return replace(
            outcome,
            outcome=Outcome.UPSTREAM,
            evidence={**outcome.evidence, "known defect": shown.as_json()},
        )
    stale = next(
        (
            defect
            for defect in known
            if not defect.only_with or outcome.evidence.get(defect.only_with)
        ),
        None,
    )
    if outcome.outcome is Outcome.PASSED and must_reproduce and stale is not None:
        return replace(
            outcome,
            outcome=Outcome.ERROR,
            summary=f"the entry for {outcome.id} in fixtures/upstream.toml no longer reproduces: "
            f"remove it, "
            f"or narrow its versions (`{stale.transformers}`) to those that show {stale.issue}",
            evidence={**outcome.evidence, "known defect": stale.as_json()},
        )
    return outcome


def _defect(entry: Any, where: str) -> KnownDefect:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    if not isinstance(entry, dict) or set(entry) - set(_OPTIONAL_FIELDS) != set(_FIELDS):
        raise InvalidDefects(
            f"{where} should have exactly {', '.join(_FIELDS)}, and may have "
            f"{', '.join(_OPTIONAL_FIELDS)}"
        )
    for name in entry:
        if not isinstance(entry[name], str) or not entry[name].strip():
            raise InvalidDefects(
                f"`{name}` of {where} is {entry[name]!r}, but should be a text that is not empty"
            )
    if entry["clause"] not in catalogue():
        raise InvalidDefects(f"{where} is about `{entry['clause']}`, which is not a clause")
    try:
        SpecifierSet(entry["transformers"])
    except InvalidSpecifier as error:
        raise InvalidDefects(
            f"`transformers` of {where} is {entry['transformers']!r}, but should be versions "
            "such as `>=4.40,<4.41`"
        ) from error
    return KnownDefect(**entry)
