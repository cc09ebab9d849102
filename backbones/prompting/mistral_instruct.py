"""The formats of Mistral's instruct models: `[INST]` and `[/INST]` around a question, no system
prompt."""

from __future__ import annotations

from backbones.prompting.builder import PromptBuilder


class MistralInstructPromptBuilder(PromptBuilder):
    """`[INST] {question} [/INST] {answer}</s>`, one bos at the very beginning: Mistral 7B Instruct
    v0.1 and v0.2.

    Encodes to the ids of mistral-common's first instruct tokenizer (`InstructTokenizerV1`), which
    encodes each message by itself: the dummy prefix stands for the space after `[/INST]` and after
    `</s>`. `[INST]` is text, with a space on both sides of the question.
    """

    supports_system_prompt = False
    terminator = "</s>"

    def human_turn(self, message: str, first: bool) -> str:
        return f"[INST] {message} [/INST] "


class MistralV3InstructPromptBuilder(PromptBuilder):
    """`[INST] {question}[/INST] {answer}</s>`, one bos at the very beginning: Mistral 7B Instruct
    v0.3.

    Encodes to the ids of mistral-common's second and third instruct tokenizers
    (`InstructTokenizerV2`, `InstructTokenizerV3`), whose `[INST]` and `[/INST]` are control tokens:
    a space, for the `▁` of the word that follows, before question and answer, and none after them.
    This tokenizer puts a `▁` before the text alone, so the space belongs to the answer.
    """

    supports_system_prompt = False
    terminator = "</s>"

    def human_turn(self, message: str, first: bool) -> str:
        return f"[INST] {message}[/INST]"

    def gpt_turn(self, message: str) -> str:
        return f" {message}{self.terminator}"


class MistralTekkenInstructPromptBuilder(PromptBuilder):
    """`[INST]{question}[/INST]{answer}</s>`, one bos at the very beginning: Mistral NeMo Instruct.

    Encodes to the ids of mistral-common's third instruct tokenizer with the tekken vocabulary. Its
    byte-level BPE knows no `▁`, and there is no space anywhere around the marks.
    """

    supports_system_prompt = False
    terminator = "</s>"

    def human_turn(self, message: str, first: bool) -> str:
        return f"[INST]{message}[/INST]"

    def gpt_turn(self, message: str) -> str:
        return f"{message}{self.terminator}"
