"""PRM: what hosts do with a builder besides telling it a dialogue: they copy it, send it to
workers, use several at once, and talk for very long."""

from __future__ import annotations

import copy
import os
import pickle
import re
import sys
import sysconfig
import threading
from collections.abc import Callable
from itertools import zip_longest
from types import FrameType
from typing import Any

from conformance.assertions import NotApplicable, quoted, refusal, require
from conformance.catalogue import MUST, requirement
from conformance.places import is_ours
from conformance.subject.subject import Host, Subject
from conformance.suite.dialogues import (
    ROLES,
    conversations,
    official_ids,
    published_default,
    rendered,
    turns_of,
)
from conformance.suite.strategies import of_exchanges

_SAID = ("What is it?", "A cup.", "Where is it?")
_LATER = ("On the table.", "Pick it up.")


@requirement("PRM-05", MUST)
def test_copies_go_on_by_themselves(subject: Subject) -> None:
    """A builder that is copied, or sent to a worker, in the middle of a dialogue goes on with it,
    and shares nothing with the one it was copied from."""
    ways: dict[str, Callable[[Any], Any]] = {
        "copied by copy.deepcopy": copy.deepcopy,
        "pickled": lambda builder: pickle.loads(pickle.dumps(builder)),
    }
    judged = 0
    for host in subject.working_hosts:
        for way, copied_by in ways.items():
            builder, obedient = host.builder(), host.builder()
            for one in (builder, obedient):
                turns_of(one, _SAID)
            with refusal() as refused:  # PRM-18 judges what cannot be pickled
                copied = copied_by(builder)
            if refused:
                continue
            judged += 1
            another = copied_by(builder)
            _go_on(copied, ("On the floor.", "Leave it."))
            wanted = _go_on(obedient, _LATER)
            for name, one in ((way, another), (f"{way}, and the copy gone on with", builder)):
                found = _go_on(one, _LATER)
                require(
                    found == wanted,
                    observed=f"{host} a builder that was {name} after three turns "
                    f"tells {quoted(found, 240)}",
                    expected=f"{quoted(wanted, 240)}, as one that was not",
                    mend="keep the turns in the instance, and let Python copy all that is in it",
                )
    if not judged:
        raise NotApplicable("no builder can be copied or pickled")


def _go_on(builder: Any, messages: tuple[str, str]) -> str:
    """The prompt with an answer and a question more, or what kept it from that."""
    with refusal() as refused:
        for role, text in zip(reversed(ROLES), messages, strict=True):
            builder.add_turn(role, text)
    return f"{type(refused[0]).__name__}: {refused[0]}" if refused else str(builder.get_prompt())


_BESIDE = ("Is it red?", "No.", "Is it blue?")
"""What is told in another thread."""
_POINTS = 24
"""At how many lines of a builder's code another one is used."""
_WAIT = 2.0
"""Seconds that the other one is waited for: it may wait for a lock."""


