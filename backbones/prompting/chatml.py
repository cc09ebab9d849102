"""ChatML: every turn between `<|im_start|>` and `<|im_end|>`, a system prompt as a turn of its
own."""

from __future__ import annotations

from backbones.prompting.builder import PromptBuilder


class ChatMLPromptBuilder(PromptBuilder):
    """`<|im_start|>system\\n{system}<|im_end|>\\n<|im_start|>user\\n{question}<|im_end|>\\n
    <|im_start|>assistant\\n{answer}<|im_end|>\\n…`, no bos: Qwen3.

    The line break before an answer belongs to the answer, and that before a later question to the
    question: hosts strip turns on the right, and the special token before it breaks words anyhow.

    Qwen3's own template writes an empty thought (`<think>\\n\\n</think>\\n\\n`) before the last
    answer of a dialogue and before no other. A turn that is appended cannot know whether it is the
    last one, so no answer has it here.
    """

    supports_system_prompt = True
    terminator = "<|im_end|>"

    def human_turn(self, message: str, first: bool) -> str:
        system = self._turn("system", self.system_prompt) if first and self.system_prompt else ""
        opening = system if first else "\n"
        return f"{opening}{self._turn('user', message)}<|im_start|>assistant"

    def gpt_turn(self, message: str) -> str:
        return f"\n{message}{self.terminator}"

    def _turn(self, role: str, text: str) -> str:
        return f"<|im_start|>{role}\n{text}{self.terminator}\n"


class Qwen25PromptBuilder(ChatMLPromptBuilder):
    """ChatML with the system prompt that Qwen2.5's own template has where none is given."""

    default_system_prompt = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


class SmolLM2PromptBuilder(ChatMLPromptBuilder):
    """ChatML with the system prompt that SmolLM2's own template has where none is given."""

    default_system_prompt = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
