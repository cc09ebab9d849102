"""The format of Mistral-7B-Instruct-v0.1: `[INST] … [/INST]`, no system prompt."""

from __future__ import annotations

from backbones.prompting.builder import PromptBuilder


class MistralInstructPromptBuilder(PromptBuilder):
    """`[INST] {question} [/INST] {answer}</s>`, one bos at the very beginning.

    Encodes to the ids of mistral-common's first instruct tokenizer (`InstructTokenizerV1`), which
    encodes each message by itself: the dummy prefix stands for the space after `[/INST]` and after
    `</s>`.
    """

    supports_system_prompt = False
    terminator = "</s>"

    def human_turn(self, message: str, first: bool) -> str:
        return f"[INST] {message} [/INST] "
