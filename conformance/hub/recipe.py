"""A recipe: the published facts of one hub id, and the tiny sizes at which its probe checkpoint is
built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.errors import CannotAssess

FILES_FORMAT = 1
"""Counts the changes to the files made from a recipe. It is part of every digest; library versions
are not, because the files are written here, byte for byte, and no library decides their form."""


DTYPES = ("bfloat16", "float16", "float32")


TOKENIZER_KINDS = ("real", "stand-in")


MISTRAL_COMMON = (
    "mistral-common-v1",
    "mistral-common-v2",
    "mistral-common-v3",
    "mistral-common-v3-tekken",
)
"""mistral-common's instruct tokenizers, by version: each encodes dialogues by its own format and
vocabulary."""


TEMPLATE_ORACLES = ("jinja", *MISTRAL_COMMON, "seed")


PUBLISHED_LAYOUT = "published"


@dataclass(frozen=True)
class Layout:
    """A form of `tokenizer.json` that is made here.

    `encoder` is the library that reads the vocabulary's source, and whose ids are the golden ones.
    `bos` is the token that a SentencePiece layout has for it. With `has_marks_first` the special
    tokens, runs of blanks and HTML marks stand before the pieces (Gemma).
    With `has_control_tokens` the special tokens are the vocabulary's own control tokens, hundreds
    of them, and the list that the config publishes (`added_tokens_decoder`) is made from it;
    `unnamed` is what those are called that have no name there. With `special_first` the special
    tokens stand before the first rank.

    `pattern` cuts a text before bytes are joined, where the layout has one of its own; with `nfc` a
    text is normalised before that. With `joins_by_rank` any two neighbours are joined that make up
    a token, and a word that is a token is one, as in tiktoken. With `digits_apart` each digit is
    cut off before GPT-2's pattern cuts the rest.
    """

    encoder: str
    puts_bos_first: bool
    bos: str = "<s>"
    has_control_tokens: bool = False
    has_marks_first: bool = False
    unnamed: str = "<SPECIAL_{}>"
    special_first: bool = False
    pattern: str | None = None
    nfc: bool = False
    joins_by_rank: bool = False
    digits_apart: bool = False


_CL100K_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How GPT-4 cuts a text (tiktoken's `cl100k_base`), but for numbers."""


LAYOUTS = {
    "sentencepiece-bpe": Layout("sentencepiece", puts_bos_first=True),
    "metaspace-bpe": Layout("sentencepiece", puts_bos_first=True, has_control_tokens=True),
    "byte-level-bpe": Layout("tiktoken", puts_bos_first=False),
    "phi3-bpe": Layout("sentencepiece", puts_bos_first=False),
    "gemma-bpe": Layout("sentencepiece", puts_bos_first=True, bos="<bos>", has_marks_first=True),
    "smollm-bpe": Layout("tiktoken", puts_bos_first=False, special_first=True, digits_apart=True),
    "tekken-bpe": Layout(
        "tiktoken", puts_bos_first=True, has_control_tokens=True, special_first=True
    ),
    "qwen-bpe": Layout(
        "tiktoken", puts_bos_first=False, pattern=_CL100K_PATTERN % r"\p{N}", nfc=True
    ),
    "llama3-bpe": Layout(
        "tiktoken",
        puts_bos_first=True,
        has_control_tokens=True,
        unnamed="<|reserved_special_token_{}|>",
        pattern=_CL100K_PATTERN % r"\p{N}{1,3}",
        joins_by_rank=True,
    ),
}


TOKENIZER_LAYOUTS = (*LAYOUTS, PUBLISHED_LAYOUT)


VOCABULARY_PACKAGES = {
    "mistral-common": "mistral_common/data",
    "dashscope": "dashscope/resources",
    "llama-models": "llama_models/llama3",
}
"""Packages that ship a vocabulary, with the folder it lies in. Nothing of them is imported."""


class InvalidRecipe(CannotAssess):
    """A recipe file is invalid. The message names the file, the key and what would be right."""


class UnknownRecipe(CannotAssess):
    """No recipe has this hub id, `hub_id` if it is told. The message lists the known ids and says
    how to add one."""

    def __init__(self, message: str, hub_id: str | None = None) -> None:
        super().__init__(message)
        self.hub_id = hub_id