@requirement("PRM-05", MUST)
def test_builders_in_threads_keep_apart(subject: Subject) -> None:
    """Builders in several threads share nothing: at whichever line one of them stands, another may
    tell its own dialogue."""
    for host in subject.working_hosts:
        alone, beside = _told(host, _SAID), _told(host, _BESIDE)
        lines = _told_at_once(host, -1)[2]
        if not lines:
            raise NotApplicable("no line of the builder's own code is run")
        for place in sorted({number * lines // _POINTS for number in range(_POINTS)}):
            found, other, _ = _told_at_once(host, place)
            if other is None:
                break  # the other one waits for a lock: they take turns
            pairs = [*zip_longest(found, alone), *zip_longest(other, beside)]
            wrong, wanted = next((pair for pair in pairs if pair[0] != pair[1]), ("", ""))
            require(
                wrong == wanted,
                observed=f"{host} of two builders in two threads one tells {quoted(wrong, 240)}",
                expected=f"{quoted(wanted, 240)}, as alone",
                mend="build prompts from the instance's own turns, in variables of its own: data "
                "loaders and servers have threads",
            )


def _told(host: Host, messages: tuple[str, ...]) -> list[str]:
    """What a new builder returns to whoever tells it a dialogue, or what it raises."""
    with refusal() as refused:
        builder = host.builder()
        asked = builder.get_potential_prompt("Who is there?")
        return [asked, *turns_of(builder, messages), builder.get_prompt()]
    return [f"{type(refused[0]).__name__}: {refused[0]}"]


_STANDARD = sysconfig.get_path("stdlib") + os.sep


def _is_theirs(path: str) -> bool:
    """Whether a file is the subject's, or a package's that it may be in."""
    return not is_ours(path) and ("-packages" in path or not path.startswith(_STANDARD))


def _told_at_once(host: Host, place: int) -> tuple[list[str], list[str] | None, int]:
    """What two builders tell if the second is used in a thread of its own at the `place`th line of
    the first one's code, the second's None if it never is; and how many lines there are."""
    lines, beside = 0, list[list[str]]()

    def tracing(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if not _is_theirs(frame.f_code.co_filename):
            return None
        if event == "line":
            if lines == place:
                thread = threading.Thread(
                    target=lambda: beside.append(_told(host, _BESIDE)), daemon=True
                )
                thread.start()
                thread.join(_WAIT)
            lines += 1
        return tracing

    before = sys.gettrace()
    sys.settrace(tracing)
    try:
        told = _told(host, _SAID)
    finally:
        sys.settrace(before)
    return told, beside[0] if beside else None, lines


_MANY_EXCHANGES = 265
"""More messages than a queue of 512 holds. Whoever renders a template anew for every turn takes a
second for them."""


@requirement("PRM-03", MUST)
def test_long_dialogues_keep_their_beginning(subject: Subject) -> None:
    """A dialogue of more than 500 messages is told whole: what fits is for tokenizers to say."""
    messages = of_exchanges(_MANY_EXCHANGES)
    for host in {host.builder_class: host for host in subject.working_hosts}.values():
        builder = host.builder()
        turns = turns_of(builder, messages)
        prompt, joined = builder.get_prompt(), "".join(turns).rstrip()
        missing = [text for text in (*messages[:4], *messages[-2:]) if text not in prompt]
        bos = subject.tokenizer.bos_token or ""
        require(
            not missing and prompt.rstrip() in {joined, joined.removeprefix(bos)},
            observed=f"{host} the prompt of {len(messages)} messages has {len(prompt)} characters "
            f"and begins {quoted(prompt, 160)}; not in it: {quoted(missing)}",
            expected=f"all turns, {len(joined)} characters, which begin {quoted(joined, 160)}",
            mend="keep every turn: the first one has the task, and a tokenizer truncates what does "
            "not fit",
        )


_NOTHING = re.compile(r"\b(None|null)\b")


@requirement("PRM-08", MUST)
def test_no_message_is_no_word(subject: Subject) -> None:
    """A message that is None, as data sets have where one is missing, is refused or counts as
    empty: the word None is not written."""
    for host in subject.working_hosts:
        for said in ((), _SAID[:1]):
            builder, role = host.builder(), ROLES[len(said)]
            turns_of(builder, said)
            turn, empty = "", host.builder()
            turns_of(empty, said)
            with refusal():
                turn = str(builder.add_turn(role, None))
            require(
                # A default system prompt may have the word.
                len(_NOTHING.findall(turn)) <= len(_NOTHING.findall(empty.add_turn(role, ""))),
                observed=f"{host} `add_turn({role!r}, None)` gives {quoted(turn, 160)}",
                expected="an error, or the turn of an empty message",
                mend="call the message's own methods: `str(message)` makes a word of what is "
                "missing, and the model learns to say it",
            )


_THOUGHT = "<think>\nThe cup is red.\n</think>\n\nPick up the red cup."


@requirement("PRM-07", MUST)
def test_the_thoughts_of_an_answer_are_told(subject: Subject) -> None:
    """Of the last answer, the one that is learnt, thoughts survive, unless the official template
    drops them."""
    messages = [_SAID[0], _THOUGHT]
    if subject.recipe.chat_template is not None and subject.recipe.template_oracle != "seed":
        try:
            official = rendered(subject, messages, None)
        except NotApplicable:
            official = _THOUGHT
        if "The cup is red." not in official:
            raise NotApplicable("the official template drops the thoughts of an answer")
    for told in conversations(subject, messages):
        require(
            all(part in told.prompt for part in ("<think>", "The cup is red.", "</think>")),
            observed=f"{told.host} the answer {quoted(_THOUGHT)} became {quoted(told.prompt, 240)}",
            expected="its thoughts in it: they are what is trained",
            mend="leave out the thoughts of earlier answers at most, never those of the last",
        )


_ROBOT = "You are a robot arm."


@requirement("PRM-10", MUST)
def test_space_around_a_system_prompt_is_the_templates(subject: Subject) -> None:
    """Where the template trims a system prompt, as read from a file with a line break at its end,
    a builder does too."""
    if not subject.declared.system_prompt:
        raise NotApplicable("the family declares that it takes no system prompt")
    messages = list(_SAID[:2])
    for system_prompt in (f"{_ROBOT}\n", f" \n{_ROBOT}  "):
        for told in conversations(subject, messages, system_prompt):
            # Trimming what the template would leave is no fault.
            pairs = [
                official_ids(subject, told, messages, text)
                for text in (system_prompt, system_prompt.strip())
            ]
            require(
                any(ours == official for ours, official in pairs),
                observed=f"{told.host} with the system prompt {system_prompt!r} the prompt is "
                f"{quoted(told.prompt, 240)}",
                expected=f"{quoted(subject.decode(pairs[0][1]), 240)}, as the official template "
                "has it",
                mend="strip the system prompt, as the template does",
            )


@requirement("PRM-10", MUST)
def test_the_default_system_prompt_is_spelled_as_published(subject: Subject) -> None:
    """A default system prompt with the words of the template's own has its spaces and signs
    too."""
    if not subject.declared.system_prompt:
        raise NotApplicable("the family declares that it takes no system prompt")
    for host in subject.working_hosts:
        own, published = published_default(subject, host)
        require(
            own.strip() == published.strip() or _letters(own) != _letters(published),
            observed=f"{host} the default system prompt is {quoted(own, 240)}",
            expected=f"{quoted(published, 240)}, as published",
            mend="copy it whole; two strings side by side need a space between them",
        )


def _letters(text: str) -> str:
    return "".join(sign for sign in text.casefold() if sign.isalnum())


@requirement("PRM-13", MUST)
def test_long_system_prompts_survive_whole(subject: Subject) -> None:
    """A system prompt survives however long it is: those of agents hold the schemas of all their
    tools."""
    if not subject.declared.system_prompt:
        raise NotApplicable("the family declares that it takes no system prompt")
    long = " ".join(f"tool {number}" for number in range(10_000, 13_000))
    for told in conversations(subject, list(_SAID[:2]), long):
        require(
            told.prompt.count(long) == 1,
            observed=f"{told.host} of a system prompt of {len(long)} characters the prompt has "
            f"{len(told.prompt)}, {quoted(told.prompt, 160)}",
            expected="all of it, once",
            mend="leave it as long as it is: truncation is the tokenizer's, if it is asked for",
        )


@requirement("PRM-13", MUST)
def test_a_format_without_system_prompts_has_no_turn_for_one(subject: Subject) -> None:
    """Where the template knows no system prompt, a builder that is given one leaves it out, or puts
    it into the first question: it opens no turn that the model has never seen."""
    if subject.declared.system_prompt:
        raise NotApplicable("the family declares that it takes a system prompt")
    if not _refuses_system_prompts(subject):
        raise NotApplicable("no official template says what becomes of a system prompt")
    for host in subject.working_hosts:
        given, none = (
            str(host.builder(text).add_turn("human", _SAID[0])) for text in (_ROBOT, None)
        )
        marks = {
            mark: (given.count(mark), none.count(mark))
            for mark in subject.special_strings
            if mark and given.count(mark) != none.count(mark)
        }
        require(
            not marks,
            observed=f"{host} with a system prompt the first turn is {quoted(given, 240)}",
            expected=f"no mark more or less than without, {quoted(none, 240)}: the template "
            "refuses a system's turn",
            mend="leave it out with a warning, or write it before the first question, in its turn",
        )


def _refuses_system_prompts(subject: Subject) -> bool:
    recipe = subject.recipe
    if recipe.chat_template is None or recipe.template_oracle == "seed":
        return False
    try:
        return _ROBOT not in rendered(subject, [_SAID[0]], _ROBOT)
    except NotApplicable:
        return True
