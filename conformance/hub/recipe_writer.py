"""A derived recipe, written down for a person to correct: a TOML file, and the tokenizer's files in
a folder beside it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conformance.errors import CannotAssess
from conformance.hub.derive import Derived
from conformance.hub.published import TOKENIZER_FILES
from conformance.hub.recipe_file import read_recipe

_UNDECLARED = """\
# No published file says these two. Without them the clauses about them are not applicable.
backbone_ids = []  # the ids by which your class knows the model
prompt_rule = []  # {pattern = "*", builder = "TheClassThatBuildsYourPrompts"}
"""


class RecipeExists(CannotAssess):
    """There is a recipe of this hub id already, which a person may have corrected."""


def write_recipe(derived: Derived, directory: Path, *, replace: bool = False) -> Path:
    """Write the recipe into `directory` and return its file: `<org>--<name>.toml`, beside a folder
    of the same name. Nothing is there until both are whole.

    Raises:
        RecipeExists: there is such a file or folder, and `replace` is not set; or the folder holds
            what no recipe wrote there.
        OSError: the directory cannot be written to.
    """
    recipe = derived.recipe
    name = recipe.hub_id.replace("/", "--")
    path, folder = directory / f"{name}.toml", directory / name
    for there in (path, folder):
        if there.exists() and not replace:
            raise RecipeExists(
                f"`{there}` exists, and may have been corrected by hand: add --replace to write it "
                f"anew"
            )
    check_replaceable(folder)
    directory.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".adding-", dir=directory))
    try:
        (scratch / name).mkdir()
        for file in recipe.tokenizer.files:
            shutil.copyfile(file, scratch / name / file.name)
        (scratch / path.name).write_text(_document(derived), encoding="utf-8")
        read_recipe(scratch / path.name)
        if folder.exists():
            os.rename(folder, scratch / "before")
        os.rename(scratch / name, folder)
        os.replace(scratch / path.name, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder of tokenizer files that holds anything else: a model's own folder,
    say.

    Raises:
        RecipeExists: naming what is there.
    """
    if not folder.exists():
        return
    strange = next(
        (path for path in sorted(folder.glob("*")) if path.name not in TOKENIZER_FILES), None
    )
    if strange is not None or not folder.is_dir():
        raise RecipeExists(
            f"`{strange or folder}` was not written with a recipe, and is in its way: name another "
            f"folder for recipes"
        )


def _document(derived: Derived) -> str:
    recipe = derived.recipe
    reasons = {one.key: one.reason for one in derived.inferences}
    published = [f"config = {_published(recipe.config)}"]
    if recipe.generation_config is not None:
        published.append(f"generation_config = {_published(recipe.generation_config)}")
    declared = [
        f"{key} = {_value(value)}" + (f"  # {reasons[key]}" if key in reasons else "")
        for key, value in recipe.subject.items()
        if key != "prompt_rule"
    ]
    name = recipe.hub_id.replace("/", "--")
    return "\n".join(
        [
            "# Derived from published files; correct what is wrong.",
            f"hub_id = {_value(recipe.hub_id)}",
            f"family = {_value(recipe.family)}",
            f"architecture = {_value(recipe.architecture)}",
            *(
                [f"language_model = {_value(recipe.language_model)}"]
                if recipe.language_model is not None
                else []
            ),
            f"dtype = {_value(recipe.dtype)}",
            "",
            "[published]",
            *published,
            "",
            "# Ratios and grouping are kept, windows are shorter than a test sequence, and there",
            "# are layers of each kind.",
            "[probe]",
            *(
                f"{key} = {_value(_overridden(value, recipe.config.get(key)))}"
                for key, value in recipe.probe.items()
            ),
            "",
            "[tokenizer]",
            f"kind = {_value(recipe.tokenizer.kind)}",
            f"layout = {_value(recipe.tokenizer.layout)}",
            f"source = {_value(name)}",
            f"sha256 = {_value(recipe.tokenizer.sha256)}",
            "",
            "[subject]",
            *declared,
            _UNDECLARED,
            "[sources]",
            *(f"{key} = {_value(value)}" for key, value in recipe.sources.items()),
            "",
        ]
    )


def _overridden(value: Any, published: Any) -> Any:
    """Of a part of a config what the probe has otherwise."""
    if not isinstance(value, Mapping) or not isinstance(published, Mapping):
        return value
    return {k: v for k, v in value.items() if k not in published or published[k] != v}


def _published(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return _value(text) if "'''" in text else f"'''\n{text}\n'''"


def _value(value: Any) -> str:
    """As TOML. Strings and numbers are written as in JSON, whose escapes TOML shares."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_value(str(k))} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    # TOML has no null: what a probe sets to it cannot be written.
    return json.dumps(value, ensure_ascii=False)
