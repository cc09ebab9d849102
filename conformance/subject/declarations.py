"""What a subject says about itself: the `[subject]` table of a recipe or of `conformance.toml`.

A declaration never weakens a clause; it chooses which convention the clause holds the subject to,
and the certificate repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from conformance.errors import CannotAssess, did_you_mean
from conformance.toml import TOMLDecodeError, load_toml

CONFIG_FILE = "conformance.toml"
_TABLES = ("subject", "adapter")

_DTYPES = ("float32", "bfloat16", "float16")

_CHOICES: dict[str, tuple[str, ...]] = {
    "bos": ("auto", "prompt", "none"),
    "bos_per_prompt": ("one", "per-turn", "none"),
    "terminator_ends": ("", "assistant", "every-turn"),
    "attention": ("causal", "bidirectional"),
    "positions": ("rotary", "absolute", "alibi"),
    "patch_position": ("after-bos", "start", "end"),
    "action_scheme": ("tail", "id", "none"),
    "normalisation": ("identity", "metaspace", "metaspace-first", "nfc", "nfkc"),
    "master_dtype": _DTYPES,
    "training_dtype": _DTYPES,
}


@dataclass(frozen=True)
class PromptRule:
    """Ids that match `pattern` (as in `fnmatch`) use the builder class of this name."""

    pattern: str
    builder: str


SEED_PROMPT_RULES = (
    PromptRule("vicuna-*", "VicunaV15ChatPromptBuilder"),
    PromptRule("phi-2*", "PhiPromptBuilder"),
    PromptRule("*-pure", "PurePromptBuilder"),
    PromptRule("*-instruct", "MistralInstructPromptBuilder"),
    PromptRule("*-chat", "LLaMa2ChatPromptBuilder"),
)
"""The seed's families: https://github.com/TRI-ML/prismatic-vlms, `prompt_builder_fn` of each
backbone."""


@dataclass(frozen=True)
class Declarations:
    """Conventions a subject follows. Dtypes are torch names (`"bfloat16"`); positions and patches
    are counts."""

    family: str = ""
    bos: str = "auto"
    """`auto`: the tokenizer puts one bos first; `prompt`: the prompt builder does; `none`: there is
    none."""
    bos_per_prompt: str = "one"
    terminator: str = ""
    """The string that ends an assistant turn; empty for the tokenizer's own eos token."""
    terminator_ends: str = ""
    """Whose turns end in the terminator: those of the `assistant` alone, or `every-turn`; empty for
    what the official template has, or the builder's own format where there is none."""
    hosts: tuple[str, ...] = ()
    """The `model_family` of each host that asks for prompt builders; empty for Prismatic's two, of
    which one may be refused."""
    prompt_rule: tuple[PromptRule, ...] = SEED_PROMPT_RULES
    system_prompt: bool = False
    normalisation: str = "identity"
    """What becomes of a text before it is encoded. `metaspace`: SentencePiece's `▁` and a space are
    the same to this tokenizer; `metaspace-first`: and so are a text and the text after one space;
    `nfc`, `nfkc`: Unicode's normal forms of these names."""
    master_dtype: str = "float32"
    training_dtype: str = "bfloat16"
    embedding_scale: float = 1.0
    """The factor by which `embed_input_ids` multiplies the embedding's rows."""
    patch_scale: float = 1.0
    """The factor by which the model multiplies `inputs_embeds` before its first layer."""
    attention: str = "causal"
    positions: str = "rotary"
    window: int | None = None
    image_patches: int = 256
    patch_position: str = "after-bos"
    action_scheme: str = "tail"
    boundary_fixup: tuple[int, ...] = ()
    """Ids that the host appends to an inference prompt so that it becomes a prefix of the training
    prompt."""
    vocabulary_rows: int | None = None
    optional_absent: tuple[str, ...] = ()
    """Members, and arguments of the constructor, that are absent on purpose."""
    outside: tuple[str, ...] = ()
    """Dotted paths, from the backbone, of modules that are not the language model."""
    layers_kept: int | None = None
    """How many of the checkpoint's decoder layers are kept, the first ones; None for all."""
    backbone_ids: tuple[str, ...] = ()

    def builder_for(self, backbone_id: str) -> str | None:
        """The builder class name that the rule gives `backbone_id`, or None if the rule does not
        cover it."""
        return next(
            (rule.builder for rule in self.prompt_rule if fnmatchcase(backbone_id, rule.pattern)),
            None,
        )

    def updated(self, table: Mapping[str, Any], source: str) -> Declarations:
        """These declarations with those of `table` on top.

        Raises:
            CannotAssess: for an unknown key or a value of the wrong type, naming `source` and the
                key.
        """
        return replace(self, **{key: _value(key, value, source) for key, value in table.items()})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def declarations_in(config: Path | None) -> tuple[dict[str, Any], Path | None]:
    """The raw `[subject]` table of `config`, or of `conformance.toml` in the working directory, and
    its path.

    Raises:
        CannotAssess: as `configuration_in`.
    """
    document, path = configuration_in(config)
    return document.get("subject", {}), path


