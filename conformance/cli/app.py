"""The command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import difflib
import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional

import typer

from conformance.catalogue import Requirement, catalogue, expected_clauses, profiles
from conformance.cli.bench import bench_app
from conformance.cli.options import (
    DEVICES,
    SETTINGS,
    BackboneId,
    Config,
    HubRoot,
    Json,
    Recipes,
    at_least,
    names_in,
    one_of,
    positive,
)
from conformance.errors import CannotAssess
from conformance.report.terminal import console, prepare_streams, say
from conformance.run.request import BUDGETS, DEFAULT_TIMEOUT_SECONDS, RunRequest, device_for, weights_for

if TYPE_CHECKING:
    from conformance.hub import Recipe

CANNOT_ASSESS = 2
INTERRUPTED = 130

app = typer.Typer(
    help="Is this backbone wired right? "
    "Certifies language-model backbones for vision-language and robot-action models.",
    context_settings=SETTINGS,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
hub_app = typer.Typer(help="Build or list the offline checkpoints.", rich_markup_mode=None)
app.add_typer(hub_app, name="hub")
app.add_typer(bench_app, name="bench")

Profile = Annotated[
    Optional[str], typer.Option("--profile", help="Names, joined by commas [default: default].")
]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 certified, 1 not certified, 2 not assessed, 130 interrupted."""
    prepare_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _ending_when_terminated():
            status = app(given, prog_name="conformance", standalone_mode=False) or 0
    except CannotAssess as refusal:
        status = _refuse(str(refusal), given)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        # Usage errors come from click or from typer's own copy of it, depending on typer's version.
        usage: Callable[[], str] | None = getattr(error, "format_message", None)
        told = f"{usage()} (see --help)" if usage else _internal_error(error)
        status = _refuse(told, given, traced=usage is None)
    if status == INTERRUPTED:
        kept = (
            "what was measured before stays where --out put it"
            if given[:1] == ["bench"]
            else "no certificate was written"
        )
        say(f"interrupted; {kept}", sys.stderr)
    sys.exit(status)


@app.command(context_settings=SETTINGS)
def certify(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="An id, `package.module:Class` or `path/to/file.py:Class`."),
    ],
    backbone_id: BackboneId = None,
    profile: Profile = None,
    weights: Annotated[
        Optional[str],
        typer.Option(
            metavar="probe|full|DIR",
            help="What profile scale streams: the published size with seeded weights (full) or a real checkpoint; "
            "all others run on probe (tiny, seeded) [default: full with scale].",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; profile gpu alone runs on cuda.")] = "auto",
    budget: Annotated[str, typer.Option(help=f"How many inputs to draw: {', '.join(BUDGETS)}.")] = "standard",
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes to share the clauses between.")] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds for each step.")] = DEFAULT_TIMEOUT_SECONDS,
    max_memory: Annotated[
        Optional[float],
        typer.Option(help="GiB of memory for each process [default: three quarters of what is free]."),
    ] = None,
    waivers: Annotated[Optional[Path], typer.Option(help="TOML file of waived clauses.")] = None,
    config: Config = None,
    hub: HubRoot = None,
    recipes: Recipes = None,
    only: Annotated[
        Optional[str], typer.Option(help="Judge these clauses alone, IDs joined by commas; never certifies.")
    ] = None,
    failed_from: Annotated[
        Optional[Path],
        typer.Option(help="Judge the clauses that this certificate has as not met; never certifies."),
    ] = None,
    out: Annotated[
        Optional[Path],
        typer.Option(
            help="Folder for the certificate and reports; those of an earlier run are removed first."
        ),
    ] = None,
    as_json: Json = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show tracebacks, logs and all of the evidence.")
    ] = False,
) -> None:
    """Judge a backbone and certify it.

    Exit status: 0 certified, 1 not certified, 2 could not be assessed, 130 interrupted.
    """
    from conformance.report.console import write_report
    from conformance.report.files import clear, write_all
    from conformance.report.progress import progress
    from conformance.run.parent import run
    from conformance.subject.declarations import declarations_in
    from conformance.verdict.certificate import serialise
    from conformance.verdict.reaching import reach_verdict
    from conformance.verdict.resources import digest_of_file
    from conformance.verdict.upstream import known_defects
    from conformance.verdict.waivers import read_waivers

    names, clauses = _scope(profile, only, failed_from)
    request = RunRequest(
        target=target,
        backbone_id=backbone_id,
        profiles=names,
        only=clauses,
        weights=weights_for(weights, names),
        device=device_for(one_of("--device", device, DEVICES), names),
        budget=one_of("--budget", budget, BUDGETS),
        seed=at_least("--seed", seed, 0),
        jobs=at_least("--jobs", jobs, 1),
        timeout=positive("--timeout", timeout, "seconds"),
        hub=hub,
        recipes=tuple(recipes or ()),
        config=config,
        memory_limit=None if max_memory is None else int(positive("--max-memory", max_memory, "GiB") * 2**30),
    )
    waived = read_waivers(waivers) if waivers else ()
    defects = known_defects()
    _recipes_by_hub_id(recipes)
    configuration = declarations_in(config)[1]
    files = {str(path): digest_of_file(path) for path in (waivers, configuration) if path}
    if out is not None:
        clear(out)

    with progress(console(stderr=True)) as on_event:
        assessment = run(request, on_event)
    verdict = reach_verdict(assessment, waivers=waived, defects=defects, only=clauses, files=files)
    if out is not None:
        write_all(verdict, out)
    write_report(
        console(stderr=as_json), verdict, deep=verbose, options=_options_to_repeat(config, hub, recipes)
    )
    if as_json:
        say(serialise(verdict.as_certificate()).rstrip())
    elif out is not None:
        say(f"  files: {out / 'certificate.json'}, report.html, summary.md, junit.xml beside it")
    else:
        say("  files: add --out DIR for certificate.json, report.html, summary.md and junit.xml")
    raise typer.Exit(verdict.exit_status)


