"""`conformance calibrate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from conformance.cli.options import (
    Json,
)
from conformance.cli.rows import show
from conformance.errors import CannotAssess
from conformance.report.terminal import console, say


def calibrate(
    variants: Annotated[
        int, typer.Option(help="Legitimate variants of the computation to run.")
    ] = 500,
    seed: Annotated[int, typer.Option(help="Seed of their weights and orders.")] = 0,
    out: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Write the result there, as JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the parity gates' bounds anew, on correct models with their channels in another
    order.

    Exit status: 0 if every gate admits every variant, 1 otherwise.
    """
    from rich.progress import track

    from conformance.parity import calibration

    families = len(calibration.FAMILIES)
    if variants < families:
        raise CannotAssess(
            f"`--variants` is {variants}, but should be at least {families}: one per family"
        )
    running = track(
        calibration.variants(variants, seed),
        description="calibrating",
        total=variants,
        console=console(stderr=True),
        transient=True,
    )
    readings = calibration.readings(running)
    found = calibration.as_json(readings, seed)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if as_json:
        say(json.dumps(found, indent=2))
    else:
        rows = [
            {
                "gate": gate,
                "worst": f"worst {reading.worst:.4g}",
                "bound": f"bound {reading.bound:.4g}",
                "refused": f"{reading.refused} of {reading.variants} variants refused",
                "rate": f"at most {100 * reading.false_alarm_bound:.2g} % in truth (95 %)",
            }
            for gate, reading in readings.items()
        ]
        show(rows, as_json=False)
    raise typer.Exit(1 if any(reading.refused for reading in readings.values()) else 0)
