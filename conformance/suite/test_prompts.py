"""PRM: prompt builders."""

from __future__ import annotations

import gc
import pickle
import weakref
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from conformance.assertions import Blocked, NotApplicable, quoted, refusal, require
from conformance.catalogue import MUST, SHOULD, requirement
from conformance.subject.declarations import Declarations
from conformance.subject.subject import Host, Subject
from conformance.suite.dialogues import (
    ROLES,
    Conversation,
    conversations,
    declared_bos,
    encode_turn_by_turn,
    official_ids,
    opens_turns,
    question_terminators,
    turns_of,
)
from conformance.suite.models import tokens_apart
from conformance.suite.properties import StepMachine, for_all, for_all_runs, step
from conformance.suite.strategies import (
    IMAGE_MARKER,
    UNKNOWN_ID,
    actions,
    any_message,
    dialogue,
    dialogue_with_images,
    dialogues,
    dialogues_with_images,
    exchanges,
    history,
    message,
    messages_of_corpus,
    next_questions,
    questions_with_images,
    undeclared_identifiers,
)


@requirement("PRM-16", MUST, needs=["CON-01"], uses=["prompt_builder_fn"])
def test_builders_construct_for_the_hosts(subject: Subject) -> None:
    """The builder constructs, with and without a system prompt, for every host that is declared;
    where none is, for at least one of `prismatic` and `openvla`. It has `add_turn`, `get_prompt`
    and `get_potential_prompt`, leaving the system prompt out is passing None, and hosts may name
    the arguments of the builder and of `add_turn`. A host that fails blocks its own laws alone:
    every law about prompts holds for each host that works."""
    failing = {host: fault for host, fault in subject.host_faults.items() if fault}
    families = {host.model_family for host in subject.host_faults}
    works = families - {host.model_family for host in failing}
    _require_hosts(works == families if subject.declared.hosts else bool(works), failing, works)
    for host in subject.working_hosts:
        left_out = given = _first_turn(host, None)
        with refusal():  # which nobody overlooks
            left_out = host.builder_class(host.model_family).add_turn("human", "Who is there?")
        require(
            left_out == given,
            observed=f"{host} without `system_prompt` the first turn is {quoted(left_out, 160)}, "
            f"with system_prompt=None {quoted(given, 160)}",
            expected="the same: one host leaves it out, and another passes None",
            mend="default `system_prompt` to None, and ask for None in one place",
        )


@requirement("PRM-16", MUST, needs=["CON-01"], uses=["prompt_builder_fn"])
def test_arguments_go_by_name_too(subject: Subject) -> None:
    """Hosts name the arguments, as in `prompt_builder_fn(model_family=…)` and `add_turn(role=…,
    message=…)`, or pass them by position: the turn is the same."""
    turn = {"role": "human", "message": "Who is there?"}
    for host in subject.working_hosts:
        for given in ({}, {"system_prompt": "You are a robot."}):
            named = {"model_family": host.model_family, **given}
            expected, observed = _first_turn(host, given.get("system_prompt")), None
            with refusal() as refused:
                observed = host.builder_class(**named).add_turn(**turn)
            require(
                observed == expected,
                observed=f"{host} `prompt_builder_fn({'=…, '.join(named)}=…)` with "
                f"`add_turn(role=…, message=…)` "
                + (f"raised {refused[0]!r}" if refused else f"gave {quoted(observed, 160)}"),
                expected=f"{quoted(expected, 160)}, as by position",
                mend="call the parameters `model_family` and `system_prompt`, those of `add_turn` "
                "`role` and `message`",
                # To whoever passes them by position the builder is of use.
                partial=True,
            )


@requirement("PRM-17", SHOULD, needs=["PRM-16"], uses=["prompt_builder_fn"])
def test_builders_construct_for_both_of_prismatics_hosts(subject: Subject) -> None:
    """Where no host is declared, the builder constructs for both of `prismatic` and `openvla`."""
    if subject.declared.hosts:
        raise NotApplicable(f"the hosts are declared: {', '.join(subject.declared.hosts)}")
    failing = {host: fault for host, fault in subject.host_faults.items() if fault}
    _require_hosts(not failing, failing, set())


def _require_hosts(holds: bool, failing: dict[Host, str], works: set[str]) -> None:
    require(
        holds,
        observed="; ".join(f"{host} {fault}" for host, fault in failing.items()),
        expected="a builder with `add_turn`, `get_prompt` and `get_potential_prompt`",
        mend="give every host family a default system prompt, and take `system_prompt` even "
        "where it goes unused; or declare the `hosts` that the backbone is for in the [subject] "
        "table",
        partial=bool(works),
    )


@requirement("PRM-18", SHOULD, needs=["PRM-16"], uses=["prompt_builder_fn"])
def test_builders_can_be_pickled(subject: Subject) -> None:
    """`prompt_builder_fn` can be pickled: workers of a data loader that are spawned, as they are by
    default from Python 3.14 on, are sent it."""
    taken = subject.training.prompt_builder_fn
    with refusal() as refused:
        pickle.loads(pickle.dumps(taken))
    require(
        not refused,
        observed=f"{_name_of(taken)} cannot be pickled: {quoted(''.join(map(str, refused)))}",
        expected="a class, or a factory, that a module holds by its name",
        mend="define the builder's class in the module, and not inside a function",
    )