@dataclass(frozen=True)
class TokenizerRecipe:
    """How the tokenizer's files are made.

    `source` is a file that `package` ships (`VOCABULARY_PACKAGES`), with the digest `sha256`; for a
    ranked vocabulary the first `ranks` entries are used. Where the package is not installed,
    `stand_in` takes its place, the same layout over another vocabulary, if there is one. `layout`
    is that of `tokenizer.json`:

    - `sentencepiece-bpe`: a `▁` before the text and after each special token, spaces to `▁`,
      unknown characters to bytes (Llama 2); `phi3-bpe`: that without a bos; `metaspace-bpe`: that
      with a `▁` at the beginning of the text alone, and only where it does not begin with one
      (Mistral v0.3); `gemma-bpe`: with no `▁` before a text, and marks of several kinds before the
      pieces;
    - `byte-level-bpe`: GPT-2's; `smollm-bpe`: the same with the special tokens before the first
      rank, and each digit by itself; `tekken-bpe`: with a bos, the file's own pattern, and the
      special tokens before the first rank; `qwen-bpe`: NFC, and GPT-4's pattern with single digits;
      `llama3-bpe`: a bos, and that pattern with three digits at a time.

    With the layout `published` nothing is made: `files` are the published ones, `source` is the
    folder they lie in, and `sha256` covers their names and contents.

    `golden` names the file of `fixtures/golden` with the ids that an independent encoder gives, if
    there is one.
    """

    kind: str
    source: str
    sha256: str
    layout: str
    tokenizer_class: str
    config: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    ranks: int | None = None
    ships_chat_template: bool = False
    golden: str | None = None
    package: str = "mistral-common"
    stand_in: TokenizerRecipe | None = None
    files: tuple[Path, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class AcceptedDifference:
    """A place where the reference prompt departs from the official template on purpose."""

    name: str
    reason: str


@dataclass(frozen=True)
class Recipe:
    """The facts of one hub id.

    `config`, `generation_config` and the tokenizer's are as published; so is `parameters`, the
    number of weights in the checkpoint, if known.
    """

    hub_id: str
    family: str
    architecture: str
    config: Mapping[str, Any]
    probe: Mapping[str, Any]
    dtype: str
    tokenizer: TokenizerRecipe
    generation_config: Mapping[str, Any] | None
    chat_template: str | None
    template_oracle: str
    """What decides the ids of a dialogue: `chat_template`, or an instruct tokenizer of
    mistral-common; `seed` says that the template is that of the seed's builder for a base model,
    which binds that builder alone."""
    accepted_template_differences: tuple[AcceptedDifference, ...]
    subject: Mapping[str, Any]
    sources: Mapping[str, str]
    parameters: int | None
    path: Path = field(compare=False)
    language_model: str | None = None
    """Where the language model stands in a vision-language checkpoint; None for a checkpoint of a
    language model alone. `architecture` is the class of the whole checkpoint."""
    derived: bool = False
    """Whether it was derived from published files as it was asked for, rather than written down."""

    def probe_config(self) -> dict[str, Any]:
        """The published config with the tiny overrides applied: the probe checkpoint's
        `config.json`."""
        return {**self.config, **{key: self._merged(key) for key in self.probe}}

    def _merged(self, key: str) -> Any:
        """The value of a key in the probe; of a part of a vision-language config, what is not
        overridden stays."""
        ours, published = self.probe[key], self.config.get(key)
        if isinstance(ours, Mapping) and isinstance(published, Mapping):
            return {**published, **ours}
        return ours

    def digest(self) -> str:
        """SHA-256 (64 hex digits) of everything that shapes the written files, and of nothing else.

        Declarations, sources and the recipe's own comments are left out: a better comment rebuilds
        nothing. So are the versions of the installed libraries: an entry built with one version
        serves every other.
        """
        shaping = {
            "format": FILES_FORMAT,
            "hub_id": self.hub_id,
            "architecture": self.architecture,
            "config": self.probe_config(),
            "dtype": self.dtype,
            "generation_config": self.generation_config,
            "tokenizer": {
                "source": self.tokenizer.sha256,
                "ranks": self.tokenizer.ranks,
                "layout": self.tokenizer.layout,
                "config": self.tokenizer.config,
                "special_tokens_map": self.tokenizer.special_tokens_map,
                "chat_template": self.chat_template if self.tokenizer.ships_chat_template else None,
            },
        }
        # The order of keys is part of the files, hence of the digest: no `sort_keys`.
        return hashlib.sha256(json.dumps(shaping).encode()).hexdigest()
