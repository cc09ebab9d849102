"""The format of Idefics2: `User:`, `Assistant:` and `<end_of_utterance>`."""

from __future__ import annotations

from backbones.prompting.builder import PromptBuilder


class Idefics2PromptBuilder(PromptBuilder):
    """`User: {question}<end_of_utterance>\\nAssistant: {answer}<end_of_utterance>\\nUser: …`, one
    bos at the very beginning, which the tokenizer adds.

    SentencePiece puts its `▁` before an answer that is encoded by itself, in place of the space
    after the colon; the line break after an answer is the next question's.
    """

    supports_system_prompt = False
    terminator = "<end_of_utterance>"

    def human_turn(self, message: str, first: bool) -> str:
        opening = "" if first else "\n"
        return f"{opening}User: {message}{self.terminator}\nAssistant: "
