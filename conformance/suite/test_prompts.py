"""PRM: prompt builders."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from conformance.assertions import NotApplicable, quoted, refusal, require
from conformance.catalogue import MUST, SHOULD, requirement
from conformance.prompting import HOST_MODEL_FAMILIES, ROLES, encode_turn_by_turn, turns_of
from conformance.properties import for_all, run_machine
from conformance.strategies import (
    IMAGE_MARKER,
    any_message,
    dialogue,
    image_messages,
    message,
    undeclared_identifiers,
)
from conformance.subject import Subject
from conformance.templates import official_ids


@requirement("PRM-16", MUST, needs=["CON-01"], uses=["prompt_builder_fn"])
def test_builders_construct_for_every_host(subject: Subject) -> None:
    """The builder constructs for every host `model_family`, with and without a system prompt."""
    for family in HOST_MODEL_FAMILIES:
        for system_prompt in (None, "You are a robot."):
            with refusal() as refused:
                subject.prompt_builder(family, system_prompt)
            require(
                not refused,
                observed=f"for model_family={family!r} and system_prompt={system_prompt!r} it raised {refused[0]!r}" if refused else "",
                expected="a builder",
                mend="give every host family a default system prompt; take `system_prompt` even where it goes unused",
            )


@requirement("PRM-01", MUST, needs=["PRM-16"], uses=["prompt_builder_fn"])
def test_the_rule_names_the_builder(subject: Subject) -> None:
    """Every registered id maps to the prompt builder class that its family's declared rule names (suffixes `-pure`,
    `-instruct`, `-chat` for the seed's families; Vicuna's by prefix)."""
    declared = subject.declared
    ids = dict.fromkeys((subject.backbone_id, *(() if _mapping_is_frozen(subject) else declared.backbone_ids)))
    for backbone_id in ids:
        with _identified_as(subject, backbone_id):
            name = _name_of(subject.training.prompt_builder_fn)
        expected = declared.builder_for(backbone_id)
        require(
            name == expected,
            observed=f"`{backbone_id}` uses {name}",
            expected=f"{expected}, as the declared rule has it",
            mend="mend `prompt_builder_fn`, or declare the family's own `prompt_rule` in the [subject] table",
        )


@requirement("PRM-02", MUST, needs=["PRM-01"], uses=["prompt_builder_fn"])
@for_all(identifier=undeclared_identifiers)
def test_an_uncovered_identifier_is_refused(subject: Subject, identifier: str) -> None:
    """An identifier that the rule does not cover raises ValueError naming the identifier."""
    if _mapping_is_frozen(subject):
        raise NotApplicable("the builder is chosen at construction, where CON-04 has unknown ids refused")
    with _identified_as(subject, identifier), refusal() as refused:
        builder = subject.training.prompt_builder_fn
    require(
        bool(refused) and isinstance(refused[0], ValueError) and identifier in str(refused[0]),
        observed=f"the identifier {identifier!r} raised {refused[0]!r}" if refused else f"{identifier!r} uses {_name_of(builder)}",
        expected="a ValueError that names the identifier",
        mend="raise ValueError(f\"No PromptBuilder defined for LLM Backbone `{self.identifier}`\") where no rule applies",
    )


@requirement("PRM-03", MUST, needs=["PRM-16"], uses=["prompt_builder_fn"])
@for_all(messages=dialogue)
def test_turns_concatenate_to_the_prompt(subject: Subject, messages: list[str]) -> None:
    """*Concatenation*: the strings that `add_turn` returned, joined, are the prompt (up to bos removal and trailing space)."""
    builder = subject.prompt_builder()
    joined = "".join(turns_of(builder, messages)).rstrip()
    prompt = builder.get_prompt()
    bos = subject.tokenizer.bos_token or ""
    require(
        prompt.rstrip() in {joined, joined.removeprefix(bos)},
        observed=f"the turns join to {quoted(joined, 200)}",
        expected=f"the prompt {quoted(prompt, 200)}",
        mend="return from `add_turn` exactly what it appended, the system prompt included",
    )


@requirement("PRM-04", MUST, needs=["PRM-16"], uses=["prompt_builder_fn"])
@for_all(history=lambda s: dialogue(s).map(lambda m: m[: len(m) // 2 * 2]), text=message)
def test_the_potential_prompt_is_the_next_prompt(subject: Subject, history: list[str], text: str) -> None:
    """*Potential*: at every turn, for messages free of `<image>` and of surrounding space, `get_potential_prompt(m)` equals
    `get_prompt()` of a twin after `add_turn("human", m)`."""
    _require_potential(subject, history, text)


@requirement("PRM-14", SHOULD, needs=["PRM-04"], uses=["prompt_builder_fn"])
@for_all(history=lambda s: dialogue(s).map(lambda m: m[: len(m) // 2 * 2]), text=any_message)
def test_the_potential_prompt_strips_alike(subject: Subject, history: list[str], text: str) -> None:
    """PRM-04 for every message, `<image>` and surrounding space included."""
    _require_potential(subject, history, text)


def _turn_machine(subject: Subject, judge_purity: bool) -> type[RuleBasedStateMachine]:
    """The machine of PRM-05 (reading changes nothing) or of PRM-06 (turns out of order are refused)."""

    class Turns(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.builder, self.bystander = subject.prompt_builder(), subject.prompt_builder()
            self.untouched = self.bystander.get_prompt()
            self.turns = 0

        @rule(text=message(subject))
        def take_turn(self, text: str) -> None:
            self.builder.add_turn(ROLES[self.turns % 2], text)
            self.turns += 1

        if judge_purity:

            @rule(text=message(subject))
            def read(self, text: str) -> None:
                before = self.builder.get_prompt()
                if self.turns % 2 == 0:
                    potential = self.builder.get_potential_prompt(text)
                    _require_pure(potential == self.builder.get_potential_prompt(text), "get_potential_prompt", "another prompt the second time")
                _require_pure(self.builder.get_prompt() == before, "reading", "another prompt afterwards")
                _require_pure(self.bystander.get_prompt() == self.untouched, "a turn", "text in another builder")

        else:

            @rule(text=message(subject), role=st.sampled_from((*ROLES, "system", "assistant", "user", "")))
            def take_turn_out_of_order(self, text: str, role: str) -> None:
                if role == ROLES[self.turns % 2]:
                    return
                before = self.builder.get_prompt()
                with refusal() as refused:
                    self.builder.add_turn(role, text)
                expected_role = ROLES[self.turns % 2]
                require(
                    bool(refused),
                    observed=f"turn {self.turns} was taken by {role!r}",
                    expected=f"an error: it is {expected_role!r}'s turn",
                    mend="raise a ValueError for a turn out of order (`assert` vanishes under -O)",
                )
                require(
                    self.builder.get_prompt() == before,
                    observed="the refused turn changed the prompt",
                    expected="the state as it was",
                    mend="check the role before changing anything",
                )

    return Turns


def _require_pure(holds: bool, what: str, gave: str) -> None:
    require(
        holds,
        observed=f"{what} gave {gave}",
        expected="reading to change nothing, and builders to share nothing",
        mend="build prompts from the instance's own turns; no class-level or default-argument lists",
    )


@requirement("PRM-05", MUST, needs=["PRM-16"], uses=["prompt_builder_fn"])
def test_reading_changes_nothing(subject: Subject) -> None:
    """*Purity*: reading (`get_prompt`, `get_potential_prompt`) changes nothing; two builders share nothing."""
    run_machine(_turn_machine(subject, judge_purity=True), subject, "PRM-05")


@requirement("PRM-06", MUST, needs=["PRM-16"], uses=["prompt_builder_fn"])
def test_turns_alternate(subject: Subject) -> None:
    """*Alternation*: turns alternate human, gpt; a turn out of order raises and leaves the state as it was."""
    run_machine(_turn_machine(subject, judge_purity=False), subject, "PRM-06")


@requirement("PRM-07", MUST, needs=["PRM-16"], uses=["prompt_builder_fn"])
@for_all(parts=image_messages)
def test_messages_survive_without_image_markers(subject: Subject, parts: list[str]) -> None:
    """`<image>` markers are stripped from messages; everything else of an ordinary message survives verbatim up to
    surrounding space."""
    builder = subject.prompt_builder()
    turn = builder.add_turn("human", IMAGE_MARKER.join(parts))
    expected = "".join(parts).strip()
    require(
        expected in turn and IMAGE_MARKER not in turn,
        observed=f"{quoted(IMAGE_MARKER.join(parts), 160)} became the turn {quoted(turn, 200)}",
        expected=f"{quoted(expected, 160)} in it, and no {IMAGE_MARKER}",
        mend=f'use `message.replace("{IMAGE_MARKER}", "").strip()` and change nothing else',
    )


@requirement("PRM-08", MUST, needs=["PRM-16"], uses=["prompt_builder_fn"])
@for_all(examples=10, question=message)
def test_an_empty_answer_is_still_a_turn(subject: Subject, question: str) -> None:
    """An empty assistant message still yields a non-empty turn that ends in the terminator."""
    builder = subject.prompt_builder()
    builder.add_turn("human", question)
    turn = builder.add_turn("gpt", "")
    require(
        turn.rstrip().endswith(subject.terminator) and bool(subject.terminator),
        observed=f"an empty answer gave the turn {turn!r}",
        expected=f"a turn that ends in {subject.terminator!r}",
        mend="append the terminator to every assistant turn",
    )


@requirement("PRM-09", MUST, needs=["PRM-16", "TOK-02"], uses=["prompt_builder_fn"])
@for_all(messages=dialogue)
def test_bos_and_terminators_are_counted(subject: Subject, messages: list[str]) -> None:
    """The encoded prompt carries the declared number of bos (one, one a turn, none) and one terminator per assistant turn."""
    builder = subject.prompt_builder()
    turns_of(builder, messages)
    ids = subject.encode(builder.get_prompt())
    answers, exchanges = len(messages) // 2, -(-len(messages) // 2)
    bos_id, terminator_id = subject.tokenizer.bos_token_id, subject.terminator_id
    convention = "none" if subject.declared.bos == "none" else subject.declared.bos_per_prompt
    bos = {"one": 1, "per-turn": exchanges, "none": 0}[convention]
    expected = {bos_id: bos, terminator_id: answers}
    if bos_id == terminator_id:
        expected = {bos_id: bos + answers}
    observed = {token: ids.count(token) for token in expected}
    require(
        observed == expected,
        observed=f"{len(messages)} turns encode with bos {bos_id} × {ids.count(bos_id)} and terminator {terminator_id} × "
        f"{ids.count(terminator_id)}: {quoted(builder.get_prompt(), 160)}",
        expected=f"bos × {bos} ({convention}) and terminator × {answers}",
        mend="let either the tokenizer or the builder add bos, not both; end each answer in one terminator",
    )


@requirement("PRM-10", MUST, needs=["PRM-03"], uses=["prompt_builder_fn"])
@for_all(messages=lambda s: dialogue(s).filter(all), system_prompt=lambda s: st.none() | message(s))
def test_prompts_follow_the_official_template(subject: Subject, messages: list[str], system_prompt: str | None) -> None:
    """Chat and instruct prompts encode to the token ids of the family's official template; every accepted difference is
    listed with its reason in the recipe. Mistral's oracle is mistral-common itself."""
    if not subject.declared.system_prompt:
        system_prompt = None
    builder = subject.prompt_builder(system_prompt=system_prompt)
    turns_of(builder, messages)
    ours, official = official_ids(subject, builder.get_prompt(), messages, system_prompt)
    require(
        ours == official,
        observed=f"the prompt {quoted(builder.get_prompt(), 240)} encodes to {quoted(ours, 240)}",
        expected=f"{quoted(official, 240)}, as by the official template: {quoted(subject.decode(official), 240)}",
        mend="follow the template's strings and spaces exactly, or list the difference with its reason in the recipe",
    )


