"""The prompt builders: the text of each format, and what every builder owes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbones.prompting import (
    ByteLevelPurePromptBuilder,
    ChatMLPromptBuilder,
    EndOfTextPurePromptBuilder,
    Gemma3PromptBuilder,
    GemmaPromptBuilder,
    GemmaPurePromptBuilder,
    Idefics2PromptBuilder,
    LLaMa2ChatPromptBuilder,
    Llama3PromptBuilder,
    Llama3PurePromptBuilder,
    Llama31PromptBuilder,
    MetaspacePurePromptBuilder,
    MistralInstructPromptBuilder,
    MistralTekkenInstructPromptBuilder,
    MistralV3InstructPromptBuilder,
    Phi3PromptBuilder,
    PhiPromptBuilder,
    PurePromptBuilder,
    Qwen25PromptBuilder,
    SmolLM2PromptBuilder,
    VicunaV15ChatPromptBuilder,
)

BUILDERS = [
    ChatMLPromptBuilder,
    EndOfTextPurePromptBuilder,
    Gemma3PromptBuilder,
    GemmaPromptBuilder,
    GemmaPurePromptBuilder,
    Idefics2PromptBuilder,
    Llama3PromptBuilder,
    Llama3PurePromptBuilder,
    Llama31PromptBuilder,
    Phi3PromptBuilder,
    Qwen25PromptBuilder,
    SmolLM2PromptBuilder,
    ByteLevelPurePromptBuilder,
    MistralTekkenInstructPromptBuilder,
    LLaMa2ChatPromptBuilder,
    MetaspacePurePromptBuilder,
    MistralV3InstructPromptBuilder,
    MistralInstructPromptBuilder,
    PhiPromptBuilder,
    PurePromptBuilder,
    VicunaV15ChatPromptBuilder,
]
MESSAGES = st.lists(
    st.sampled_from(["a", " ", "\n", "<image>", "<im", "age>", "é", "</s>"]), max_size=6
).map("".join)


@pytest.mark.parametrize(
    ("builder", "system", "text"),
    [
        (PurePromptBuilder, None, "In: q\nOut: a</s>In: r\nOut:"),
        (ByteLevelPurePromptBuilder, None, "In: q\nOut: a</s>In: r\nOut:"),
        (MistralTekkenInstructPromptBuilder, None, "[INST]q[/INST]a</s>[INST]r[/INST]"),
        (MetaspacePurePromptBuilder, None, "In: q\nOut: a</s> In: r\nOut:"),
        (MistralInstructPromptBuilder, None, "[INST] q [/INST] a</s>[INST] r [/INST]"),
        (MistralV3InstructPromptBuilder, None, "[INST] q[/INST] a</s>[INST] r[/INST]"),
        (
            PhiPromptBuilder,
            None,
            "<|endoftext|>Input: q\nOutput: a\n<|endoftext|>Input: r\nOutput:",
        ),
        (
            VicunaV15ChatPromptBuilder,
            "Be kind.",
            "Be kind. USER: q ASSISTANT: a</s>USER: r ASSISTANT:",
        ),
        (
            LLaMa2ChatPromptBuilder,
            "Be kind.",
            "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nq [/INST] a</s>[INST] r [/INST]",
        ),
        (
            ChatMLPromptBuilder,
            "Be kind.",
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
            "<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nr<|im_end|>\n"
            "<|im_start|>assistant",
        ),
        (
            Llama3PromptBuilder,
            None,
            "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nr<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>",
        ),
        (
            Gemma3PromptBuilder,
            "Be kind.",
            "<start_of_turn>user\nBe kind.\n\nq<end_of_turn>\n<start_of_turn>model\na<end_of_turn>"
            "\n<start_of_turn>user\nr<end_of_turn>\n<start_of_turn>model",
        ),
        (
            Phi3PromptBuilder,
            "Be kind.",
            "<|system|>\nBe kind.<|end|>\n<|user|>\nq<|end|>\n<|assistant|>\na<|end|>\n"
            "<|user|>\nr<|end|>\n<|assistant|>",
        ),
        (
            Idefics2PromptBuilder,
            None,
            "User: q<end_of_utterance>\nAssistant: a<end_of_utterance>\n"
            "User: r<end_of_utterance>\nAssistant:",
        ),
        (GemmaPurePromptBuilder, None, "In: q\nOut: a<eos>In: r\nOut:"),
        (LLaMa2ChatPromptBuilder, "", "[INST] q [/INST] a</s>[INST] r [/INST]"),
    ],
)
def test_the_text_of_a_format(builder, system, text):
    prompt = builder("prismatic", system_prompt=system)
    prompt.add_turn("human", " <image>\nq")
    prompt.add_turn("gpt", "a ")
    prompt.add_turn("human", "r")
    assert prompt.get_prompt() == text


@pytest.mark.parametrize("builder", BUILDERS)
@given(messages=st.lists(MESSAGES, min_size=1, max_size=5))
def test_turns_join_to_the_prompt_and_the_potential_prompt_comes_true(builder, messages):
    prompt = builder("openvla")
    turns = []
    for i, message in enumerate(messages):
        if i % 2 == 0:
            potential = prompt.get_potential_prompt(message)
        turns.append(prompt.add_turn(("human", "gpt")[i % 2], message))
        assert "<image>" not in turns[-1]
        assert i % 2 == 1 or prompt.get_prompt() == potential
    assert "".join(turns).rstrip() == prompt.get_prompt()


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_turn_out_of_order_raises_and_changes_nothing(builder):
    prompt = builder("prismatic")
    with pytest.raises(ValueError, match="turn 0 is for 'human', got 'gpt'"):
        prompt.add_turn("gpt", "a")
    prompt.add_turn("human", "q")
    before = prompt.get_prompt()
    with pytest.raises(ValueError, match="turn 1 is for 'gpt'"):
        prompt.add_turn("human", "q")
    with pytest.raises(ValueError, match="turn 1 is for 'gpt'"):
        prompt.get_potential_prompt("q")
    assert prompt.get_prompt() == before
    assert prompt.add_turn("gpt", "").rstrip().endswith(prompt.terminator)


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_system_prompt_appears_once_or_is_refused_aloud(builder):
    if builder.supports_system_prompt:
        prompt = builder("prismatic", system_prompt="Answer in verse.")
    else:
        with pytest.warns(UserWarning, match="takes no system prompt; 'Answer in verse.'"):
            prompt = builder("prismatic", system_prompt="Answer in verse.")
    for role in ("human", "gpt", "human"):
        prompt.add_turn(role, "x")
    assert prompt.get_prompt().count("Answer in verse.") == builder.supports_system_prompt
