"""The format of Llama-2's chat models: `[INST]`, with the system prompt inside the first of them."""

from __future__ import annotations

from backbones.prompting.builder import PromptBuilder


class LLaMa2ChatPromptBuilder(PromptBuilder):
    """`[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{question} [/INST] {answer}</s><s>[INST] …`.

    Every question opens with a bos (https://huggingface.co/blog/llama2, "How to Prompt Llama 2"): the first one's is
    added by the tokenizer, later ones are in the text. One difference from Meta's own encoding is kept: theirs puts a
    space between the answer and `</s>`; here the terminator follows the answer, so that nothing but the answer and its
    terminator is learnt.
    """

    supports_system_prompt = True
    default_system_prompt = (
        "You are a helpful language and vision assistant. "
        "You are able to understand the visual content that the user provides, "
        "and assist the user with a variety of tasks using natural language."
    )
    bos = "<s>"
    terminator = "</s>"

    def human_turn(self, message: str, first: bool) -> str:
        if not first:
            return f"{self.bos}[INST] {message} [/INST] "
        system = f"<<SYS>>\n{self.system_prompt}\n<</SYS>>\n\n" if self.system_prompt else ""
        return f"[INST] {system}{message} [/INST] "
