"""`conformance list` and `conformance hub`: the backbones known by id, and their tiny
checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from conformance.cli.options import (
    Fetch,
    FromCache,
    HubRoot,
    Json,
    PublishedIn,
    Recipes,
    TrustRemoteCode,
)
from conformance.cli.rows import show
from conformance.errors import CannotAssess, did_you_mean
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


def add(
    hub_id: Annotated[str, typer.Argument(metavar="ORG/MODEL", help="As the constructor asks.")],
    folder: PublishedIn = None,
    from_cache: FromCache = False,
    fetch: Fetch = False,
    recipes: Annotated[
        Path, typer.Option("--recipes", metavar="DIR", help="Where the recipe is written.")
    ] = Path("recipes"),
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over a recipe that is there.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Write a recipe from a model's published config and tokenizer; weights are not read.

    Each declaration that is inferred is shown with its reason. Correct the file where one is wrong,
    and certify with `--recipes DIR`.
    """
    folder = published_folder(hub_id, folder, from_cache=from_cache, fetch=fetch)
    from conformance.hub.derive import derive
    from conformance.hub.recipe_writer import write_recipe

    say(f"reading the published files in `{folder}`", sys.stderr)
    derived = derive(folder, hub_id, trust_remote_code=trust_remote_code)
    try:
        path = write_recipe(derived, recipes, replace=replace)
    except OSError as error:
        raise CannotAssess(
            f"the recipe cannot be written to `{recipes}`: {error.strerror or error}; name another "
            f"folder with --recipes"
        ) from error
    rows = [{"key": i.key, "value": i.value, "reason": i.reason} for i in derived.inferences]
    if as_json:
        recipe = derived.recipe
        document = {"recipe": str(path), "digest": recipe.digest(), "probe": dict(recipe.probe)}
        say(json.dumps({**document, "inferred": rows}, indent=2))
        return
    show(rows, False)
    say(f"wrote `{path}`; certify with `--recipes {recipes}`")


def published_folder(
    hub_id: str, folder: Path | None, *, from_cache: bool, fetch: bool = False
) -> Path:
    """The folder with the published files of a model: the one that is named, that of the user's
    Hugging Face cache, or with `fetch` of the hub.

    Raises:
        CannotAssess: not one of the three is asked for, the cache has no such model, or it cannot
            be fetched.
    """
    from conformance.hub import Sources, users_cache
    from conformance.hub.sources import download

    if [folder is not None, from_cache, fetch].count(True) != 1:
        raise CannotAssess(
            "name the published files: give one of --from DIR, --from-cache and --download"
        )
    if fetch:
        say(f"fetching the config and tokenizer of {hub_id}", sys.stderr)
        return download(hub_id)
    if folder is not None:
        return folder
    cache = users_cache()
    found = Sources(cache=cache).folder_of(hub_id)
    if found is None:
        raise CannotAssess(
            f"{hub_id} is not in the Hugging Face cache {f'`{cache}`' if cache else '(none)'}"
            f"{did_you_mean(hub_id, Sources(cache=cache).hub_ids())}"
        )
    return found


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
