"""TOK: any call of a tokenizer, in any of its states, beside the published tokenizer's.

As for `forward` (FWD-14), every pair of values of what a call is made of occurs in some row: what
hosts may ask of a tokenizer is too much to list.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from typing import Any
from unittest import mock

import torch

from conformance.assertions import NotApplicable, quoted, refusal, require
from conformance.catalogue import MUST, requirement
from conformance.control import Row, covering, plainer
from conformance.subject.subject import Subject
from conformance.subject.vocabulary import settings_of

_Options = Mapping[str, dict[str, Any]]

_ADDED, _ADDED_SPECIAL = "<act_0>", "<img_0>"
"""What a host adds to a tokenizer: tokens of its own, the second one special."""
_NOBODYS = "<a token that nobody has>"
_SECOND = "one two three"
"""What stands second in a pair."""
_MARKED, _HOSTS = "special tokens in a text", "text with a host's tokens"
_TEXTS = {
    "a question": ["What should the robot do?", "Stop."],
    "code": ["if ( a != b ) : print ( 'It is n\\'t .' , x [ 0 ] )", " Two  spaces,\na line \n"],
    "text in other scripts": ["na\u00efve \u201cü\u201d\n日本語 🙂", "e\u0301 дом שלום"],
    _MARKED: [],
    "an empty text": ["", "Stop."],
    "a text of 3,000 words": ["one two three " * 1000, "Stop."],
    _HOSTS: [f"Do {_ADDED} now,{_ADDED_SPECIAL} and", _ADDED],
    "forty texts": [f"Step {number}, {'then turn, ' * (number % 7)}stop." for number in range(40)],
}
"""Texts of a batch; the first of them where one is asked for."""
_BY_A_HOST = ("after a host added tokens", "copied", "pickled")
_STATES = (
    "built for training", "built with inference_mode=True",
    "after calls that padded and truncated", "after a call that raised", "in another thread",
    *_BY_A_HOST,
)  # fmt: skip
_OPTIONS: Mapping[str, _Options] = {
    "special": {
        "": {}, "add_special_tokens=False": {"add_special_tokens": False},
        "add_special_tokens=True": {"add_special_tokens": True},
    },
    "padding": {
        "": {}, "padding=True": {"padding": True},
        'padding="max_length" and max_length=24': {"padding": "max_length", "max_length": 24},
        "pad_to_multiple_of=8": {"padding": True, "pad_to_multiple_of": 8},
    },
    "truncation": {
        "": {}, "truncation=True": {"truncation": True},
        "truncation to 4": {"truncation": True, "max_length": 4},
        'truncation="only_first" to 8': {"truncation": "only_first", "max_length": 8},
        'truncation="only_second" to 10': {"truncation": "only_second", "max_length": 10},
        "truncation to 4 in pieces": {
            "truncation": True, "max_length": 4, "stride": 1, "return_overflowing_tokens": True,
        },
    },
    "tensors": {
        "": {}, 'return_tensors="pt"': {"return_tensors": "pt"},
        'return_tensors="np"': {"return_tensors": "np"},
    },
    "asked": {
        "": {}, "return_offsets_mapping=True": {"return_offsets_mapping": True},
        "return_special_tokens_mask=True": {"return_special_tokens_mask": True},
        "return_length=True": {"return_length": True},
        "return_attention_mask=False": {"return_attention_mask": False},
        "return_token_type_ids=True": {"return_token_type_ids": True},
    },
}  # fmt: skip
_ENCODING = {
    "text": tuple(_TEXTS),
    "state": _STATES,
    "form": ("", "in a list", "as a pair", "as pairs in a list", "as words", "as words in a list"),
    "entry": ("", "by `encode`"),
    "padding side": ("", "padded on the left"),
    "truncation side": ("", "truncated on the left"),
    **{name: tuple(values) for name, values in _OPTIONS.items()},
}
"""What a call that encodes is made of, the plainest first."""
_ENCODING_BESIDE = (
    ("truncation", "truncation side", "form"), ("padding", "padding side", "form"),
    ("truncation", "special", "form"), ("tensors", "padding", "form"),
)  # fmt: skip
"""Factors all values of which occur together, in calls that are plain but for them."""
_KEYS = (
    "input_ids", "attention_mask", "overflow_to_sample_mapping", "offset_mapping",
    "special_tokens_mask", "length", "token_type_ids",
)  # fmt: skip
_DECODING = {
    "ids": (
        "ids of a text", "ids with special tokens", "padded ids", "ids of a part of a sign",
        "no ids", "thousands of ids",
    ),
    "state": _STATES,
    "entry": ("", "in a batch", "as tokens"),
    "given": ("", "as a tensor", "as an array", "as a tensor of one row"),
    "skipped": ("", "skip_special_tokens=False", "skip_special_tokens=True"),
    "cleaned": (
        "", "clean_up_tokenization_spaces=False", "clean_up_tokenization_spaces=True",
    ),
}  # fmt: skip
"""What a call that decodes is made of."""
_DECODING_BESIDE = (("entry", "given", "skipped"),)


@requirement("TOK-09", MUST)
def test_copies_of_the_tokenizer_are_alike(subject: Subject) -> None:
    """A tokenizer that is copied or pickled, as workers of data loaders are sent it, is what it
    was, with what a host has added and set."""
    states = _tokenizers(subject).states
    if not states.keys() & set(_BY_A_HOST[1:]):
        raise NotApplicable("it can be neither copied nor pickled")
    wanted = _facts_of(states[_BY_A_HOST[0]])
    for told in _BY_A_HOST[1:]:
        if told not in states:
            continue
        found: dict[str, Any] = {}
        with refusal() as refused:
            found = _facts_of(states[told])
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        require(
            not differing,
            observed=f"{told}, "
            + (
                f"it raises {quoted(str(refused[0]))}"
                if refused
                else "; ".join(f"{one} is {quoted(found[one])}" for one in differing)
            ),
            expected="; ".join(f"{one} {quoted(wanted[one])}" for one in differing),
            mend="leave copying to Python, and keep no settings outside the tokenizer",
        )


def _facts_of(tokenizer: Any) -> dict[str, Any]:
    return {
        **settings_of(tokenizer),
        "the special tokens": tokenizer.special_tokens_map,
        "an encoding": list(tokenizer(_TEXTS[_HOSTS][0]).input_ids),
    }


@requirement("TOK-09", MUST)
def test_tokens_are_looked_up_as_published(subject: Subject) -> None:
    """Tokens and ids are looked up as the published tokenizer does: one that does not exist is
    none, or the unknown one, by which hosts find out what to add."""
    tokenizers = _tokenizers(subject)
    for state, tokenizer in tokenizers.states.items():
        if state in _BY_A_HOST[1:]:
            continue  # what has been copied is looked up alike
        known = tokenizer.tokenize(_TEXTS["code"][0])
        asked: dict[str, Callable[[Any], Any]] = {
            f"convert_tokens_to_ids({_NOBODYS!r})": lambda one: one.convert_tokens_to_ids(_NOBODYS),
            f"convert_tokens_to_ids([{_NOBODYS!r}])": lambda one: one.convert_tokens_to_ids(
                [_NOBODYS]
            ),
            "convert_tokens_to_ids of a text's tokens": functools.partial(_ids_of, known),
            "convert_ids_to_tokens(7)": lambda one: one.convert_ids_to_tokens(7),
            "convert_ids_to_tokens([7, 8])": lambda one: one.convert_ids_to_tokens([7, 8]),
            f"{_NOBODYS!r} in get_vocab()": lambda one: _NOBODYS in one.get_vocab(),
        }
        for told, look_up in asked.items():
            wanted, found = [], None
            for one in tokenizers.readings:
                with refusal():
                    wanted.append(look_up(one))
            with refusal() as refused:  # which whoever asks hears of
                found = look_up(tokenizer)
            require(
                bool(refused) or not wanted or found in wanted,
                observed=f"of the tokenizer {state} {told} is {quoted(found)}",
                expected=f"{quoted(wanted[0] if wanted else None)}, as the published tokenizer has "
                "it",
                mend="leave looking up to the library: a host adds the tokens that are not there",
            )


def _ids_of(tokens: list[str], tokenizer: Any) -> Any:
    return tokenizer.convert_tokens_to_ids(tokens)


@requirement("TOK-09", MUST)
def test_any_call_encodes_as_published(subject: Subject) -> None:
    """However texts are encoded (alone, in batches, in pairs, as words), padded, truncated and
    returned, and whatever was done with the tokenizer before, it is as the published tokenizer
    does."""
    tokenizers = _tokenizers(subject, for_the_last_time=True)
    _require_alike(_Encoding(subject, tokenizers), _ENCODING, _ENCODING_BESIDE, _can_be_encoded)


@requirement("TOK-04", MUST)
def test_any_call_decodes_as_published(subject: Subject) -> None:
    """However ids are decoded (as lists, tensors or arrays, in batches, token by token), with
    whatever is skipped or cleaned up, and whatever was done with the tokenizer before, it is as the
    published tokenizer does."""
    calls = _Decoding(subject, _tokenizers(subject))
    _require_alike(calls, _DECODING, _DECODING_BESIDE, _can_be_decoded)


def _require_alike(
    calls: _Calls,
    factors: Mapping[str, tuple[str, ...]],
    together: Sequence[tuple[str, ...]],
    makes_sense: Callable[[Row], bool],
) -> None:
    plainest = {name: values[0] for name, values in factors.items()}
    beside = (
        {**plainest, **dict(zip(names, values, strict=True))}
        for names in together
        for values in product(*(factors[name] for name in names))
    )
    given, judged = next(iter(factors)), 0
    for row in (*filter(makes_sense, beside), *covering(factors, makes_sense)):
        found = calls.apart(row)
        judged += found is not None
        if not found:
            continue
        row = plainer(row, plainest, lambda row: makes_sense(row) and bool(calls.apart(row)))
        observed, expected = calls.apart(row) or found
        asked = [value for name, value in row.items() if value and name not in ("state", given)]
        require(
            observed == expected,
            observed=f"the tokenizer {row['state']}, given {row[given]}"
            + "".join(f", {value}" for value in asked)
            + f": {observed}",
            expected=f"{expected}, as the published tokenizer has it",
            mend="hand every argument of a call on to the library, and keep no state",
        )
    if not judged:
        raise NotApplicable("the published tokenizer treats texts otherwise")


def _can_be_encoded(row: Row) -> bool:
    form, truncation = row.get("form", ""), row.get("truncation", "")
    pieces, several = "pieces" in truncation, "list" in form
    return not (
        # Ragged rows make no tensor.
        (row.get("tensors", "") and row.get("padding", "?") == "" and (several or pieces))
        or ("only_second" in truncation and "pair" not in row.get("form", "pair"))
        # `encode` returns the ids of one text, or of one pair.
        or (row.get("entry", "") and (several or pieces or row.get("asked", "")))
        # Of pairs the library cuts pieces only where a host says of which text.
        or (pieces and "pair" in form)
        or (row.get("text") == "forty texts" and "list" not in row.get("form", "list"))
        or ("words" in form and row.get("text") in ("an empty text", _MARKED))
        or (row.get("text") == _HOSTS and row.get("state", _BY_A_HOST[0]) not in _BY_A_HOST)
    )


def _can_be_decoded(row: Row) -> bool:
    return not (
        row.get("entry") == "as tokens" and (row.get("given", "") or row.get("cleaned", ""))
    )


class _Tokenizers:
    """The subject's tokenizer in each state, and the published one in each reading, with tokens
    that a host adds."""

    def __init__(self, subject: Subject) -> None:
        used = subject.build().get_tokenizer()
        _add_tokens(used)
        used.padding_side = "left"
        self.states = {
            _STATES[0]: subject.tokenizer, _STATES[1]: subject.inference.get_tokenizer(),
            _BY_A_HOST[0]: used,
        }  # fmt: skip
        with refusal():  # not every one can be copied
            self.states["copied"] = copy.deepcopy(used)
        with refusal():  # a class of a function's own cannot be pickled
            self.states["pickled"] = pickle.loads(pickle.dumps(used))
        # As the plainest instance has it, and as it is once a host has added tokens.
        self.ours = {False: subject.tokenizer, True: used}
        self.readings = [copy.deepcopy(one) for one in subject.published_vocabulary.readings]
        for one in self.readings:
            one.add_special_tokens({"pad_token": subject.tokenizer.pad_token})
            _add_tokens(one)


_TOKENIZERS = "tokenizers in their states"


def _tokenizers(subject: Subject, *, for_the_last_time: bool = False) -> _Tokenizers:
    """Made once: copies of a large vocabulary take half a second, and 100 MB, each."""
    found = subject.kept.pop(_TOKENIZERS, None) or _Tokenizers(subject)
    if not for_the_last_time:
        subject.kept[_TOKENIZERS] = found
    return found


class _Calls:
    """One kind of call, made of the subject's tokenizer and of the published one."""

    matters: tuple[str, ...] = ()
    """The factors that `same_by` looks at."""

    def __init__(self, subject: Subject, tokenizers: _Tokenizers) -> None:
        self.subject = subject
        self._tokenizers = tokenizers
        self._alike: dict[Any, list[Any]] = {}

    def apart(self, row: Row) -> tuple[str, ...] | None:
        """What the subject's tokenizer and the published one return in this row, empty if it is the
        same; None if nothing can be compared."""
        wanted = list[dict[str, Any]]()
        for one in self._published(row):
            with refusal():  # what it refuses is not asked of the subject
                wanted.extend(self.expected(one, row))
        found = self._in_its_state(row) if wanted else None
        if found is None:
            return None
        if any(all(found.get(name) == value for name, value in one.items()) for one in wanted):
            return ()
        name = next(name for name, value in wanted[0].items() if found.get(name) != value)
        return (
            f"{name} is {quoted(found.get(name), 200)}",
            f"{name} {quoted(wanted[0][name], 200)}",
        )

    def expected(self, published: Any, row: Row) -> Iterator[dict[str, Any]]:
        """What may come back."""
        yield self.call(published, row)

    def call(self, tokenizer: Any, row: Row) -> dict[str, Any]:
        """What comes back, by name."""
        raise NotImplementedError

    def same_by(self, tokenizer: Any, row: Row) -> Any:
        """What is the same by a plain call if a reading is one to compare with."""
        raise NotImplementedError

    def _published(self, row: Row) -> Iterator[Any]:
        """The readings of the published tokenizer which treat the row's texts alike when they are
        plainly asked, with the subject's length."""
        ours = self._tokenizers.ours[row["state"] in _BY_A_HOST]
        key = (id(ours), *(row[name] for name in self.matters))
        if key not in self._alike:
            wanted = self.same_by(ours, row)
            readings = self._tokenizers.readings
            self._alike[key] = [one for one in readings if self.same_by(one, row) == wanted]
        for one in self._alike[key]:
            with mock.patch.object(one, "model_max_length", ours.model_max_length):
                yield one

    def _in_its_state(self, row: Row) -> dict[str, Any] | None:
        """None if there is no such state, or it raises, which whoever asks hears."""
        state, result = row["state"], list[dict[str, Any]]()
        states = self._tokenizers.states
        if state in _BY_A_HOST and state not in states:
            return None
        tokenizer = states.get(state, states[_STATES[1]])
        if state == "after calls that padded and truncated":
            for padding in ("max_length", "longest"):
                with refusal():
                    tokenizer(_TEXTS["code"], padding=padding, truncation=True, max_length=6)
        if state == "after a call that raised":
            with refusal():
                tokenizer([3.5], padding="max_length", max_length=5, truncation=True)

        def called() -> None:
            with refusal():
                result.append(self.call(tokenizer, row))

        if state == "in another thread":
            with ThreadPoolExecutor(1) as thread:
                thread.submit(called).result()
        else:
            called()
        return result[0] if result else None