@requirement("PRM-01", MUST, needs=["PRM-16"], uses=["prompt_builder_fn"])
def test_the_rule_names_the_builder(subject: Subject) -> None:
    """Every registered id maps to the prompt builder class that its family's declared rule names
    (suffixes `-pure`, `-instruct`, `-chat` for the seed's families; Vicuna's by prefix), whether
    `prompt_builder_fn` is that class or a function that returns its instances."""
    declared = _declaring_a_rule(subject)
    registered = () if _mapping_is_frozen(subject) else declared.backbone_ids
    host = subject.working_hosts[0]
    names = {subject.backbone_id: _class_built_by(subject, host)}
    for backbone_id in registered:
        with _identified_as(subject, backbone_id):
            names[backbone_id] = _class_built_by(subject, host)
    for backbone_id, name in names.items():
        expected = declared.builder_for(backbone_id)
        require(
            name == expected,
            observed=f"`{backbone_id}` uses {name}",
            expected=f"{expected}, as the declared rule has it"
            if expected
            else "covered by the declared rule, and is not",
            mend="mend `prompt_builder_fn`, or declare the family's own `prompt_rule` in the "
            "[subject] table",
        )


def _declaring_a_rule(subject: Subject) -> Declarations:
    """The declarations, with a rule for prompts among them.

    Raises:
        NotApplicable: no `prompt_rule` is declared.
    """
    if not subject.declared.prompt_rule:
        raise NotApplicable("no `prompt_rule` is declared, and no file names the builder's class")
    return subject.declared


@requirement("PRM-02", MUST, needs=["PRM-01"], uses=["prompt_builder_fn"])
@for_all(identifier=undeclared_identifiers)
def test_an_uncovered_identifier_is_refused(subject: Subject, identifier: str) -> None:
    """An identifier that the rule does not cover raises ValueError naming the identifier."""
    _declaring_a_rule(subject)
    if _mapping_is_frozen(subject):
        raise NotApplicable(
            "the builder is chosen at construction, where CON-04 has unknown ids refused"
        )
    if _has_one_builder(subject):
        raise NotApplicable("there is one builder, whatever the id: CON-04 has unknown ids refused")
    host = subject.working_hosts[0]
    with _identified_as(subject, identifier), refusal() as refused:
        builder = _class_built_by(subject, host)
    require(
        bool(refused)
        and isinstance(refused[0], ValueError)
        and any(told in str(refused[0]) for told in (identifier, repr(identifier)[1:-1])),
        observed=f"{identifier!r} " + (f"raised {refused[0]!r}" if refused else f"uses {builder}"),
        expected="a ValueError that names the identifier",
        mend='raise ValueError(f"No PromptBuilder defined for LLM Backbone `{self.identifier}`") '
        "where no rule applies, or "
        "declare the `prompt_rule` that covers it in the [subject] table",
    )


@requirement("PRM-03", MUST, needs=["PRM-05"], uses=["prompt_builder_fn"])
@for_all(messages=dialogue, edges=dialogues)
def test_turns_concatenate_to_the_prompt(subject: Subject, messages: list[str]) -> None:
    """*Concatenation*: the strings that `add_turn` returned, joined, are the prompt (up to bos
    removal and trailing space), of more than 500 messages too."""
    bos = subject.tokenizer.bos_token or ""
    for told in conversations(subject, messages):
        strings = [*told.turns, told.prompt]
        require(
            all(isinstance(string, str) for string in strings),
            observed=f"{told.host} `add_turn` and `get_prompt` returned {quoted(strings)}",
            expected="strings",
            mend="return from `add_turn` exactly what it appended, and the prompt from "
            "`get_prompt`",
        )
        joined = "".join(told.turns).rstrip()
        require(
            told.prompt.rstrip() in {joined, joined.removeprefix(bos)},
            observed=f"{told.host} the {len(told.turns)} turns join to {quoted(joined, 200)}",
            expected=f"the prompt {quoted(told.prompt, 200)}",
            mend="return from `add_turn` exactly what it appended, the system prompt included, "
            "and keep every turn",
        )


@requirement("PRM-04", MUST, needs=["PRM-05"], uses=["prompt_builder_fn"])
@for_all(
    history=history,
    text=message,
    system_prompt=lambda s: st.none() | message(s),
    edges=next_questions,
)
def test_the_potential_prompt_is_the_next_prompt(
    subject: Subject, history: list[str], text: str, system_prompt: str | None
) -> None:
    """*Potential*: at every turn, for messages free of `<image>` and of surrounding space,
    `get_potential_prompt(m)` equals `get_prompt()` of a twin after `add_turn("human", m)`,
    whatever the system prompt."""
    _require_potential(subject, history, text, system_prompt)


@requirement("PRM-14", SHOULD, needs=["PRM-04"], uses=["prompt_builder_fn"])
@for_all(history=history, text=any_message, edges=questions_with_images)
def test_the_potential_prompt_strips_alike(subject: Subject, history: list[str], text: str) -> None:
    """PRM-04 for every message, `<image>` and surrounding space included."""
    _require_potential(subject, history, text)


