"""Writes a project from a model's published files: whole, or not at all."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.errors import CannotAssess
from conformance.hub.chat import InvalidTemplate
from conformance.hub.derive import Derived, derive, tiny_model
from conformance.hub.published import Published, UnusableFiles
from conformance.hub.recipe_writer import check_replaceable, write_recipe
from conformance.scaffold.names import Names
from conformance.scaffold.turns import Turns, Undecided, derive_turns
from conformance.subject.contract import LLM_MAX_LENGTH
from conformance.subject.declarations import Declarations

RECIPES, CONFIG = "recipes", "conformance.toml"


class ProjectExists(CannotAssess):
    """There are files at the place of the project. The message names them."""


class UnusableModel(CannotAssess):
    """A model that no generated class wraps. The message says why."""


@dataclass(frozen=True)
class Project:
    """A written project: its folder, its files relative to it, the recipe that stands in it, and
    what is undecided about its prompts (None where a template says all)."""

    folder: Path
    names: Names
    files: tuple[str, ...]
    derived: Derived
    undecided: str | None

    @property
    def target(self) -> str:
        """The class, by its file relative to the working directory."""
        return f"{self._relative(f'{self.names.module}.py')}:{self.names.backbone}"

    @property
    def command(self) -> str:
        """What certifies the class, from the working directory, quoted for the shell."""
        words = [
            "conformance", "certify", self.target, "--id", self.names.backbone_id,
            "--recipes", self._relative(RECIPES), "--config", self._relative(CONFIG),
        ]  # fmt: skip
        return shlex.join(words)

    def _relative(self, name: str) -> str:
        return os.path.relpath(self.folder / name)


def write_project(
    names: Names,
    published: Path,
    folder: Path,
    *,
    replace: bool = False,
    trust_remote_code: bool = False,
) -> Project:
    """Write the project around the published files in `published` to `folder`. Imports
    transformers.

    With `replace`, files of the same names are written over, and all others stay.

    Raises:
        ProjectExists: `folder` is there and `replace` is not set, or is in the way of a file.
        UnusableModel: the model is no decoder of text alone, or its layers are of several classes.
        UnusableFiles: no recipe follows from the published files.
        CannotAssess: the folder cannot be written to.
    """
    check_free(folder, replace=replace)
    derived = derive(published, names.hub_id, trust_remote_code=trust_remote_code)
    files = derived.published
    decided = _decided(files, derived)
    content = _content(names, files, derived, decided)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{names.project}-", dir=folder.parent))
        try:
            for name, text in content.items():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                (scratch / name).write_text(text, encoding="utf-8")
            recipe = write_recipe(derived, scratch / RECIPES)
            written = sorted(
                path.relative_to(scratch).as_posix()
                for path in scratch.rglob("*")
                if path.is_file()
            )
            # Readable by others, as what is made without a scratch folder is.
            scratch.chmod(folder.parent.stat().st_mode & 0o777)
            _move(scratch, folder, [*content, RECIPES, f"{RECIPES}/{recipe.name}"], recipe.stem)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise CannotAssess(
            f"the project cannot be written to `{folder}`: {error.strerror or error}; name another "
            f"folder with --out"
        ) from error
    why = str(decided) if isinstance(decided, Undecided) else None
    return Project(folder, names, tuple(written), derived, why)


def check_free(folder: Path, *, replace: bool) -> None:
    """Refuse a folder that holds something.

    Raises:
        ProjectExists: naming what is in the way.
    """
    if folder.is_dir():
        if not replace and any(folder.iterdir()):
            raise ProjectExists(
                f"`{folder}` exists, and may hold your work: add --replace to write its files "
                f"anew, or choose another name or --out"
            )
    elif folder.exists() or folder.is_symlink():
        raise ProjectExists(f"`{folder}` is a file: choose another name or --out")


def _move(scratch: Path, folder: Path, names: list[str], tokenizer: str) -> None:
    """Put what is in `scratch` in its place: as a whole where nothing is there yet, else a file at
    a time, the tokenizer's folder as one."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    if not folder.exists():
        os.rename(scratch, folder)
        return
    files = [name for name in names if name != RECIPES]
    for name in files:
        if (folder / name).is_dir():
            raise ProjectExists(f"`{folder / name}` is a folder, where a file is to be written")
    old = folder / RECIPES / tokenizer
    check_replaceable(old)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / name, folder / name)
    if old.exists():
        os.rename(old, scratch / "before")
    os.rename(scratch / RECIPES / tokenizer, old)