class _Encoding(_Calls):
    matters = ("text", "special")

    def same_by(self, tokenizer: Any, row: Row) -> Any:
        special = {"add_special_tokens": True, **_OPTIONS["special"][row["special"]]}
        # What becomes of a host's tokens is what is judged, and not a way of its own.
        texts = dict.fromkeys((*([] if row["text"] == _HOSTS else self._texts(row)), _SECOND))
        ids = [_told_by_name(tokenizer(text, **special).input_ids, tokenizer) for text in texts]
        return getattr(tokenizer, "is_fast", None), ids

    def call(self, tokenizer: Any, row: Row) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for name, values in _OPTIONS.items():
            options |= values[row[name]]
        if "words" in row["form"]:
            options["is_split_into_words"] = True
        with ExitStack() as sides:
            for name in ("padding", "truncation"):
                side = "left" if row[f"{name} side"] else "right"
                sides.enter_context(mock.patch.object(tokenizer, f"{name}_side", side))
            given = _in_form(self._texts(row), row["form"])
            if row["entry"]:
                ids = tokenizer.encode(*given, **options)
                return {"the result": _told_by_name(ids, tokenizer)}
            batch = tokenizer(*given, **options)
        # What is there unasked, as token types are in some families, is the subject's choice.
        names = [
            name
            for name in _KEYS
            if name in batch and (name != "token_type_ids" or options.get("return_token_type_ids"))
        ]
        return {
            "the list of its keys": names,
            "the kind of its input_ids": type(batch["input_ids"]).__name__,
            "input_ids": _told_by_name(batch["input_ids"], tokenizer),
            **{name: _plain(batch[name]) for name in names[1:]},
        }

    def _texts(self, row: Row) -> list[str]:
        if row["text"] != _MARKED:
            return _TEXTS[row["text"]]
        marks = self.subject.special_strings[:3]
        return [f"Now {mark}go {mark}{mark}, stop." for mark in marks]


