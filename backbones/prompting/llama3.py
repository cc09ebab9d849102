"""The format of Llama 3's instruct models: a header for each turn, and `<|eot_id|>`."""

from __future__ import annotations

from backbones.prompting.builder import PromptBuilder


class Llama3PromptBuilder(PromptBuilder):
    """`<|start_header_id|>user<|end_header_id|>\\n\\n{question}<|eot_id|><|start_header_id|>
    assistant<|end_header_id|>\\n\\n{answer}<|eot_id|>…`, one bos at the very beginning, which the
    tokenizer adds: Llama 3.

    The empty line after a header belongs to the text that follows: hosts strip turns on the right.
    """

    supports_system_prompt = True
    terminator = "<|eot_id|>"

    def human_turn(self, message: str, first: bool) -> str:
        system = self._turn("system", self.system_text()) if first and self.system_text() else ""
        return f"{system}{self._turn('user', message)}{self._header('assistant')}"

    def gpt_turn(self, message: str) -> str:
        return f"\n\n{message}{self.terminator}"

    def system_text(self) -> str:
        """What the system's turn says; empty for no such turn."""
        return self.system_prompt

    def _turn(self, role: str, text: str) -> str:
        return f"{self._header(role)}\n\n{text}{self.terminator}"

    @staticmethod
    def _header(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>"


class Llama31PromptBuilder(Llama3PromptBuilder):
    """Llama 3.1 and 3.2: there is always a system's turn, which begins with two dates.

    The day is the one that both templates have where nothing tells the date: with a clock in it,
    a prompt would be another one every day, and no checkpoint's training prompt.
    """

    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

    def system_text(self) -> str:
        return f"{self.dates}{self.system_prompt}"
