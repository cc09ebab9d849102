"""Sound backbones as other people write them: the suite must certify every one.

Each is a class or factory under `@sound`, in the shape that its author likes. The SHOULD clauses
that it truly misses are named with it; a MUST clause that one of them fails is wrong itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import __version__ as transformers_version

RECIPES = Path(__file__).parent / "recipes"
"""Recipes of the families that the project itself has no reference for."""


@dataclass(frozen=True)
class Sound:
    """One sound backbone. `shoulds` are the SHOULD clauses that it may miss, on some release."""

    name: str
    factory: Callable[..., Any]
    shoulds: frozenset[str]
    backbone_id: str
    declared: Mapping[str, Any]
    recipes: tuple[Path, ...]


_KNOWN: list[Sound] = []

Author = TypeVar("Author", bound=Callable[..., Any])


def sound(
    *shoulds: str,
    on: str = "mistral-v0.1-7b-instruct",
    declared: Mapping[str, Any] | None = None,
    recipes: tuple[Path, ...] = (),
    since: tuple[int, int] = (4, 40),
    before: tuple[int, int] = (6, 0),
) -> Callable[[Author], Author]:
    """Register a class or factory as sound: at most these SHOULD clauses are missed.

    `since` is the first transformers release on which it is sound, `before` the first on which it
    no longer is.
    """

    def register(factory: Author) -> Author:
        if since <= tuple(int(part) for part in transformers_version.split(".")[:2]) < before:
            _KNOWN.append(
                Sound(factory.__name__, factory, frozenset(shoulds), on, declared or {}, recipes)
            )
        return factory

    return register


def all_sound() -> list[Sound]:
    """Every sound backbone, in the order of the modules."""
    for info in pkgutil.iter_modules(__path__):
        if not info.name.startswith("test_"):
            importlib.import_module(f"{__name__}.{info.name}")
    return list(_KNOWN)
