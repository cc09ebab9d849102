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


def test_chatml() -> None:
    asked = "<|im_start|>user\nHello<|im_end|>\n"
    answered = f"{asked}<|im_start|>assistant\nHi there<|im_end|>\n"
    opened = "<|im_start|>assistant\n"
    for hub_id, default in (
        (
            "Qwen/Qwen2.5-7B-Instruct",
            "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        ),
        (
            "HuggingFaceTB/SmolLM2-1.7B-Instruct",
            "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        ),
    ):
        system = f"<|im_start|>system\n{default}<|im_end|>\n"
        assert render(hub_id, TURNS[:2]) == system + answered
        assert render(hub_id, TURNS[:1], add_generation_prompt=True) == system + asked + opened
    assert render("Qwen/Qwen3-8B", TURNS[:1], add_generation_prompt=True) == asked + opened
    thought = answered.replace("Hi there", "<think>\n\n</think>\n\nHi there")
    assert render("Qwen/Qwen3-8B", TURNS[:2]) == thought


def test_llama3() -> None:
    def turn(role: str, text: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"

    dialogue = turn("user", "Hello") + turn("assistant", "Hi there")
    assert render("meta-llama/Meta-Llama-3-8B-Instruct", TURNS[:2]) == f"<s>{dialogue}"
    for hub_id in ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"):
        dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
        assert render(hub_id, TURNS[:2]) == f"<s>{turn('system', dates)}{dialogue}"
        system = turn("system", dates + SYSTEM["content"])
        assert render(hub_id, [SYSTEM, *TURNS[:2]]) == f"<s>{system}{dialogue}"


def test_gemma() -> None:
    first = "<s><start_of_turn>user\n{}Hello<end_of_turn>\n<start_of_turn>model\n"
    asked = {"add_generation_prompt": True}
    for hub_id in ("google/gemma-2b-it", "google/gemma-2-2b-it", "google/gemma-3-1b-it"):
        assert render(hub_id, TURNS[:1], **asked) == first.format("")
    told = render("google/gemma-3-1b-it", [SYSTEM, TURNS[0]], **asked)
    assert told == first.format(f"{SYSTEM['content']}\n\n")


def test_idefics2() -> None:
    asked = "<s>User: Hello<end_of_utterance>\nAssistant:"
    hub_id = "HuggingFaceM4/idefics2-8b"
    assert render(hub_id, TURNS[:1], add_generation_prompt=True) == asked
    assert render(hub_id, TURNS[:2]) == f"{asked} Hi there<end_of_utterance>\n"


def test_phi3_ends_a_finished_dialogue_twice() -> None:
    asked = "<|user|>\nHello<|end|>\n<|assistant|>\n"
    hub_id = "microsoft/Phi-3-mini-4k-instruct"
    assert render(hub_id, TURNS[:1], add_generation_prompt=True) == asked
    assert render(hub_id, TURNS[:2]) == f"{asked}Hi there<|end|>\n</s>"


@pytest.mark.parametrize(
    "hub_id",
    [
        "google/gemma-2b-it",
        "google/gemma-3-1b-it",
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
        "HuggingFaceTB/SmolLM2-135M",
        "Qwen/Qwen2.5-0.5B",
        "Qwen/Qwen2.5-7B",
        "Qwen/Qwen3-0.6B-Base",
        "google/gemma-2-2b",
        "google/gemma-3-1b-pt",
        "google/gemma-7b",
        "meta-llama/Llama-3.1-8B",
        "meta-llama/Llama-3.2-1B",
        "meta-llama/Meta-Llama-3-8B",
        "meta-llama/Llama-2-7b-hf",
        "meta-llama/Llama-2-13b-hf",
        "mistralai/Mistral-7B-v0.1",
        "mistralai/Mistral-7B-v0.3",
        "mistralai/Mistral-Nemo-Base-2407",
        "microsoft/phi-2",
    }
