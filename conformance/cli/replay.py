"""`conformance replay`: one clause of a certificate again, under the conditions that it records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conformance.cli.certify import judge
from conformance.cli.clauses import known_clause
from conformance.cli.options import (
    Config,
    HubRoot,
    Json,
    Models,
    Recipes,
    TrustRemoteCode,
    clause_ids,
    completing,
)
from conformance.errors import CannotAssess
from conformance.report.terminal import say
from conformance.run.request import DEFAULT_TIMEOUT_SECONDS, RunRequest


def replay(
    certificate: Annotated[
        Path, typer.Argument(metavar="CERT", help="A certificate.json, or the folder of one.")
    ],
    clause: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="The clause to judge again.", autocompletion=completing(clause_ids)
        ),
    ],
    timeout: Annotated[
        float, typer.Option(help="Seconds for each step.")
    ] = DEFAULT_TIMEOUT_SECONDS,
    config: Config = None,
    hub: HubRoot = None,
    recipes: Recipes = None,
    models: Models = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show tracebacks, logs and all of the evidence.")
    ] = False,
) -> None:
    """Judge one clause of a certificate again.

    The target, its id, the seed, the budget and the weights are those that the certificate records;
    run it where the certificate was made, as targets are found from there. It never certifies.

    Exit status: 0 if the clause is met, 1 if not, 2 if it cannot be judged, 130 interrupted.
    """
    from conformance.verdict.load import read_certificate

    recorded = read_certificate(certificate)
    wanted = known_clause(clause).id
    before = next((outcome for outcome in recorded.asked if outcome.id == wanted), None)
    if before is None:
        raise CannotAssess(f"`{certificate}` is not about {wanted}: it was not judged there")
    was = recorded.assessment
    request = RunRequest(
        target=was.target,
        backbone_id=was.backbone_id,
        profiles=was.profiles,
        only=(wanted,),
        weights=was.weights,
        device=was.device,
        budget=was.budget,
        seed=was.seed,
        timeout=timeout,
        hub=hub,
        recipes=tuple(recipes or ()),
        models=tuple(models or ()),
        trust_remote_code=trust_remote_code,
        config=config,
    )
    verdict = judge(request, as_json=as_json, verbose=verbose)
    now = next(outcome for outcome in verdict.asked if outcome.id == wanted)
    if not as_json:
        say(f"  {wanted}: {before.outcome} in {certificate}, {now.outcome} now")
    raise typer.Exit(verdict.exit_status)
