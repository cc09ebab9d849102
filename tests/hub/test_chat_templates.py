"""The templates render what the published ones render."""

from __future__ import annotations

import jinja2
import pytest

from conformance.hub import known_recipes

TURNS = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "Who are you"},
    {"role": "assistant", "content": "   I am an assistant   "},
    {"role": "user", "content": "Another question"},
]
SYSTEM = {"role": "system", "content": "You are a helpful assistant"}


class Refused(Exception):
    pass


def render(hub_id: str, messages: list[dict[str, str]], **options: object) -> str:
    def refuse(reason: str) -> None:
        raise Refused(reason)

    template = known_recipes()[hub_id].chat_template
    assert template is not None
    # The settings of transformers' own environment, and plain ones: both must give the same.
    rendered = {
        jinja2.Environment(trim_blocks=trim, lstrip_blocks=trim)
        .from_string(template, globals={"raise_exception": refuse})
        .render(messages=messages, bos_token="<s>", eos_token="</s>", **options)
        for trim in (True, False)
    }
    assert len(rendered) == 1
    return rendered.pop()


def test_mistral_instruct() -> None:
    assert render("mistralai/Mistral-7B-Instruct-v0.1", TURNS) == (
        "<s>[INST] Hello [/INST]Hi there</s> [INST] Who are you [/INST]   I am an assistant   </s> "
        "[INST] Another question [/INST]"
    )


def test_mistral_instruct_v2_has_no_space_after_an_answer() -> None:
    assert render("mistralai/Mistral-7B-Instruct-v0.2", TURNS[:3]) == (
        "<s>[INST] Hello [/INST]Hi there</s>[INST] Who are you [/INST]"
    )


def test_mistral_instruct_v3_has_a_space_before_question_and_answer_alone() -> None:
    assert render("mistralai/Mistral-7B-Instruct-v0.3", TURNS) == (
        "<s>[INST] Hello[/INST] Hi there</s>[INST] Who are you[/INST] I am an assistant</s>"
        "[INST] Another question[/INST]"
    )


def test_mistral_nemo_instruct_has_no_space_around_its_marks() -> None:
    assert render("mistralai/Mistral-Nemo-Instruct-2407", TURNS) == (
        "<s>[INST]Hello[/INST]Hi there</s>[INST]Who are you[/INST]I am an assistant</s>"
        "[INST]Another question[/INST]"
    )


def test_llama2_chat_has_one_bos_a_turn_and_its_system_prompt_in_the_first() -> None:
    expected = (
        "<s>[INST] <<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\nHello [/INST] Hi there </s>"
        "<s>[INST] Who are you [/INST] I am an assistant </s><s>[INST] Another question [/INST]"
    )
    assert render("meta-llama/Llama-2-7b-chat-hf", [SYSTEM, *TURNS]) == expected
    without = expected.replace("<<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\n", "")
    assert render("meta-llama/Llama-2-13b-chat-hf", TURNS) == without


def test_vicuna() -> None:
    tail = " USER: Hello ASSISTANT: Hi there</s>USER: Who are you ASSISTANT:"
    assert render("lmsys/vicuna-7b-v1.5", [SYSTEM, *TURNS[:3]], add_generation_prompt=True) == (
        "<s>You are a helpful assistant" + tail
    )
    assert render("lmsys/vicuna-7b-v1.5", TURNS[:3], add_generation_prompt=True) == (
        "<s>A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions." + tail
    )


@pytest.mark.parametrize(
    "hub_id",
    [
        "mistralai/Mistral-7B-Instruct-v0.1",
        "mistralai/Mistral-7B-Instruct-v0.2",
        "mistralai/Mistral-7B-Instruct-v0.3",
        "mistralai/Mistral-Nemo-Instruct-2407",
        "meta-llama/Llama-2-7b-chat-hf",
    ],
)
def test_turns_out_of_order_are_refused(hub_id: str) -> None:
    with pytest.raises(Refused):
        render(hub_id, TURNS[1:])


def test_base_models_have_the_seeds() -> None:
    answered = render("mistralai/Mistral-7B-v0.1", TURNS[:3])
    assert answered == "<s>In: Hello\nOut: Hi there</s>In: Who are you\nOut:"
    answered = render("microsoft/phi-2", TURNS[:3])
    assert answered == "<s>Input: Hello\nOutput: Hi there\n</s>Input: Who are you\nOutput:"
    answered = render("mistralai/Mistral-7B-v0.3", TURNS[:3])
    assert answered == "<s> In: Hello\nOut: Hi there</s> In: Who are you\nOut:"
    of_the_seed = {
        hub_id for hub_id, recipe in known_recipes().items() if recipe.template_oracle == "seed"
    }
    assert of_the_seed == {
        "meta-llama/Llama-2-7b-hf",
        "meta-llama/Llama-2-13b-hf",
        "mistralai/Mistral-7B-v0.1",
        "mistralai/Mistral-7B-v0.3",
        "mistralai/Mistral-Nemo-Base-2407",
        "microsoft/phi-2",
    }
