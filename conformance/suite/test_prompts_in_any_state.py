"""PRM: any message, at any place of a dialogue, told in any way.

As for calls (FWD-14), every pair of values of what a telling is made of occurs in some row. The
expected value is the subject's own: what it tells plainly, with other words in the messages'
places.
"""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from conformance.assertions import NotApplicable, quoted, refusal, require
from conformance.catalogue import MUST, requirement
from conformance.control import NoSuchState, Row, covering, plainer
from conformance.subject.subject import Host, Subject
from conformance.suite.dialogues import ROLES
from conformance.suite.strategies import is_ordinary

_PLAIN = ("Quokka", "Xylophone", "Zeppelin", "Marzipan", "Kumquat")
"""Three questions and two answers: words that no format has, and none within another."""
_PLAIN_SYSTEM, _ANOTHER = "Bassoon", "Vuvuzela"
_MESSAGES: Mapping[str, str] = {
    "a word": _ANOTHER,
    "a digit": "0",
    "a word in lower case": "no",
    "the word None": "None",
    "several lines": "one\ntwo\r\n\n- three\n\tfour",
    "several spaces": "a  b   c \t d",
    "braces, percent signs and dollars": "{cup} {} {0} %s %(x)s 100 % $x ${y}",
    "backslashes": r"C:\new\table \n \1 \g<0> \u00e9",
    "markup": '<b>R&D</b> &lt;i&gt; "q" \'r\' <a href="#">x</a> [x] (y) {{ z }}',
    "names of roles": "USER: In: human gpt assistant: Out: ### Human: model user:",
    "JSON": '{"role": "user", "content": null, "n": [1, 2.50]}',
    "an address": "see https://a.example/b?c=d&e=%20f#g, or mail a@b.example",
    "composed and decomposed letters": "caf\u00e9 cafe\u0301 \ufb01 \uff21 x\u00b2",
    "other scripts": "\u0645\u0631 \u6f22\u5b57 \U0001f469\u200d\U0001f680",
    "three thousand characters": " ".join(f"step {n}" for n in range(1000, 1300)),
}  # fmt: skip
_AFTER: Mapping[str, Callable[[str], str]] = {
    "the message before it, again": lambda before: before,
    "the message before it, and more": lambda before: f"{before}. And now?",
    "what ends with the message before it": lambda before: f"What? {before}",
}
"""Messages that are made of the one before."""
_SYSTEMS: Mapping[str, str | None] = {
    "no system prompt": None,
    "a system prompt": "You are a robot arm.",
    "a system prompt of several lines": 'Réponds en {langue}.\n\n- 100 %, C:\\new \\1\n- "<b>"',
    "a system prompt of a word": _PLAIN_SYSTEM,
}
_MOVED: Mapping[str, Callable[[Any], Any]] = {
    "copied before each turn": copy.deepcopy,
    "pickled before each turn": lambda builder: pickle.loads(pickle.dumps(builder)),
}
_IN_A_THREAD, _BESIDE = "each turn added in another thread", "beside another builder"
_TELLING = {
    "message": (*_MESSAGES, *_AFTER),
    "place": tuple(range(len(_PLAIN))),
    "system": tuple(_SYSTEMS),
    "read": ("", "read before each turn", "read after each turn"),
    "moved": ("", *_MOVED, _IN_A_THREAD, _BESIDE),
    "by": ("", "by name"),
}  # fmt: skip
"""What the telling of a dialogue is made of, the plainest first."""
_PLAINEST = {name: values[0] for name, values in _TELLING.items()}


