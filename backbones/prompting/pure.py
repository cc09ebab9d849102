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
