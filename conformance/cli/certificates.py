"""`conformance report` and `conformance diff`, which read existing certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from conformance.report.terminal import console, say


def report(
    certificate: Annotated[
        Path, typer.Argument(metavar="FILE", help="A certificate.json, or the folder of one.")
    ],
    out: Annotated[
        Optional[Path],
        typer.Option(help="Folder for report.html, summary.md, junit.xml and counterexamples."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show tracebacks, logs and all of the evidence.")
    ] = False,
) -> None:
    """Show what a certificate says.

    With --out, write its reports again. Exit status: 0 for any whole certificate, 2 for anything
    else.
    """
    from conformance.report.console import write_report
    from conformance.report.files import write_reports
    from conformance.verdict.load import read_certificate

    verdict = read_certificate(certificate)
    if out is not None:
        write_reports(verdict, out)
    write_report(console(stderr=False), verdict, deep=verbose)


def diff(
    before: Annotated[
        Path, typer.Argument(metavar="A", help="A certificate.json, or the folder of one.")
    ],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
) -> None:
    """Compare two certificates.

    Exit status: 0 if every clause has the same outcome in both, 1 if one does not, 2 if they cannot
    be read.
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
