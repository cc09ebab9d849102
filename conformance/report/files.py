"""Writes the `--out` folder: the certificate, its reports, and a script for each failed clause."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from conformance.report.counterexamples import MARK, counterexamples
from conformance.report.html import html
from conformance.report.junit import junit
from conformance.report.markdown import markdown
from conformance.report.writing import write_whole, writing_to
from conformance.verdict.certificate import serialise
from conformance.verdict.load import CERTIFICATE
from conformance.verdict.verdict import Verdict

REPORTS = {"report.html": html, "summary.md": markdown, "junit.xml": junit}
COUNTEREXAMPLES = "counterexamples"


def check_writable(folder: Path) -> None:
    """Make `folder` if need be, and see that files can be written there: better now than after the
    run.

    Raises:
        UnwritableFolder: naming the folder and the reason.
    """
    with writing_to(folder), tempfile.TemporaryFile(dir=folder):
        pass


def write_all(verdict: Verdict, folder: Path) -> None:
    """Write the certificate and everything that `write_reports` writes, in place of what an earlier
    run left there.

    Everything is written beside the old files before the first of them goes, and the certificate
    comes last: if it is there, it is whole, and so are its reports.

    Raises:
        UnwritableFolder: naming the folder and the reason.
    """
    with writing_to(folder), tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as beside:
        new = Path(beside)
        write_reports(verdict, new)
        write_whole(new, CERTIFICATE, serialise(verdict.as_certificate()))
        (folder / CERTIFICATE).unlink(missing_ok=True)
        for script in (folder / COUNTEREXAMPLES).glob("*.py"):
            if script.read_bytes().startswith(MARK.encode()):
                script.unlink()
        for script in (new / COUNTEREXAMPLES).glob("*.py"):
            (folder / COUNTEREXAMPLES).mkdir(exist_ok=True)
            os.replace(script, folder / COUNTEREXAMPLES / script.name)
        for name in (*REPORTS, CERTIFICATE):
            os.replace(new / name, folder / name)


def write_reports(verdict: Verdict, folder: Path) -> None:
    """Write `report.html`, `summary.md`, `junit.xml` and `counterexamples/`.

    Raises:
        UnwritableFolder: naming the folder and the reason.
    """
    for name, render in REPORTS.items():
        write_whole(folder, name, render(verdict))
    for name, source in counterexamples(verdict).items():
        write_whole(folder / COUNTEREXAMPLES, name, source)
