"""`conformance matrix`: a site of many certificates."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from conformance.cli.options import Json
from conformance.report.terminal import say

_TOLD_EVERY = 20
"""Pages, which take a second or two."""


def matrix(
    places: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders with certificates, in them or below."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="SITE", help="Folder for the site.")
    ] = Path("site"),
    as_json: Json = False,
) -> None:
    """Write a static site of many certificates: a table of ids by releases, reports, badges.

    It loads nothing from elsewhere. Exit status: 0 written, 2 a certificate cannot be read.
    """
    from conformance.report.matrix import DOCUMENT, INDEX, count, entries_in, write_site

    entries = entries_in(places)
    say(f"writing {len(entries)} pages to `{out}`", sys.stderr)

    def tell(number: int) -> None:
        if number % _TOLD_EVERY == 0:
            say(f"  {number} of {len(entries)}", sys.stderr)

    write_site(entries, out, tell)
    if as_json:
        say(json.dumps([entry.as_json() for entry in entries], indent=2))
        return
    say(count(entries))
    say(f"  files: {out / INDEX}, {DOCUMENT}, and a folder for each with its report and badge")
