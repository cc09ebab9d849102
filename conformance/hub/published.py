"""The published files of one model as they lie in a folder: its configs and its tokenizer, read and
checked. Weights are never opened."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from conformance.errors import CannotAssess

CONFIG = "config.json"
TEXT_CONFIG = "text_config"
"""The key of a vision-language config that describes the language model."""
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    CHAT_TEMPLATE,
    "chat_template.json",
)
"""Every file that a tokenizer of the library may read, by the name it is published under."""
_HOLDS_ADAPTERS = "adapter_config.json"
FEWEST_TOKENS = 0.85
"""The least share of a model's rows that have tokens: Phi-2 has 50,295 for 51,200, and no published
model that is known here has fewer than 0.94."""


class UnusableFiles(CannotAssess):
    """Published files from which no recipe can be made. The message names the file, what is wrong
    with it, and what to try."""


@dataclass(frozen=True)
class Published:
    """The files of `hub_id` in `directory`; the JSON of each as a dictionary.

    `tokenizer_files` are those that a tokenizer reads.
    """

    hub_id: str
    directory: Path
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any] | None
    tokenizer_config: Mapping[str, Any]
    tokenizer_files: tuple[Path, ...]

    @property
    def architecture(self) -> str:
        """The class that reads the checkpoint."""
        return str(self.config["architectures"][0])

    @cached_property
    def chat_template(self) -> str | None:
        """The template of a dialogue, Jinja; the one named `default` where several are published.

        A file of its own is what newer releases of the library write and read first.
        """
        return chat_template_in(self.directory, self.tokenizer_config)

    def token(self, name: str) -> str | None:
        """The content of a special token of the tokenizer's config, such as `bos_token`."""
        found = self.tokenizer_config.get(name)
        content = found.get("content") if isinstance(found, Mapping) else found
        return content if isinstance(content, str) else None


def read_published(directory: Path, hub_id: str, *, trust_remote_code: bool = False) -> Published:
    """The published files in `directory`: a model's own folder, or a snapshot of the Hugging Face
    cache.

    Raises:
        UnusableFiles: there is no config or no tokenizer that the library reads without other
            packages, a file is cut short or is no JSON object, the model is no decoder of text, it
            asks for code of its own and `trust_remote_code` is not set, the tokenizer is of another
            model, or a link leads out of the folder.
    """
    if not directory.is_dir():
        raise UnusableFiles(
            f"`{directory}` is not a folder; name the one that holds config.json and the "
            f"tokenizer's files of {hub_id}"
        )
    _check_links(directory)
    config = _read_config(directory, hub_id)
    _check_decoder(config, directory, hub_id)
    if "auto_map" in config and _is_native(config):
        # The code that came before the class did.
        config = {key: value for key, value in config.items() if key != "auto_map"}
    if "auto_map" in config and not trust_remote_code:
        raise UnusableFiles(
            f"`{directory / CONFIG}` asks for code of its own (`auto_map`: "
            f"{_shortly(config['auto_map'])}), which is not run unless you say so: read it, then "
            f"add --trust-remote-code, or use a release of transformers that has "
            f"{config['architectures'][0]} itself"
        )
    _check_tokenizer(directory, hub_id, config)
    generation_config = directory / GENERATION_CONFIG
    return Published(
        hub_id=hub_id,
        directory=directory,
        config=config,
        generation_config=json_object(generation_config) if generation_config.is_file() else None,
        tokenizer_config=tokenizer_config_in(directory),
        tokenizer_files=files_in(directory),
    )


def _is_native(config: Mapping[str, Any]) -> bool:
    """Whether the installed library has the class of this config itself."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    architecture = str(config["architectures"][0])
    return config["model_type"] in CONFIG_MAPPING and hasattr(transformers, architecture)


def chat_template_in(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The template of a dialogue that `directory` publishes, as `Published.chat_template`."""
    path = directory / CHAT_TEMPLATE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableFiles(f"`{path}` cannot be read as text: {error}") from None
    found = tokenizer_config.get("chat_template")
    if isinstance(found, list):
        found = {one.get("name"): one.get("template") for one in found}.get("default")
    return found if isinstance(found, str) else None


def tokenizer_config_in(directory: Path) -> dict[str, Any]:
    """The parsed `tokenizer_config.json`, empty if there is none.

    Raises:
        UnusableFiles: it cannot be read, or is no JSON object.
    """
    path = directory / TOKENIZER_CONFIG
    return json_object(path) if path.is_file() else {}


def files_in(directory: Path) -> tuple[Path, ...]:
    """The files in `directory` that a tokenizer reads."""
    return tuple(path for name in TOKENIZER_FILES if (path := directory / name).is_file())


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 (64 hex digits) of the names and contents of files."""
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def copy_tokenizer(files: Sequence[Path], directory: Path) -> None:
    """Copy a tokenizer's files as they are, but for merges: pairs, as newer releases write them,
    are what tokenizers 0.19 cannot read, and every release reads the older form."""
    for path in files:
        shutil.copyfile(path, directory / path.name)
    path = directory / TOKENIZER
    document = json.loads(path.read_text(encoding="utf-8"))
    merges = document["model"].get("merges") or []
    # The older form divides at the blank.
    if merges and not isinstance(merges[0], str) and not any(" " in a + b for a, b in merges):
        document["model"]["merges"] = [f"{left} {right}" for left, right in merges]
        path.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the decoder of text: all of it, but in a vision-language
    model."""
    found = config.get(TEXT_CONFIG)
    return found if isinstance(found, Mapping) else config