def _decided(published: Published, derived: Derived) -> Turns | Undecided:
    try:
        return derive_turns(
            published.chat_template,
            bos=published.token("bos_token"),
            eos=published.token("eos_token"),
            subject=derived.recipe.subject,
        )
    except Undecided as undecided:
        return undecided
    except InvalidTemplate as error:
        raise UnusableFiles(
            f"the chat template of {published.hub_id} in `{published.directory}` cannot be "
            f"rendered: {error}"
        ) from None


def _content(
    names: Names, published: Published, derived: Derived, decided: Turns | Undecided
) -> Mapping[str, str]:
    """The text of each file by its name."""
    facts = {
        "names": names,
        "architecture": published.architecture,
        "dtype": derived.recipe.subject["training_dtype"],
        "max_length": _max_length(published.config),
        "has_generation_config": published.generation_config is not None,
        "turns": None if isinstance(decided, Undecided) else decided,
        "undecided": str(decided) if isinstance(decided, Undecided) else None,
        **_layers(published, derived),
    }
    return {
        f"{names.module}.py": _rendered("backbone.py.jinja", **facts),
        f"{names.prompts}.py": _rendered("prompts.py.jinja", **facts),
        CONFIG: _rendered("conformance.toml.jinja", **facts),
        "pyproject.toml": _rendered("pyproject.toml.jinja", **facts),
        "tests/test_conformance.py": _rendered("test_conformance.py.jinja", **facts),
    }


def _max_length(config: Mapping[str, Any]) -> int:
    """How long a text may be by default: an image is to fit into the positions beside it."""
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    patches = Declarations().image_patches
    if not isinstance(positions, int) or positions <= patches:
        return LLM_MAX_LENGTH
    return min(LLM_MAX_LENGTH, positions - patches)


def _layers(published: Published, derived: Derived) -> dict[str, str]:
    """The class of the model's layers, its module, and where the layers lie in the model."""
    from torch import nn

    if "text_config" in published.config or published.architecture.endswith("Generation"):
        raise UnusableModel(
            f"{published.hub_id} is a {published.architecture}, whose decoder of text is one part "
            f"of several: scaffold writes classes around a causal language model alone"
        )
    model = tiny_model(published, derived.recipe.probe)
    for name, module in model.named_modules():  # from the outside in
        if isinstance(module, nn.ModuleList) and len(module):
            classes = {type(layer) for layer in module}
            if len(classes) > 1:
                raise UnusableModel(
                    f"the layers of {published.architecture} are of several classes "
                    f"({', '.join(sorted(one.__name__ for one in classes))}): write its class by "
                    f"hand"
                )
            (layer,) = classes
            return {"layer": layer.__name__, "layer_module": layer.__module__, "layers": name}
    raise UnusableModel(
        f"{published.architecture} holds no list of layers: write its class by hand"
    )


def _rendered(template: str, **content: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("conformance.scaffold", "."),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"python": _python, "toml": json.dumps, "lines": _lines}
    return environment.get_template(template).render(**content)


def _python(text: str) -> str:
    """The literal of a text in the quotes that formatters prefer."""
    if '"' in text and "'" not in text:
        return repr(text)
    # Python reads JSON's escapes but those of pairs, which it takes for two characters.
    return json.dumps(text, ensure_ascii=False)


def _lines(text: str) -> list[str]:
    """A sentence in lines that fit the file, to be joined as they are."""
    found = textwrap.wrap(text, 88, break_long_words=False, break_on_hyphens=False)
    return [f"{line} " for line in found[:-1]] + [f"{found[-1]}. "]
