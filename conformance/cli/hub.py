"""`conformance list` and `conformance hub`: the backbones known by id, and their tiny
checkpoints."""

from __future__ import annotations

import sys
from typing import Annotated, Optional

import typer

from conformance.cli.options import (
    HubRoot,
    Json,
    Recipes,
)
from conformance.cli.rows import show
from conformance.report.terminal import say


def list_backbones(as_json: Json = False, recipes: Recipes = None) -> None:
    """List the backbones known by id.

    These are the references, and what installed packages register in the group
    conformance.backbones.
    """
    from conformance.hub import known_recipes
    from conformance.subject.target import registered_targets

    recipe_of = {
        backbone_id: recipe
        for recipe in known_recipes(recipes or ()).values()
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
    show(rows, as_json)


def build(
    hub_ids: Annotated[
        Optional[list[str]], typer.Argument(metavar="[HUB_ID]...", help="All recipes unless given.")
    ] = None,
    weights: Annotated[
        bool,
        typer.Option(
            help="Without weights a hub is small to carry: they are made where it is first used."
        ),
    ] = True,
    hub: HubRoot = None,
    recipes: Recipes = None,
    as_json: Json = False,
) -> None:
    """Build the checkpoints of recipes that are not built yet."""
    from conformance.hub import Hub, known_recipes, recipe_for

    chosen = [
        recipe_for(hub_id, recipes or ()) for hub_id in hub_ids or known_recipes(recipes or ())
    ]
    store = Hub(hub)
    built = []
    for recipe in chosen:
        path = store.build(
            recipe, "probe" if weights else "later", on_progress=lambda line: say(line, sys.stderr)
        )
        built.append({"hub": recipe.hub_id, "digest": recipe.digest(), "path": str(path)})
    show(built, as_json)


def list_built(hub: HubRoot = None, as_json: Json = False) -> None:
    """List the checkpoints that are built."""
    from conformance.hub import Hub

    store = Hub(hub)
    entries = store.entries()
    if not entries and not as_json:
        say(
            f"nothing is built in `{store.root}` yet; `conformance hub build` builds every recipe",
            sys.stderr,
        )
    show(
        [
            {
                "hub": entry.hub_id,
                "digest": entry.digest,
                "bytes": entry.bytes,
                "path": str(entry.path),
                "weights": "built" if entry.has_weights else "made when first used",
            }
            for entry in entries
        ],
        as_json,
    )
