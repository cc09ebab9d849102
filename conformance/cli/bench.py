"""`conformance bench`: nothing heavy is imported until a command needs it."""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from conformance.cli.measuring import (
    Measuring,
    Targets,
    given_measuring_options,
    with_measuring_options,
)
from conformance.cli.options import (
    Json,
    at_least,
)
from conformance.errors import CannotAssess
from conformance.report.terminal import console, say

if TYPE_CHECKING:
    from rich.console import Console

    from conformance.bench.parent.recording import Announce
    from conformance.bench.results.drawing import PowerReport
    from conformance.bench.results.stored import Recording

PAIRS = 16
"""Finds a slow-down of three per cent in at least four of five comparisons on two shared cores
(docs/benchmarks.md); a quiet device needs fewer."""
_LOG_WIDTH = 200


@with_measuring_options
def run(
    measuring: Measuring,
    targets: Targets = None,
    runs: Annotated[int, typer.Option(help="Processes; two or more can be compared later.")] = 1,
    out: Annotated[
        Optional[Path], typer.Option(help="Folder for the results, one file per process.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time backbones: prefill, decode and a training step.

    Exit status: 0 measured, 2 something could not be measured, 130 interrupted.
    """
    from conformance.bench.parent.recording import record
    from conformance.bench.report.console import write_measured

    at_least("--runs", runs, 1)
    request = measuring.request(targets)
    with _folder(out) as folder, _progress() as announce, _failures_refused():
        recording = record(request, runs, folder, timeout=measuring.timeout, announce=announce)
    if not any(run.benchmarks for run in recording.runs):
        why = dict.fromkeys(filter(None, map(recording.trouble, recording.names)))
        raise CannotAssess(f"nothing could be measured: {'; '.join(why)}")
    if as_json:
        say(json.dumps(_as_json(recording), indent=2))
    else:
        write_measured(_screen(), recording)
        say(f"  results: {out}" if out else "  results: add --out DIR to keep them")
    raise typer.Exit(2 if any(run.unmeasured for run in recording.runs) else 0)


@with_measuring_options
def compare(
    context: typer.Context,
    measuring: Measuring,
    targets: Targets = None,
    base: Annotated[
        str, typer.Option(help="A git ref, or a file or folder of stored results.")
    ] = "",
    head: Annotated[
        Optional[str],
        typer.Option(help="The same [default: the working tree, uncommitted changes included]."),
    ] = None,
    pairs: Annotated[int, typer.Option(help="Processes of each side, made in turn.")] = PAIRS,
    detect: Annotated[
        float, typer.Option(help="Per cent of slow-down that must be excluded for a pass.")
    ] = 3.0,
    allow_environment_change: Annotated[
        bool,
        typer.Option(
            "--allow-environment-change", help="Compare although torch or another package changed."
        ),
    ] = False,
    out: Annotated[
        Optional[Path],
        typer.Option(help="Folder for verdict.json, summary.md, report.html, charts and the runs."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two versions: two git refs, measured in turn, or two stored results.

    Exit status: 0 no regression, 1 regression, 2 inconclusive or not comparable, 130 interrupted.
    """
    from conformance.bench.compare import are_stored, compare_commits, compare_stored
    from conformance.bench.report.console import write_comparison
    from conformance.bench.report.files import write_all
    from conformance.bench.results.statistics import NEGLIGIBLE

    _even_pairs(pairs)
    if not base:
        raise CannotAssess(
            "--base is missing: name a git ref (main, say), or a file or folder of stored results"
        )
    if not 100 * math.expm1(NEGLIGIBLE) < detect <= 100:
        raise CannotAssess(
            f"--detect is {detect:g}, but should be more than the half per cent that counts as "
            f"none, and at most 100"
        )
    how: dict[str, Any] = {
        "detectable": math.log1p(detect / 100),
        "allow_environment_change": allow_environment_change,
    }
    recordings: tuple[Recording, Recording] | None
    if are_stored(base, head):
        ignored = given_measuring_options(context, "pairs")
        if ignored:
            say(f"stored results are measured already: {', '.join(ignored)} ignored", sys.stderr)
        comparison, recordings = compare_stored(
            Path(base), Path(str(head)), targets or (), measuring.workloads, **how
        )
    else:
        request = measuring.request(targets)
        with _folder(out and out / "runs") as folder, _progress() as announce:
            how_measured = {
                "pairs": pairs,
                "out": folder,
                "timeout": measuring.timeout,
                "announce": announce,
            }
            comparison, recordings = compare_commits(request, base, head, how_measured, **how)
    written = write_all(comparison, recordings, out) if out is not None else []
    if as_json:
        say(json.dumps(comparison.as_json(), indent=2))
    else:
        write_comparison(_screen(), comparison)
        beside = (
            f"  files: {out / written[0]}, and beside it {', '.join(written[1:])}" if out else ""
        )
        say(beside or "  files: add --out DIR")
    raise typer.Exit(comparison.exit_status)


def history(
    places: Annotated[
        list[Path], typer.Argument(metavar="PLACE...", help="Files or folders of stored results.")
    ],
    out: Annotated[Optional[Path], typer.Option(help="Folder for history.html.")] = None,
    as_json: Json = False,
) -> None:
    """Show benchmarks over time, and where they stepped.

    Exit status: 0 shown, 2 a file is not a result.
    """
    from conformance.bench.report.console import table
    from conformance.bench.report.html import history_page
    from conformance.bench.report.rows import history_rows
    from conformance.bench.results.history import history as over_time
    from conformance.report.writing import write_whole

    found = over_time(places)
    if out is not None:
        write_whole(out, "history.html", history_page(found))
    if as_json:
        told = {"rows": found.rows, "steps": found.steps, "memorySteps": found.memory_steps}
        say(json.dumps(told, indent=2))
        return
    columns = ("benchmark", "recordings", "first", "last", "steps at", "memory steps at")
    _screen().print(table(columns, history_rows(found)))
    if out is not None:
        say(f"  files: {out / 'history.html'}")


@with_measuring_options
def power(
    measuring: Measuring,
    targets: Targets = None,
    pairs: Annotated[int, typer.Option(help="Pairs that a comparison takes.")] = PAIRS,
    recorded: Annotated[int, typer.Option(help="Pairs to record of each slow-down.")] = 40,
    draws: Annotated[int, typer.Option(help="Comparisons to draw from the recording.")] = 1000,
    confirm: Annotated[
        int,
        typer.Option(
            help="Comparisons to run end to end as well, half of them without a slow-down."
        ),
    ] = 0,
    recording: Annotated[
        Optional[list[Path]],
        typer.Option(
            help="Folder of an earlier run: draw from it, and record nothing; may be repeated."
        ),
    ] = None,
    out: Annotated[
        Optional[Path],
        typer.Option(help="Folder for power.json, power.svg, power.png and the runs."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how often comparisons cry wolf on this machine, and how large a slow-down they find.

    Exit status: 0 measured, 2 something could not be measured, 130 interrupted.
    """
    from conformance.bench.power import Experiment, report

    _even_pairs(pairs)
    at_least("--confirm", confirm, 0)
    at_least("--draws", draws, 1)
    if recording:
        found = report(recording, pairs, draws=draws, seed=measuring.seed)
    else:
        if recorded < pairs:
            raise CannotAssess(
                f"--recorded is {recorded}, but should be {pairs} or more, which a comparison "
                f"takes (--pairs)"
            )
        request = measuring.request(targets)
        with _folder(out and out / "runs") as folder:
            with _progress() as announce, _failures_refused(), _stored_pairs_told(out):
                Experiment(request, folder, measuring.timeout, announce).run(
                    recorded, confirm, pairs
                )
            found = report([folder], pairs, draws=draws, seed=measuring.seed)
    _show_power(found, out, as_json, runs_beside=not recording)


def _show_power(found: PowerReport, out: Path | None, as_json: bool, *, runs_beside: bool) -> None:
    from conformance.bench.report.charts import power_curve, save
    from conformance.bench.report.console import write_power
    from conformance.report.writing import write_whole

    document = _document(found.as_json())
    if out is not None:
        write_whole(out, "power.json", document)
        save(power_curve(found.as_json()["rates"]), out, "power")
    if as_json:
        say(document.rstrip())
        return
    write_power(_screen(), found)
    beside = "power.svg, power.png and runs" if runs_beside else "power.svg and power.png"
    say(
        f"  files: {out / 'power.json'}, and beside it {beside}"
        if out
        else "  files: add --out DIR"
    )


def _even_pairs(pairs: int) -> None:
    """Refuse an odd number of pairs: the version that begins a pair measures a little slower, so
    both must begin equally often."""
    if at_least("--pairs", pairs, 2) % 2:
        raise CannotAssess(
            f"--pairs is {pairs}, but should be even: the two versions take turns at beginning, "
            f"and the one that begins is slower"
        )


def _document(told: Mapping[str, Any]) -> str:
    """JSON, with lists of numbers on one line each."""
    text = json.dumps(told, indent=2)
    return re.sub(r"\[[-+.e\d,\s]+\]", lambda found: " ".join(found[0].split()), text) + "\n"


@contextmanager
def _failures_refused() -> Iterator[None]:
    from conformance.bench.parent.workers import RunFailed

    try:
        yield
    except RunFailed as failure:
        raise CannotAssess(f"nothing could be measured: {failure}") from failure


@contextmanager
def _stored_pairs_told(out: Path | None) -> Iterator[None]:
    """Say where what was recorded lies, and how to use it, if the recording ends early."""
    try:
        yield
    except BaseException:
        stored = len(list((out / "runs").glob("slowed-*/head/*.json"))) if out else 0
        if stored:
            say(
                f"{stored} pairs are recorded in {out}: `conformance bench power --recording "
                f"{out}` draws from them",
                sys.stderr,
            )
        raise


def _screen() -> Console:
    """Standard output, with wide rows if it is not a terminal: a log is searched by the line."""
    return console(stderr=False, width=None if sys.stdout.isatty() else _LOG_WIDTH)


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        from conformance.report.writing import writing_to

        with writing_to(out):
            held = any(out.rglob("*.json"))
        if held:
            raise CannotAssess(
                f"{out} holds results already, which would be lost: name another folder, or "
                f"remove it"
            )
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="conformance-bench-") as folder:
        yield Path(folder)


@contextmanager
def _progress() -> Iterator[Announce]:
    """Announces each process as it starts: on one line that is updated on a terminal, else on new
    lines."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield lambda what, number, total: say(f"{number}/{total} {what}", sys.stderr)
        return
    with screen.status("starting") as status:
        yield lambda what, number, total: status.update(f"{number}/{total} {what}")


def _as_json(recording: Recording) -> dict[str, Any]:
    return {
        "environment": recording.runs[0].environment,
        "ceilings": recording.runs[0].ceilings,
        "benchmarks": [
            {
                "name": name,
                "seconds": recording.seconds(name),
                "peakMemoryBytes": recording.peak_memory(name),
                "trouble": recording.trouble(name),
            }
            for name in recording.names
        ],
    }
