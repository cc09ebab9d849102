"""Dialogues as hosts drive prompt builders, and in the official encoding: mistral-common for
Mistral's own models, a family's Jinja template otherwise; for base models, which have no format of
their own, the seed's, unless the subject declares a builder of its own.

Where a family's references depart from the official encoding on purpose, the recipe lists the
difference with its reason; each has a name here, and a rule that removes it from both sides before
they are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from conformance.assertions import NotApplicable
from conformance.hub.chat import TemplateRefuses, render
from conformance.hub.recipe import MISTRAL_COMMON
from conformance.subject.declarations import Declarations
from conformance.subject.subject import Host, Subject

Ids = list[int]

ROLES = ("human", "gpt")
"""The roles, in the order of turns, under Prismatic's names, which come from LLaVA's data files."""


def turns_of(builder: Any, messages: Sequence[str]) -> list[str]:
    """Add the messages in turn, human first; returns what `add_turn` returned for each."""
    return [builder.add_turn(ROLES[turn % 2], text) for turn, text in enumerate(messages)]


@dataclass(frozen=True)
class Conversation:
    """A dialogue as a builder tells it to one host; `turns` are what `add_turn` returned."""

    host: Host
    turns: list[str]
    prompt: str


def conversations(
    subject: Subject, messages: Sequence[str], system_prompt: str | None = None
) -> list[Conversation]:
    """The dialogue as it is told to every host that works; told alike, it is listed once."""
    found: list[Conversation] = []
    for host in subject.working_hosts:
        builder = host.builder(system_prompt)
        turns = turns_of(builder, messages)
        told = Conversation(host, turns, builder.get_prompt())
        if not any((told.turns, told.prompt) == (other.turns, other.prompt) for other in found):
            found.append(told)
    return found


def encode_turn_by_turn(subject: Subject, turns: Sequence[str]) -> list[int]:
    """Token ids of a dialogue encoded a turn at a time, right-stripped, special tokens on the first
    turn only: what Prismatic's fine-tuning dataset does (`FinetuneDataset`)."""
    encoded = (
        subject.encode(turn.rstrip(), special=number == 0) for number, turn in enumerate(turns)
    )
    return [token for ids in encoded for token in ids]


def official_ids(
    subject: Subject, told: Conversation, messages: Sequence[str], system_prompt: str | None
) -> tuple[Ids, Ids]:
    """Token ids of the prompt as hosts encode it, and those of the official template for the same
    dialogue; accepted differences are removed from both.

    Prompts may end without the space or line break that the template leaves for an answer: hosts
    strip what they encode on the right.

    Raises:
        NotApplicable: for a family without an official template.
    """
    ours = subject.encode(told.prompt)
    if system_prompt is None and subject.declared.system_prompt:
        system_prompt = _system_prompt_in_force(told.host)
        if system_prompt is None and _template_brings_a_system_prompt(subject):
            raise NotApplicable("the template has a default system prompt, and the builder none")
    stripped = told.prompt == told.prompt.rstrip()
    official = template_ids(subject, messages, system_prompt, stripped=stripped)
    for difference in subject.recipe.accepted_template_differences:
        ours, official = (
            ACCEPTED_DIFFERENCES[difference.name](subject, ids) for ids in (ours, official)
        )
    return ours, official


def template_ids(
    subject: Subject, messages: Sequence[str], system_prompt: str | None, *, stripped: bool = False
) -> Ids:
    """Token ids of the official template for a dialogue; `stripped`: without trailing space.

    Raises:
        NotApplicable: for a family without one.
    """
    recipe = subject.recipe
    if recipe.template_oracle in MISTRAL_COMMON:
        return _of_mistral_common(recipe.template_oracle, messages)
    if recipe.chat_template is None:
        raise NotApplicable("the family has no official chat template")
    if recipe.template_oracle == "seed" and not _has_the_seeds_builder(subject):
        raise NotApplicable("the model has no format of its own, and the builder is not the seed's")
    text = rendered(subject, messages, system_prompt)
    return subject.encode(text.rstrip() if stripped else text, special=False)


def _has_the_seeds_builder(subject: Subject) -> bool:
    recipe = subject.recipe
    published = Declarations().updated(recipe.subject, str(recipe.path))
    backbone_id = subject.backbone_id
    return published.builder_for(backbone_id) == subject.declared.builder_for(backbone_id)


def question_terminators(subject: Subject, host: Host) -> tuple[int, int]:
    """How many terminators the first question brings, and how many every later one.

    One each where every turn is declared to end in the terminator, or is seen to: by the official
    template, or by the builder's own first questions where there is none. A system prompt may then
    bring one more, as a turn of its own.
    """
    builder = host.builder()
    turns_of(builder, ("What?", "That.", "Why?"))
    told = subject.encode(builder.get_prompt())
    ends = subject.declared.terminator_ends
    try:
        shown = template_ids(subject, ("What?", "That.", "Why?"), None)
    except NotApplicable:
        shown = told
    if not ends:
        ends = "every-turn" if _terminators(subject, shown) > 2 else "assistant"
    if ends == "assistant":
        return 0, 0
    with_system = _terminators(subject, told) == 4
    return (2 if with_system else 1), 1


def _terminators(subject: Subject, ids: Ids) -> int:
    """Terminators in a dialogue of two questions and an answer; a bos of the same id is none."""
    terminator: Any = subject.terminator_id
    is_bos = terminator == subject.tokenizer.bos_token_id
    return ids.count(terminator) - (declared_bos(subject, 2) if is_bos else 0)


