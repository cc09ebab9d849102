"""``conformance bench``: nothing heavy is imported until a command needs it."""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from conformance.bench.request import ROUNDS, SIZES, WORKLOADS, BenchRequest
from conformance.bench.statistics import ROUNDS as ROUNDS_NEEDED
from conformance.cli.options import (
    SETTINGS,
    BackboneId,
    Config,
    HubRoot,
    Json,
    Recipes,
    at_least,
    at_most,
    names_in,
    one_of,
    positive,
)
from conformance.errors import CannotAssess
from conformance.report.terminal import console, say
from conformance.run.request import DEVICES

if TYPE_CHECKING:
    from rich.console import Console

    from conformance.bench.results import Recording

#: Finds three per cent in four of five comparisons or more on two shared cores (docs/benchmarks.md); a quiet device needs fewer.
PAIRS = 16
#: A fresh process each time meets the machine as a user would; forks of a warmed one start sooner.
PROCESSES = ("fresh", "forked")
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "all")
_LOG_WIDTH = 200
#: The centre of a pair looks at any two of its rounds.
MOST_ROUNDS = 1000
#: Options that say how to measure, with the names of their parameters.
_MEASURING = {
    "--id": "backbone_id", "--size": "size", "--device": "device", "--attention": "attention", "--compile": "compiled",
    "--rounds": "rounds", "--pairs": "pairs", "--processes": "processes", "--timeout": "timeout", "--seed": "seed",
    "--hub": "hub", "--recipes": "recipes", "--config": "config",
}  # fmt: skip
bench_app = typer.Typer(help="Time backbones, and compare two versions of them.", rich_markup_mode=None)

