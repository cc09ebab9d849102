"""Sets up a subject: a private hub view, recipes built as the constructor requests them, and the
facts about the run that the certificate repeats."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from conformance.errors import CannotAssess
from conformance.hub import (
    Hub,
    HubTap,
    HubView,
    Recipe,
    Sources,
    UnusableFiles,
    known_recipes,
)
from conformance.hub.probe_sizes import layers_of
from conformance.hub.recipes import unknown_recipe
from conformance.parity.half_products import half_products_in_float32
from conformance.run.environment import environment
from conformance.run.events import Facts
from conformance.run.request import RunRequest
from conformance.subject.adapter import Adapter, InvalidAdapter
from conformance.subject.budget import Budget
from conformance.subject.checkpoint import Checkpoint
from conformance.subject.contract import ARGUMENTS
from conformance.subject.declarations import configuration_in
from conformance.subject.ids import check_id
from conformance.subject.subject import BuiltElsewhere, Subject
from conformance.subject.target import Target
from conformance.suite.models import decoder_layers


class Session:
    """One subject and the hub that serves it."""

    def __init__(
        self,
        resolved: Target,
        request: RunRequest,
        home: Path,
        announce: Callable[[str, str], None],
        declarations: Mapping[str, Any] | None = None,
        adapter: Mapping[str, Any] | None = None,
        elsewhere: Callable[[], Iterable[BuiltElsewhere]] | None = None,
    ) -> None:
        self._hub = Hub(request.hub)
        self._view = HubView(home)
        self._sources = Sources.of(request.models, request.cache)
        # What the user names counts, also for an id that has a recipe.
        self._recipes = {
            hub_id: recipe
            for hub_id, recipe in known_recipes(request.recipes).items()
            if hub_id not in self._sources.models
        }
        self._trusted = request.trust_remote_code
        self._announce = announce
        self._served: list[str] = []
        # Why a hub id could not be served; constructors may swallow the exception, so it is kept
        # here.
        self._unserved: CannotAssess | None = None
        self.tap = HubTap(self._view, on_missing=self._build)
        tables: Mapping[str, Any]
        source: Path | str | None
        if declarations is None:
            tables, source = configuration_in(request.config)
        else:
            tables, source = {"subject": declarations}, "declarations"
        overrides = tables.get("subject", {})
        if adapter is None and "adapter" not in tables:
            _check_arguments_are_there(overrides, source)
        self._adapter = (
            Adapter.read(adapter, "adapter")
            if adapter is not None
            else Adapter.read(tables["adapter"], str(source))
            if "adapter" in tables
            else None
        )
        factory = resolved.factory
        if self._adapter is not None:
            factory = self._adapter.adapt(factory)
            overrides = self._adapter.declarations(overrides)
        self.subject = Subject(
            factory,
            resolved.backbone_id,
            view=self._view,
            tap=self.tap,
            recipes=self._recipes,
            overrides=overrides,
            overrides_source=str(source),
            budget=Budget(request.budget),
            seed=request.seed,
            weights=request.weights,
            announce=lambda step: announce("judging", step),
            elsewhere=elsewhere,
        )

    def construct(self) -> None:
        """Build the shared training-mode instance, so that hub ids and declarations are known.

        A constructor that raises is left for CON-01 to report.

        Raises:
            CannotAssess: if the constructor asks for a hub id that has no recipe or cannot be built
                here, the user's checkpoint is of another model, an adapter does not fit the class,
                more layers are declared kept than the checkpoint has, or a path of `outside` leads
                nowhere.
            UnknownId: if the id is misspelt.
        """
        refused: BaseException | None = None
        try:
            _ = self.subject.training
        except (Exception, SystemExit) as error:
            refused = error
        if self._unserved is not None:
            raise self._unserved
        if isinstance(refused, InvalidAdapter):
            raise refused
        if refused is not None and not self.tap.calls:
            subject = self.subject
            check_id(refused, subject.factory, subject.backbone_id, subject.recipes_by_id)
        if refused is None and self.subject.hub_ids:
            _check_layers_kept(self.subject)
            _check_outside(self.subject)
        if self.subject.real_checkpoint is not None and "training" in self.subject.__dict__:
            _check_is_of(self.subject.recipe, self.subject.real_checkpoint)

    def facts(self) -> Facts:
        """Environment, declarations, hub entries and source digests, as the certificate repeats
        them."""
        constructed = "training" in self.subject.__dict__
        model = getattr(self.subject.training, "llm", None) if constructed else None
        return Facts(
            backbone_id=self.subject.backbone_id,
            environment={**environment(), **_model_class(model)},
            declarations={
                **(self.subject.declared.as_json() if constructed and self.subject.hub_ids else {}),
                **({"adapter": self._adapter.as_json()} if self._adapter is not None else {}),
            },
            hub={hub_id: self._hub_facts(self._recipes[hub_id]) for hub_id in self._served},
            sources=self.subject.source_files(),
        )

    def _build(self, hub_id: str) -> None:
        self._announce("building hub", hub_id)
        try:
            if hub_id not in self._recipes:
                # Shared with the subject, which reads declarations from it.
                self._recipes[hub_id] = self._derived(hub_id)
            snapshot = self._hub.build(self._recipes[hub_id])
        except CannotAssess as error:
            self._unserved = error
            raise
        self._view.mount(hub_id, snapshot)
        self._served.append(hub_id)
        self._announce("constructing", self.subject.backbone_id)

    def _derived(self, hub_id: str) -> Recipe:
        """A recipe from the published files of a model that has none, where they are at hand."""
        folder = self._sources.folder_of(hub_id)
        if folder is None:
            raise unknown_recipe(hub_id, [*self._recipes, *self._sources.hub_ids()])
        from conformance.hub.derive import derive

        self._announce("deriving recipe", f"{hub_id} from {folder}")
        try:
            return derive(folder, hub_id, trust_remote_code=self._trusted).recipe
        except CannotAssess:
            raise
        except Exception as error:
            # Otherwise it would reach the constructor, and be blamed on it.
            raise UnusableFiles(
                f"no recipe of {hub_id} follows from `{folder}`: {type(error).__name__}: {error}"
            ) from error

    def _hub_facts(self, recipe: Recipe) -> dict[str, Any]:
        return {
            "digest": recipe.digest(),
            "tokenizer": recipe.tokenizer.kind,
            "weights": "probe",
            **({"recipe": "derived"} if recipe.derived else {}),
            **({"remoteCode": True} if recipe.derived and "auto_map" in recipe.config else {}),
        }


@contextmanager
def open_session(
    resolved: Target,
    request: RunRequest,
    home: Path,
    announce: Callable[[str, str], None],
    declarations: Mapping[str, Any] | None = None,
    adapter: Mapping[str, Any] | None = None,
    elsewhere: Callable[[], Iterable[BuiltElsewhere]] | None = None,
) -> Iterator[Session]:
    """A session whose hub tap is in place while the body runs; `declarations` and `adapter` replace
    the tables of a configuration file, `elsewhere` has a second process build the subject."""
    session = Session(resolved, request, home, announce, declarations, adapter, elsewhere)
    with session.tap, _warnings_are_no_errors(), half_products_in_float32():
        yield session


@contextmanager
def _warnings_are_no_errors() -> Iterator[None]:
    """Keep warnings from becoming errors while the body runs: a strict pytest or
    `PYTHONWARNINGS=error` must not fail a subject for what its libraries warn of."""
    with warnings.catch_warnings():
        warnings.filters[:] = [one for one in warnings.filters if one[0] != "error"]  # type: ignore[index]
        warnings.simplefilter("default", append=True)
        yield


def _check_arguments_are_there(declared: Mapping[str, Any], source: Path | str | None) -> None:
    """Refuse arguments that are declared absent of a class that is called with them all the same:
    that could only hide what they do."""
    absent = declared.get("optional_absent", ())
    named = [one for one in ARGUMENTS if isinstance(absent, (list, tuple)) and one in absent]
    if named:
        raise CannotAssess(
            f"`optional_absent` of `{source}` names `{named[0]}`, an argument that every "
            f"constructor is called with; for one that does not take it, write an `[adapter]` table"
        )


def _check_layers_kept(subject: Subject) -> None:
    """Refuse a cut that the probe is too small to show: nothing would be judged of it."""
    kept = subject.declared.layers_kept
    if kept is None:
        return
    snapshot = subject.view.snapshot(subject.weights_hub_id)
    config = json.loads((snapshot / "config.json").read_text(encoding="utf-8"))
    found = layers_of(config)
    if found is None:
        raise CannotAssess(
            f"`layers_kept` is {kept}, and the config of {subject.weights_hub_id} does not say how "
            f"many layers there are"
        )
    layers = found[1]
    if kept >= layers:
        raise CannotAssess(
            f"`layers_kept` is {kept}, and the checkpoint that stands in for "
            f"{subject.weights_hub_id} has {layers} layers: nothing is cut off. Have the "
            f"constructor cut earlier (`constants` of an adapter), and declare that"
        )


def _check_outside(subject: Subject) -> None:
    """Refuse a declared path to a module that is not there, or that holds the language model, of
    which nothing would be judged."""
    backbone = subject.training
    try:
        modules = subject.outside(backbone)
    except AttributeError as error:
        paths = ", ".join(f"`{path}`" for path in subject.declared.outside)
        raise CannotAssess(
            f"`outside` names {paths}, of which one leads nowhere: {error}"
        ) from error
    for path, module in modules.items():
        if not isinstance(module, torch.nn.Module):
            raise CannotAssess(
                f"`outside` names `{path}`, which is a {type(module).__name__}, but should be a "
                f"module"
            )
        within = set(map(id, module.modules()))
        layers = set(map(id, decoder_layers(backbone)))
        embedding = backbone.llm.get_input_embeddings()
        if within & {id(backbone.llm), id(embedding)} or (layers and layers <= within):
            raise CannotAssess(
                f"`outside` names `{path}`, which holds the language model itself: name the "
                f"modules beside it"
            )


def _check_is_of(recipe: Recipe, checkpoint: Checkpoint) -> None:
    from conformance.oracle import InvalidConfig, NoReference
    from conformance.oracle.shapes import parameter_shapes

    config, where = checkpoint.config, f"--weights {checkpoint.directory}"
    found, right = config.get("model_type"), recipe.config.get("model_type")
    if found != right:
        raise CannotAssess(
            f"{where} is a checkpoint of model type {found!r}, and {recipe.hub_id} is of {right!r}"
        )
    try:
        expected = parameter_shapes(config)
    except NoReference:
        return
    except InvalidConfig as error:
        raise CannotAssess(f"the config of {where} contradicts itself: {error}") from None
    wrong = [name for name, shape in expected.items() if checkpoint.shapes.get(name) != shape]
    if wrong:
        has = checkpoint.shapes.get(wrong[0])
        raise CannotAssess(
            f"{len(wrong)} tensors of {where} are not what its config.json asks for: `{wrong[0]}` "
            f"should be of shape "
            f"{expected[wrong[0]]}, and " + (f"is of {has}" if has else "is missing")
        )


def _model_class(model: Any) -> dict[str, Any]:
    """The transformers class that `model` is, or is derived from; known library defects are listed
    by it."""
    if model is None:
        return {"model_class": None}
    classes = type(model).__mro__
    librarys = next((c for c in classes if c.__module__.startswith("transformers.")), classes[0])
    return {"model_class": librarys.__name__, "model_class_is_the_librarys": librarys is classes[0]}
