"""`conformance certify`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional

import typer

from conformance.catalogue import catalogue, expected_clauses
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
    backbone_ids,
    clause_ids,
    completing,
    names_in,
    positive,
)
from conformance.errors import CannotAssess
from conformance.report.terminal import console, say
from conformance.run.events import Begin, Event, Judged, OnEvent, Phase
from conformance.run.request import BUDGETS, DEFAULT_TIMEOUT_SECONDS, RunRequest

if TYPE_CHECKING:
    from conformance.report.progress import Progress
    from conformance.verdict.outcomes import Assessment
    from conformance.verdict.verdict import Verdict


def certify(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="An id, `package.module:Class` or `path/to/file.py:Class`.",
            autocompletion=completing(backbone_ids),
        ),
    ],
    backbone_id: BackboneId = None,
    profile: Profile = None,
    weights: Annotated[
        Optional[str],
        typer.Option(
            metavar="probe|full|DIR",
            help="What profile scale streams: the published size with seeded weights (full) or a "
            "real checkpoint; "
            "all others run on probe (tiny, seeded) [default: full with scale].",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda; only profile gpu runs on cuda.")
    ] = "auto",
    budget: Annotated[
        str, typer.Option(help=f"How many inputs to draw: {', '.join(BUDGETS)}.")
    ] = "standard",
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes to share the clauses between.")] = 1,
    timeout: Annotated[
        float, typer.Option(help="Seconds without progress after which a step counts as hung.")
    ] = DEFAULT_TIMEOUT_SECONDS,
    max_memory: Annotated[
        Optional[float],
        typer.Option(
            help="GiB of memory for each process [default: three quarters of what is free]."
        ),
    ] = None,
    waivers: Annotated[Optional[Path], typer.Option(help="TOML file of waived clauses.")] = None,
    config: Config = None,
    hub: HubRoot = None,
    recipes: Recipes = None,
    models: Models = None,
    trust_remote_code: TrustRemoteCode = False,
    download: Annotated[
        bool,
        typer.Option(
            "--download",
            help="Fetch the config and tokenizer of a model that is not at hand into your Hugging "
            "Face cache; no weights.",
        ),
    ] = False,
    only: Annotated[
        Optional[str],
        typer.Option(
            help="Judge these clauses alone, IDs joined by commas; never certifies.",
            autocompletion=completing(clause_ids),
        ),
    ] = None,
    failed_from: Annotated[
        Optional[Path],
        typer.Option(
            help="Judge the clauses that are not met in this certificate; never certifies."
        ),
    ] = None,
    out: Annotated[
        Optional[Path],
        typer.Option(
            help="Folder for the certificate and reports; those of an earlier run are replaced at "
            "the end."
        ),
    ] = None,
    watching: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Judge again whenever a file of the backbone is saved, what was not met first, "
            "until you end it; never certifies.",
        ),
    ] = False,
    as_json: Json = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show tracebacks, logs and all of the evidence.")
    ] = False,
) -> None:
    """Judge a backbone and certify it.

    Exit status: 0 certified (of chosen clauses: all are met), 1 not, 2 could not be assessed, 130
    interrupted.
    """
    names, clauses = _scope(profile, only, failed_from)
    request = RunRequest(
        target=target,
        backbone_id=backbone_id,
        profiles=names,
        only=clauses,
        weights=weights or "auto",
        device=device,
        budget=budget,
        seed=seed,
        jobs=jobs,
        timeout=timeout,
        hub=hub,
        recipes=tuple(recipes or ()),
        models=tuple(models or ()),
        trust_remote_code=trust_remote_code,
        config=config,
        memory_limit=None
        if max_memory is None
        else int(positive("--max-memory", max_memory, "GiB") * 2**30),
    )
    if watching:
        _watch(request, fetching=download, waivers=waivers, out=out, as_json=as_json)
    verdict = judge(
        request, waivers=waivers, out=out, as_json=as_json, verbose=verbose, fetching=download
    )
    if out is None and not as_json:
        say("  files: add --out DIR for certificate.json, report.html, summary.md and junit.xml")
    raise typer.Exit(verdict.exit_status)


def _watch(
    request: RunRequest, *, fetching: bool, waivers: Path | None, out: Path | None, as_json: bool
) -> NoReturn:
    for option, given in (("--waivers", waivers), ("--out", out), ("--json", as_json)):
        if given:
            raise CannotAssess(f"{option} is for a verdict, and --watch never reaches one")
    from conformance.cli.watch import watch

    watch(request, functools.partial(_run, fetching=fetching))


def judge(
    request: RunRequest,
    *,
    waivers: Path | None = None,
    out: Path | None = None,
    as_json: bool = False,
    verbose: bool = False,
    fetching: bool = False,
) -> Verdict:
    """Run a request, showing its progress, and report its verdict: on the terminal, in the folder
    `out`, as JSON. With `fetching` a model that is not at hand is fetched.

    Raises:
        CannotAssess: for what the run or one of the files refuses.
    """
    from conformance.hub import known_recipes
    from conformance.report.console import write_report
    from conformance.report.files import check_writable, write_all
    from conformance.report.github import runs_here, tell_github
    from conformance.report.progress import progress
    from conformance.subject.adapter import Adapter
    from conformance.subject.declarations import configuration_in
    from conformance.verdict.certificate import serialise
    from conformance.verdict.reaching import reach_verdict
    from conformance.verdict.resources import digest_of_file
    from conformance.verdict.upstream import known_defects
    from conformance.verdict.waivers import read_waivers

    waived = read_waivers(waivers) if waivers else ()
    defects = known_defects()
    known_recipes(request.recipes)
    tables, configuration = configuration_in(request.config)
    if "adapter" in tables:
        Adapter.read(tables["adapter"], str(configuration))
    files = {str(path): digest_of_file(path) for path in (waivers, configuration) if path}
    if out is not None:
        check_writable(out)

    with _earlier_report_told(out), progress(console(stderr=True)) as shown:
        assessment = _run(request, _shown_on(shown), fetching=fetching)
    verdict = reach_verdict(
        assessment, waivers=waived, defects=defects, only=request.only, files=files
    )
    if out is not None:
        write_all(verdict, out)
    write_report(
        console(stderr=as_json),
        verdict,
        deep=verbose,
        options=_options_to_repeat(request),
    )
    if runs_here():
        tell_github(verdict)
    if as_json:
        say(serialise(verdict.as_certificate()).rstrip())
    elif out is not None:
        say(f"  files: {out / 'certificate.json'}, report.html, summary.md, junit.xml beside it")
    return verdict


@contextmanager
def _earlier_report_told(out: Path | None) -> Iterator[None]:
    """Say whose report is in `out` if the body ends without one of its own."""
    from conformance.verdict.load import CERTIFICATE

    try:
        yield
    except (CannotAssess, KeyboardInterrupt):
        if out is not None and (out / CERTIFICATE).exists():
            say(f"`{out}` still holds the report of an earlier run", sys.stderr)
        raise


def _run(request: RunRequest, on_event: OnEvent, *, fetching: bool, **how: Any) -> Assessment:
    """Run it, `how` as `parent.run` takes it; with `fetching`, a model that is not at hand is
    fetched into the user's cache first, and the run begins again."""
    from conformance.hub import UnknownRecipe
    from conformance.hub.sources import download, users_cache
    from conformance.run.parent import run

    fetched: set[str] = set()
    while True:
        try:
            return run(request, on_event, **how)
        except UnknownRecipe as missing:
            if not fetching or missing.hub_id is None or missing.hub_id in fetched:
                raise
            on_event(Phase("fetching config and tokenizer", missing.hub_id))
            download(missing.hub_id)
            fetched.add(missing.hub_id)
            request = replace(request, cache=users_cache())


