"""The format of Phi-3: `<|user|>`, `<|assistant|>` and `<|end|>`."""

from __future__ import annotations

from backbones.prompting.builder import PromptBuilder


class Phi3PromptBuilder(PromptBuilder):
    """`<|system|>\\n{system}<|end|>\\n<|user|>\\n{question}<|end|>\\n<|assistant|>\\n{answer}<|end|>\\n…`,
    no bos.

    This tokenizer's marks take the blanks behind them along, so that a line break makes no token
    there, and a turn may end in one: an answer begins as a text does, with SentencePiece's `▁`.

    Phi-3's own template ends a finished dialogue in `<|endoftext|>` as well. A turn that is
    appended cannot know whether it is the last one, and `<|end|>` ends generation.
    """

    supports_system_prompt = True
    terminator = "<|end|>"

    def human_turn(self, message: str, first: bool) -> str:
        system = self._turn("system", self.system_prompt) if first and self.system_prompt else ""
        return f"{system}{self._turn('user', message)}<|assistant|>\n"

    def gpt_turn(self, message: str) -> str:
        return f"{message}{self.terminator}\n"

    def _turn(self, role: str, text: str) -> str:
        return f"<|{role}|>\n{text}{self.terminator}\n"
