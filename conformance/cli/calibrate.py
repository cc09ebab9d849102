"""`conformance calibrate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Optional

import typer

from conformance.cli.measuring import device_of
from conformance.cli.options import Json
from conformance.cli.rows import show
from conformance.errors import CannotAssess
from conformance.report.terminal import console, say


def calibrate(
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda; each device has bounds of its own.")
    ] = "cpu",
    variants: Annotated[
        int, typer.Option(help="Legitimate variants of the computation to run.")
    ] = 500,
    seed: Annotated[int, typer.Option(help="Seed of their weights and orders.")] = 0,
    out: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="Write the result there, as JSON; when interrupted too."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the parity gates' bounds anew, on correct models with their channels in another
    order.

    Exit status: 0 if every gate admits every variant, 1 otherwise, 2 without the device, 130
    interrupted.
    """
    from rich.progress import track

    from conformance.parity import calibration
    from conformance.report.writing import write_whole

    families = len(calibration.FAMILIES)
    if variants < families:
        raise CannotAssess(
            f"`--variants` is {variants}, but should be at least {families}: one per family"
        )
    on = device_of(device)
    measured: list[Mapping[str, float]] = []
    try:
        for one in track(
            calibration.variants(variants, seed, on),
            description="calibrating",
            total=variants,
            console=console(stderr=True),
            transient=True,
        ):
            measured.append(one)
    finally:
        readings = calibration.readings(measured, on)
        found = calibration.as_json(readings, seed, on)
        if out is not None and measured:
            write_whole(out.parent, out.name, json.dumps(found, indent=1) + "\n")
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
