"""`python -m conformance.suite`: regenerate `catalogue.json` from the suite."""

from __future__ import annotations

import json

from conformance.catalogue import CATALOGUE_FILE, profiles
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


if __name__ == "__main__":
    CATALOGUE_FILE.write_text(catalogue_text(), encoding="utf-8")
    print(f"wrote {CATALOGUE_FILE}")