@requirement("PRM-05", MUST, needs=["PRM-16"], uses=["prompt_builder_fn"])
@for_all_runs
def test_reading_changes_nothing(subject: Subject) -> type[StepMachine]:
    """*Purity*: reading (`get_prompt`, `get_potential_prompt`) changes nothing; two builders share
    nothing, whether their class was taken from the backbone once or for each, whether one is a
    copy of the other, and in whichever threads; and one that nobody holds is freed."""

    class Reading(StepMachine):
        def __init__(self) -> None:
            super().__init__()
            self.builders = {host: host.builder() for host in subject.working_hosts}
            self.bystanders = {host: host.builder() for host in self.builders}
            self.untouched = {
                host: _asked(bystander) for host, bystander in self.bystanders.items()
            }
            self.said: list[str] = []

        def look_at_others(self) -> None:
            for host, untouched in self.untouched.items():
                for other, prompt in (
                    ("a new", _asked(host.builder())),
                    ("a new class's", _asked(_anew(subject, host))),
                    ("another", self.bystanders[host].get_prompt()),
                ):
                    gave = f"{quoted(prompt)}, which is not what its one turn gave earlier"
                    _require_pure(prompt == untouched, f"{host} {other} builder", gave)

        @step(text=message(subject))
        def take_turn(self, text: str) -> None:
            turn = len(self.said)
            for host, builder in self.builders.items():
                with refusal() as refused:
                    builder.add_turn(ROLES[turn % 2], text)
                gave = f"{refused[0]!r}" if refused else ""
                _require_pure(not refused, f"{host} turn {turn + 1}", gave)
            self.said.append(text)
            self.look_at_others()

        @step(text=message(subject))
        def read(self, text: str) -> None:
            for host, builder in self.builders.items():
                unread = host.builder()
                turns_of(unread, self.said)
                if len(self.said) % 2 == 0:
                    first, second = (builder.get_potential_prompt(text) for _ in range(2))
                    gave = "another prompt the second time"
                    _require_pure(first == second, f"{host} get_potential_prompt", gave)
                if self.said:
                    prompt, expected = builder.get_prompt(), unread.get_prompt()
                    gave = f"{quoted(prompt)}, and {quoted(expected)} for the same turns unread"
                    _require_pure(prompt == expected, f"{host} get_prompt", gave)
            self.look_at_others()

    return Reading


_DROPPED = (20, 1200)
"""How many builders are dropped: a few at first, and if those are kept, more than a cache of
bounded size holds."""


@requirement("PRM-05", MUST, needs=["PRM-16"], uses=["prompt_builder_fn"])
def test_a_builder_is_let_go(subject: Subject) -> None:
    """A builder that nobody holds is freed, whatever it was asked: data sets make one for every
    sample."""
    for host in subject.working_hosts:
        kept = 0
        for count in _DROPPED:
            dropped = [told for number in range(count) if (told := _told_and_dropped(host, number))]
            gc.collect()  # objects that refer to each other wait for the collector
            kept = sum(builder() is not None for builder in dropped)
            if kept <= count // 2:
                break
        require(
            kept <= count // 2,
            observed=f"{host} {kept} of {count} builders stay in memory after the last reference "
            "to them is gone",
            expected="memory that is free again",
            mend="keep no list of builders; `functools.cache` on a method keeps every `self`",
        )


def _told_and_dropped(host: Host, number: int) -> weakref.ref[Any] | None:
    """A weak reference to a builder that was used and is held by nobody."""
    builder = host.builder()
    turns_of(builder, (f"What is step {number}?", f"Move to shelf {number}."))
    builder.get_potential_prompt(f"Why shelf {number}?")
    builder.get_prompt()
    with refusal(TypeError):  # a class with `__slots__` may have none
        return weakref.ref(builder)
    return None


def _asked(builder: Any) -> Any:
    builder.add_turn("human", "Who is there?")
    return builder.get_prompt()


def _anew(subject: Subject, host: Host) -> Any:
    """A builder of a class that is taken from the backbone anew, as a script does."""
    backbone = subject.training if host.mode == "training" else subject.inference
    return backbone.prompt_builder_fn(host.model_family, system_prompt=None)


@requirement("PRM-06", MUST, needs=["PRM-05"], uses=["prompt_builder_fn"])
@for_all_runs
def test_turns_alternate(subject: Subject) -> type[StepMachine]:
    """*Alternation*: turns alternate human, gpt; a turn out of order raises and leaves the state as
    it was, and a role of another name raises or is that of the turn."""

    class Turns(StepMachine):
        def __init__(self) -> None:
            super().__init__()
            self.pairs = [(host, host.builder(), host.builder()) for host in subject.working_hosts]
            self.turns = self.refusals = 0

        @step(text=message(subject))
        def take_turn(self, text: str) -> None:
            role = ROLES[self.turns % 2]
            for host, builder, obedient in self.pairs:
                expected = obedient.add_turn(role, text)
                with refusal() as refused:
                    observed = builder.add_turn(role, text)
                same = not refused and observed == expected
                _require_unchanged(host, same and builder.get_prompt() == obedient.get_prompt())
            self.turns += 1

        @step(text=message(subject))
        def take_turn_out_of_order(self, text: str) -> None:
            due, other = ROLES[self.turns % 2], ROLES[(self.turns + 1) % 2]
            for host, builder, obedient in self.pairs:
                with refusal() as refused:
                    builder.add_turn(other, text)
                require(
                    bool(refused),
                    observed=f"{host} {other!r} took the turn of {due!r} (turn {self.turns}, "
                    "counted from 0)"
                    + (", which it had been refused before" if self.refusals else ""),
                    expected="an error, and the dialogue left as it was",
                    mend="raise a ValueError for a turn out of order (`assert` vanishes under "
                    "-O), before anything is changed",
                )
                same = self.turns == 0 or builder.get_prompt() == obedient.get_prompt()
                _require_unchanged(host, same)
            self.refusals += 1

    return Turns