@app.command("list", context_settings=SETTINGS)
def list_backbones(as_json: Json = False, recipes: Recipes = None) -> None:
    """List the backbones known by id.

    These are the references, and what installed packages register in the group conformance.backbones.
    """
    from conformance.subject.target import registered_targets

    recipe_of = {
        backbone_id: recipe
        for recipe in _recipes_by_hub_id(recipes).values()
        for backbone_id in recipe.subject.get("backbone_ids", ())
    }
    rows = [
        {
            "id": backbone_id,
            "family": recipe_of[backbone_id].family if backbone_id in recipe_of else None,
            "hub": recipe_of[backbone_id].hub_id if backbone_id in recipe_of else None,
            "target": target,
        }
        for backbone_id, target in registered_targets().items()
    ]
    _show(rows, as_json)


@app.command(context_settings=SETTINGS)
def requirements(
    clause: Annotated[
        Optional[str], typer.Argument(metavar="[ID]", help="A clause, for all there is on it.")
    ] = None,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """List the clauses, or show one of them."""
    if clause is not None:
        known = _known_clause(clause).as_json()
        say(
            json.dumps(known, indent=2)
            if as_json
            else "\n".join(f"{name:<10} {_cell(known[name])}" for name in known)
        )
        return
    wanted = expected_clauses(_profile_names(profile)) if profile else tuple(catalogue())
    entries = [catalogue()[name].as_json() for name in wanted]
    if as_json:
        say(json.dumps(entries, indent=2))
    else:
        _show(
            [{name: entry[name] for name in ("id", "level", "profile", "statement")} for entry in entries],
            False,
        )


@hub_app.command("build", context_settings=SETTINGS)
def hub_build(
    hub_ids: Annotated[
        Optional[list[str]], typer.Argument(metavar="[HUB_ID]...", help="All recipes unless given.")
    ] = None,
    hub: HubRoot = None,
    recipes: Recipes = None,
    as_json: Json = False,
) -> None:
    """Build checkpoints from recipes, those that are not there yet."""
    from conformance.hub import CannotBuild, Hub, UnknownRecipe, recipe_for

    known = _recipes_by_hub_id(recipes)
    try:
        chosen = [recipe_for(hub_id, recipes or ()) for hub_id in hub_ids or known]
    except UnknownRecipe as error:
        raise CannotAssess(str(error)) from error
    store = Hub(hub)
    built = []
    for recipe in chosen:
        try:
            path = store.build(recipe, on_progress=lambda line: say(line, sys.stderr))
        except CannotBuild as error:
            raise CannotAssess(str(error)) from error
        built.append({"hub": recipe.hub_id, "digest": recipe.digest(), "path": str(path)})
    _show(built, as_json)


@hub_app.command("list", context_settings=SETTINGS)
def hub_list(hub: HubRoot = None, as_json: Json = False) -> None:
    """List the checkpoints that are built."""
    from conformance.hub import Hub

    store = Hub(hub)
    entries = store.entries()
    if not entries and not as_json:
        say(
            f"nothing is built in `{store.root}` yet; `conformance hub build` builds every recipe", sys.stderr
        )
    _show(
        [
            {"hub": entry.hub_id, "digest": entry.digest, "bytes": entry.bytes, "path": str(entry.path)}
            for entry in entries
        ],
        as_json,
    )


@app.command(context_settings=SETTINGS)
def report(
    certificate: Annotated[Path, typer.Argument(metavar="FILE", help="A certificate.json.")],
    out: Annotated[
        Optional[Path],
        typer.Option(help="Folder for report.html, summary.md, junit.xml and counterexamples."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show tracebacks, logs and all of the evidence.")
    ] = False,
) -> None:
    """Show what a certificate says.

    With --out, write its reports again. Exit status: 0 for any whole certificate, 2 for anything else.
    """
    from conformance.report.console import write_report
    from conformance.report.files import write_reports
    from conformance.verdict.load import read_certificate

    verdict = read_certificate(certificate)
    if out is not None:
        write_reports(verdict, out)
    write_report(console(stderr=False), verdict, deep=verbose)


@app.command(context_settings=SETTINGS)
def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="A certificate.json.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
) -> None:
    """Compare two certificates.

    Exit status: 0 if every clause has the same outcome in both, 1 if one has not, 2 if they cannot be read.
    """
    from conformance.report.narrative import one_line
    from conformance.verdict.difference import changed_clauses, changed_conditions
    from conformance.verdict.load import read_certificate

    old, new = read_certificate(before), read_certificate(after)
    clauses = changed_clauses(old, new)
    for change in clauses:
        say(f"{change.what}: {change.before} -> {change.after}{' (worse)' if change.worse else ''}")
    for change in changed_conditions(old, new):
        say(f"  {one_line(f'{change.what}: {change.before} -> {change.after}')}")
    if not clauses:
        say("no clause has another outcome")
    raise typer.Exit(1 if clauses else 0)


@app.command(context_settings=SETTINGS)
def calibrate(
    variants: Annotated[int, typer.Option(help="Legitimate variants of the computation to run.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of their weights and orders.")] = 0,
    out: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Write the result there, as JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the parity gates' bounds anew, on correct models whose channels stand in another order.

    Exit status: 0 if every gate admits every variant, 1 if one refuses one.
    """
    from rich.progress import track

    from conformance.parity import calibration

    families = len(calibration.FAMILIES)
    if variants < families:
        raise CannotAssess(f"`--variants` is {variants}, but should be at least {families}: one a family")
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
        _show(rows, as_json=False)
    raise typer.Exit(1 if any(reading.refused for reading in readings.values()) else 0)


def _scope(
    profile: str | None, only: str | None, failed_from: Path | None
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The profiles, and the clauses of a partial run (None for a whole one)."""
    if only is not None and failed_from is not None:
        raise CannotAssess("--only and --failed-from both choose the clauses: give one of them")
    if failed_from is not None:
        return _unmet_in(failed_from, profile)
    names = _profile_names(profile)
    if only is None:
        return names, None
    wanted = tuple(dict.fromkeys(_known_clause(name).id for name in names_in("--only", only)))
    return names, _within(wanted, names, "--only")


def _unmet_in(certificate: Path, profile: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from conformance.verdict.load import read_certificate
    from conformance.verdict.outcomes import UNMET

    verdict = read_certificate(certificate)
    unmet = [outcome.id for outcome in verdict.asked if outcome.outcome in UNMET]
    if not unmet:
        raise CannotAssess(f"`{certificate}` has no clause that is not met: there is nothing to judge again")
    names = _profile_names(profile or ",".join(verdict.assessment.profiles))
    return names, _within(tuple(_known_clause(name).id for name in unmet), names, "--failed-from")


def _within(clauses: tuple[str, ...], names: tuple[str, ...], option: str) -> tuple[str, ...]:
    expected = expected_clauses(names)
    for clause in clauses:
        if clause not in expected:
            home = catalogue()[clause].profile
            raise CannotAssess(
                f"{option} names {clause}, which profile {', '.join(names)} does not hold: "
                f"add --profile {home}"
            )
    return clauses


def _profile_names(profile: str | None) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(names_in("--profile", profile or "default")))
    for name in names:
        if name not in profiles():
            raise CannotAssess(
                f"profile `{name}` is not implemented in this version; implemented: {', '.join(profiles())}"
            )
    return names


def _known_clause(name: str) -> Requirement:
    known = catalogue()
    clause = known.get(name.upper())
    if clause is None:
        close = difflib.get_close_matches(name.upper(), known, n=3)
        hint = f"; near it: {', '.join(close)}" if close else ""
        raise CannotAssess(f"there is no clause `{name}`{hint}; `conformance requirements` lists them")
    return clause


def _recipes_by_hub_id(extra: Iterable[Path] | None) -> Mapping[str, Recipe]:
    from conformance.hub import InvalidRecipe, known_recipes

    try:
        return known_recipes(tuple(extra or ()))
    except InvalidRecipe as error:
        raise CannotAssess(str(error)) from error


def _options_to_repeat(config: Path | None, hub: Path | None, recipes: Iterable[Path] | None) -> list[str]:
    options = [("--config", config), ("--hub", hub), *(("--recipes", recipe) for recipe in recipes or ())]
    return [word for option, path in options if path is not None for word in (option, str(path))]


def _show(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Rows as JSON, or in aligned columns of which the last is as long as it is."""
    if as_json:
        say(json.dumps(rows, indent=2))
        return
    cells = [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


@contextmanager
def _ending_when_terminated() -> Iterator[None]:
    """Let SIGTERM end us as an exception does: whoever cancels a job in CI must find no worktree and no child of ours."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not in the main thread, whose business signals are
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse(message: str, arguments: Sequence[str], *, traced: bool = True) -> int:
    if traced and "--verbose" in arguments:
        traceback.print_exc()
    if "--json" in arguments:
        say(json.dumps({"error": message}, indent=2))
    say(f"conformance: {message}", sys.stderr)
    return CANNOT_ASSESS


def _internal_error(error: Exception) -> str:
    told = f"{type(error).__name__}: {error}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"internal error, {told} ({place.filename}:{place.lineno}; this is a defect of conformance)"


if __name__ == "__main__":
    main()
