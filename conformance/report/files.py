"""What ``--out`` gets: the certificate, the reports made from it, and a script for each failed clause."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from conformance.report.counterexamples import MARK, counterexamples
from conformance.report.html import html
from conformance.report.junit import junit
from conformance.report.markdown import markdown
from conformance.run_request import CannotAssess
from conformance.verdict.certificate import serialise
from conformance.verdict.judgement import Verdict

CERTIFICATE = "certificate.json"
REPORTS = {"report.html": html, "summary.md": markdown, "junit.xml": junit}
COUNTEREXAMPLES = "counterexamples"


class UnwritableFolder(CannotAssess):
    """The folder named for the reports cannot be made or written to."""


def clear(folder: Path) -> None:
    """Make ``folder`` if need be, and remove what an earlier run left there: a run that ends without a
    certificate must not leave one behind.

    Raises:
        UnwritableFolder: naming the folder and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CERTIFICATE, *REPORTS):
            (folder / name).unlink(missing_ok=True)
        for script in (folder / COUNTEREXAMPLES).glob("*.py"):
            if script.read_bytes().startswith(MARK.encode()):
                script.unlink()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UnwritableFolder(_refusal(folder, error)) from error


def write_all(verdict: Verdict, folder: Path) -> None:
    """Write the certificate and everything that :func:`write_reports` writes; the certificate comes last, so
    that where it is, the rest is.

    Raises:
        UnwritableFolder: naming the folder and the reason.
    """
    write_reports(verdict, folder)
    _guarded_write(folder, CERTIFICATE, serialise(verdict.as_certificate()))


def write_reports(verdict: Verdict, folder: Path) -> None:
    """Write ``report.html``, ``summary.md``, ``junit.xml`` and ``counterexamples/``.

    Raises:
        UnwritableFolder: naming the folder and the reason.
    """
    for name, render in REPORTS.items():
        _guarded_write(folder, name, render(verdict))
    for name, source in counterexamples(verdict).items():
        _guarded_write(folder / COUNTEREXAMPLES, name, source)


def _guarded_write(folder: Path, name: str, text: str) -> None:
    """Write a file whole or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{name}.{os.getpid()}"
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, folder / name)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UnwritableFolder(_refusal(folder, error)) from error


def _refusal(folder: Path, error: OSError) -> str:
    return (
        f"reports cannot be written to `{folder}`: {error.strerror or error}; name another folder with --out"
    )