_OTHER_ROLES = ("user", "assistant", "system", "robot", "Human", "")
"""What other codebases call roles, and what nobody does."""


@requirement("PRM-06", MUST, needs=["PRM-05"], uses=["prompt_builder_fn"])
def test_other_roles_are_refused(subject: Subject) -> None:
    """A role that is not the one whose turn it is raises, or is another name for it."""
    for host in subject.working_hosts:
        for said in ((), ("Who is there?",)):
            due = ROLES[len(said) % 2]
            for role in _OTHER_ROLES:
                builder, obedient = host.builder(), host.builder()
                for one in (builder, obedient):
                    turns_of(one, said)
                expected = obedient.add_turn(due, "It is I.")
                with refusal() as refused:
                    observed = builder.add_turn(role, "It is I.")
                require(
                    bool(refused) or observed == expected,
                    observed=f"{host} `add_turn({role!r}, …)` in the turn of {due!r} gave "
                    f"{quoted('' if refused else observed, 160)}",
                    expected=f"an error, or {quoted(expected, 160)}, if it is a name for {due!r}",
                    mend="raise a ValueError for every role that is not due",
                )


@requirement("PRM-07", MUST, needs=["PRM-03"], uses=["prompt_builder_fn"])
@for_all(messages=dialogue_with_images, edges=dialogues_with_images)
def test_messages_survive_without_image_markers(subject: Subject, messages: list[str]) -> None:
    """`<image>` markers are stripped from messages, which are then told as the same messages
    without markers are; everything else of an ordinary message survives verbatim up to surrounding
    space, however long it is and however often it was said. Nothing stands in the place of an empty
    question, and the thoughts of the last answer are told."""
    for told in conversations(subject, messages):
        for number, (sent, turn) in enumerate(zip(messages, told.turns, strict=True)):
            expected = sent.replace(IMAGE_MARKER, "").strip()
            require(
                expected in turn and IMAGE_MARKER not in turn,
                observed=f"{told.host} {quoted(sent, 160)} became the {ROLES[number % 2]} turn "
                f"{quoted(turn, 200)}",
                expected=f"{quoted(expected, 160)} in it, and no {IMAGE_MARKER}",
                mend=f'use `message.replace("{IMAGE_MARKER}", "").strip()` and change nothing else',
            )
        bare = [sent.replace(IMAGE_MARKER, "") for sent in messages]
        unmarked = turns_of(told.host.builder(), bare)
        require(
            told.turns == unmarked,
            observed=f"{told.host} {quoted(messages, 160)} becomes {quoted(told.turns, 200)}",
            expected=f"{quoted(unmarked, 200)}, as {quoted(bare, 160)} does: inference asks "
            "without the markers of training",
            mend=f'use `message.replace("{IMAGE_MARKER}", "").strip()`, in that order',
        )


_DOCUMENT = " ".join(f"step {number}" for number in range(10_000, 19_100))
"""What people paste whole: about a hundred thousand characters."""


@requirement("PRM-07", MUST, needs=["PRM-03"], uses=["prompt_builder_fn"])
def test_documents_survive_whole(subject: Subject) -> None:
    """Messages survive however long they are, in turns and in prompts: what fits is for tokenizers
    to say."""
    for told in conversations(subject, [_DOCUMENT, _DOCUMENT]):
        potential = told.host.builder().get_potential_prompt(_DOCUMENT)
        for name, text, times in (
            ("the human turn", told.turns[0], 1),
            ("the gpt turn", told.turns[1], 1),
            ("the prompt of both", told.prompt, 2),
            ("get_potential_prompt", potential, 1),
        ):
            require(
                text.count(_DOCUMENT) == times,
                observed=f"{told.host} of a message of {len(_DOCUMENT)} characters, {name} is "
                f"{quoted(text, 120)}, {len(text)} characters",
                expected="all of the message in it",
                mend="leave messages as long as they are: truncation is the tokenizer's, if it is "
                "asked for",
            )


@requirement("PRM-07", MUST, needs=["PRM-03"], uses=["prompt_builder_fn"])
def test_an_empty_question_stays_empty(subject: Subject) -> None:
    """A question of nothing, or of an image alone, is wrapped as any other: nothing stands in its
    place."""
    for host in subject.working_hosts:
        for said in ([], ["Is it?", "Yes."]):
            for sent in ("", IMAGE_MARKER, " \n"):
                found, worded = (_asked_next(host, said, text) for text in (sent, _WORD))
                # What is left of markers in `get_potential_prompt` is PRM-14's.
                for call in ("add_turn", "get_potential_prompt") if not sent else ("add_turn",):
                    bare = "".join(worded[call].replace(_WORD, "").split())
                    require(
                        "".join(found[call].split()) == bare,
                        observed=f"{host} after {len(said)} turns {call} made of the question "
                        f"{sent!r} {quoted(found[call], 200)}, and of {_WORD!r} "
                        f"{quoted(worded[call], 200)}",
                        expected="the same without the word",
                        mend="put nothing in the place of an empty question",
                    )


