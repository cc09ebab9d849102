"""Dialogues as hosts drive prompt builders, and in the official encoding: mistral-common for
Mistral's own models, a family's Jinja template otherwise.

Where a family's references depart from the official encoding on purpose, the recipe lists the
difference with its reason; each has a name here, and a rule that removes it from both sides before
they are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from conformance.assertions import NotApplicable
from conformance.subject.subject import Subject

Ids = list[int]

ROLES = ("human", "gpt")
"""The roles, in the order of turns, under Prismatic's names, which come from LLaVA's data files."""

HOST_MODEL_FAMILIES = ("prismatic", "openvla")
"""What Prismatic's hosts pass as `model_family`."""


def turns_of(builder: Any, messages: Sequence[str]) -> list[str]:
    """Add the messages in turn, human first; returns what `add_turn` returned for each."""
    return [builder.add_turn(ROLES[turn % 2], text) for turn, text in enumerate(messages)]


def encode_turn_by_turn(subject: Subject, turns: Sequence[str]) -> list[int]:
    """Token ids of a dialogue encoded a turn at a time, right-stripped, special tokens on the first
    turn only: what Prismatic's fine-tuning dataset does (`FinetuneDataset`)."""
    encoded = (
        subject.encode(turn.rstrip(), special=number == 0) for number, turn in enumerate(turns)
    )
    return [token for ids in encoded for token in ids]


def official_ids(
    subject: Subject, prompt: str, messages: Sequence[str], system_prompt: str | None
) -> tuple[Ids, Ids]:
    """Token ids of `prompt` as hosts encode it, and those of the official template for the same
    dialogue; accepted differences are removed from both.

    Raises:
        NotApplicable: for a family without an official template.
    """
    recipe = subject.recipe
    ours = subject.encode(prompt)
    if recipe.template_oracle == "mistral-common-v1":
        official = _mistral_common_v1(messages)
    elif recipe.chat_template is not None:
        if system_prompt is None and subject.declared.system_prompt:
            system_prompt = _system_prompt_in_force(subject)
        official = subject.encode(_rendered(subject, messages, system_prompt), special=False)
    else:
        raise NotApplicable("the family has no official chat template")
    for difference in recipe.accepted_template_differences:
        ours, official = (
            ACCEPTED_DIFFERENCES[difference.name](subject, ids) for ids in (ours, official)
        )
    return ours, official


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


ACCEPTED_DIFFERENCES: dict[str, Callable[[Subject, Ids], Ids]] = {
    "no-space-before-eos": _without_space_before_eos,
    "one-bos-per-dialogue": _with_one_bos,
}
"""What recipes may accept, by name."""


@lru_cache(maxsize=1)
def _mistral_tokenizer() -> Any:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    return MistralTokenizer.v1().instruct_tokenizer


def _mistral_common_v1(messages: Sequence[str]) -> Ids:
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import InstructRequest

    kinds = (UserMessage, AssistantMessage)
    said = [kinds[turn % 2](content=text) for turn, text in enumerate(messages)]
    return list(_mistral_tokenizer().encode_instruct(InstructRequest(messages=said)).tokens)


def _rendered(subject: Subject, messages: Sequence[str], system_prompt: str | None) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    roles = ("user", "assistant")
    said = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(messages)]
    if system_prompt is not None:
        said.insert(0, {"role": "system", "content": system_prompt})
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    rendered: str = environment.from_string(
        subject.recipe.chat_template or "", globals={"raise_exception": _refuse}
    ).render(
        messages=said,
        bos_token=subject.tokenizer.bos_token,
        eos_token=subject.tokenizer.eos_token,
        add_generation_prompt=len(messages) % 2 == 1,
    )
    return rendered


def _refuse(reason: str) -> None:
    raise NotApplicable(f"the official template refuses the dialogue: {reason}")


def _system_prompt_in_force(subject: Subject) -> str | None:
    """The builder's default system prompt, found by comparison with a known one.

    The official template has no default, or another one; the format is compared, not the wording.
    """
    marker = "@@conformance-system-prompt@@"
    given, default = subject.prompt_builder(system_prompt=marker), subject.prompt_builder()
    with_marker, with_default = given.add_turn("human", "hello"), default.add_turn("human", "hello")
    before, found, after = with_marker.partition(marker)
    if not found or not with_default.startswith(before) or not with_default.endswith(after):
        raise NotApplicable("the builder's default system prompt cannot be told from its format")
    return with_default[len(before) : len(with_default) - len(after)] or None
