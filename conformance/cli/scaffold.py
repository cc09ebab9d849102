"""`conformance scaffold`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from conformance.cli.hub import published_folder
from conformance.cli.options import Fetch, FromCache, Json, PublishedIn, TrustRemoteCode
from conformance.cli.rows import show
from conformance.report.terminal import say, wrapped


def scaffold(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the project and its module.")],
    hub_id: Annotated[
        str, typer.Option("--model", metavar="ORG/NAME", help="The model to wrap, by its hub id.")
    ],
    folder: PublishedIn = None,
    from_cache: FromCache = False,
    fetch: Fetch = False,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the folder NAME is made.")
    ] = Path(),
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over the files of a project that is there.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Write a project around a model: class, prompt builder, recipe, test and packaging.

    They are made from the published config, tokenizer and chat template; weights are not read. The
    class is certified as it stands, but for what no published file says.
    """
    from conformance.scaffold.names import names_of

    home = out / name
    names = names_of(name, hub_id, home)
    published = published_folder(hub_id, folder, from_cache=from_cache, fetch=fetch)

    from conformance.scaffold.project import check_free, write_project

    check_free(home, replace=replace)
    say(f"reading the published files in `{published}`", sys.stderr)
    project = write_project(
        names, published, home, replace=replace, trust_remote_code=trust_remote_code
    )
    rows = [
        {"key": i.key, "value": i.value, "reason": i.reason} for i in project.derived.inferences
    ]
    if as_json:
        document = {
            "project": str(home),
            "files": list(project.files),
            "target": project.target,
            "id": names.backbone_id,
            "command": project.command,
            "undecided": project.undecided,
            "inferred": rows,
        }
        say(json.dumps(document, indent=2))
        return
    show(rows, False)
    say(f"wrote `{home}`: {names.module}.py, {names.prompts}.py, recipe, test, pyproject.toml")
    if project.undecided is not None:
        say(wrapped(f"undecided: {project.undecided}. See `{home / names.prompts}.py`", indent=2))
    say(project.command)