_WORD = "Xylophone"
"""A question that no format has a word of."""


def _asked_next(host: Host, said: list[str], question: str) -> dict[str, str]:
    """What each call that takes a question makes of it."""
    builder = host.builder()
    turns_of(builder, said)
    potential = builder.get_potential_prompt(question)
    return {"add_turn": builder.add_turn("human", question), "get_potential_prompt": potential}


@requirement("PRM-08", MUST, needs=["TOK-02"], uses=["prompt_builder_fn"])
@for_all(examples=10, question=message)
def test_an_empty_answer_is_still_a_turn(subject: Subject, question: str) -> None:
    """An empty assistant message still yields a non-empty turn that ends in the terminator, and
    holds nothing in its place; for a message that is None, no word is written."""
    for told in conversations(subject, [question, ""]):
        require(
            told.turns[1].rstrip().endswith(subject.terminator) and bool(subject.terminator),
            observed=f"{told.host} an empty answer gave the turn {told.turns[1]!r}",
            expected=f"a turn that ends in {subject.terminator!r}",
            mend="append the terminator to every assistant turn",
        )
        word = "Aye"
        answered = turns_of(told.host.builder(), [question, word])[1]
        bare = "".join(answered.replace(word, "", 1).split())
        require(
            "".join(told.turns[1].split()) == bare,
            observed=f"{told.host} an empty answer gave the turn {told.turns[1]!r}, and {word!r} "
            f"gave {answered!r}",
            expected="the same turn without the word",
            mend="put nothing in the place of an empty answer",
        )


@requirement(
    "PRM-09", MUST, needs=["TOK-01", "PRM-03", "PRM-05", "PRM-08"], uses=["prompt_builder_fn"]
)
@for_all(messages=dialogue, edges=dialogues)
def test_bos_and_terminators_are_counted(subject: Subject, messages: list[str]) -> None:
    """The encoded prompt carries the declared number of bos (one, one a turn, none; where none is
    declared, a token with which the official template opens every turn is no bos), and every
    assistant turn ends in the terminator. Other roles' turns end in it too where that is declared
    (`terminator_ends`), or is what the official template does, or the builder's own format where
    there is no official one; there are no further terminators."""
    answers, questions = len(messages) // 2, -(-len(messages) // 2)
    bos_id: Any = subject.tokenizer.bos_token_id
    terminator_id: Any = subject.terminator_id
    bos = declared_bos(subject, questions)
    if bos and bos_id is None:
        raise Blocked("TOK-08")
    marks_turns = subject.declared.bos == "none" and opens_turns(subject, bos_id)
    for told in conversations(subject, messages):
        unended = [
            turn for turn in told.turns[1::2] if not turn.rstrip().endswith(subject.terminator)
        ]
        require(
            not unended,
            observed=f"{told.host} an assistant turn is {quoted(unended[:1], 200)}",
            expected=f"a turn that ends in {subject.terminator!r}",
            mend="append the terminator to every assistant turn",
        )
        first, later = question_terminators(subject, told.host)
        ends = answers + first + later * (questions - 1)
        expected = (
            {bos_id: bos + ends} if bos_id == terminator_id else {bos_id: bos, terminator_id: ends}
        )
        if marks_turns:
            del expected[bos_id]
        for encoding, ids in _host_encodings(subject, told).items():
            holds = {token: ids.count(token) for token in expected} == expected
            require(
                holds,
                observed=f"{told.host} {len(messages)} turn(s) encoded {encoding} have "
                f"{ids.count(bos_id)} bos (id {bos_id}) and {ids.count(terminator_id)} "
                f"terminators (id {terminator_id}): "
                + ("" if holds else quoted(subject.decode(ids), 160)),
                expected=f"{bos} bos and {ends} terminators, of which {answers} end answers"
                + (", which are the same token here" if bos_id == terminator_id else ""),
                mend="let either the tokenizer or the builder add bos, not both, and end each "
                "answer in one terminator; or declare `bos_per_prompt`, or `terminator_ends`, in "
                "the [subject] table",
            )


@requirement(
    "PRM-10",
    MUST,
    needs=["PRM-01", "PRM-03", "PRM-07", "PRM-09", "PRM-13", "PAD-08", "TOK-05"],
    uses=["prompt_builder_fn"],
)
@for_all(
    messages=lambda s: dialogue(s, empty_answers=False),
    system_prompt=lambda s: st.none() | message(s),
    edges=lambda s: ({**said, "system_prompt": None} for said in dialogues(s)),
)
def test_prompts_follow_the_official_template(
    subject: Subject, messages: list[str], system_prompt: str | None
) -> None:
    """Prompts encode to the token ids of the family's official template, up to trailing space,
    those of base models to the seed's; every accepted difference is listed with its reason in the
    recipe. A system prompt is trimmed where the template trims it. Mistral's oracle is
    mistral-common itself."""
    if not subject.declared.system_prompt:
        system_prompt = None
    for told in conversations(subject, messages, system_prompt):
        ours, official = official_ids(subject, told, messages, system_prompt)
        require(
            ours == official,
            observed=f"{told.host} the prompt {quoted(told.prompt, 240)} encodes to "
            f"{_around(subject, ours, official)}",
            expected=f"{_around(subject, official, ours)}, as the official template has it",
            mend="follow the template's strings and spaces exactly, or list the difference with "
            "its reason in the recipe",
            tokens=tokens_apart(subject, ours, official),
        )