@requirement("PRM-07", MUST)
def test_any_message_is_told_as_any_other(subject: Subject) -> None:
    """Whatever a message holds, wherever it stands, and however the builder is read, copied, called
    or used beside others meanwhile, it is told as any other message is there."""
    rows = [row for row in covering(_TELLING) if is_ordinary(subject, _said(row)[row["place"]])]
    judged = 0
    for host in subject.working_hosts:
        worded = {
            system: _told(host, list(_PLAIN), text and _PLAIN_SYSTEM, _PLAINEST)
            for system, text in _SYSTEMS.items()
        }
        for row in rows:
            different = _apart(host, worded, row)
            judged += different is not None
            if not different:
                continue
            row = plainer(row, _PLAINEST, partial(_differs, host, worded))
            observed, expected = _apart(host, worded, row) or different
            require(
                observed == expected,
                observed=f"{host} {_described(row)} is told as {quoted(observed, 240)}",
                expected=f"{quoted(expected, 240)}, as another message is there",
                mend="wrap every message alike, and build prompts from the instance's own turns",
            )
    if not judged:
        raise NotApplicable("no message is ordinary text to this tokenizer")


def _apart(host: Host, worded: Mapping[str, list[str]], row: Row) -> tuple[str, ...] | None:
    """What is told, and what it should be, where they differ; None if it cannot be told so.
    `worded` is what is told plainly, by system prompt."""
    said, system = _said(row), _SYSTEMS[row["system"]]
    words = dict(zip(_PLAIN, said, strict=True)) | {_PLAIN_SYSTEM: system or ""}
    wanted = [_in_place(text, words) for text in worded[row["system"]]]
    found = list[str]()
    with refusal() as refused:
        found = _told(host, said, system, row)
    if refused:
        error = refused[0]
        stays = isinstance(error, NoSuchState)
        return None if stays else (f"{type(error).__name__}: {error}", wanted[-1])
    return next((pair for pair in zip(found, wanted, strict=True) if pair[0] != pair[1]), ())


def _differs(host: Host, worded: Mapping[str, list[str]], row: Row) -> bool:
    return bool(_apart(host, worded, row))


def _said(row: Row) -> list[str]:
    said, place, message = list(_PLAIN), row["place"], row["message"]
    before = said[place - 1] if place else _PLAIN_SYSTEM
    said[place] = _AFTER[message](before) if message in _AFTER else _MESSAGES[message]
    return said


def _described(row: Row) -> str:
    which = f"{('question', 'answer')[row['place'] % 2]} {row['place'] // 2 + 1}"
    others = [row[name] for name in ("system", "read", "moved", "by") if row[name]]
    return (
        f"{which}, {row['message']}: {quoted(_said(row)[row['place']], 80)} ({', '.join(others)})"
    )


def _in_place(text: str, words: Mapping[str, str]) -> str:
    return re.sub("|".join(words), lambda found: words[found[0]], text)


def _told(host: Host, said: list[str], system: str | None, row: Row) -> list[str]:
    """The turns of a dialogue, what its last question would be in the prompt, and the prompt.

    Raises:
        NoSuchState: the builder cannot be moved so.
    """
    builder, beside = host.builder(system), host.builder(None)
    turns, potential = list[str](), ""
    with ThreadPoolExecutor(1) as thread:
        for number, message in enumerate(said):
            if row["moved"] in _MOVED:
                try:
                    builder = _MOVED[row["moved"]](builder)
                except Exception as error:  # PRM-18 judges what cannot be pickled
                    raise NoSuchState from error
            if "before" in row["read"]:
                _read(builder, number)
            if number == len(said) - 1:
                potential = builder.get_potential_prompt(message)
            role = ROLES[number % 2]
            add = (
                partial(builder.add_turn, role=role, message=message)
                if row["by"]
                else partial(builder.add_turn, role, message)
            )
            turns.append(thread.submit(add).result() if row["moved"] == _IN_A_THREAD else add())
            if row["moved"] == _BESIDE:
                beside.add_turn(role, f"{_ANOTHER} {number}")
                beside.get_prompt()
            if "after" in row["read"]:
                _read(builder, number + 1)
        return [*turns, potential, builder.get_prompt()]


def _read(builder: Any, number: int) -> None:
    """Ask for the prompt so far, and for one with a next question where it is due."""
    if number:
        builder.get_prompt()
    if number % 2 == 0:
        builder.get_potential_prompt(_ANOTHER)
