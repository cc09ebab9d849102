"""`conformance drift`."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from conformance.cli.clauses import known_clause, profile_names
from conformance.cli.options import (
    BackboneId,
    Config,
    HubRoot,
    Json,
    Models,
    Profile,
    Recipes,
    TrustRemoteCode,
    names_in,
)
from conformance.errors import CannotAssess
from conformance.report.terminal import say
from conformance.run.request import DEFAULT_TIMEOUT_SECONDS, RunRequest

if TYPE_CHECKING:
    from conformance.drift.certifying import Side

SIDES = ("from", "to")
DOCUMENT = "drift.json"

Requirements = Optional[list[str]]
_REQUIREMENT = "REQUIREMENT"


def drift(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="An id, `package.module:Class` or `path/to/file.py:Class`."
        ),
    ],
    before: Annotated[
        Requirements,
        typer.Option(
            "--from",
            metavar=_REQUIREMENT,
            help="What to install before, such as transformers==4.40.1; may be repeated.",
        ),
    ] = None,
    after: Annotated[
        Requirements,
        typer.Option("--to", metavar=_REQUIREMENT, help="What to install after, likewise."),
    ] = None,
    both: Annotated[
        Requirements,
        typer.Option(
            "--with",
            metavar=_REQUIREMENT,
            help="What to install in both, such as what the subject imports; may be repeated.",
        ),
    ] = None,
    python_from: Annotated[
        Optional[Path],
        typer.Option(metavar="DIR", help="An existing virtual environment in place of --from."),
    ] = None,
    python_to: Annotated[
        Optional[Path],
        typer.Option(metavar="DIR", help="An existing virtual environment in place of --to."),
    ] = None,
    backbone_id: BackboneId = None,
    profile: Profile = None,
    only: Annotated[
        Optional[str], typer.Option(help="Judge these clauses alone, IDs joined by commas.")
    ] = None,
    budget: Annotated[
        Optional[str], typer.Option(help="How many inputs to draw, as certify takes it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn, in both.")] = 0,
    timeout: Annotated[
        Optional[float], typer.Option(help="Seconds for each step, as certify takes it.")
    ] = None,
    config: Config = None,
    hub: HubRoot = None,
    recipes: Recipes = None,
    models: Models = None,
    trust_remote_code: TrustRemoteCode = False,
    out: Annotated[
        Optional[Path],
        typer.Option(help="Folder for drift.json, and for certificates in `from` and `to`."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Certify a backbone under two sets of releases, and show what changed between them.

    Environments are made with pip, and kept in the user's cache.

    Exit status: 0 nothing changed, 1 something changed, 2 one side could not be assessed, 130
    interrupted.
    """
    from conformance.drift import findings, report
    from conformance.drift.certifying import certified
    from conformance.report.writing import write_whole
    from conformance.subject.declarations import configuration_in

    if both and (python_from or python_to):
        raise CannotAssess(
            "--with is for both sides, and one that is named is not changed: install it there, or "
            "give --from and --to"
        )
    options = _options(
        ("--id", backbone_id),
        ("--profile", profile),
        ("--only", only),
        ("--budget", budget),
        ("--seed", seed),
        ("--timeout", timeout),
        ("--config", config),
        ("--hub", hub),
        *(("--recipes", place) for place in recipes or ()),
        *(("--model", model) for model in models or ()),
    )
    if trust_remote_code:
        options.append("--trust-remote-code")
    asked = {"from": (before, python_from), "to": (after, python_to)}
    for name, (requirements, python) in asked.items():
        _one_of_two(name, requirements, python)
    # What certify would refuse, before minutes of pip.
    RunRequest(
        target=target,
        backbone_id=backbone_id,
        profiles=profile_names(profile),
        only=tuple(known_clause(one).id for one in names_in("--only", only)) if only else None,
        budget=budget or "standard",
        seed=seed,
        timeout=timeout or DEFAULT_TIMEOUT_SECONDS,
        models=tuple(models or ()),
    )
    configuration_in(config)
    with _folder(out) as folder:
        sides = {
            name: _side(requirements, python, both or ())
            for name, (requirements, python) in asked.items()
        }
        verdicts = [
            certified(sides[name], target, options, folder / name, _announce) for name in SIDES
        ]
    found = findings.drift(*verdicts)
    document = {**found.as_json(), **{name: _as_json(sides[name]) for name in SIDES}}
    if out is not None:
        write_whole(out, DOCUMENT, json.dumps(document, indent=2) + "\n")
    if as_json:
        say(json.dumps(document, indent=2))
    else:
        for line in report.lines(found, *(sides[name].label for name in SIDES)):
            say(line)
        say(f"  files: {out / DOCUMENT}, and certificates in from, to" if out else _WITHOUT_FILES)
    raise typer.Exit(1 if found.changed else 0)


_WITHOUT_FILES = "  files: add --out DIR for drift.json and both certificates"


def _one_of_two(name: str, requirements: Requirements, python: Path | None) -> None:
    if bool(requirements) == (python is not None):
        problem = "both name" if requirements else "neither names"
        raise CannotAssess(
            f"--{name} and --python-{name}: {problem} one side; give --{name} "
            f"transformers==VERSION, or --python-{name} DIR for an environment that is there"
        )


def _side(requirements: Requirements, python: Path | None, both: Sequence[str]) -> Side:
    from conformance.drift.certifying import Side
    from conformance.drift.environments import made_for, python_of

    if python is not None:
        return Side(str(python), python_of(python))
    wanted = list(requirements or ())
    return Side(", ".join(wanted), made_for([*wanted, *both], _announce))


def _options(*given: tuple[str, Any]) -> list[str]:
    return [word for option, value in given if value is not None for word in (option, str(value))]


def _as_json(side: Side) -> dict[str, str]:
    return {"label": side.label, "python": str(side.python)}


def _announce(line: str) -> None:
    say(line, sys.stderr)


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """The folder for both certificates, without what an earlier run left there."""
    if out is not None:
        from conformance.report.writing import writing_to
        from conformance.verdict.load import CERTIFICATE

        with writing_to(out):
            for stale in (out / DOCUMENT, *(out / name / CERTIFICATE for name in SIDES)):
                stale.unlink(missing_ok=True)
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="conformance-drift-") as scratch:
        yield Path(scratch)