def _short_exchanges(_: Subject) -> list[dict[str, Any]]:
    """Edges: the shortest dialogue, and answers that begin with signs, which tokenizers join to
    what stands before them."""
    answers = ("Yes.", ":", ")", "...", "'s", "7", "\u00e9t\u00e9", "\u4e00")
    return [{"messages": ["Is it?", answer], "action": list(range(7))} for answer in answers]


@requirement(
    "PRM-11", MUST, needs=["PRM-03", "PRM-04", "PRM-09", "TOK-05"], uses=["prompt_builder_fn"]
)
@for_all(messages=exchanges, action=actions, edges=_short_exchanges)
def test_the_inference_prompt_is_a_prefix_of_training(
    subject: Subject, messages: list[str], action: list[int]
) -> None:
    """*Prefix*: with the declared fix-up, the encoded inference prompt is a prefix of the encoded
    training prompt, in both host encodings. Where line breaks stand between turns, which encoding
    turn by turn strips, that holds of the first exchange there. A builder taken in `train()` writes
    what one taken in `eval()` does."""
    for boundary in _boundaries(subject, messages, action):
        require(
            boundary.training[: len(boundary.inference)] == boundary.inference,
            observed=f"the inference prompt is encoded to "
            f"{_around(subject, boundary.inference, boundary.training)}",
            expected=f"a prefix of what was trained on, encoded {boundary.encoding} to "
            f"{_around(subject, boundary.training, boundary.inference)}",
            mend="declare the `boundary_fixup` of this tokenizer, or none: another family's id is "
            "another character here"
            if boundary.fixed_up
            else "strip trailing space from prompts, and put the space between question and "
            "answer where the tokenizer merges "
            "it (SentencePiece: end of the question; byte-level BPE: start of the answer)",
            tokens=tokens_apart(subject, boundary.inference, boundary.training),
        )


@requirement(
    "PRM-11", MUST, needs=["PRM-03", "PRM-04", "PRM-09", "TOK-05"], uses=["prompt_builder_fn"]
)
def test_training_tells_what_inference_asks(subject: Subject) -> None:
    """Builders taken in `train()` write what those taken in `eval()` do, whichever mode the
    backbone was built for."""
    said = ["What is it?", "A cup.", "Why?"]
    backbone = subject.build()
    backbone.train()
    in_training = backbone.prompt_builder_fn
    for asking in subject.working_hosts:
        trained = Host(asking.model_family, in_training, asking.mode)
        for system_prompt in (None, "You are a robot."):
            asked, told = (
                turns_of(host.builder(system_prompt), said) for host in (asking, trained)
            )
            require(
                told == asked,
                observed=f"{asking} a builder taken in train() writes {quoted(told, 240)}",
                expected=f"{quoted(asked, 240)}, as one taken in eval() does: what is trained on "
                "is what is asked",
                mend="let `prompt_builder_fn` depend on the id alone; a data set that brings its "
                "own system prompt passes it",
            )


@requirement(
    "PRM-15", MUST, needs=["PRM-07", "PRM-11", "TOK-05", "PAD-08"], uses=["prompt_builder_fn"]
)
@for_all(messages=exchanges, action=actions, edges=_short_exchanges)
def test_the_answer_follows_the_boundary_at_once(
    subject: Subject, messages: list[str], action: list[int]
) -> None:
    """*Answer boundary*: what follows the inference prompt in the training ids is exactly the
    answer's ids and the terminator: no stray space token between them once the declared fix-up is
    applied."""
    for boundary in _boundaries(subject, messages, action):
        rest = boundary.training[len(boundary.inference) :]
        while rest and not subject.decode(rest[-1:]).strip() and subject.terminator_id in rest[:-1]:
            rest = rest[:-1]
        answer, spellings = boundary.answer, _spellings(subject, boundary.answer)
        if boundary.fixed_up:
            fixup = list(subject.declared.boundary_fixup)
            spellings = [ids[len(fixup) :] for ids in spellings if ids[: len(fixup)] == fixup]
        terminator = [] if subject.terminator_id is None else [subject.terminator_id]
        require(
            rest[-1:] == [subject.terminator_id] and rest[:-1] in spellings,
            observed=f"encoded {boundary.encoding}, the inference prompt is followed by "
            f"{quoted(rest, 160)} = "
            f"{quoted(subject.decode(rest))}",
            expected=f"the ids of the answer {quoted(answer)} and the terminator "
            f"{subject.terminator_id}",
            mend="write one space at most between question and answer, and nothing but the "
            "terminator after it; declare "
            "`boundary_fixup` where the host appends the space itself",
            tokens=tokens_apart(subject, rest, [*spellings[0], *terminator]) if spellings else {},
        )


