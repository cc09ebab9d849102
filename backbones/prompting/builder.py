"""PromptBuilder: a dialogue, turn by turn, in the text format that a model family was trained
on."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import ClassVar

ROLES = ("human", "gpt")
IMAGE_MARKER = "<image>"


class PromptBuilder(ABC):
    """Collects the turns of one dialogue and renders them as the prompt of a family.

    Turns alternate, `human` first. Two ways of encoding a dialogue give the same token ids: the
    whole of `get_prompt()` at once, or each string that `add_turn` returned, stripped on the right,
    with special tokens on the first only. For that, a format must meet two conditions: whatever
    separates a question from its answer stands where the family's tokenizer breaks words (before
    the turn's end for SentencePiece, whose dummy prefix replaces it; at the head of the answer for
    a byte-level BPE), and a bos appears in the text only where the tokenizer does not add it.

    A format is a subclass that says what a turn looks like: `human_turn`, the class attributes, and
    `gpt_turn` where the answer is not simply followed by the terminator.
    """

    supports_system_prompt: ClassVar[bool]
    """Whether a system prompt has a place in this format."""
    default_system_prompt: ClassVar[str | None] = None
    """The system prompt when the caller names none; None for formats without one."""
    terminator: ClassVar[str]
    """The special token that ends an assistant turn; also the last one that training must
    supervise."""

    def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
        """Args:
        model_family: the host, `"prismatic"` or `"openvla"`; stored but not used here, since
            both were trained on the same texts.
        system_prompt: replaces the default; `""` means none. Formats without one warn and
            ignore it.
        """
        if system_prompt and not self.supports_system_prompt:
            warnings.warn(
                f"{type(self).__name__} takes no system prompt; {system_prompt!r} is left out. "
                "Put it into the first human message if the model should read it.",
                stacklevel=2,
            )
            system_prompt = None
        self.model_family = model_family
        self.system_prompt = (
            self.default_system_prompt if system_prompt is None else system_prompt
        ) or ""
        self.system_prompt = self.system_prompt.strip()
        self.prompt = ""
        self.turn_count = 0

    def add_turn(self, role: str, message: str) -> str:
        """Appends a turn and returns exactly the appended text, including any system prompt.

        Args:
            role: `"human"` on even turns, `"gpt"` on odd ones.
            message: what was said; `<image>` markers and surrounding space are dropped.

        Raises:
            ValueError: it is the other role's turn; the dialogue is then unchanged.
        """
        self._expect(role)
        turn = self._render(role, message)
        self.prompt += turn
        self.turn_count += 1
        return turn

    def get_potential_prompt(self, message: str) -> str:
        """What `get_prompt()` would return after `add_turn("human", message)`; changes nothing.

        Raises:
            ValueError: it is not the human's turn.
        """
        self._expect("human")
        return (self.prompt + self._render("human", message)).rstrip()

    def get_prompt(self) -> str:
        """The dialogue so far, without trailing space: ready to be encoded with special tokens."""
        return self.prompt.rstrip()

    @abstractmethod
    def human_turn(self, message: str, first: bool) -> str:
        """The text of a human turn, up to where the answer begins; `first` marks the opening
        turn."""

    def gpt_turn(self, message: str) -> str:
        """The text of an assistant turn: the answer and the terminator.

        An empty answer becomes one space: a SentencePiece tokenizer then encodes the turn by itself
        to the same ids as after the question's trailing space.
        """
        return f"{message or ' '}{self.terminator}"

    def _render(self, role: str, message: str) -> str:
        message = strip_image_markers(message).strip()
        return (
            self.human_turn(message, first=self.turn_count == 0)
            if role == "human"
            else self.gpt_turn(message)
        )

    def _expect(self, role: str) -> None:
        expected = ROLES[self.turn_count % 2]
        if role != expected:
            raise ValueError(
                f"turn {self.turn_count} is for {expected!r}, got {role!r}: turns alternate, "
                f"'human' first"
            )


def strip_image_markers(message: str) -> str:
    """`message` without any `<image>`, including those that form when another is removed."""
    while IMAGE_MARKER in message:
        message = message.replace(IMAGE_MARKER, "")
    return message
