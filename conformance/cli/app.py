"""The commands."""

from __future__ import annotations

import typer

from conformance.cli import bench, calibrate, certificates, certify, clauses, hub, replay
from conformance.cli.options import SETTINGS


def _app(help_text: str) -> typer.Typer:
    return typer.Typer(
        help=help_text,
        context_settings=SETTINGS,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


app = _app(
    "Is this backbone wired right? "
    "Certifies language-model backbones for vision-language and robot-action models."
)
app.command("certify")(certify.certify)
app.command("list")(hub.list_backbones)
app.command("requirements")(clauses.requirements)
app.command("report")(certificates.report)
app.command("replay")(replay.replay)
app.command("diff")(certificates.diff)
app.command("calibrate")(calibrate.calibrate)

hub_app = _app("Build or list the offline checkpoints.")
hub_app.command("build")(hub.build)
hub_app.command("list")(hub.list_built)
app.add_typer(hub_app, name="hub")

bench_app = _app("Time backbones, and compare two versions of them.")
for timing in (bench.run, bench.compare, bench.history, bench.power):
    bench_app.command()(timing)
app.add_typer(bench_app, name="bench")