@requirement("PRM-12", SHOULD, needs=["PRM-15"], uses=["prompt_builder_fn"])
@for_all(messages=dialogue)
def test_encoding_by_turns_is_encoding_the_whole(subject: Subject, messages: list[str]) -> None:
    """Encoding turn by turn (each turn right-stripped) and joining gives the encoding of the
    whole."""
    for told in conversations(subject, messages):
        whole, by_turns = _host_encodings(subject, told).values()
        require(
            by_turns == whole,
            observed=f"{told.host} turn by turn, {quoted(told.turns, 160)} encode to "
            f"{_around(subject, by_turns, whole)}",
            expected=f"{_around(subject, whole, by_turns)}, as the whole does",
            mend="begin and end turns where the tokenizer merges nothing across",
            tokens=tokens_apart(subject, by_turns, whole),
        )


@requirement("PRM-13", MUST, needs=["PRM-03"], uses=["prompt_builder_fn"])
@for_all(
    system_prompt=message,
    messages=dialogue,
    edges=lambda s: (
        {"system_prompt": text, "messages": ["Is it?", "Yes.", "Why?"]}
        for text in messages_of_corpus(s)
    ),
)
def test_a_system_prompt_appears_once(
    subject: Subject, system_prompt: str, messages: list[str]
) -> None:
    """A custom system prompt appears exactly once, or the builder declares that it takes none, and
    opens no turn for it; an empty one stands in the place of the default too."""
    if not subject.declared.system_prompt:
        raise NotApplicable("the family declares that it takes no system prompt")
    marked = f"<[{system_prompt}]>"
    for told in conversations(subject, messages, marked):
        count = told.prompt.count(marked)
        require(
            count == 1,
            observed=f"{told.host} the system prompt {quoted(marked)} appears {count} times in "
            f"{quoted(told.prompt, 200)}",
            expected="once",
            mend="put it into the first turn, and only there",
        )


@requirement("PRM-13", MUST, needs=["PRM-03"], uses=["prompt_builder_fn"])
def test_an_empty_system_prompt_replaces_the_default(subject: Subject) -> None:
    """A custom system prompt, the empty one included, stands in the place of the default."""
    if not subject.declared.system_prompt:
        raise NotApplicable("the family declares that it takes no system prompt")
    compared = 0
    for host in subject.working_hosts:
        marked = "<[custom]>"
        by_default, custom, empty = (
            _first_turn(host, system_prompt) for system_prompt in (None, marked, "")
        )
        before, _, after = custom.partition(marked)
        if not (by_default.startswith(before) and by_default.endswith(after)):
            continue  # without a system prompt the format is another
        default = by_default[len(before) : len(by_default) - len(after)].strip()
        if not default:
            continue
        compared += 1
        require(
            default not in empty,
            observed=f"{host} with system_prompt='' the first turn is {quoted(empty, 200)}",
            expected=f"it without the default, {quoted(default, 120)}",
            mend="ask `system_prompt is None`: an empty one is a choice too",
        )
    if not compared:
        raise NotApplicable("no builder has a default system prompt")


def _first_turn(host: Host, system_prompt: str | None) -> str:
    return str(host.builder(system_prompt).add_turn("human", "Who is there?"))


def _require_pure(holds: bool, what: str, gave: str) -> None:
    require(
        holds,
        observed=f"{what} gave {gave}",
        expected="reading to change nothing, and builders to share nothing",
        mend="build prompts from the instance's own turns; no class-level or default-argument "
        "lists",
    )


def _require_unchanged(host: Host, holds: bool) -> None:
    require(
        holds,
        observed=f"{host} a refused turn changed what came after it",
        expected="the dialogue as if that turn had never been tried",
        mend="check the role before changing anything",
    )


def _require_potential(
    subject: Subject, history: list[str], text: str, system_prompt: str | None = None
) -> None:
    for host in subject.working_hosts:
        builder, twin = host.builder(system_prompt), host.builder(system_prompt)
        turns_of(builder, history)
        turns_of(twin, [*history, text])
        potential, actual = builder.get_potential_prompt(text), twin.get_prompt()
        require(
            potential == actual,
            observed=f"{host} get_potential_prompt({quoted(text, 60)}) after {len(history)} "
            f"turns{f' and system prompt {quoted(system_prompt, 60)}' if system_prompt else ''} is "
            f"{quoted(potential, 200)}",
            expected=f"{quoted(actual, 200)}, the prompt once that turn is added",
            mend="build both from one function: bos, system prompt, stripping and all",
        )


@dataclass(frozen=True)
class _Boundary:
    """Where one answer begins: the ids that inference starts from, and those of training, in one
    host encoding."""

    encoding: str
    answer: str
    inference: list[int]
    training: list[int]
    fixed_up: bool


def _boundaries(subject: Subject, messages: list[str], action: list[int]) -> list[_Boundary]:
    """The boundaries of the last answer; where a fix-up is declared, also those of an action in its
    place.

    Hosts apply the fix-up before actions only (OpenVLA's `predict_action`), whose tokens never
    merge with a space.
    """
    *history, question, answer = messages
    found = _encoded_boundaries(subject, history, question, answer, [])
    fixup = list(subject.declared.boundary_fixup)
    if fixup and subject.declared.action_scheme == "tail":
        last = subject.tokenizer.vocab_size - 1
        acting = subject.decode([last - number for number in action])
        found += _encoded_boundaries(subject, history, question, acting, fixup)
    return found


