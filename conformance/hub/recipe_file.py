"""A recipe's file: `fixtures/hub/<org>--<name>.toml`.

The published JSON files are stored in it as text, so that a constructor reads exactly what was
published, `null` included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any, NoReturn

from packaging.version import Version

from conformance.hub.published import chat_template_in, files_in, tokenizer_config_in
from conformance.hub.recipe import (
    DTYPES,
    LAYOUTS,
    PUBLISHED_LAYOUT,
    TEMPLATE_ORACLES,
    TOKENIZER_KINDS,
    TOKENIZER_LAYOUTS,
    VOCABULARY_PACKAGES,
    AcceptedDifference,
    InvalidRecipe,
    Recipe,
    TokenizerRecipe,
)
from conformance.places import fixtures_directory
from conformance.toml import TOMLDecodeError, load_toml


def read_recipe(path: Path) -> Recipe:
    """Reads one recipe file.

    Raises:
        InvalidRecipe: the file cannot be read, is not TOML, or a key of it is missing, unknown or
            wrong.
    """
    try:
        document = load_toml(path)
    except OSError as error:
        raise InvalidRecipe(f"recipe {path}: cannot be read: {error.strerror or error}") from None
    except (TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRecipe(f"recipe {path}: is not valid TOML: {error}") from None
    except RecursionError:
        raise InvalidRecipe(f"recipe {path}: is nested too deeply to be a recipe") from None

    table = _Table(path, "", document)
    hub_id = table.text("hub_id")
    _check_file_name(table, hub_id)
    tokenizer = _read_tokenizer(table.table("tokenizer"))
    published = table.table("published")
    config = published.json_object("config")
    architecture = table.text("architecture")
    _check_config(published, config, architecture)
    probe = table.table("probe")
    probe.only_keys(config, "a field of the published config")
    _check_heads(probe, {**config, **probe.values})
    template = table.optional_text("chat_template")
    if tokenizer.ships_chat_template and template is None:
        table.wrong(
            "chat_template",
            "is missing",
            "the name of a file of chat_templates/, as the tokenizer ships one",
        )
    recipe = Recipe(
        hub_id=hub_id,
        family=table.text("family"),
        architecture=architecture,
        config=config,
        probe=probe.values,
        dtype=table.one_of("dtype", DTYPES),
        tokenizer=tokenizer,
        generation_config=(
            published.json_object("generation_config")
            if "generation_config" in published.values
            else None
        ),
        chat_template=_template_of(table, tokenizer, template),
        template_oracle=(
            table.one_of("template_oracle", TEMPLATE_ORACLES)
            if "template_oracle" in document
            else "jinja"
        ),
        accepted_template_differences=tuple(
            AcceptedDifference(difference.text("name"), difference.text("reason"))
            for difference in table.tables("accepted_template_difference")
        ),
        subject=_subject_of(table),
        sources=table.table("sources").texts(),
        parameters=(
            published.value("parameters", int, "the number of parameters")
            if "parameters" in published.values
            else None
        ),
        path=path,
        language_model=table.optional_text("language_model"),
    )
    published.only_keys(PUBLISHED_KEYS, "one of " + ", ".join(PUBLISHED_KEYS))
    table.only_keys(TOP_LEVEL_KEYS, "one of " + ", ".join(TOP_LEVEL_KEYS))
    return recipe


TOP_LEVEL_KEYS = (
    "hub_id",
    "family",
    "architecture",
    "language_model",
    "dtype",
    "chat_template",
    "template_oracle",
    "published",
    "probe",
    "tokenizer",
    "accepted_template_difference",
    "subject",
    "subject_before",
    "sources",
)


PUBLISHED_KEYS = ("parameters", "config", "generation_config")


TOKENIZER_KEYS = (
    "kind",
    "package",
    "source",
    "sha256",
    "layout",
    "ranks",
    "ships_chat_template",
    "golden",
    "config",
    "special_tokens_map",
    "stand_in",
)


STAND_IN_KEYS = ("source", "sha256", "golden")


PUBLISHED_TOKENIZER_KEYS = ("kind", "source", "sha256", "layout")


def _subject_of(table: _Table) -> dict[str, Any]:
    """The declarations, as they are under the installed release of transformers."""
    subject = dict(table.table("subject").values) if "subject" in table.values else {}
    for differing in table.tables("subject_before"):
        declared = dict(differing.values)
        release = differing.text("transformers")
        declared.pop("transformers")
        if _library() < Version(release):
            subject |= declared
    return subject


@lru_cache
def _library() -> Version:
    return Version(version("transformers"))


def _check_file_name(table: _Table, hub_id: str) -> None:
    if (
        hub_id.count("/") > 1
        or any(part in ("", ".", "..") for part in hub_id.split("/"))
        or "--" in hub_id
    ):
        table.wrong("hub_id", f"is {hub_id!r}", "a hub id such as 'mistralai/Mistral-7B-v0.1'")
    expected = hub_id.replace("/", "--") + ".toml"
    if table.path.name != expected:
        table.wrong(
            "hub_id",
            f"is {hub_id!r}, which does not match the file's name",
            f"a file named {expected}",
        )


def _check_config(published: _Table, config: Mapping[str, Any], architecture: str) -> None:
    for key in ("model_type", "vocab_size"):
        if key not in config and "text_config" not in config:
            published.wrong("config", f"has no {key!r}", "the published config.json, verbatim")
    if architecture not in config.get("architectures", [architecture]):
        published.wrong(
            "config",
            f"lists the architectures {config['architectures']!r}",
            f"a list with the recipe's own architecture, {architecture!r}",
        )


def _check_heads(probe: _Table, config: Mapping[str, Any]) -> None:
    heads, shared = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(shared, int) and (shared < 1 or heads % shared):
        probe.wrong(
            "num_key_value_heads",
            f"is {shared} for {heads} attention heads",
            f"a divisor of {heads}",
        )


def _read_tokenizer(table: _Table) -> TokenizerRecipe:
    layout = table.one_of("layout", TOKENIZER_LAYOUTS)
    if layout == PUBLISHED_LAYOUT:
        return _read_published_tokenizer(table)
    ranks = (
        table.value("ranks", int, "a number of vocabulary entries")
        if LAYOUTS[layout].encoder == "tiktoken"
        else None
    )
    config = table.json_object("config")
    if not isinstance(config.get("tokenizer_class"), str):
        table.wrong(
            "config", "has no 'tokenizer_class'", "the published tokenizer_config.json, verbatim"
        )
    sha256 = _sha256(table)
    table.only_keys(TOKENIZER_KEYS, "one of " + ", ".join(TOKENIZER_KEYS))
    tokenizer = TokenizerRecipe(
        kind=table.one_of("kind", TOKENIZER_KINDS),
        source=table.text("source"),
        sha256=sha256,
        layout=layout,
        tokenizer_class=config["tokenizer_class"],
        config=config,
        special_tokens_map=table.json_object("special_tokens_map"),
        ranks=ranks,
        ships_chat_template=(
            table.value("ships_chat_template", bool, "true or false")
            if "ships_chat_template" in table.values
            else False
        ),
        golden=table.optional_text("golden"),
        package=(
            table.one_of("package", tuple(VOCABULARY_PACKAGES))
            if "package" in table.values
            else "mistral-common"
        ),
    )
    if "stand_in" not in table.values:
        return tokenizer
    stand_in = _read_stand_in(table.table("stand_in"), tokenizer)
    return replace(tokenizer, stand_in=stand_in) if _is_installed(tokenizer.package) else stand_in


def _read_stand_in(table: _Table, tokenizer: TokenizerRecipe) -> TokenizerRecipe:
    """The tokenizer over a vocabulary of mistral-common, for where its own is not installed."""
    table.only_keys(STAND_IN_KEYS, "one of " + ", ".join(STAND_IN_KEYS))
    return replace(
        tokenizer,
        kind="stand-in",
        package="mistral-common",
        source=table.text("source"),
        sha256=_sha256(table),
        golden=table.optional_text("golden"),
    )


@lru_cache
def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def _sha256(table: _Table) -> str:
    sha256 = table.text("sha256")
    if len(sha256) != 64 or any(character not in "0123456789abcdef" for character in sha256):
        table.wrong(
            "sha256", f"is {sha256!r}", "64 lower-case hex digits, the digest of the source file"
        )
    return sha256


def _read_published_tokenizer(table: _Table) -> TokenizerRecipe:
    table.only_keys(PUBLISHED_TOKENIZER_KEYS, "one of " + ", ".join(PUBLISHED_TOKENIZER_KEYS))
    source = table.text("source")
    directory = table.path.parent / source
    files = files_in(directory)
    if not files:
        table.wrong(
            "source", f"is {source!r}, which holds no tokenizer", "a folder beside the file"
        )
    config = tokenizer_config_in(directory)
    return TokenizerRecipe(
        kind=table.one_of("kind", TOKENIZER_KINDS),
        source=source,
        sha256=table.text("sha256"),
        layout=PUBLISHED_LAYOUT,
        tokenizer_class=str(config.get("tokenizer_class", "")),
        config=config,
        special_tokens_map={},
        files=files,
    )


def _template_of(table: _Table, tokenizer: TokenizerRecipe, name: str | None) -> str | None:
    if name is not None:
        return _read_template(table, name)
    if tokenizer.layout != PUBLISHED_LAYOUT:
        return None
    return chat_template_in(tokenizer.files[0].parent, tokenizer.config)


def _read_template(table: _Table, name: str) -> str:
    for directory in (table.path.parent, fixtures_directory() / "chat_templates"):
        path = directory / name
        if path.is_file():
            return path.read_text(encoding="utf-8")
    return table.wrong(
        "chat_template",
        f"names {name!r}, which does not exist",
        "a file beside the recipe or in chat_templates/",
    )


@dataclass(frozen=True)
class _Table:
    """One table of a recipe, with the file and the dotted name for error messages."""

    path: Path
    name: str
    values: Mapping[str, Any]

    def wrong(self, key: str, what: str, right: str) -> NoReturn:
        dotted = f"{self.name}.{key}" if self.name else key
        raise InvalidRecipe(f"recipe {self.path}: key `{dotted}` {what}; right would be {right}")

    def value(self, key: str, kind: type | tuple[type, ...], right: str) -> Any:
        if key not in self.values:
            self.wrong(key, "is missing", right)
        found = self.values[key]
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is int):
            self.wrong(key, f"is {found!r:.80}", right)
        return found

    def text(self, key: str) -> str:
        found: str = self.value(key, str, "a string that is not empty")
        if not found.strip():
            self.wrong(key, "is empty", "a string that is not empty")
        return found

    def optional_text(self, key: str) -> str | None:
        return self.text(key) if key in self.values else None

    def one_of(self, key: str, choices: Sequence[str]) -> str:
        right = "one of " + ", ".join(repr(choice) for choice in choices)
        found: str = self.value(key, str, right)
        if found not in choices:
            self.wrong(key, f"is {found!r:.80}", right)
        return found

    def table(self, key: str) -> _Table:
        name = f"{self.name}.{key}" if self.name else key
        return _Table(self.path, name, self.value(key, Mapping, f"a table, `[{name}]`"))

    def tables(self, key: str) -> list[_Table]:
        right = f"an array of tables, `[[{key}]]`"
        found = self.value(key, list, right) if key in self.values else []
        if not all(isinstance(entry, Mapping) for entry in found):
            self.wrong(key, f"is {found!r:.80}", right)
        return [_Table(self.path, f"{key}[{index}]", entry) for index, entry in enumerate(found)]

    def texts(self) -> dict[str, str]:
        return {key: self.text(key) for key in self.values}

    def json_object(self, key: str) -> dict[str, Any]:
        right = "the published JSON object, verbatim, as a literal multi-line string"
        text = self.value(key, str, right)
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            self.wrong(key, f"is not valid JSON ({error})", right)
        if not isinstance(found, dict):
            self.wrong(key, f"is JSON, but not an object: {found!r:.80}", right)
        return found

    def only_keys(self, allowed: Sequence[str] | Mapping[str, Any], right: str) -> None:
        for key in self.values:
            if key not in allowed:
                self.wrong(key, "is not known", right)