def _shown_on(shown: Progress) -> OnEvent:
    def show(event: Event) -> None:
        match event:
            case Phase():
                shown.step(str(event))
            case Begin():
                shown.begin(event.id, event.total)
            case Judged():
                shown.judged(event.outcome)

    return show


def _scope(
    profile: str | None, only: str | None, failed_from: Path | None
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The profiles, and the clauses of a partial run (None for a whole one)."""
    if only is not None and failed_from is not None:
        raise CannotAssess("--only and --failed-from both choose the clauses: give one of them")
    if failed_from is not None:
        return _unmet_in(failed_from, profile)
    names = profile_names(profile)
    if only is None:
        return names, None
    wanted = tuple(dict.fromkeys(known_clause(name).id for name in names_in("--only", only)))
    return names, _within(wanted, names, "--only")


def _unmet_in(certificate: Path, profile: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from conformance.verdict.load import read_certificate
    from conformance.verdict.outcomes import UNMET

    verdict = read_certificate(certificate)
    unmet = [outcome.id for outcome in verdict.asked if outcome.outcome in UNMET]
    if not unmet:
        raise CannotAssess(
            f"`{certificate}` has no clause that is not met: there is nothing to judge again"
        )
    names = profile_names(profile or ",".join(verdict.assessment.profiles))
    return names, _within(tuple(known_clause(name).id for name in unmet), names, "--failed-from")


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


def _options_to_repeat(request: RunRequest) -> list[str]:
    options = [
        ("--config", request.config),
        ("--hub", request.hub),
        *(("--recipes", recipe) for recipe in request.recipes),
        *(("--model", model) for model in request.models),
    ]
    repeated = [word for option, value in options if value for word in (option, str(value))]
    return [*repeated, "--trust-remote-code"] if request.trust_remote_code else repeated
