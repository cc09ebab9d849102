"""The names that follow from that of a project."""

from __future__ import annotations

import keyword
import re
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from conformance.errors import CannotAssess

_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)


class UnusableName(CannotAssess):
    """A name from which no project can be named. The message says why, and what would do."""


@dataclass(frozen=True)
class Names:
    """What a project and its members are called.

    `module` is that of the backbone; that of the prompts is beside it.
    """

    project: str
    module: str
    hub_id: str

    @property
    def prompts(self) -> str:
        """The module with the prompt builder."""
        return f"{self.module}_prompts"

    @property
    def backbone(self) -> str:
        """The class of the backbone."""
        return f"{self._stem}Backbone"

    @property
    def builder(self) -> str:
        """The class of the prompt builder."""
        return f"{self._stem}PromptBuilder"

    @property
    def backbone_id(self) -> str:
        """The id by which the class knows the model."""
        return re.sub(r"[^a-z0-9.]+", "-", self.hub_id.rpartition("/")[2].lower()).strip("-.")

    @property
    def _stem(self) -> str:
        return "".join(part[:1].upper() + part[1:] for part in self.module.split("_"))


def names_of(project: str, hub_id: str, home: Path) -> Names:
    """The names of a project that is to lie in `home`.

    Raises:
        UnusableName: no module can be named after it, another module has that name, or `hub_id` is
            none.
    """
    if not _NAME.fullmatch(project):
        raise UnusableName(
            f"a project cannot be named `{project}`: use letters, digits, `-`, `_` and `.`, a "
            f"letter first, as in `my-qwen`"
        )
    if not _HUB_ID.fullmatch(hub_id) or not re.search(r"[A-Za-z0-9]", hub_id.partition("/")[2]):
        raise UnusableName(
            f"`{hub_id}` is no hub id: write ORG/NAME, as in `Qwen/Qwen2.5-0.5B-Instruct`"
        )
    names = Names(project, re.sub(r"[._-]+", "_", project).lower(), hub_id)
    if keyword.iskeyword(names.module):
        raise UnusableName(
            f"the module of `{project}` would be `{names.module}`, a keyword of Python: choose "
            f"another name, `my-{project}` perhaps"
        )
    for module in (names.module, names.prompts):
        place = _place_of(module, home)
        if place is not None:
            raise UnusableName(
                f"the module of `{project}` would be `{module}`, and hide the module of that name "
                f"({place}): choose another name, `my-{project}` perhaps"
            )
    return names


def _place_of(module: str, home: Path) -> str | None:
    """Where there is a module of this name already, None if there is none outside of `home`."""
    if module in sys.builtin_module_names or module in sys.stdlib_module_names:
        return "Python's own"
    # Folders of the working directory count as modules without code.
    spec = PathFinder.find_spec(module)
    if spec is None or spec.origin is None or Path(spec.origin).is_relative_to(home.resolve()):
        return None
    return spec.origin