def _encoded_boundaries(
    subject: Subject, history: list[str], question: str, answer: str, fixup: list[int]
) -> list[_Boundary]:
    found = []
    for told in conversations(subject, [*history, question, answer]):
        asking = told.host.builder()
        turns_of(asking, history)
        inference = subject.encode(asking.get_potential_prompt(question))
        if fixup and inference[-len(fixup) :] != fixup:
            inference += fixup
        found += [
            _Boundary(f"{told.host} {name}", answer, inference, ids, bool(fixup))
            for name, ids in _host_encodings(subject, told).items()
            if name == "as a whole" or not history or not _has_lines_between(told.turns[:-1])
        ]
    return found


def _has_lines_between(turns: list[str]) -> bool:
    """Whether a turn begins or ends in a line break. PRM-12 judges what becomes of it."""
    starts = (turn[: len(turn) - len(turn.lstrip())] for turn in turns)
    ends = (turn[len(turn.rstrip()) :] for turn in turns)
    return any("\n" in space for space in (*starts, *ends))


def _host_encodings(subject: Subject, told: Conversation) -> dict[str, list[int]]:
    """The two ways in which hosts encode a dialogue, by their names in messages."""
    return {
        "as a whole": subject.encode(told.prompt),
        "turn by turn": encode_turn_by_turn(subject, told.turns),
    }


def _spellings(subject: Subject, answer: str) -> list[list[int]]:
    """The ids that `answer` may have behind a question: by itself, in the middle of a line, or
    after one space.

    A tokenizer that puts a space before every text already encodes that space; a second one would
    be too many.
    """

    def continued(text: str, after: str = "\n") -> list[int]:
        return subject.encode(after + text, special=False)[
            len(subject.encode(after, special=False)) :
        ]

    brings_a_space = subject.encode("a", special=False) == continued(": a")[-1:]
    leads = ("",) if brings_a_space else ("", " ")
    # Phi ends answers in a line break, Llama 2's official template in a space.
    tails = ("", "\n", " ")
    texts = [lead + answer + tail for lead in leads for tail in tails]
    # ChatML, Gemma and Phi-3 begin an answer on a new line, Llama 3 after an empty one.
    new_lines = [lead + answer + tail for lead in ("\n", "\n\n") for tail in tails]
    return [
        *(ids for text in texts for ids in (subject.encode(text, special=False), continued(text))),
        *(
            ids
            for text in new_lines
            for ids in (subject.encode(text, special=False), continued(text, "a"))
        ),
    ]


def _around(
    subject: Subject, ids: list[int], others: list[int], before: int = 3, after: int = 6
) -> str:
    """The part of `ids` around the first difference from `others`."""
    pairs = enumerate(zip(ids, others, strict=False))
    place = next(
        (place for place, (one, other) in pairs if one != other), min(len(ids), len(others))
    )
    shown = ids[max(place - before, 0) : place + after]
    dots = "… " if place > before else "", " …" if len(ids) > place + after else ""
    return f"{dots[0]}{shown}{dots[1]} = {quoted(subject.decode(shown))}"


class _identified_as:
    """The shared instance under another identifier while the body runs: the contract's way to
    select another rule."""

    def __init__(self, subject: Subject, identifier: str) -> None:
        self._backbone, self._identifier = subject.training, identifier

    def __enter__(self) -> None:
        self._before = self._backbone.identifier
        self._backbone.identifier = self._identifier

    def __exit__(self, *exception: object) -> None:
        self._backbone.identifier = self._before


def _mapping_is_frozen(subject: Subject) -> bool:
    """Whether `prompt_builder_fn` does not follow `identifier`: another id of the declared rule
    changes nothing."""
    try:
        subject.training.identifier = subject.training.identifier
    except AttributeError:
        return True
    declared = subject.declared
    own = declared.builder_for(subject.backbone_id)
    stem = subject.backbone_id.rpartition("-")[0]
    other = next(
        (rule for rule in declared.prompt_rule if rule.builder != own and "*" in rule.pattern), None
    )
    if other is None:
        return False
    identifier = other.pattern.replace("*", stem if other.pattern.startswith("*") else "7b")
    return _class_built_for(subject, identifier) == own


def _has_one_builder(subject: Subject) -> bool:
    """Whether the declared rule names one builder, and `prompt_builder_fn` gives it whatever the id
    is: of a family with one format a constant is as good as a choice."""
    named = {rule.builder for rule in subject.declared.prompt_rule}
    return (
        len(named) == 1
        and subject.declared.builder_for(UNKNOWN_ID) is None
        and _class_built_for(subject, UNKNOWN_ID) in named
    )


def _class_built_for(subject: Subject, identifier: str) -> str | None:
    """The class of the builders that `prompt_builder_fn` returns under this id, None if it
    raises."""
    host = subject.working_hosts[0]
    with _identified_as(subject, identifier), refusal():
        return _class_built_by(subject, host)
    return None


def _class_built_by(subject: Subject, host: Host) -> str:
    """The class of the builders that `prompt_builder_fn` returns now."""
    taken = subject.training.prompt_builder_fn
    if isinstance(taken, type):
        return taken.__name__
    return type(taken(host.model_family, system_prompt=None)).__name__


def _name_of(builder: Any) -> str:
    return getattr(builder, "__name__", type(builder).__name__)
