"""The format of base models: `In: …` and `Out: …`, no system prompt."""

from __future__ import annotations

from backbones.prompting.builder import PromptBuilder


class PurePromptBuilder(PromptBuilder):
    """`In: {question}\\nOut: {answer}</s>`, for SentencePiece families without a format of their
    own.

    Source: the prompt of Prismatic's and OpenVLA's base-model checkpoints.
    """

    supports_system_prompt = False
    terminator = "</s>"

    def human_turn(self, message: str, first: bool) -> str:
        return f"In: {message}\nOut: "


class MetaspacePurePromptBuilder(PromptBuilder):
    """`In: {question}\\nOut: {answer}</s> In: …`, for SentencePiece families whose `tokenizer.json`
    puts a `▁` before the text alone, and not after a special token (Mistral 7B v0.3).

    The ids are those on which the seed's fine-tuning trains, which encodes a turn at a time: a
    space stands for the `▁` before each answer, and before each question after the first.
    """

    supports_system_prompt = False
    terminator = "</s>"

    def human_turn(self, message: str, first: bool) -> str:
        return f"{'' if first else ' '}In: {message}\nOut:"

    def gpt_turn(self, message: str) -> str:
        return f" {message}{self.terminator}"


class ByteLevelPurePromptBuilder(PromptBuilder):
    """`In: {question}\\nOut: {answer}</s>`, the text of `PurePromptBuilder`, for byte-level BPE
    (Mistral NeMo).

    The space before the answer belongs to the answer, as in Phi's format: `" word"` is one token,
    and an inference prompt that ended in a space would not be a prefix of the training text.
    """

    supports_system_prompt = False
    terminator = "</s>"

    def human_turn(self, message: str, first: bool) -> str:
        return f"In: {message}\nOut:"

    def gpt_turn(self, message: str) -> str:
        return f" {message}{self.terminator}"


class EndOfTextPurePromptBuilder(ByteLevelPurePromptBuilder):
    """The same, ended by `<|endoftext|>` (Qwen, SmolLM2)."""

    terminator = "<|endoftext|>"


class Llama3PurePromptBuilder(ByteLevelPurePromptBuilder):
    """The same, ended by `<|end_of_text|>` (Llama 3)."""

    terminator = "<|end_of_text|>"


class GemmaPurePromptBuilder(ByteLevelPurePromptBuilder):
    """The same, ended by `<eos>` (Gemma): its SentencePiece puts no `▁` before a text, so a space
    is part of the word that follows, as in byte-level BPE."""

    terminator = "<eos>"
