"""Writes the `--out` folder: the certificate, its reports, and a script for each failed clause."""

from __future__ import annotations

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


def clear(folder: Path) -> None:
    """Make `folder` if need be, and remove what an earlier run left there: a run that ends without
    a certificate must not leave an old one behind.

    Raises:
        UnwritableFolder: naming the folder and the reason.
    """
    with writing_to(folder):
        for name in (CERTIFICATE, *REPORTS):
            (folder / name).unlink(missing_ok=True)
        for script in (folder / COUNTEREXAMPLES).glob("*.py"):
            if script.read_bytes().startswith(MARK.encode()):
                script.unlink()
        with tempfile.TemporaryFile(dir=folder):
            pass


def write_all(verdict: Verdict, folder: Path) -> None:
    """Write the certificate and everything that `write_reports` writes; the certificate comes last,
    so that the rest is there if it is.

    Raises:
        UnwritableFolder: naming the folder and the reason.
    """
    write_reports(verdict, folder)
    write_whole(folder, CERTIFICATE, serialise(verdict.as_certificate()))


def write_reports(verdict: Verdict, folder: Path) -> None:
    """Write `report.html`, `summary.md`, `junit.xml` and `counterexamples/`.

    Raises:
        UnwritableFolder: naming the folder and the reason.
    """
    for name, render in REPORTS.items():
        write_whole(folder, name, render(verdict))
    for name, source in counterexamples(verdict).items():
        write_whole(folder / COUNTEREXAMPLES, name, source)
