"""The format of Llama-2's chat models: `[INST]`, the first with the system prompt inside."""

from __future__ import annotations

from backbones.prompting.builder import PromptBuilder


class LLaMa2ChatPromptBuilder(PromptBuilder):
    """`[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{question} [/INST] {answer}</s>[INST] {question}
    [/INST] …`.

    One bos at the very beginning. Two differences from Meta's own encoding
    (https://huggingface.co/blog/llama2, "How to Prompt Llama 2") are deliberate. Meta opens every
    question with a bos; Prismatic's checkpoints were trained with only the first, which the
    tokenizer adds. Meta puts a space between the answer and `</s>`; here the terminator follows the
    answer, so that only the answer and its terminator are learnt.
    """

    supports_system_prompt = True
    default_system_prompt = (
        "You are a helpful language and vision assistant. "
        "You are able to understand the visual content that the user provides, "
        "and assist the user with a variety of tasks using natural language."
    )
    terminator = "</s>"

    def human_turn(self, message: str, first: bool) -> str:
        system = (
            f"<<SYS>>\n{self.system_prompt}\n<</SYS>>\n\n" if first and self.system_prompt else ""
        )
        return f"[INST] {system}{message} [/INST] "
