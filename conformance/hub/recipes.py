"""All recipes: the built-in ones, and those that a user names."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
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
    raise unknown_recipe(hub_id, recipes)


def unknown_recipe(hub_id: str, known: Iterable[str]) -> UnknownRecipe:
    """The error for a hub id that is not among the `known` ones: the nearest, or all, and what to
    do."""
    names = sorted(known)
    near = difflib.get_close_matches(hub_id, names, n=3, cutoff=0.75)
    listed = "\n".join(f"  {name}" for name in near or names) or "  (none)"
    return UnknownRecipe(
        f"no recipe for hub id {hub_id!r}, so the offline hub cannot serve it. "
        f"{'Did you mean' if near else 'Known hub ids'}:\n{listed}\n"
        f"Any other model needs its published config.json and tokenizer files, no weights: name "
        f"their folder with `--model {hub_id}=FOLDER`; if they are in your Hugging Face cache they "
        f"are found there, and `--download` fetches them. `conformance hub add {hub_id} --from "
        f"FOLDER` writes a recipe from them that you can correct.",
        hub_id,
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
