"""`conformance requirements`, and how commands take the names of clauses and profiles."""

from __future__ import annotations

import json
from typing import Annotated, Optional

import typer

from conformance.catalogue import Requirement, catalogue, expected_clauses
from conformance.cli.options import (
    Json,
    Profile,
    clause_ids,
    completing,
    names_in,
)
from conformance.cli.rows import cell, show
from conformance.errors import CannotAssess, did_you_mean
from conformance.places import documents_directory
from conformance.report.terminal import say, wrapped
from conformance.run.request import check_profiles


def requirements(
    clause: Annotated[
        Optional[str],
        typer.Argument(
            metavar="[ID]", help="A clause, to show in full.", autocompletion=completing(clause_ids)
        ),
    ] = None,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """List the clauses, or show one of them."""
    if clause is not None:
        known = known_clause(clause).as_json()
        if as_json:
            say(json.dumps(known, indent=2))
            return
        page = documents_directory() / "clauses" / f"{known['id']}.md"
        told = {**known, **({"page": str(page)} if page.is_file() else {})}
        say("\n".join(wrapped(f"{name:<10} {cell(told[name])}", indent=11) for name in told))
        return
    wanted = expected_clauses(profile_names(profile)) if profile else tuple(catalogue())
    entries = [catalogue()[name].as_json() for name in wanted]
    if as_json:
        say(json.dumps(entries, indent=2))
    else:
        show(
            [
                {name: entry[name] for name in ("id", "level", "profile", "statement")}
                for entry in entries
            ],
            False,
        )


def profile_names(profile: str | None) -> tuple[str, ...]:
    """The profiles that `--profile` names.

    Raises:
        CannotAssess: for one that is not implemented.
    """
    names = tuple(dict.fromkeys(names_in("--profile", profile or "default")))
    check_profiles(names)
    return names


def known_clause(name: str) -> Requirement:
    """The clause with this ID, in upper or lower case.

    Raises:
        CannotAssess: for an unknown ID, with similar ones.
    """
    known = catalogue()
    clause = known.get(name.upper())
    if clause is None:
        raise CannotAssess(
            f"there is no clause `{name}`{did_you_mean(name.upper(), known)}; `conformance "
            f"requirements` lists them"
        )
    return clause
