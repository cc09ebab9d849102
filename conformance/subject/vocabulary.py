"""Tokenizers from the outside: what was published, and what a tokenizer remembers between calls."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from conformance.assertions import refusal

TOKENIZER_JSON = "tokenizer.json"

_SETTINGS = (
    "padding_side",
    "truncation_side",
    "model_max_length",
    "model_input_names",
    "special_tokens_map",
)
_LIBRARY = "transformers."
_SAMPLES = ("Pick up the cup.", "What is in the picture?  It\u2019s na\u00efve \u2014 7\n")


class PublishedVocabulary:
    """The tokenizer of a snapshot, with nothing added, in up to three readings.

    The file `tokenizer.json` as the tokenizers library reads it comes first. The classes of
    transformers may keep its vocabulary and make rules of their own, which differ by release; what
    the installed AutoTokenizer makes of the snapshot counts as published too.
    """

    def __init__(self, snapshot: Path, own_class: Any) -> None:
        self._snapshot, self._own_class = snapshot, own_class

    def ids(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens."""
        if self._file is not None:
            return list(self._file.encode(text, add_special_tokens=False).ids)
        return _ids(self._automatic, text)

    def gives(self, text: str, ids: list[int]) -> bool:
        """Whether `ids` are those of `text` without special tokens."""
        return ids == self.ids(text) or ids == _ids(self._automatic, text)

    def own_class_gives(self, text: str, ids: list[int]) -> bool:
        """Whether the subject's own tokenizer class, with nothing added, encodes `text` to
        `ids`."""
        return self._own is not None and ids == _ids(self._own, text)

    def facts(self, name: str) -> list[Any]:
        """What the installed AutoTokenizer, and the subject's own class, say of an attribute."""
        readings = [one for one in (self._automatic, self._own) if one is not None]
        return [getattr(one, name, None) for one in readings]

    def is_text(self, token_id: int) -> bool:
        """Whether the id belongs to a piece of text, and not to an added token or to nothing."""
        if self._file is None:
            tokenizer = self._automatic
            return token_id < len(tokenizer) and token_id not in tokenizer.added_tokens_decoder
        size = self._file.get_vocab_size(with_added_tokens=True)
        return token_id < size and token_id not in self._file.get_added_tokens_decoder()

    @cached_property
    def readings(self) -> list[Any]:
        """What the installed AutoTokenizer makes of the snapshot, and the library's class that the
        subject's own tokenizer is one of, where it can be read so."""
        found = [self._automatic]
        theirs = (one for one in self._own_class.__mro__ if one.__module__.startswith(_LIBRARY))
        own = next(theirs, None)
        if own not in (None, type(self._automatic)):
            with refusal():
                found.append(own.from_pretrained(self._snapshot))
        return found

    @cached_property
    def _file(self) -> Any:
        from tokenizers import Tokenizer

        path = self._snapshot / TOKENIZER_JSON
        return Tokenizer.from_file(str(path)) if path.is_file() else None

    @cached_property
    def _automatic(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._snapshot)

    @cached_property
    def _own(self) -> Any:
        with refusal():  # a class of somebody's own may need other arguments
            return self._own_class.from_pretrained(self._snapshot)
        return None


def state_of(tokenizer: Any) -> Mapping[str, Any]:
    """What a tokenizer may remember of earlier calls: its settings, those of the library behind it,
    and the ids of a few texts. What cannot be read is left out."""
    found: dict[str, Any] = {}
    # One plain call: the library behind a fast tokenizer keeps the padding and truncation of the
    # last.
    with refusal():
        found["ids"] = [_plain(tokenizer, text) for text in _SAMPLES]
    found.update((name, getattr(tokenizer, name, None)) for name in _SETTINGS)
    found["tokens"] = len(tokenizer) if hasattr(tokenizer, "__len__") else None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for name in ("padding", "truncation"):
        found[f"{name} of the backend"] = getattr(backend, name, None)
    return {name: copy.deepcopy(value) for name, value in found.items()}


def settings_of(tokenizer: Any) -> dict[str, Any]:
    """What a host has set and added, in words: what copies and what is saved must keep."""
    return {
        "the number of tokens": len(tokenizer),
        "the side it pads on": tokenizer.padding_side,
        "the length it truncates to": tokenizer.model_max_length,
        "the chat template": getattr(tokenizer, "chat_template", None),
    }


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text).input_ids)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)
