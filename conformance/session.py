"""Putting a subject on the bench: a private hub view, recipes built as the constructor asks for them, and the facts
about the run that the certificate repeats."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from conformance.budget import Budget
from conformance.declarations import declarations_in
from conformance.hub import Hub, HubTap, HubView, Recipe, UnknownRecipe, known_recipes, recipe_for
from conformance.run_request import CannotAssess, RunRequest
from conformance.subject import Subject
from conformance.target import Target

#: Packages whose versions can change a verdict.
_RECORDED_PACKAGES = (
    "backbone-conformance", "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "hypothesis",
    "accelerate", "numpy", "sentencepiece", "mistral-common", "flash-attn",
)  # fmt: skip


class Session:
    """One subject and the hub that serves it."""

    def __init__(
        self,
        target: Target,
        request: RunRequest,
        home: Path,
        announce: Callable[[str, str], None],
        declarations: Mapping[str, Any] | None = None,
    ) -> None:
        self._hub = Hub(request.hub)
        self._view = HubView(home)
        self._weights = request.weights
        self._extra_recipes = request.recipes
        self._recipes = known_recipes(request.recipes)
        self._announce = announce
        self._served: list[str] = []
        #: The refusal of a hub id that has no recipe; constructors may swallow the exception, so it is kept here.
        self.unknown_recipe: UnknownRecipe | None = None
        self.tap = HubTap(self._view, on_missing=self._build)
        overrides, source = (
            (declarations, "declarations") if declarations is not None else declarations_in(request.config)
        )
        self.subject = Subject(
            target.factory,
            target.backbone_id,
            view=self._view,
            tap=self.tap,
            recipes=self._recipes,
            overrides=overrides,
            overrides_source=str(source),
            budget=Budget(request.budget),
            seed=request.seed,
        )

    def construct(self) -> None:
        """Build the shared training-mode instance, so that hub ids and declarations are known.

        A constructor that raises is left for CON-01 to report.

        Raises:
            CannotAssess: if the constructor asks for a hub id that has no recipe.
        """
        with suppress(Exception, SystemExit):
            _ = self.subject.training
        if self.unknown_recipe is not None:
            raise CannotAssess(str(self.unknown_recipe))

    def facts(self) -> dict[str, Any]:
        """Environment, declarations, hub entries and source digests, as the certificate repeats them."""
        constructed = "training" in self.subject.__dict__
        model = getattr(self.subject.training, "llm", None) if constructed else None
        return {
            "environment": {**environment(), "model_class": None if model is None else type(model).__name__},
            "declarations": self.subject.declared.as_json() if constructed and self.subject.hub_ids else {},
            "hub": {hub_id: self._hub_facts(self._recipes[hub_id]) for hub_id in self._served},
            "sources": self.subject.source_files(),
            "backbone_id": self.subject.backbone_id,
        }

    def _build(self, hub_id: str) -> None:
        recipe = self._recipes.get(hub_id)
        if recipe is None:
            try:
                recipe = recipe_for(hub_id, self._extra_recipes)
            except UnknownRecipe as error:
                self.unknown_recipe = error
                raise
        self._announce("building hub", hub_id)
        snapshot = self._hub.build(recipe, self._weights)
        self._view.mount(hub_id, snapshot)
        self._served.append(hub_id)
        self._announce("constructing", self.subject.backbone_id)

    def _hub_facts(self, recipe: Recipe) -> dict[str, Any]:
        return {"digest": recipe.digest(), "tokenizer": recipe.tokenizer.kind, "weights": self._weights}


@contextmanager
def open_session(
    target: Target,
    request: RunRequest,
    home: Path,
    announce: Callable[[str, str], None],
    declarations: Mapping[str, Any] | None = None,
) -> Iterator[Session]:
    """A session whose hub tap is in place while the body runs; ``declarations`` stand in for a configuration file."""
    session = Session(target, request, home, announce, declarations)
    with session.tap:
        yield session


def environment() -> dict[str, Any]:
    """The software and the machine, as far as they can change a verdict."""
    packages = {name: found for name in _RECORDED_PACKAGES if (found := _version(name)) is not None}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": packages,
        "cuda": _cuda(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cuda() -> str | None:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None