def declared_bos(subject: Subject, questions: int) -> int:
    """How many bos a dialogue with so many questions has by declaration."""
    declared = subject.declared
    convention = "none" if declared.bos == "none" else declared.bos_per_prompt
    return {"one": 1, "per-turn": questions, "none": 0}[convention]


def opens_turns(subject: Subject, token: int | None) -> bool:
    """Whether the official template opens every turn with this token: what a tokenizer calls its
    bos is then a mark of turns, as `<|im_start|>` is to SmolLM2, and no bos."""
    try:
        shown = template_ids(subject, ("What?", "That.", "Why?"), None)
    except NotApplicable:
        return False
    return token is not None and shown.count(token) >= 3


def _without_space_before_eos(subject: Subject, ids: Ids) -> Ids:
    """Drop a token of nothing but space right before the terminator."""
    terminator = subject.terminator_id
    spaces = {
        token
        for token in set(ids)
        if token != terminator and not subject.decode([token]).strip(" ")
    }
    pairs = zip(ids, [*ids[1:], None], strict=True)
    return [token for token, follower in pairs if not (token in spaces and follower == terminator)]


def _with_one_bos(subject: Subject, ids: Ids) -> Ids:
    """Keep the first bos only."""
    bos = subject.tokenizer.bos_token_id
    return [token for place, token in enumerate(ids) if token != bos or bos not in ids[:place]]


def _without_empty_thought(subject: Subject, ids: Ids) -> Ids:
    """Drop the thought of nothing that Qwen3's template writes before the last answer."""
    thought = subject.encode("<think>\n\n</think>\n\n", special=False)
    for place in range(len(ids) - len(thought) + 1):
        if ids[place : place + len(thought)] == thought:
            return ids[:place] + ids[place + len(thought) :]
    return ids


def _without_end_of_text(subject: Subject, ids: Ids) -> Ids:
    """Drop the tokenizer's eos behind the last terminator, where they are two."""
    ends = [subject.terminator_id, subject.tokenizer.eos_token_id]
    return ids[:-1] if ids[-2:] == ends else ids


ACCEPTED_DIFFERENCES: dict[str, Callable[[Subject, Ids], Ids]] = {
    "no-end-of-text": _without_end_of_text,
    "no-empty-thought": _without_empty_thought,
    "no-space-before-eos": _without_space_before_eos,
    "one-bos-per-dialogue": _with_one_bos,
}
"""What recipes may accept, by name."""


@lru_cache(maxsize=1)
def _instruct_tokenizer(oracle: str) -> Any:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    version, _, kind = oracle.removeprefix("mistral-common-").partition("-")
    options = {f"is_{kind}": True} if kind else {}
    return getattr(MistralTokenizer, version)(**options).instruct_tokenizer


def _of_mistral_common(oracle: str, messages: Sequence[str]) -> Ids:
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import InstructRequest

    kinds = (UserMessage, AssistantMessage)
    said = [kinds[turn % 2](content=text) for turn, text in enumerate(messages)]
    return list(_instruct_tokenizer(oracle).encode_instruct(InstructRequest(messages=said)).tokens)


def rendered(subject: Subject, messages: Sequence[str], system_prompt: str | None) -> str:
    """The text of a dialogue by the recipe's template.

    Raises:
        NotApplicable: the template refuses the dialogue.
    """
    roles = ("user", "assistant")
    said = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(messages)]
    if system_prompt is not None:
        said.insert(0, {"role": "system", "content": system_prompt})
    bos, eos = subject.tokenizer.bos_token, subject.tokenizer.eos_token
    if subject.recipe.template_oracle == "seed":
        # A base model has no bos and terminator but those that its backbone declares.
        bos, eos = bos if declared_bos(subject, 1) else "", subject.terminator
    try:
        return render(
            subject.recipe.chat_template or "",
            said,
            bos=bos,
            eos=eos,
            generation=len(messages) % 2 == 1,
        )
    except TemplateRefuses as reason:
        raise NotApplicable(f"the official template refuses the dialogue: {reason}") from None


def _system_prompt_in_force(host: Host) -> str | None:
    """The builder's default system prompt, found by comparison with a known one.

    The official template has no default, or another one; the format is compared, not the wording.
    """
    marker = "@@conformance-system-prompt@@"
    given, default = host.builder(marker), host.builder()
    with_marker, with_default = given.add_turn("human", "hello"), default.add_turn("human", "hello")
    before, found, after = with_marker.partition(marker)
    if found and with_default.startswith(before) and with_default.endswith(after):
        return with_default[len(before) : len(with_default) - len(after)] or None
    if found and with_default == host.builder("").add_turn("human", "hello"):
        return None  # There is no default, and the format without a system prompt is another.
    raise NotApplicable("the builder's default system prompt cannot be told from its format")


def published_default(subject: Subject, host: Host) -> tuple[str, str]:
    """The default system prompts of the builder and of the official template, empty for none.

    Raises:
        NotApplicable: one of them cannot be told from the format, or there is no template.
    """
    if subject.recipe.chat_template is None:
        raise NotApplicable("the family has no official chat template")
    return _system_prompt_in_force(host) or "", _of_the_template(subject)


def _template_brings_a_system_prompt(subject: Subject) -> bool:
    return bool(_of_the_template(subject))


def _of_the_template(subject: Subject) -> str:
    """What the official template puts where a system prompt would stand, if there is none."""
    marker = "@@conformance-system-prompt@@"
    before, found, after = rendered(subject, ["hello"], marker).partition(marker)
    by_default = rendered(subject, ["hello"], None)
    if not (found and by_default.startswith(before) and by_default.endswith(after)):
        return ""
    return by_default[len(before) : len(by_default) - len(after)]
