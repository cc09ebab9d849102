"""The format of Vicuna v1.5: the system prompt, then `USER: … ASSISTANT: …`."""

from __future__ import annotations

from backbones.prompting.builder import PromptBuilder


class VicunaV15ChatPromptBuilder(PromptBuilder):
    """`{system} USER: {question} ASSISTANT: {answer}</s>USER: …`.

    Source: FastChat's conversation template `vicuna_v1.1`, separators `" "` and `"</s>"`, with its
    system prompt.
    """

    supports_system_prompt = True
    default_system_prompt = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    terminator = "</s>"

    def human_turn(self, message: str, first: bool) -> str:
        system = f"{self.system_prompt} " if first and self.system_prompt else ""
        return f"{system}USER: {message} ASSISTANT: "
