"""`conformance doctor`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from conformance.cli.options import HubRoot, Json, positive
from conformance.report.terminal import say


def doctor(
    timeout: Annotated[float, typer.Option(help="Seconds for each check.")] = 30.0,
    hub: HubRoot = None,
    as_json: Json = False,
) -> None:
    """Show what this machine can assess, and what to do where it cannot.

    Exit status: 0 if all default profiles can be assessed, 1 if not, 130 interrupted.
    """
    from conformance.doctor.diagnosis import diagnose
    from conformance.doctor.examination import examine
    from conformance.doctor.report import lines

    answers = examine(
        hub,
        patience=positive("--timeout", timeout, "seconds"),
        announce=lambda check: say(f"waiting for {check}", sys.stderr),
    )
    found = diagnose(answers)
    if as_json:
        say(json.dumps(found.as_json(), indent=2))
    else:
        for line in lines(found):
            say(line)
    raise typer.Exit(0 if found.assessable else 1)