def _read_config(directory: Path, hub_id: str) -> Mapping[str, Any]:
    if (directory / CONFIG).is_file():
        return json_object(directory / CONFIG)
    if (directory / _HOLDS_ADAPTERS).is_file():
        base = json_object(directory / _HOLDS_ADAPTERS).get("base_model_name_or_path")
        raise UnusableFiles(
            f"`{directory}` holds adapters of {base or 'another model'} ({_HOLDS_ADAPTERS}), not a "
            f"model: name the folder of {base or 'the model'}, or that of a merged model"
        )
    gguf = sorted(path.name for path in directory.glob("*.gguf"))
    if gguf:
        raise UnusableFiles(
            f"`{directory}` holds `{gguf[0]}` and no {CONFIG}: gguf files are read by no class "
            f"that wraps transformers; name a folder with the published {CONFIG} of {hub_id}"
        )
    raise UnusableFiles(
        f"`{directory}` has no {CONFIG}; it holds "
        f"{_shortly(sorted(path.name for path in directory.iterdir()) or 'nothing')}"
    )


def _check_links(directory: Path) -> None:
    """Refuse links that lead elsewhere. A snapshot of the Hugging Face cache consists of links, to
    `blobs` of its own repository."""
    home = directory.resolve()
    if home.parent.name == "snapshots":
        home = home.parent.parent
    for path in (directory / name for name in (CONFIG, GENERATION_CONFIG, *TOKENIZER_FILES)):
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise UnusableFiles(
                f"`{path}` is a link to `{path.resolve()}`, outside of the folder: copy the file, "
                f"or name the folder that holds it"
            )


def _check_decoder(config: Mapping[str, Any], directory: Path, hub_id: str) -> None:
    where = f"`{directory / CONFIG}`"
    if not isinstance(config.get("model_type"), str):
        raise UnusableFiles(
            f"{where} has no `model_type`, by which the library finds the model's class; take the "
            f"published {CONFIG} of {hub_id}, verbatim"
        )
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise UnusableFiles(
            f"{where} has no `architectures`, the class that reads the checkpoint; take the "
            f"published {CONFIG} of {hub_id}, verbatim"
        )
    if config.get("is_encoder_decoder") or not str(architectures[0]).endswith(
        ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    ):
        raise UnusableFiles(
            f"{where} is of {architectures[0]} ({config['model_type']}), which is no decoder of "
            f"text: a backbone wraps a causal language model"
        )
    if "quantization_config" in config:
        how = config["quantization_config"]
        method = how.get("quant_method") if isinstance(how, Mapping) else None
        raise UnusableFiles(
            f"{where} is of a quantised checkpoint ({method or 'quantization_config'}), whose "
            f"weights a probe cannot have: name the folder of the model that it was made from"
        )
    if not isinstance(text_part(config).get("vocab_size"), int):
        raise UnusableFiles(
            f"{where} has no `vocab_size`, the number of rows; take the published {CONFIG} of "
            f"{hub_id}, verbatim"
        )


def _check_tokenizer(directory: Path, hub_id: str, config: Mapping[str, Any]) -> None:
    path = directory / TOKENIZER
    if not path.is_file():
        slow = [n for n in ("tokenizer.model", "spiece.model") if (directory / n).is_file()]
        raise UnusableFiles(
            f"`{directory}` has {slow[0] if slow else 'no tokenizer'}"
            + (f" and no {TOKENIZER}: a slow tokenizer alone" if slow else f": no {TOKENIZER}")
            + f". Write it with `AutoTokenizer.from_pretrained({str(directory)!r})"
            f".save_pretrained(...)`, or take the published one of {hub_id}"
        )
    document = json_object(path)
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(vocabulary, (Mapping, list)):
        raise UnusableFiles(f"`{path}` has no `model.vocab`: it is no tokenizer of the library")
    added = document.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(one, Mapping) for one in added):
        raise UnusableFiles(f"`{path}` has `added_tokens` that are no list of tables")
    rows = text_part(config)["vocab_size"]
    tokens = len({one.get("content") for one in added} | _texts(vocabulary))
    if len(vocabulary) > rows:
        raise UnusableFiles(
            f"`{path}` has {len(vocabulary)} tokens, and `{directory / CONFIG}` says that the "
            f"model has {rows} rows: they are of different models"
        )
    if tokens < FEWEST_TOKENS * rows:
        raise UnusableFiles(
            f"`{path}` has {tokens} tokens for the {rows} rows that `{directory / CONFIG}` says: "
            f"they are of different models, or the file is cut"
        )


def _texts(vocabulary: Mapping[str, int] | list[Any]) -> set[str]:
    if isinstance(vocabulary, Mapping):
        return set(vocabulary)
    return {entry[0] for entry in vocabulary}  # Unigram: pairs of text and score


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a published file.

    Raises:
        UnusableFiles: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnusableFiles(f"`{path}` cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UnusableFiles(
            f"`{path}` is not JSON, cut short perhaps: {error}; fetch it again"
        ) from None
    if not isinstance(found, dict):
        raise UnusableFiles(f"`{path}` holds no JSON object, but {_shortly(found)}")
    return found


def _shortly(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
