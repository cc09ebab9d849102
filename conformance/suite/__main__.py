"""`python -m conformance.suite`: regenerate `catalogue.json` and `docs/requirements.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator

from conformance.catalogue import CATALOGUE_FILE, Requirement, profiles
from conformance.places import HOME
from conformance.suite.collection import requirements_of_suite


def catalogue_text() -> str:
    """What `catalogue.json` should hold: the implemented clauses in the order of the profiles."""
    requirements = requirements_of_suite()
    listed = dict.fromkeys(clause for ids in profiles().values() for clause in ids)
    unlisted = [clause_id for clause_id in requirements if clause_id not in listed]
    ordered = [
        requirements[clause_id] for clause_id in (*listed, *unlisted) if clause_id in requirements
    ]
    return (
        json.dumps([requirement.as_json() for requirement in ordered], indent=1, ensure_ascii=False)
        + "\n"
    )


DOCUMENT = HOME / "docs" / "requirements.md"


def document() -> str:
    """The text of `docs/requirements.md`: each profile's clauses with what they need first."""
    requirements = requirements_of_suite()
    return "\n".join(_lines(requirements)) + "\n"


def _lines(requirements: dict[str, Requirement]) -> Iterator[str]:
    yield "# Requirements"
    yield ""
    yield "Every clause, by profile. A MUST that is not met denies the certificate; a SHOULD is"
    yield "reported. *Needs* are judged first: where one fails, the clause is blocked. Each clause"
    yield "has a page of its own: why it is there, what it draws, what mends it, and the planted"
    yield "defects that it kills; all of these in one table: [kill-matrix.md](kill-matrix.md)."
    yield "Written by `python -m conformance.suite`."
    for profile, ids in profiles().items():
        if profile == "default":
            continue
        yield from (
            "",
            f"## {profile}",
            "",
            "| ID | level | statement | needs |",
            "|---|---|---|---|",
        )
        for clause in (requirements[clause_id] for clause_id in ids):
            statement = clause.statement.replace("|", "\\|")
            page = f"[{clause.id}](clauses/{clause.id}.md)"
            yield f"| {page} | {clause.level} | {statement} | {', '.join(clause.needs)} |"


if __name__ == "__main__":
    CATALOGUE_FILE.write_text(catalogue_text(), encoding="utf-8")
    DOCUMENT.write_text(document(), encoding="utf-8")
    print(f"wrote {CATALOGUE_FILE} and {DOCUMENT}")
