"""The commands."""

from __future__ import annotations

from typing import Annotated

import typer

from conformance.cli import (
    bench,
    calibrate,
    certificates,
    certify,
    clauses,
    doctor,
    drift,
    hub,
    matrix,
    replay,
    scaffold,
)
from conformance.cli.options import SETTINGS
from conformance.report.terminal import say


def _app(help_text: str, *, completed: bool = False) -> typer.Typer:
    return typer.Typer(
        help=help_text,
        context_settings=SETTINGS,
        add_completion=completed,
        invoke_without_command=True,
        callback=_without_a_command,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def _without_a_command(context: typer.Context) -> None:
    """Show the help, where a command is missing."""
    if context.invoked_subcommand is None:
        say(context.get_help())
        raise typer.Exit(2)


def _versions(wanted: bool) -> None:
    if wanted:
        from conformance.run.environment import versions

        say(versions())
        raise typer.Exit


app = _app(
    "Is this backbone wired right? "
    "Judges and certifies the backbones of vision-language and robot-action models.",
    completed=True,
)


@app.callback(invoke_without_command=True)
def _conformance(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_versions,
            is_eager=True,
            help="Show the versions of conformance and of what it judges with.",
        ),
    ] = False,
) -> None:
    _without_a_command(context)


app.command("certify")(certify.certify)
app.command("list")(hub.list_backbones)
app.command("requirements")(clauses.requirements)
app.command("report")(certificates.report)
app.command("replay")(replay.replay)
app.command("diff")(certificates.diff)
app.command("matrix")(matrix.matrix)
app.command("calibrate")(calibrate.calibrate)
app.command("doctor")(doctor.doctor)
app.command("drift")(drift.drift)
app.command("scaffold")(scaffold.scaffold)

hub_app = _app("Build or list the offline checkpoints, and add recipes of them.")
hub_app.command("add")(hub.add)
hub_app.command("build")(hub.build)
hub_app.command("list")(hub.list_built)
app.add_typer(hub_app, name="hub")

bench_app = _app("Time backbones, and compare two versions of them.")
for timing in (bench.run, bench.compare, bench.history, bench.power):
    bench_app.command()(timing)
app.add_typer(bench_app, name="bench")
