"""What a chat template writes around the texts of a dialogue, found by rendering it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from conformance.hub.chat import TemplateRefuses, render

_QUESTION, _ANSWER, _SYSTEM = "@@question@@", "@@answer@@", "@@system@@"
_NEXT_QUESTION = "@@next-question@@"
_TOLD = ("Is {it} here?\n\nOr there?", "It's 'there'.", 'What is "that"?', "A mug.", "Why?")
"""A dialogue, by whose parts the derived turns are held against the template."""


class Undecided(Exception):
    """No builder follows from the template. The message says why, and what a person decides."""


@dataclass(frozen=True)
class Turns:
    """The strings around what is said; whole texts are `text`.

    No turn ends in space that its successor could begin with: hosts strip turns on the right, and
    in a byte-level vocabulary a word is one token with the space before it. Where the tokenizer
    puts a space before every text, the one before an answer ends the question.
    """

    opening: str
    """Before the first question, where there is no system prompt."""
    system: tuple[str, str] | None
    """Before the system prompt, and between it and the first question; None where the format has no
    place for one."""
    default_system_prompt: str | None
    next_question: str
    """Before every later question."""
    question_end: str
    answer_start: str
    answer_end: str

    def text(self, messages: Sequence[str], system_prompt: str | None = None) -> str:
        """The prompt of a dialogue, human first."""
        if system_prompt is None:
            system_prompt = self.default_system_prompt
        opening = self.opening
        if self.system is not None and system_prompt:
            opening = system_prompt.join(self.system)
        told = [
            f"{self.answer_start}{message}{self.answer_end}"
            if turn % 2
            else f"{self.next_question if turn else opening}{message}{self.question_end}"
            for turn, message in enumerate(messages)
        ]
        return "".join(told)


def derive_turns(
    template: str | None, *, bos: str | None, eos: str | None, subject: Mapping[str, Any]
) -> Turns:
    """The turns that `template` writes, for a tokenizer and a terminator as `subject` declares
    them.

    Raises:
        Undecided: there is no template, or it is none that stands for strings around the texts.
    """
    if template is None:
        raise Undecided("the model publishes no chat template")
    if "strftime_now" in template or "date_string" in template:
        raise Undecided(
            "its chat template writes the date of the day: decide whether prompts have it, and "
            "which date those of training do"
        )
    chat = _Chat(template, bos, eos)
    turns = _around(chat, metaspace=subject.get("normalisation") == "metaspace")
    _check(turns, chat)
    terminator = subject.get("terminator") or eos or ""
    if not terminator or not turns.answer_end.endswith(terminator):
        raise Undecided(
            f"its chat template ends an answer in {turns.answer_end!r}, not in the terminator "
            f"{terminator!r}: decide by which token a model learns to stop"
        )
    return _without_bos(turns, bos) if bos and subject.get("bos") == "auto" else turns


@dataclass(frozen=True)
class _Chat:
    template: str
    bos: str | None
    eos: str | None

    def __call__(
        self, *messages: str, system: str | None = None, generation: bool | None = None
    ) -> str:
        """The text of a dialogue; with an odd number of messages, up to where the answer begins."""
        roles = ("user", "assistant")
        said = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(messages)]
        if system is not None:
            said.insert(0, {"role": "system", "content": system})
        if generation is None:
            generation = len(messages) % 2 == 1
        return render(self.template, said, bos=self.bos, eos=self.eos, generation=generation)


def _around(chat: _Chat, *, metaspace: bool) -> Turns:
    try:
        opening, asked = _split(chat(_QUESTION), _QUESTION)
        _, answered = _split(chat(_QUESTION, _ANSWER), _QUESTION)
        question_end, ending = _split(answered, _ANSWER)
        _, going_on = _split(chat(_QUESTION, _ANSWER, _NEXT_QUESTION), _ANSWER)
        between, _ = _split(going_on, _NEXT_QUESTION)
    except TemplateRefuses as reason:
        raise Undecided(
            f"its chat template refuses a plain dialogue ({reason}): decide how one reads"
        ) from None
    if question_end.rstrip() != asked.rstrip():
        raise Undecided(
            f"its chat template writes {asked!r} where an answer is asked for and {question_end!r} "
            f"where one is given: decide what stands before an answer"
        )
    answer_end = ending.rstrip()
    if not between.startswith(answer_end):
        raise Undecided(
            f"its chat template ends the last answer in {ending!r} and goes on from another by "
            f"{between!r}: decide what ends an answer"
        )
    space = question_end[len(question_end.rstrip()) :]
    ends_the_question = metaspace and not space.strip(" ")
    system, default, opening = _system(chat, opening)
    return Turns(
        opening=opening,
        system=system,
        default_system_prompt=default,
        next_question=between.removeprefix(answer_end),
        question_end=question_end if ends_the_question else question_end.rstrip(),
        answer_start="" if ends_the_question else space,
        answer_end=answer_end,
    )


def _system(chat: _Chat, opening: str) -> tuple[tuple[str, str] | None, str | None, str]:
    """What stands around a system prompt, the template's own prompt, and what begins a dialogue
    without any."""
    try:
        given = chat(_QUESTION, system=_SYSTEM)
    except TemplateRefuses:
        return None, None, opening
    if _SYSTEM not in given:
        return None, None, opening
    before, rest = _split(given, _SYSTEM)
    after, _ = _split(rest, _QUESTION)
    default = opening.removeprefix(before).removesuffix(after)
    if opening != default.join((before, after)) or not default:
        return (before, after), None, opening
    try:
        opening, _ = _split(chat(_QUESTION, system=""), _QUESTION)
    except TemplateRefuses:
        opening = before + after
    return (before, after), default, opening


def _split(text: str, marker: str) -> tuple[str, str]:
    if text.count(marker) != 1:
        raise Undecided(
            f"its chat template writes a message {text.count(marker)} times, or in another place "
            f"than its turn: decide where it stands"
        )
    before, _, after = text.partition(marker)
    return before, after


def _check(turns: Turns, chat: _Chat) -> None:
    """Refuse turns that do not give what the template gives, whatever is said."""
    for system in (None, "Be {a} robot.") if turns.system else (None,):
        for count in range(1, len(_TOLD) + 1):
            expected = chat(*_TOLD[:count], system=system).rstrip()
            found = turns.text(_TOLD[:count], system).rstrip()
            if found != expected:
                place = next(
                    (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
                    min(len(found), len(expected)),
                )
                raise Undecided(
                    f"its chat template is no row of strings around the messages: of {count} it "
                    f"writes {expected[max(place - 20, 0) : place + 30]!r}; decide how turns read"
                )


def _without_bos(turns: Turns, bos: str) -> Turns:
    """Without the first bos, which the tokenizer adds."""
    return replace(
        turns,
        opening=turns.opening.removeprefix(bos),
        system=turns.system and (turns.system[0].removeprefix(bos), turns.system[1]),
    )
