"""All recipes: the built-in ones, and those that a user names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from conformance.hub.recipe import (
    InvalidRecipe,
    Recipe,
    UnknownRecipe,
)
from conformance.hub.recipe_file import read_recipe
from conformance.places import fixtures_directory

RECIPES_VARIABLE = "CONFORMANCE_RECIPES"


def known_recipes(extra: Sequence[Path] = ()) -> dict[str, Recipe]:
    """Every recipe by hub id: the built-in ones, those of `$CONFORMANCE_RECIPES`, and those of
    `extra`.

    `extra` and the variable (paths joined by the path separator) name directories of recipes or
    single files; if two recipes have the same hub id the later wins, so that a project can replace
    a built-in one.

    Raises:
        InvalidRecipe: a recipe file, or a path named in `extra` or the variable, cannot be used.
    """
    recipes: dict[str, Recipe] = {}
    for path in _recipe_files(extra):
        recipe = read_recipe(path)
        recipes[recipe.hub_id] = recipe
    return recipes


def recipe_for(hub_id: str, extra: Sequence[Path] = ()) -> Recipe:
    """The recipe of one hub id; where to look, as in `known_recipes`.

    Raises:
        UnknownRecipe: no recipe has this hub id.
        InvalidRecipe: a recipe file cannot be used.
    """
    recipes = known_recipes(extra)
    if hub_id in recipes:
        return recipes[hub_id]
    known = "\n".join(f"  {known_id}" for known_id in sorted(recipes)) or "  (none)"
    name = hub_id.replace("/", "--") + ".toml"
    raise UnknownRecipe(
        f"no recipe for hub id {hub_id!r}, so the offline hub cannot serve it. Known hub "
        f"ids:\n{known}\n"
        f"To add it, write a recipe: copy the closest one in {fixtures_directory() / 'hub'} to a "
        f"directory "
        f"of yours as {name}, then name that directory with `--recipes DIR` or {RECIPES_VARIABLE} "
        f"(in a checkout of this project: fixtures/hub/{name})."
    )


def _recipe_files(extra: Sequence[Path]) -> list[Path]:
    named = [Path(part) for part in os.environ.get(RECIPES_VARIABLE, "").split(os.pathsep) if part]
    files = sorted((fixtures_directory() / "hub").glob("*.toml"))
    for place in (*named, *(Path(path) for path in extra)):
        if place.is_dir():
            files += sorted(place.glob("*.toml"))
        elif place.is_file():
            files.append(place)
        else:
            raise InvalidRecipe(
                f"recipes {place}: no such directory or file; `--recipes` and {RECIPES_VARIABLE} "
                f"take a "
                f"directory of <org>--<name>.toml files, or one such file"
            )
    return files
