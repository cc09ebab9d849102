"""The format of Phi: `Input: …` and `Output: …`, with the bos in the text."""

from __future__ import annotations

from backbones.prompting.builder import PromptBuilder


class PhiPromptBuilder(PromptBuilder):
    """`<|endoftext|>Input: {question}\\nOutput: {answer}\\n<|endoftext|>`, one bos at the very
    beginning.

    Phi's tokenizer adds no bos, so the text carries it. The space before the answer belongs to the
    answer: in a byte-level BPE `" word"` is one token, and an inference prompt that ended in a
    space would not be a prefix of the training text.
    """

    supports_system_prompt = False
    bos = "<|endoftext|>"
    terminator = "<|endoftext|>"

    def human_turn(self, message: str, first: bool) -> str:
        return f"{self.bos if first else ''}Input: {message}\nOutput:"

    def gpt_turn(self, message: str) -> str:
        return f" {message}\n{self.terminator}"
