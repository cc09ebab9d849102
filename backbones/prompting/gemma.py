"""The format of Gemma's instruct models: `<start_of_turn>` and `<end_of_turn>` around each turn."""

from __future__ import annotations

from backbones.prompting.builder import PromptBuilder


class GemmaPromptBuilder(PromptBuilder):
    """`<start_of_turn>user\\n{question}<end_of_turn>\\n<start_of_turn>model\\n{answer}
    <end_of_turn>\\n…`, one bos at the very beginning, which the tokenizer adds: Gemma 1 and 2. They
    know no system prompt.

    The line break before a text belongs to the text, as in ChatML.
    """

    supports_system_prompt = False
    terminator = "<end_of_turn>"

    def human_turn(self, message: str, first: bool) -> str:
        system = f"{self.system_prompt}\n\n" if first and self.system_prompt else ""
        opening = "" if first else "\n"
        question = f"<start_of_turn>user\n{system}{message}{self.terminator}\n"
        return f"{opening}{question}<start_of_turn>model"

    def gpt_turn(self, message: str) -> str:
        return f"\n{message}{self.terminator}"


class Gemma3PromptBuilder(GemmaPromptBuilder):
    """Gemma 3: a system prompt stands before the first question, in the same turn."""

    supports_system_prompt = True