Targets = Annotated[
    Optional[list[str]],
    typer.Argument(metavar="[TARGET]...", help="Ids, `package.module:Class` or `path/to/file.py:Class`."),
]
Size = Annotated[str, typer.Option(help="probe (tiny, seeded) or full (the published size, seeded).")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Attention = Annotated[
    Optional[str],
    typer.Option(
        help="eager, sdpa, flash_attention_2, joined by commas, or all [default: the backbone's own]."
    ),
]
Workload = Annotated[
    Optional[str], typer.Option(help=f"Of {', '.join(WORKLOADS)}, joined by commas [default: all].")
]
Compiled = Annotated[bool, typer.Option("--compile", help="Time compiled models beside the others.")]
Rounds = Annotated[int, typer.Option(help="Rounds of each benchmark in each process.")]
Processes = Annotated[
    str, typer.Option(help="fresh: a new process each time; forked: of one that has imported everything.")
]
Timeout = Annotated[float, typer.Option(help="Seconds for each process.")]
Seed = Annotated[int, typer.Option(help="Seed of weights and tokens.")]


@bench_app.command(context_settings=SETTINGS)
def run(
    targets: Targets = None,
    backbone_id: BackboneId = None,
    size: Size = "probe",
    device: Device = "auto",
    attention: Attention = None,
    workload: Workload = None,
    compiled: Compiled = False,
    rounds: Rounds = ROUNDS,
    runs: Annotated[int, typer.Option(help="Processes; two or more can be compared later.")] = 1,
    processes: Processes = "fresh",
    timeout: Timeout = 1800.0,
    seed: Seed = 0,
    hub: HubRoot = None,
    recipes: Recipes = None,
    config: Config = None,
    out: Annotated[Optional[Path], typer.Option(help="Folder for the results, one file a process.")] = None,
    as_json: Json = False,
) -> None:
    """Time backbones: prefill, decode and a training step.

    Exit status: 0 measured, 2 something could not be measured, 130 interrupted.
    """
    from conformance.bench.report import write_measured
    from conformance.bench.running import record

    limit = positive("--timeout", timeout, "seconds")
    at_least("--runs", runs, 1)
    one_of("--processes", processes, PROCESSES)
    request = _request(
        targets, backbone_id, size, device, attention, workload, compiled, rounds, seed, hub, recipes, config
    )
    with _folder(out) as folder, _progress() as announce:
        recording = _measured(
            lambda: record(
                request, runs, folder, processes=processes, timeout=limit, announce=announce,
            )
        )  # fmt: skip
    if not any(run.benchmarks for run in recording.runs):
        why = dict.fromkeys(filter(None, map(recording.trouble, recording.names)))
        raise CannotAssess(f"nothing could be measured: {'; '.join(why)}")
    if as_json:
        say(json.dumps(_measured_as_json(recording), indent=2))
    else:
        write_measured(_screen(), recording)
        say(f"  results: {out}" if out else "  results: add --out DIR to keep them")
    raise typer.Exit(2 if any(run.unmeasured for run in recording.runs) else 0)


@bench_app.command(context_settings=SETTINGS)
def compare(
    context: typer.Context,
    targets: Targets = None,
    base: Annotated[str, typer.Option(help="A git ref, or a file or folder of stored results.")] = "",
    head: Annotated[
        Optional[str],
        typer.Option(help="The same [default: the working tree, uncommitted changes included]."),
    ] = None,
    pairs: Annotated[int, typer.Option(help="Processes of each side, made in turn.")] = PAIRS,
    detect: Annotated[
        float, typer.Option(help="Per cent of slow-down that must be excluded for a pass.")
    ] = 3.0,
    backbone_id: BackboneId = None,
    size: Size = "probe",
    device: Device = "auto",
    attention: Attention = None,
    workload: Workload = None,
    compiled: Compiled = False,
    rounds: Rounds = ROUNDS,
    processes: Processes = "fresh",
    timeout: Timeout = 1800.0,
    seed: Seed = 0,
    hub: HubRoot = None,
    recipes: Recipes = None,
    config: Config = None,
    allow_environment_change: Annotated[
        bool,
        typer.Option("--allow-environment-change", help="Compare although torch or another package changed."),
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
    from conformance.bench.comparing import are_stored, compare_commits, compare_stored
    from conformance.bench.report import write_all, write_comparison
    from conformance.bench.statistics import NEGLIGIBLE

    limit = positive("--timeout", timeout, "seconds")
    _even_pairs(pairs)
    one_of("--processes", processes, PROCESSES)
    if not base:
        raise CannotAssess(
            "--base is missing: name a git ref (main, say), or a file or folder of stored results"
        )
    if not 100 * math.expm1(NEGLIGIBLE) < detect <= 100:
        raise CannotAssess(
            f"--detect is {detect:g}, but should be more than the half per cent that counts as none, and 100 at most"
        )
    how: dict[str, Any] = {
        "detectable": math.log1p(detect / 100),
        "allow_environment_change": allow_environment_change,
    }
    recordings: tuple[Recording, Recording] | None
    if are_stored(base, head):
        ignored = [option for option in _MEASURING if _was_given(context, option)]
        if ignored:
            say(f"stored results are measured already: {', '.join(ignored)} ignored", sys.stderr)
        workloads = _each_of("--workload", workload, WORKLOADS)
        comparison, recordings = compare_stored(Path(base), Path(str(head)), targets or (), workloads, **how)
    else:
        request = _request(
            targets, backbone_id, size, device, attention, workload, compiled, rounds, seed, hub, recipes, config
        )  # fmt: skip
        with _folder(out and out / "runs") as folder, _progress() as announce:
            how_measured = {
                "pairs": pairs,
                "out": folder,
                "processes": processes,
                "timeout": limit,
                "announce": announce,
            }
            comparison, recordings = compare_commits(request, base, head, how_measured, **how)
    written = write_all(comparison, recordings, out) if out is not None else []
    if as_json:
        say(json.dumps(comparison.as_json(), indent=2))
    else:
        write_comparison(_screen(), comparison)
        say(
            f"  files: {out / written[0]}, and beside it {', '.join(written[1:])}"
            if out
            else "  files: add --out DIR"
        )
    raise typer.Exit(comparison.exit_status)


def _was_given(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(_MEASURING[option])
    return source is not None and source.name == "COMMANDLINE"


@bench_app.command(context_settings=SETTINGS)
def history(
    places: Annotated[
        list[Path], typer.Argument(metavar="PLACE...", help="Files or folders of stored results.")
    ],
    out: Annotated[Optional[Path], typer.Option(help="Folder for history.html.")] = None,
    as_json: Json = False,
) -> None:
    """Show benchmarks over time, and where they stepped.

    Exit status: 0 shown, 2 a file is no result.
    """
    from conformance.bench.history import history as over_time
    from conformance.bench.page import history_page
    from conformance.bench.report import history_rows, shortened, table
    from conformance.report.writing import write_whole

    found = over_time(places)
    if out is not None:
        write_whole(out, "history.html", history_page(found))
    if as_json:
        told = {"rows": found.rows, "steps": found.steps, "memorySteps": found.memory_steps}
        say(json.dumps(told, indent=2))
        return
    columns = ("benchmark", "recordings", "first", "last", "steps at", "memory steps at")
    _screen().print(table(columns, shortened(history_rows(found))))
    if out is not None:
        say(f"  files: {out / 'history.html'}")


@bench_app.command(context_settings=SETTINGS)
def power(
    targets: Targets = None,
    pairs: Annotated[int, typer.Option(help="Pairs that a comparison takes.")] = PAIRS,
    recorded: Annotated[int, typer.Option(help="Pairs to record of each slow-down.")] = 40,
    draws: Annotated[int, typer.Option(help="Comparisons to draw from the recording.")] = 1000,
    confirm: Annotated[
        int, typer.Option(help="Comparisons to run end to end besides, half of them without a slow-down.")
    ] = 0,
    recording: Annotated[
        Optional[list[Path]],
        typer.Option(help="Folder of an earlier run: draw from it, and record nothing; may be repeated."),
    ] = None,
    backbone_id: BackboneId = None,
    size: Size = "probe",
    device: Device = "auto",
    attention: Attention = None,
    workload: Workload = None,
    rounds: Rounds = ROUNDS,
    processes: Processes = "fresh",
    timeout: Timeout = 1800.0,
    seed: Seed = 0,
    hub: HubRoot = None,
    recipes: Recipes = None,
    config: Config = None,
    out: Annotated[
        Optional[Path], typer.Option(help="Folder for power.json, power.svg, power.png and the runs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how often comparisons cry wolf on this machine, and how large a slow-down they find.

    Exit status: 0 measured, 2 something could not be measured, 130 interrupted.
    """
    from conformance.bench.charts import power_curve, save
    from conformance.bench.power import (
        Experiment,
        confirmations,
        environment_of,
        memory_found,
        rates,
        read_recording,
    )
    from conformance.bench.report import power_rows, shortened, table
    from conformance.report.writing import write_whole

    limit = positive("--timeout", timeout, "seconds")
    _even_pairs(pairs)
    one_of("--processes", processes, PROCESSES)
    at_least("--confirm", confirm, 0)
    at_least("--draws", draws, 1)
    with nullcontext() if recording else _folder(out and out / "runs") as folder:
        if folder is not None:
            request = _request(
                targets,
                backbone_id,
                size,
                device,
                attention,
                workload,
                False,
                rounds,
                seed,
                hub,
                recipes,
                config,
            )
            if recorded < pairs:
                raise CannotAssess(
                    f"--recorded is {recorded}, but should be {pairs} or more, which a comparison takes (--pairs)"
                )
            with _progress() as announce:
                experiment = Experiment(request, folder, processes, limit, announce)
                calibration = _measured(experiment.calibrate)
                _measured(lambda: experiment.record(calibration, recorded))
                _measured(lambda: experiment.inject_memory(calibration))
                _measured(lambda: experiment.confirm(calibration, confirm, pairs))
        places = [folder] if folder is not None else recording or []
        recordings = read_recording(*places)
        environment = environment_of(places[0])
        confirmed = [one for place in places for one in confirmations(place)]
        memory = next(filter(None, map(memory_found, places)), None)
    found = list(rates(recordings, pairs, draws=draws, seed=seed))
    told: dict[str, Any] = {
        "environment": environment,
        "pairs": pairs,
        "rates": [rate.as_json() for rate in found],
        "confirmations": [one.as_json() for one in confirmed],
        "memory": memory,
        "logarithms": _pairs_as_json(recordings, "logarithm"),
        "stalls": _pairs_as_json(recordings, "stalls"),
        "means": _pairs_as_json(recordings, "mean"),
    }
    if out is not None:
        write_whole(out, "power.json", _document(told))
        save(power_curve(told["rates"]), out, "power")
    if as_json:
        say(_document(told).rstrip())
        return
    _screen().print(
        table(
            ("benchmark", "slowed by", "measured", "a pair strays", f"found of {draws:,}", "its bounds"),
            shortened(power_rows(found)),
        )
    )
    if memory is not None:
        say(
            f"  {memory['injectedBytes']:,} bytes more were found in {memory['found']} of {memory['of']} benchmarks"
        )
    for one in confirmed:
        say(
            f"  confirmed, slowed by {100 * one.slowdown:g} %: {one.result}, {len(one.slower)} slower, {one.minutes:g} minutes"
        )
    beside = "power.svg and power.png" if recording else "power.svg, power.png and runs"
    say(f"  files: {out / 'power.json'}, and beside it {beside}" if out else "  files: add --out DIR")


def _even_pairs(pairs: int) -> None:
    """Who begins a pair is measured a little slower: each version is to begin as often as the other."""
    if at_least("--pairs", pairs, 2) % 2:
        raise CannotAssess(
            f"--pairs is {pairs}, but should be even: the two versions take turns at beginning, and who begins is slower"
        )


def _pairs_as_json(
    recorded: Mapping[float, Sequence[Mapping[str, Sequence[Any]]]], what: str
) -> dict[str, Any]:
    """One number of every pair, by slow-down and benchmark, pairs that were measured together in one list."""
    return {
        str(share): [
            {name: [round(getattr(pair, what), 6) for pair in own] for name, own in together.items()}
            for together in every
        ]
        for share, every in recorded.items()
    }


def _document(told: Mapping[str, Any]) -> str:
    """JSON, with lists of numbers on one line each."""
    text = json.dumps(told, indent=2)
    return re.sub(r"\[[-+.e\d,\s]+\]", lambda found: " ".join(found[0].split()), text) + "\n"


def _request(
    targets: list[str] | None,
    backbone_id: str | None,
    size: str,
    device: str,
    attention: str | None,
    workload: str | None,
    compiled: bool,
    rounds: int,
    seed: int,
    hub: Path | None,
    recipes: list[Path] | None,
    config: Path | None,
) -> BenchRequest:
    from conformance.subject.target import registered_targets

    for option, place in (("--config", config), *(("--recipes", recipe) for recipe in recipes or ())):
        if place is not None and not place.exists():
            raise CannotAssess(f"{option} {place} does not exist")
    return BenchRequest(
        targets=tuple(targets or registered_targets()),
        backbone_id=backbone_id,
        size=one_of("--size", size, SIZES),
        device=_device(device),
        attentions=_each_of("--attention", attention, ATTENTIONS),
        workloads=_each_of("--workload", workload, WORKLOADS),
        compiled=compiled,
        rounds=at_most("--rounds", at_least("--rounds", rounds, ROUNDS_NEEDED), MOST_ROUNDS),
        seed=seed,
        hub=None if hub is None else str(hub.resolve()),
        recipes=tuple(str(path.resolve()) for path in recipes or ()),
        config=None if config is None else str(config.resolve()),
    )


def _each_of(option: str, text: str | None, choices: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one_of(option, name, choices) for name in names_in(option, text)) if text is not None else ()


def _device(asked: str) -> str:
    if one_of("--device", asked, DEVICES) == "cpu":
        return asked
    import torch

    from conformance.bench.machine import check_device

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(asked)
    return asked


def _measured(make: Any) -> Any:
    from conformance.bench.processes import RunFailed

    try:
        return make()
    except RunFailed as failure:
        raise CannotAssess(f"nothing could be measured: {failure}") from failure


def _screen() -> Console:
    """Standard output, with room for a table's rows where no terminal limits them: a log is searched by the line."""
    return console(stderr=False, width=None if sys.stdout.isatty() else _LOG_WIDTH)


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        from conformance.report.writing import writing_to

        with writing_to(out):
            held = any(out.rglob("*.json"))
        if held:
            raise CannotAssess(
                f"{out} holds results already, which would be lost: name another folder, or remove it"
            )
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="conformance-bench-") as folder:
        yield Path(folder)


@contextmanager
def _progress() -> Iterator[Any]:
    """Tells of each process as it starts: a line that is written over on a terminal, lines elsewhere."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield lambda what, number, total: say(f"{number}/{total} {what}", sys.stderr)
        return
    with screen.status("starting") as status:
        yield lambda what, number, total: status.update(f"{number}/{total} {what}")


def _measured_as_json(recording: Recording) -> dict[str, Any]:
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