def _in_form(texts: list[str], form: str) -> tuple[Any, ...]:
    """The arguments of a call."""
    if "words" in form:
        words = [text.split() for text in texts]
        return (words if "list" in form else words[0],)
    if "pair" in form:
        return (texts, [_SECOND] * len(texts)) if "list" in form else (texts[0], _SECOND)
    return (texts if "list" in form else texts[0],)


class _Decoding(_Calls):
    matters = ("ids",)

    def same_by(self, tokenizer: Any, row: Row) -> Any:
        return getattr(tokenizer, "is_fast", None), tokenizer.decode(self._ids(row))

    def expected(self, published: Any, row: Row) -> Iterator[dict[str, Any]]:
        yield self.call(published, row)
        if not row["cleaned"]:  # not cleaning up loses nothing
            yield self.call(published, {**row, "cleaned": "clean_up_tokenization_spaces=False"})

    def call(self, tokenizer: Any, row: Row) -> dict[str, Any]:
        ids: Any = self._ids(row)
        options = {
            asked.partition("=")[0]: asked.endswith("True")
            for asked in (row["skipped"], row["cleaned"])
            if asked
        }
        if row["entry"] == "as tokens":
            skipped = options.get("skip_special_tokens", False)
            tokens = tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=skipped)
            return {"the text": tokenizer.convert_tokens_to_string(tokens)}
        rows: Any = [ids, ids[: len(ids) // 2]]
        if row["given"]:
            several = [ids] if "one row" in row["given"] else [ids, ids[::-1]]
            rows = torch.tensor(several, dtype=torch.long)
            rows = rows.numpy() if "array" in row["given"] else rows
            ids = rows[0]
        if row["entry"]:
            return {"the list of texts": list(tokenizer.batch_decode(rows, **options))}
        return {"the text": tokenizer.decode(ids, **options)}

    def _ids(self, row: Row) -> list[int]:
        tokenizer, kind = self.subject.tokenizer, row["ids"]
        text = self.subject.encode("Don't move: it is n't red .", special=False)
        marks = [*tokenizer.all_special_ids[:2]]
        return {
            "ids of a text": text,
            "ids with special tokens": [*marks, *text, *marks],
            "padded ids": [*text, *[tokenizer.pad_token_id] * 3],
            "ids of a part of a sign": [*text, *self.subject.encode("🙂", special=False)[:-1]],
            "no ids": [],
            "thousands of ids": text * 300,
        }[kind]


def _add_tokens(tokenizer: Any) -> None:
    tokenizer.add_tokens([_ADDED])
    tokenizer.add_tokens([_ADDED_SPECIAL], special_tokens=True)


def _told_by_name(ids: Any, tokenizer: Any) -> Any:
    """Ids as lists, those of the pad and of a host's tokens by name: their rows are the
    subject's."""
    known = {tokenizer.convert_tokens_to_ids(one): one for one in (_ADDED, _ADDED_SPECIAL)}
    known.pop(tokenizer.unk_token_id, None)  # nobody has added them
    known[tokenizer.pad_token_id] = "the pad"

    def told(value: Any) -> Any:
        return [told(one) for one in value] if isinstance(value, list) else known.get(value, value)

    return told(_plain(ids))


def _plain(value: Any) -> Any:
    """Tensors, arrays and tuples as lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