def configuration_in(config: Path | None) -> tuple[dict[str, Any], Path | None]:
    """The raw tables of `config`, or of `conformance.toml` in the working directory, and its path.

    Raises:
        CannotAssess: if `config` was named and cannot be read, or is not TOML; for a table that is
            not known, a `subject` that is no table, and what `Declarations.updated` refuses in it.
    """
    path = config or (Path(CONFIG_FILE) if Path(CONFIG_FILE).is_file() else None)
    if path is None:
        return {}, None
    try:
        document = load_toml(path)
    except OSError as error:
        raise CannotAssess(
            f"the configuration `{path}` cannot be read: {error.strerror or error}"
        ) from error
    except (TOMLDecodeError, UnicodeDecodeError) as error:
        raise CannotAssess(f"the configuration `{path}` is not TOML: {error}") from error
    for name in document:
        if name not in _TABLES:
            meant = did_you_mean(name, _TABLES)
            raise CannotAssess(
                f"`{name}` in `{path}` is not known{meant}: the file holds the tables `[subject]` "
                f"and `[adapter]`"
            )
    table = document.get("subject", {})
    if not isinstance(table, dict):
        raise CannotAssess(
            f"`subject` in `{path}` is {table!r}, but should be a table: write `[subject]`"
        )
    Declarations().updated(table, str(path))
    return document, path


def _value(key: str, value: Any, source: str) -> Any:
    types = {field.name: str(field.type) for field in fields(Declarations)}
    if key not in types:
        known = ", ".join(sorted(types))
        raise CannotAssess(
            f"`[subject]` in {source} has an unknown key `{key}`{did_you_mean(key, types)}; "
            f"known keys: {known}"
        )
    if key in _CHOICES and value not in _CHOICES[key]:
        raise CannotAssess(
            f"`{key}` in {source} is {value!r}, but should be one of {', '.join(_CHOICES[key])}"
        )
    if key == "prompt_rule":
        return _prompt_rules(value, source)
    kind = _KINDS[types[key]]
    if not kind.admits(value):
        raise CannotAssess(f"`{key}` in {source} is {value!r}, but should be {kind.description}")
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _prompt_rules(value: Any, source: str) -> tuple[PromptRule, ...]:
    try:
        return tuple(
            PromptRule(pattern=str(row["pattern"]), builder=str(row["builder"])) for row in value
        )
    except (TypeError, KeyError):
        raise CannotAssess(
            f"`prompt_rule` in {source} is {value!r}, but should be a list of "
            '{pattern = "*-chat", builder = "Class"}'
        ) from None


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list_of(value: Any, admits: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(map(admits, value))


@dataclass(frozen=True)
class _Kind:
    """The values that a field admits: a predicate, and its description."""

    description: str
    admits: Callable[[Any], bool]


_KINDS = {
    "str": _Kind("a string", lambda value: isinstance(value, str)),
    "bool": _Kind("true or false", lambda value: isinstance(value, bool)),
    "int": _Kind("a whole number, zero or more", lambda value: _is_integer(value) and value >= 0),
    "int | None": _Kind(
        "a whole number, one or more", lambda value: _is_integer(value) and value > 0
    ),
    "float": _Kind("a number", lambda value: _is_integer(value) or isinstance(value, float)),
    "tuple[int, ...]": _Kind("a list of token ids", lambda value: _is_list_of(value, _is_integer)),
    "tuple[str, ...]": _Kind(
        "a list of strings", lambda value: _is_list_of(value, lambda item: isinstance(item, str))
    ),
}