@requirement("PRM-11", MUST, needs=["PRM-04", "PRM-09"], uses=["prompt_builder_fn"])
@for_all(messages=lambda s: dialogue(s).filter(lambda m: len(m) >= 2 and all(m)))
def test_the_inference_prompt_is_a_prefix_of_training(subject: Subject, messages: list[str]) -> None:
    """*Prefix*: with the declared fix-up, the encoded inference prompt is a prefix of the encoded training prompt, in both
    host encodings."""
    for encoding, inference, training in _boundaries(subject, messages):
        require(
            training[: len(inference)] == inference,
            observed=f"encoded {encoding}, inference starts from {quoted(inference, 200)}",
            expected=f"a prefix of what was trained on, {quoted(training, 200)}",
            mend="put the space between question and answer where the tokenizer merges it (SentencePiece: end of the question; "
            "byte-level BPE: start of the answer), or declare `boundary_fixup`",
        )


@requirement("PRM-15", MUST, needs=["PRM-11"], uses=["prompt_builder_fn"])
@for_all(messages=lambda s: dialogue(s).filter(lambda m: len(m) >= 2 and all(m)))
def test_the_answer_follows_the_boundary_at_once(subject: Subject, messages: list[str]) -> None:
    """*Answer boundary*: what follows the inference prompt in the training ids is exactly the answer's ids and the
    terminator: no stray space token between them once the declared fix-up is applied."""
    answer = messages[len(messages) // 2 * 2 - 1]
    fixup = list(subject.declared.boundary_fixup)
    for encoding, inference, training in _boundaries(subject, messages):
        rest = training[len(inference) :]
        while rest and not subject.decode(rest[-1:]).strip() and subject.terminator_id in rest[:-1]:
            rest = rest[:-1]
        spellings = [subject.encode(lead + answer + tail, special=False) for lead in ("", " ") for tail in ("", "\n", " ")]
        spellings = [ids[len(fixup) :] if fixup and ids[: len(fixup)] == fixup else ids for ids in spellings]
        require(
            rest[-1:] == [subject.terminator_id] and rest[:-1] in spellings,
            observed=f"encoded {encoding}, after the inference prompt come {quoted(rest, 160)} = {quoted(subject.decode(rest), 120)}",
            expected=f"the ids of the answer {quoted(answer)} and the terminator {subject.terminator_id}",
            mend="leave no space token of its own between question and answer; declare `boundary_fixup` where the host adds one",
        )


@requirement("PRM-12", SHOULD, needs=["PRM-03"], uses=["prompt_builder_fn"])
@for_all(messages=dialogue)
def test_encoding_by_turns_is_encoding_the_whole(subject: Subject, messages: list[str]) -> None:
    """Encoding turn by turn (each turn right-stripped) and joining gives the encoding of the whole."""
    builder = subject.prompt_builder()
    turns = turns_of(builder, messages)
    by_turns, whole = encode_turn_by_turn(subject, turns), subject.encode(builder.get_prompt())
    require(
        by_turns == whole,
        observed=f"turn by turn {quoted(turns, 160)} encode to {quoted(by_turns, 200)}",
        expected=f"{quoted(whole, 200)}, as the whole does",
        mend="begin and end turns where the tokenizer merges nothing across",
    )


@requirement("PRM-13", MUST, needs=["PRM-16"], uses=["prompt_builder_fn"])
@for_all(system_prompt=message, messages=dialogue)
def test_a_system_prompt_appears_once(subject: Subject, system_prompt: str, messages: list[str]) -> None:
    """A custom system prompt appears exactly once, or the builder declares that it takes none."""
    if not subject.declared.system_prompt:
        raise NotApplicable("the family declares that it takes no system prompt")
    marked = f"<[{system_prompt}]>"
    builder = subject.prompt_builder(system_prompt=marked)
    turns_of(builder, messages)
    count = builder.get_prompt().count(marked)
    require(
        count == 1,
        observed=f"the system prompt {quoted(marked)} appears {count} times in {quoted(builder.get_prompt(), 200)}",
        expected="once",
        mend="put it into the first turn, and only there",
    )


def _require_potential(subject: Subject, history: list[str], text: str) -> None:
    builder, twin = subject.prompt_builder(), subject.prompt_builder()
    turns_of(builder, history)
    turns_of(twin, [*history, text])
    potential, actual = builder.get_potential_prompt(text), twin.get_prompt()
    require(
        potential == actual,
        observed=f"get_potential_prompt({quoted(text, 60)}) after {len(history)} turns is {quoted(potential, 200)}",
        expected=f"{quoted(actual, 200)}, the prompt once that turn is added",
        mend="build both from one function: bos, system prompt, stripping and all",
    )


def _boundaries(subject: Subject, messages: list[str]) -> list[tuple[str, list[int], list[int]]]:
    """Per host encoding: its name, the ids inference starts from (fix-up applied), the ids of training."""
    *history, question, answer = messages[: len(messages) // 2 * 2]
    asking, training = subject.prompt_builder(), subject.prompt_builder()
    turns_of(asking, history)
    turns = turns_of(training, [*history, question, answer])
    inference = subject.encode(asking.get_potential_prompt(question))
    fixup = list(subject.declared.boundary_fixup)
    encodings = {"as a whole": subject.encode(training.get_prompt()), "turn by turn": encode_turn_by_turn(subject, turns)}
    return [
        # A host applies its fix-up only where the id is not already last (OpenVLA's `predict_action`).
        (name, inference + fixup if fixup and ids[len(inference) :][: len(fixup)] == fixup else inference, ids)
        for name, ids in encodings.items()
    ]


class _identified_as:
    """The shared instance under another identifier while the body runs: the contract's own way to ask for another rule."""

    def __init__(self, subject: Subject, identifier: str) -> None:
        self._backbone, self._identifier = subject.training, identifier

    def __enter__(self) -> None:
        self._before = self._backbone.identifier
        self._backbone.identifier = self._identifier

    def __exit__(self, *exception: object) -> None:
        self._backbone.identifier = self._before


def _mapping_is_frozen(subject: Subject) -> bool:
    """Whether `prompt_builder_fn` does not follow `identifier`: another id of the declared rule changes nothing."""
    try:
        subject.training.identifier = subject.training.identifier
    except AttributeError:
        return True
    declared = subject.declared
    own = declared.builder_for(subject.backbone_id)
    other = next((rule for rule in declared.prompt_rule if rule.builder != own and "*" in rule.pattern), None)
    if other is None:
        return False
    stem = subject.backbone_id.rpartition("-")[0]
    identifier = other.pattern.replace("*", stem if other.pattern.startswith("*") else "7b")
    with _identified_as(subject, identifier), refusal() as refused:
        builder = subject.training.prompt_builder_fn
    return not refused and _name_of(builder) == own


def _name_of(builder: Any) -> str:
    return getattr(builder, "__name__", type(builder).__name__)
