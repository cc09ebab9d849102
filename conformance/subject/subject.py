"""The backbone under test: built as a host would build it, and seen only through the contract.

Nothing here reads a private name of the subject; whatever keeps the contract can be judged.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from conformance.assertions import Blocked, ClauseFailure, getting_on, refusal
from conformance.hub import HubTap, HubView, Recipe
from conformance.hub.language_model import extract, is_nested, stored_name
from conformance.hub.probe_sizes import layers_of
from conformance.hub.published import text_part
from conformance.subject.adapter import InvalidAdapter, defining_classes
from conformance.subject.budget import Budget
from conformance.subject.checkpoint import Checkpoint
from conformance.subject.contract import (
    ARGUMENTS,
    BUILDER_MEMBERS,
    HOST_MODEL_FAMILIES,
    LLM_MAX_LENGTH,
    eos_ids_of,
    lacks_member,
)
from conformance.subject.contract import CANARY_TOKEN as CANARY_TOKEN
from conformance.subject.declarations import Declarations
from conformance.subject.library_code import replaced_in_libraries
from conformance.subject.raised import code_behind
from conformance.subject.vocabulary import PublishedVocabulary, state_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LIBRARIES = frozenset({"torch", "transformers", "builtins", "abc", "typing", "functools"})
"""Packages whose classes a subject may inherit from; they do not count as its source."""


@dataclass(frozen=True)
class Host:
    """Who asks for prompt builders: its `model_family`, and the class that it took from the
    backbone in one mode, once."""

    model_family: str
    builder_class: Callable[..., Any]
    mode: str

    def builder(self, system_prompt: str | None = None) -> Any:
        """A fresh builder, made as the hosts make it."""
        return self.builder_class(self.model_family, system_prompt=system_prompt)

    def fault(self) -> str | None:
        """What keeps the host from working at all, None if nothing does."""
        for system_prompt in (None, "You are a robot."):
            with refusal() as refused:
                builder = self.builder(system_prompt)
            if refused:
                return f"with system_prompt={system_prompt!r} it raised {refused[0]!r}"
        missing = [
            member for member in BUILDER_MEMBERS if not callable(getattr(builder, member, None))
        ]
        return f"it has no {' and no '.join(missing)}" if missing else None

    def __str__(self) -> str:
        return f"for model_family={self.model_family!r}" + (
            "" if self.mode == "training" else f" in {self.mode} mode"
        )


@dataclass(frozen=True)
class BuiltElsewhere:
    """What a second process found: the traits of the instance that it built, as text, or what
    building it raised there."""

    traits: Mapping[str, str]
    raised: str | None = None


class Subject:
    """One backbone, judged under one id.

    `factory` is called with the seed's arguments and returns the backbone or `(backbone,
    tokenizer)`. The caller must enter `tap`, which sees every hub call and builds what is
    requested.
    """

    def __init__(
        self,
        factory: Callable[..., Any],
        backbone_id: str,
        *,
        view: HubView,
        tap: HubTap,
        recipes: Mapping[str, Recipe],
        overrides: Mapping[str, Any],
        overrides_source: str = "conformance.toml",
        budget: Budget,
        seed: int,
        weights: str = "probe",
        announce: Callable[[str], None] = lambda step: None,
        elsewhere: Callable[[], Iterable[BuiltElsewhere]] | None = None,
    ) -> None:
        self.factory = factory
        self.backbone_id = backbone_id
        self.view = view
        self.tap = tap
        self.budget = budget
        self.seed = seed
        # Reports the progress of a clause that takes minutes.
        self.announce = announce
        # Has other processes build it; None where none may be started.
        self.elsewhere = elsewhere
        self.tokenizer_when_built: Mapping[str, Any] = {}
        self._weights = weights
        self._asked_before = len(tap.calls)  # by another subject of this run
        self._recipes = recipes
        self._overrides = (overrides, overrides_source)
        self._canonical: Subject | None = None
        # What several clauses look at and is made once in a run: by what it is called.
        self.kept: dict[str, Any] = {}

    def build(
        self,
        backbone_id: str | None = None,
        *,
        llm_max_length: int | None = LLM_MAX_LENGTH,
        hf_token: str | None = CANARY_TOKEN,
        inference_mode: bool = False,
        use_flash_attention_2: bool = False,
        left_out: Collection[str] = (),
    ) -> Any:
        """A fresh backbone; what the constructor raises passes through.

        Arguments that are `left_out` are left to the constructor's defaults, and so is the length
        with `llm_max_length=None`. The process is restored, even if the constructor raises:
        transformers, for one, then leaves the default dtype at that of loading.

        Raises:
            ClauseFailure: if the factory returns something that is not a backbone.
        """
        from conformance.subject.process_state import restored

        getting_on()
        given = {
            **({} if llm_max_length is None else {"llm_max_length": llm_max_length}),
            "hf_token": hf_token,
            "inference_mode": inference_mode,
            "use_flash_attention_2": use_flash_attention_2,
        }
        with restored() as self._changed_by_building:
            try:
                built = self.factory(
                    self.backbone_id if backbone_id is None else backbone_id,
                    **{name: value for name, value in given.items() if name not in left_out},
                )
            except InvalidAdapter as misfit:
                if "training" not in self.__dict__:
                    raise
                raise ClauseFailure(
                    observed=str(misfit),
                    expected="the members that the object built for training has",
                    mend="build the same modules whatever the constructor is asked for",
                ) from misfit
        backbone = built[0] if isinstance(built, tuple) and built else built
        if backbone is None or isinstance(
            backbone, (bool, int, float, str, bytes, tuple, list, dict)
        ):
            raise ClauseFailure(
                observed=f"the factory returned {built!r}",
                expected="the backbone, or (backbone, tokenizer)",
                mend="return the constructed backbone from the factory",
            )
        return backbone

    def has_default(self, argument: str) -> bool:
        """Whether the constructor shows a default for this argument: what takes `**options` shows
        none, and may have one."""
        try:
            parameters = inspect.signature(self.factory).parameters
        except (TypeError, ValueError):
            return False
        return (
            argument in parameters and parameters[argument].default is not inspect.Parameter.empty
        )

    def build_for_inference(self, **arguments: Any) -> Any:
        """A fresh `inference_mode=True` backbone, for clauses that judge something else.

        Raises:
            Blocked: by CON-02, if it cannot be built.
        """
        try:
            return self.build(inference_mode=True, **arguments)
        except ClauseFailure:
            raise
        except (Exception, SystemExit) as error:
            raise Blocked("CON-02") from error

    def build_float32(self) -> Any:
        """A fresh training-mode backbone, in float32 throughout and in `eval()`."""
        from conformance.parity.library import in_float32

        return in_float32(self.build()).eval()

    def changes_by_building(
        self, *, inference_mode: bool, flash: bool = False, refused: str | None = None
    ) -> Mapping[str, str]:
        """What building a backbone changed in the process before it was restored: each thing's
        name, and its old and new value. With an id that is `refused`, the constructor may raise."""
        from conformance.subject.process_state import unusual_settings

        with unusual_settings():
            if refused is not None:
                with suppress(Exception):
                    self.build(refused, inference_mode=inference_mode)
            elif inference_mode:
                self.build_for_inference()
            else:
                self.build(use_flash_attention_2=flash)
        return self._changed_by_building

    def canonical(self) -> Subject:
        """The canonical control in this subject's place: the same view, recipes, budget and seed,
        and nothing copied."""
        if self._canonical is None:
            import torch

            from conformance.control import canonical

            factory = canonical(
                self.weights_hub_id,
                self.backbone_id,
                master=getattr(torch, self.declared.master_dtype),
                half=getattr(torch, self.declared.training_dtype),
                layers=self.declared.layers_kept,
            )
            overrides = {**self._overrides[0], "outside": []}  # it has nothing else
            self._canonical = self._beside(factory, self.backbone_id, self.budget, overrides)
        return self._canonical

    def under(self, backbone_id: str) -> Subject:
        """The same factory asked for another of its ids, at the quick budget."""
        return self._beside(self.factory, backbone_id, Budget("quick"))

    def _beside(
        self,
        factory: Callable[..., Any],
        backbone_id: str,
        budget: Budget,
        overrides: Mapping[str, Any] | None = None,
    ) -> Subject:
        own, source = self._overrides
        return Subject(
            factory,
            backbone_id,
            view=self.view,
            tap=self.tap,
            recipes=self._recipes,
            overrides=own if overrides is None else overrides,
            overrides_source=source,
            budget=budget,
            seed=self.seed,
        )

    def changes_by(self, use: Callable[[], Any]) -> Mapping[str, str]:
        """What a use of a built backbone changed in the process before it was restored; a use that
        raises is left to the clauses about it."""
        from conformance.subject.process_state import restored, unusual_settings

        with unusual_settings(), restored() as changes, suppress(Exception):
            use()
        return changes

    @cached_property
    def training(self) -> Any:
        """The shared training-mode instance, in `eval()`. Clauses only read it; to change something
        they build another."""
        return _evaluating(self.build())

    @cached_property
    def inference(self) -> Any:
        """The shared `inference_mode=True` instance (its weights are not the checkpoint's). Only
        read."""
        return _evaluating(self.build_for_inference())

    @cached_property
    def half_precision(self) -> Any:
        """An instance cast to its `half_precision_dtype`, in `eval()`. Only read."""
        backbone = self.build()
        return backbone.to(backbone.half_precision_dtype).eval()

    @cached_property
    def half_precision_parameters(self) -> Any:
        """An instance whose parameters alone are cast to its `half_precision_dtype`, in `eval()`.
        Only read.

        Buffers stay as built, as under FSDP's mixed precision with float32 buffers: what `.to()`
        does to rotary frequencies is a separate matter.
        """
        from conformance.parity.library import cast_parameters

        backbone = self.build()
        cast_parameters(backbone, backbone.half_precision_dtype)
        return backbone.eval()

    @cached_property
    def float32(self) -> Any:
        """An instance whose parameters are float32, in `eval()`: the training one if it is. Only
        read."""
        import torch

        dtypes = {parameter.dtype for parameter in self.training.llm.parameters()}
        return self.training if dtypes == {torch.float32} else self.build_float32()

    @cached_property
    def hub_ids(self) -> tuple[str, ...]:
        """The hub ids that construction requests, in order."""
        _ = self.training
        own = self.tap.calls[self._asked_before :]
        return tuple(dict.fromkeys(call.repo_id for call in own))

    @cached_property
    def weights_hub_id(self) -> str:
        """The hub id whose weights the constructor loads."""
        ids = self.hub_ids
        asked = [
            call.repo_id
            for call in self.tap.calls[self._asked_before :]
            if ".safetensors" in call.filename and call.found
        ]
        if not ids:
            raise ClauseFailure(
                observed="the constructor asked the hub for nothing",
                expected="a config, weights and a tokenizer loaded by hub id",
                mend="load with `from_pretrained(hub_id, token=hf_token)`: the published "
                "checkpoint is what is wrapped",
            )
        return asked[0] if asked else ids[0]

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe behind `weights_hub_id`."""
        return self._recipes[self.weights_hub_id]

    @cached_property
    def recipes_by_id(self) -> dict[str, Recipe]:
        """Every backbone id that a recipe says it stands for, with the recipe."""
        return {
            backbone_id: recipe
            for recipe in self._recipes.values()
            for backbone_id in recipe.subject.get("backbone_ids", ())
        }

    @property
    def published(self) -> Path:
        """The files of the language model that the constructor is given now: the snapshot itself,
        or what is the language model's of a vision-language one."""
        snapshot, inside = self.view.snapshot(self.weights_hub_id), self.recipe.language_model
        if inside is None or not is_nested(snapshot):  # What a backbone saved is not.
            return snapshot
        own = self.view.home / "language-models" / snapshot.name
        if not own.is_dir():
            extract(snapshot, inside, own)
        return own

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The tensors on disk that the constructor was given."""
        return Checkpoint(self.published)

    def name_on_disk(self, tensor: str) -> str:
        """The name of a tensor of `checkpoint` in the files that the constructor is given."""
        return stored_name(tensor, self.recipe.language_model)

    def change_config(self, snapshot: Path, changes: Mapping[str, Any]) -> None:
        """Change fields of the language model's config in a directory that `hub_variant` edits."""
        file = snapshot / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        if self.recipe.language_model is not None:
            changes = {"text_config": {**config["text_config"], **changes}}
        file.write_text(json.dumps({**config, **changes}), encoding="utf-8")

    @cached_property
    def real_checkpoint(self) -> Checkpoint | None:
        """The checkpoint of the published size that the user named, None if weights are to be
        seeded."""
        return None if self._weights in ("probe", "full") else Checkpoint(Path(self._weights))

    @cached_property
    def declared(self) -> Declarations:
        """The recipe's declarations with the user's own on top."""
        from_recipe = Declarations().updated(self.recipe.subject, str(self.recipe.path))
        return from_recipe.updated(*self._overrides)

    @cached_property
    def published_config(self) -> dict[str, Any]:
        """The checkpoint's `config.json` as the constructor found it, whatever it did with it, but
        for layers that are declared to be cut off."""
        path = self.published / "config.json"
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kept = self.declared.layers_kept
        if kept is not None:
            text = dict(text_part(config))
            if (layers := layers_of(text)) is not None:
                text[layers[0]] = kept
            if isinstance(text.get("layer_types"), list):
                text["layer_types"] = text["layer_types"][:kept]
            config = {**config, "text_config": text} if "text_config" in config else text
        return config

    def published_config_object(self) -> Any:
        """The checkpoint's config as the library reads it, its class's defaults included; the bare
        values where the library has no class for it."""
        from transformers import AutoConfig

        with suppress(Exception):
            return AutoConfig.from_pretrained(self.published)
        return SimpleNamespace(**self.published_config)

    @property
    def optional_absent(self) -> tuple[str, ...]:
        """Members that are declared absent; known before anything is built, as far as the id tells
        the recipe."""
        if "training" in self.__dict__ and self.hub_ids:
            return self.declared.optional_absent
        recipe = self.recipes_by_id.get(self.backbone_id)
        declared = Declarations()
        if recipe is not None:
            declared = declared.updated(recipe.subject, str(recipe.path))
        return declared.updated(*self._overrides).optional_absent

    def published_generation_config(self) -> Any:
        """The checkpoint's own generation config, None if it has none."""
        from transformers import GenerationConfig

        snapshot = self.published
        return (
            GenerationConfig.from_pretrained(snapshot)
            if (snapshot / "generation_config.json").is_file()
            else None
        )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = self.training.get_tokenizer()
        # TOK-09 compares, once other clauses have used it.
        self.tokenizer_when_built = state_of(tokenizer)
        return tokenizer

    @cached_property
    def published_vocabulary(self) -> PublishedVocabulary:
        """The checkpoint's tokenizer, with nothing added."""
        return PublishedVocabulary(self.published, own_class=type(self.tokenizer))

    def encode(self, text: str, *, special: bool = True, tokenizer: Any = None) -> list[int]:
        """Token ids of `text`, as a host encodes it: with the tokenizer's own special tokens, or
        without."""
        return list((tokenizer or self.tokenizer)(text, add_special_tokens=special).input_ids)

    def decode(self, ids: list[int], *, skip_special: bool = False) -> str:
        """The text of `ids`, without the clean-up that would change spaces."""
        return str(
            self.tokenizer.decode(
                ids, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
            )
        )

    @cached_property
    def generation_eos_ids(self) -> tuple[int, ...]:
        """The ids at which generation stops, from the wrapped model's generation config."""
        return eos_ids_of(self.training.llm.generation_config)

    @cached_property
    def terminator_id(self) -> int | None:
        """The one id of the declared terminator; None if it is not one id."""
        text = self.terminator
        ids = self.encode(text, special=False)
        return ids[0] if len(ids) == 1 else None

    @property
    def terminator(self) -> str:
        return self.declared.terminator or self.tokenizer.eos_token or ""

    @cached_property
    def special_strings(self) -> tuple[str, ...]:
        """Every string that the tokenizer treats as one special token."""
        tokenizer = self.tokenizer
        added = [
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        ]
        return tuple(
            dict.fromkeys(text for text in (*tokenizer.all_special_tokens, *added) if text)
        )

    @cached_property
    def host_faults(self) -> dict[Host, str | None]:
        """Every host that may ask for prompt builders, and what keeps it from working."""
        families = self.declared.hosts or HOST_MODEL_FAMILIES
        return {
            host: host.fault()
            for host in (
                Host(family, builder_class, mode)
                for family in families
                for mode, builder_class in self._builder_classes.items()
            )
        }

    @property
    def working_hosts(self) -> tuple[Host, ...]:
        """The hosts that get builders in each mode.

        Raises:
            Blocked: there is none.
        """
        failing = {host.model_family for host, fault in self.host_faults.items() if fault}
        working = tuple(host for host in self.host_faults if host.model_family not in failing)
        if not working:
            raise Blocked("PRM-16")
        return working

    @cached_property
    def _builder_classes(self) -> dict[str, Callable[..., Any]]:
        """The builder class by mode, taken once as data loaders do; inference has no entry of its
        own if it gives the same."""
        taken = {"training": _builder_class(self.training)}
        with refusal():  # CON-02 judges whether there is such an instance
            at_inference = _builder_class(self.inference)
            if at_inference is not taken["training"]:
                taken["inference"] = at_inference
        return taken

    def lacks(self, member: str) -> bool:
        """Whether the shared instance has no such member, without evaluating properties; of an
        argument of the constructor, whether it is declared absent."""
        if member in ARGUMENTS:
            return member in self.optional_absent
        return lacks_member(self.training, member)

    def outside(self, backbone: Any) -> dict[str, Any]:
        """The modules of `backbone` that are declared not to be the language model, by path."""
        return {
            path: functools.reduce(getattr, path.split("."), backbone)
            for path in self.declared.outside
        }

    def lie_outside(self, backbone: Any) -> set[int]:
        """The identities of the parameters that lie in those modules."""
        modules = self.outside(backbone).values()
        return {id(parameter) for module in modules for parameter in module.parameters()}

    def hub_variant(self, edit: Callable[[Path], None]) -> AbstractContextManager[Path]:
        """Serve an edited copy of the weights' snapshot while the body runs; `edit` changes files
        in place."""
        return self.view.variant(self.weights_hub_id, edit)

    def code_of(self, members: Sequence[str]) -> list[dict[str, str]]:
        """The author's lines that define these members of the contract, and the builder's methods
        if prompts are among them."""
        owners: list[type] = []
        if "training" in self.__dict__:
            owners.append(type(self.training))
            builder = getattr(self.training, "prompt_builder_fn", None)
            if "prompt_builder_fn" in members and inspect.isclass(builder):
                owners.insert(0, builder)
                members = (*BUILDER_MEMBERS, *members)
        return code_behind(self.factory, owners, members)

    def source_files(self) -> dict[str, str]:
        """The files that define the subject, and their SHA-256: its classes, builder and factory,
        without libraries."""
        return {
            _name_in_package(name, file): hashlib.sha256(file.read_bytes()).hexdigest()
            for name, file in self._sources().items()
        }

    def replaced_in_libraries(self, backbone: Any) -> list[str]:
        """Where code of the subject's own package stands in the libraries that it is made of, for
        every model of the process: `module.name` or `module.Class.method`."""
        # The harness watches both from within.
        own = frozenset(name.partition(".")[0] for name in self._sources()) - {"conformance"}
        llm = backbone.llm
        parts = [llm, backbone.get_tokenizer(), llm.config, getattr(llm, "generation_config", None)]
        return replaced_in_libraries(parts, own)

    def _sources(self) -> dict[str, Path]:
        """The defining files by module."""
        defining: list[Any] = [self.factory]
        if "training" in self.__dict__:
            defining += defining_classes(self.training)
            if inspect.isclass(getattr(self.training, "prompt_builder_fn", None)):
                defining += self.training.prompt_builder_fn.__mro__
        names = dict.fromkeys(getattr(item, "__module__", None) for item in defining)
        return {
            name: file
            for name in sorted(filter(None, names))
            if name.partition(".")[0] not in _LIBRARIES and (file := _file_of(name)) is not None
        }


def _builder_class(backbone: Any) -> Callable[..., Any]:
    """What `prompt_builder_fn` gives; if it raises, a class that does so when it is called."""
    with refusal() as refused:
        taken: Callable[..., Any] = backbone.prompt_builder_fn
    if not refused:
        return taken

    def refusing(*_: Any, **__: Any) -> Any:
        raise refused[0]

    return refusing


def _evaluating(backbone: Any) -> Any:
    """The backbone in `eval()`; one without that method is left for the clauses to judge."""
    if hasattr(backbone, "eval"):
        backbone.eval()
    return backbone


def _file_of(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file and Path(file).is_file() else None


def _name_in_package(module: str, file: Path) -> str:
    """The file's path from its top-level package on: certificates must not reveal where somebody's
    home directory is."""
    depth = module.count(".") + (2 if file.name == "__init__.py" else 1)
    return "/".join(file.parts[-depth:])
