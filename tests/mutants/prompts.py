"""Defects in the prompt builders, and in how they are chosen."""

from __future__ import annotations

import collections
import copy
import functools
import html
import re
import threading
from typing import Any, ClassVar

from backbones import prompting
from backbones.llama2 import LLaMa2LLMBackbone
from backbones.mistral import MistralLLMBackbone
from backbones.phi import PhiLLMBackbone
from tests.mutants import LLAMA_CHAT, PHI, PURE, VICUNA, planted


@planted("PRM-01", on=PURE)
class OneBuilderForTheFamily(MistralLLMBackbone):
    """Base and instruct checkpoints share the instruct builder: the base model is asked in a format
    it never saw."""

    prompt_builders = (("mistral-*", prompting.MistralInstructPromptBuilder),)


@planted("PRM-01")
class InstructFallsThroughToPure(MistralLLMBackbone):
    """The suffix is compared with `-chat`, so instruct ids get the base model's builder."""

    prompt_builders = (
        ("*-chat", prompting.MistralInstructPromptBuilder),
        ("*", prompting.PurePromptBuilder),
    )


@planted("PRM-02")
class UnknownIdsGetADefaultBuilder(MistralLLMBackbone):
    """Any other id gets the base model's builder: a misspelt suffix trains in the wrong format
    without a word."""

    prompt_builders = (*MistralLLMBackbone.prompt_builders, ("*", prompting.PurePromptBuilder))


@planted("PRM-02")
class RefusalNamesNoId(MistralLLMBackbone):
    """The error for an id without a builder does not say which id it was."""

    @property
    def prompt_builder_fn(self) -> type[prompting.PromptBuilder]:
        try:
            return super().prompt_builder_fn
        except ValueError:
            raise ValueError("No PromptBuilder defined") from None


@planted("PRM-03", defects=("D21",), on=LLAMA_CHAT)
class SystemPromptMissingFromTheTurn(LLaMa2LLMBackbone):
    """`add_turn` returns the first turn without the system prompt that it wrote: fine-tuning never
    sees it."""

    class LLaMa2ChatPromptBuilder(prompting.LLaMa2ChatPromptBuilder):
        def add_turn(self, role: str, message: str) -> str:
            turn = super().add_turn(role, message)
            return turn.replace(f"<<SYS>>\n{self.system_prompt}\n<</SYS>>\n\n", "")

    prompt_builders = (("*-chat", LLaMa2ChatPromptBuilder),)


@planted("PRM-04", defects=("D20",), on=PHI)
class PotentialPromptDropsBos(PhiLLMBackbone):
    """`get_potential_prompt` forgets the bos that the first turn writes: inference starts where
    training never did."""

    class PhiPromptBuilder(prompting.PhiPromptBuilder):
        def get_potential_prompt(self, message: str) -> str:
            return super().get_potential_prompt(message).removeprefix(self.bos)

    prompt_builders = (("phi-2*", PhiPromptBuilder),)


@planted("PRM-04", defects=("D20",), on=LLAMA_CHAT)
class PotentialPromptDropsTheSystemPrompt(LLaMa2LLMBackbone):
    """`get_potential_prompt` renders every message as a later turn: at inference the system prompt
    is gone."""

    class LLaMa2ChatPromptBuilder(prompting.LLaMa2ChatPromptBuilder):
        def get_potential_prompt(self, message: str) -> str:
            return (self.prompt + self.human_turn(message, first=False)).rstrip()

    prompt_builders = (("*-chat", LLaMa2ChatPromptBuilder),)


@planted("PRM-05", on=PURE)
class PotentialPromptStays(MistralLLMBackbone):
    """`get_potential_prompt` adds its turn to the dialogue: asking twice writes the question
    twice."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def get_potential_prompt(self, message: str) -> str:
            self.prompt = super().get_potential_prompt(message)
            return self.prompt

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-05", on=PURE)
class TurnsKeptOnTheClass(MistralLLMBackbone):
    """The list of turns is a class attribute: every dialogue of the process continues the last
    one."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        turns: ClassVar[list[str]] = []

        def add_turn(self, role: str, message: str) -> str:
            self.turns.append(super().add_turn(role, message))
            self.prompt = "".join(self.turns)
            return self.turns[-1]

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-06", on=PURE)
class AnyRoleAtAnyTime(MistralLLMBackbone):
    """Nobody looks whose turn it is: two questions in a row are rendered as question and answer."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def _expect(self, role: str) -> None:
            pass

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-06", on=PURE)
class RefusedTurnIsCounted(MistralLLMBackbone):
    """The turn is counted before the role is checked: after one refused turn every right one is
    refused."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def add_turn(self, role: str, message: str) -> str:
            try:
                return super().add_turn(role, message)
            except ValueError:
                self.turn_count += 1
                raise

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-07", on=PURE)
class ImageMarkerStays(MistralLLMBackbone):
    """`<image>` is left in the text, beside the patches that are spliced in: the model reads the
    marker as words."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def _render(self, role: str, message: str) -> str:
            return (
                self.human_turn(message.strip(), first=False)
                if role == "human"
                else self.gpt_turn(message.strip())
            )

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-07")
class QuestionsInLowerCase(MistralLLMBackbone):
    """Questions are lower-cased, as robot instructions are elsewhere: names, units and code arrive
    changed."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return super().human_turn(message.lower(), first)

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-08", on=PURE)
class EmptyAnswerWritesNothing(MistralLLMBackbone):
    """An empty answer is skipped, terminator and all: the next question is read as the answer."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def gpt_turn(self, message: str) -> str:
            return super().gpt_turn(message) if message else ""

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-09", defects=("D23",))
class BuilderAndTokenizerBothAddBos(MistralLLMBackbone):
    """The builder writes `<s>` and the tokenizer adds its own: every sequence begins `[1, 1,
    …]`."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return ("<s>" if first else "") + super().human_turn(message, first)

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-09", defects=("D23",), on=PURE)
class BosInTheFirstTurn(MistralLLMBackbone):
    """`add_turn` returns a bos that `get_prompt` takes off: whole prompts are right, turn by turn
    there are two."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return ("<s>" if first else "") + super().human_turn(message, first)

        def get_prompt(self) -> str:
            return super().get_prompt().removeprefix("<s>")

        def get_potential_prompt(self, message: str) -> str:
            return super().get_potential_prompt(message).removeprefix("<s>")

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-09", on=LLAMA_CHAT)
class BosBeforeEveryQuestion(LLaMa2LLMBackbone):
    """Every question has its bos, as in Meta's code, undeclared: Prismatic's checkpoints never saw
    that."""

    class LLaMa2ChatPromptBuilder(prompting.LLaMa2ChatPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return ("" if first else "<s>") + super().human_turn(message, first)

    prompt_builders = (("*-chat", LLaMa2ChatPromptBuilder),)


@planted("PRM-09", on=LLAMA_CHAT)
class QuestionsEndInATerminatorToo(LLaMa2LLMBackbone):
    """Questions are closed with `</s>` as answers are: the model learns to stop before it
    answers."""

    class LLaMa2ChatPromptBuilder(prompting.LLaMa2ChatPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return super().human_turn(message, first).rstrip() + self.terminator

    prompt_builders = (("*-chat", LLaMa2ChatPromptBuilder),)


@planted("PRM-10", defects=("D19",), on=LLAMA_CHAT)
class SystemTagLosesABracket(LLaMa2LLMBackbone):
    """`<<SYS>` opens the system prompt in place of `<<SYS>>`: other tokens than the model was
    trained on."""

    class LLaMa2ChatPromptBuilder(prompting.LLaMa2ChatPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return super().human_turn(message, first).replace("<<SYS>>\n", "<<SYS>\n", 1)

    prompt_builders = (("*-chat", LLaMa2ChatPromptBuilder),)


@planted("PRM-10", defects=("D22",))
class InstructionsWithoutSpaces(MistralLLMBackbone):
    """`[INST]{question}[/INST]` has no spaces: `[INST` and the first word merge into tokens of
    another meaning."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return f"[INST]{message}[/INST] "

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-11", "PRM-10", defects=("D22",))
class SpaceBetweenExchanges(MistralLLMBackbone):
    """A space follows `</s>`, as in the published Jinja template: mistral-common has one space
    marker there."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def gpt_turn(self, message: str) -> str:
            return super().gpt_turn(message) + " "

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-11", "PRM-10", defects=("D24",), on=PURE)
class TrailingSpaceAtInference(MistralLLMBackbone):
    """Prompts keep their trailing space: inference ends in a space token that training had merged
    into the answer."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def get_prompt(self) -> str:
            return self.prompt

        def get_potential_prompt(self, message: str) -> str:
            return self.prompt + self._render("human", message)

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-11", defects=("D55",), on=PURE, declared={"boundary_fixup": [29871]})
class FixupOfAnotherFamily(MistralLLMBackbone):
    """The space that the host appends is Llama's, 29871; to Mistral that is another character, its
    space is 28705."""


@planted("PRM-11", "PRM-10", defects=("D72",), on=PHI)
class AnswerTouchesTheColon(PhiLLMBackbone):
    """No space before the answer: `:` merges with an answer's first sign, and inference prompts are
    no prefix of it."""

    class PhiPromptBuilder(prompting.PhiPromptBuilder):
        def gpt_turn(self, message: str) -> str:
            return f"{message}\n{self.terminator}"

    prompt_builders = (("phi-2*", PhiPromptBuilder),)


@planted("PRM-11", defects=("D72",), on=PHI)
class SpaceBelongsToTheQuestion(PhiLLMBackbone):
    """The space before the answer ends the question: turn by turn it is stripped, and answers lose
    it."""

    class PhiPromptBuilder(prompting.PhiPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return super().human_turn(message, first) + " "

        def gpt_turn(self, message: str) -> str:
            return f"{message}\n{self.terminator}"

    prompt_builders = (("phi-2*", PhiPromptBuilder),)


@planted("PRM-12", on=PURE)
class EmptyAnswerLosesItsSpace(MistralLLMBackbone):
    """An empty answer is the bare terminator: as a whole a space token stands before it, turn by
    turn none does."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def gpt_turn(self, message: str) -> str:
            return f"{message}{self.terminator}"

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-13", defects=("D21",), on=VICUNA)
class SystemPromptInEveryTurn(LLaMa2LLMBackbone):
    """The system prompt opens every question, not the first alone: long dialogues are mostly system
    prompt."""

    class VicunaV15ChatPromptBuilder(prompting.VicunaV15ChatPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return super().human_turn(message, first=True)

    prompt_builders = (("vicuna-*", VicunaV15ChatPromptBuilder),)


@planted("PRM-13", on=LLAMA_CHAT)
class CustomSystemPromptIgnored(LLaMa2LLMBackbone):
    """`system_prompt` is taken and never used: whatever the user asks for, the default one is
    sent."""

    class LLaMa2ChatPromptBuilder(prompting.LLaMa2ChatPromptBuilder):
        def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
            super().__init__(model_family)

    prompt_builders = (("*-chat", LLaMa2ChatPromptBuilder),)


@planted("PRM-14", defects=("D20",), on=PURE)
class PotentialPromptStripsNothing(MistralLLMBackbone):
    """`get_potential_prompt` keeps the `<image>` that `add_turn` strips: a marker shows up at
    inference only."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def get_potential_prompt(self, message: str) -> str:
            return (self.prompt + self.human_turn(message, first=False)).rstrip()

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-15", "PRM-10", defects=("D24", "D67"), on=PURE)
class SpaceOnBothSidesOfTheBoundary(MistralLLMBackbone):
    """Question and answer both bring the space: the model owes a stray one, and counts are off by
    one."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def gpt_turn(self, message: str) -> str:
            return f" {message}{self.terminator}"

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-15", "PRM-10", defects=("D54",), on=PURE)
class FullStopBeforeTheTerminator(MistralLLMBackbone):
    """Answers end in `.</s>`: a host that supervises an action and one stop token leaves its first
    bin out."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def gpt_turn(self, message: str) -> str:
            return f"{message}.{self.terminator}"

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-17", defects=("D73",), on=LLAMA_CHAT)
class OnlyPrismaticHasASystemPrompt(LLaMa2LLMBackbone):
    """System prompts are looked up by `model_family`, and only Prismatic has one: OpenVLA gets a
    KeyError."""

    class LLaMa2ChatPromptBuilder(prompting.LLaMa2ChatPromptBuilder):
        def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
            default = {"prismatic": self.default_system_prompt}[model_family]
            super().__init__(model_family, default if system_prompt is None else system_prompt)

    prompt_builders = (("*-chat", LLaMa2ChatPromptBuilder),)


@planted("PRM-16", on=LLAMA_CHAT, declared={"hosts": ["prismatic", "openvla"]})
class DeclaredHostIsRefused(OnlyPrismaticHasASystemPrompt):
    """The same, and OpenVLA is a host that the family declares."""


@planted("PRM-16")
class NoSystemPromptTaken(MistralLLMBackbone):
    """The builder has no parameter `system_prompt`, which every host passes."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def __init__(self, model_family: str) -> None:
            super().__init__(model_family)

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-16", on=PURE)
class NoPotentialPrompt(MistralLLMBackbone):
    """The builder is written for training: inference, which asks for `get_potential_prompt`, finds
    none."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        get_potential_prompt: Any = None

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-05", on=PURE)
class TurnsKeptOnTheClassTaken(MistralLLMBackbone):
    """Each time `prompt_builder_fn` is read it makes a class with a list of turns: a data loader
    reads it once, and all of its samples continue one dialogue."""

    @property
    def prompt_builder_fn(self) -> type[prompting.PromptBuilder]:
        class PurePromptBuilder(prompting.PurePromptBuilder):
            turns: ClassVar[list[str]] = []

            def add_turn(self, role: str, message: str) -> str:
                self.turns.append(super().add_turn(role, message))
                self.prompt = "".join(self.turns)
                return self.turns[-1]

        return PurePromptBuilder if self.identifier.endswith("-pure") else super().prompt_builder_fn


@planted("PRM-04", on=VICUNA)
class OpenVLAAsksWithoutItsHistory(LLaMa2LLMBackbone):
    """A robot is asked one thing at a time, so for OpenVLA `get_potential_prompt` leaves out what
    was said before."""

    class VicunaV15ChatPromptBuilder(prompting.VicunaV15ChatPromptBuilder):
        def get_potential_prompt(self, message: str) -> str:
            if self.model_family == "openvla":
                return self._render("human", message).rstrip()
            return super().get_potential_prompt(message)

    prompt_builders = (("vicuna-*", VicunaV15ChatPromptBuilder),)


@planted("PRM-09", on=PURE)
class OpenVLAWritesABosToo(MistralLLMBackbone):
    """For OpenVLA the builder writes the bos that the tokenizer adds."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            bos = "<s>" if first and self.model_family == "openvla" else ""
            return bos + super().human_turn(message, first)

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-10")
class OpenVLAHasOtherWords(MistralLLMBackbone):
    """OpenVLA's robots are asked in the base model's words, whatever the checkpoint was tuned
    on."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            if self.model_family == "openvla":
                return f"In: {message}\nOut: "
            return super().human_turn(message, first)

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("TOK-02", on=VICUNA)
class OpenVLAEndsInALineBreak(LLaMa2LLMBackbone):
    """OpenVLA's answers have a fixed length, so they end in a line break in place of the
    terminator."""

    class VicunaV15ChatPromptBuilder(prompting.VicunaV15ChatPromptBuilder):
        def gpt_turn(self, message: str) -> str:
            if self.model_family == "openvla":
                return f"{message or ' '}\n"
            return super().gpt_turn(message)

    prompt_builders = (("vicuna-*", VicunaV15ChatPromptBuilder),)


@planted("PRM-10", on=PURE)
class AnswersHeadedOutput(MistralLLMBackbone):
    """`Output:` announces the answer, as in Phi's format; the base models were trained on
    `Out:`."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return f"In: {message}\nOutput: "

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-10", on="llama2-7b-pure")
class LaterQuestionsHaveNoHead(LLaMa2LLMBackbone):
    """Only the first question is headed `In:`: what comes after an answer reads as more of it."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return super().human_turn(message, first).removeprefix("" if first else "In: ")

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-10", on=PURE)
class QuestionAndAnswerOnOneLine(MistralLLMBackbone):
    """A space stands where the line break between question and answer was."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return super().human_turn(message, first).replace("\nOut: ", " Out: ")

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-10", on=PHI)
class QuestionsHeadedInstruct(PhiLLMBackbone):
    """`Instruct:` heads a question, as Phi's model card has it; the checkpoints were trained on
    `Input:`."""

    class PhiPromptBuilder(prompting.PhiPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return super().human_turn(message, first).replace("Input: ", "Instruct: ", 1)

    prompt_builders = (("phi-2*", PhiPromptBuilder),)


@planted("PRM-07")
class EntitiesUnescaped(MistralLLMBackbone):
    """Messages come from a web page, so entities are unescaped: code and text about HTML arrive
    changed."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return super().human_turn(html.unescape(message), first)

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-07", on=PURE)
class QuotesMadeStraight(MistralLLMBackbone):
    """Typographic quotes in answers become straight ones, which the tokenizer knows better."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def gpt_turn(self, message: str) -> str:
            return super().gpt_turn(message.translate(str.maketrans("“”‘’", "\"\"''")))

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-07", on=VICUNA)
class RepeatedQuestionIsLeftOut(LLaMa2LLMBackbone):
    """A question that was asked before counts as sent twice by accident: the turn is there, the
    words are not."""

    class VicunaV15ChatPromptBuilder(prompting.VicunaV15ChatPromptBuilder):
        def add_turn(self, role: str, message: str) -> str:
            asked = self.__dict__.setdefault("asked", [])
            turn = super().add_turn(role, "" if role == "human" and message in asked else message)
            asked.append(message)
            return turn

        def get_potential_prompt(self, message: str) -> str:
            asked = self.__dict__.get("asked", [])
            return super().get_potential_prompt("" if message in asked else message)

    prompt_builders = (("vicuna-*", VicunaV15ChatPromptBuilder),)


@planted("PRM-03", on=PURE)
class FourExchangesKept(MistralLLMBackbone):
    """From the fifth exchange on the oldest is dropped, so that prompts stay short; `add_turn` says
    nothing of it."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def add_turn(self, role: str, message: str) -> str:
            turn = super().add_turn(role, message)
            if self.prompt.count(self.terminator) > 4:
                self.prompt = self.prompt.partition(self.terminator)[2]
            return turn

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-10")
class FifthExchangeIsPlain(MistralLLMBackbone):
    """A dialogue opens with four examples, and only these are marked with `[INST]`."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return super().human_turn(message, first) if self.turn_count < 8 else f"{message} "

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-07")
class QuestionsCutAt500(MistralLLMBackbone):
    """Questions end after 500 characters, as in a database field: pasted text loses its end."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return super().human_turn(message[:500], first)

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-07", on=PHI)
class LongAnswersElided(PhiLLMBackbone):
    """Of answers over 2,000 characters the beginning and the end are kept."""

    class PhiPromptBuilder(prompting.PhiPromptBuilder):
        def gpt_turn(self, message: str) -> str:
            if len(message) > 2000:
                message = f"{message[:990]} … {message[-990:]}"
            return super().gpt_turn(message)

    prompt_builders = (("phi-2*", PhiPromptBuilder),)


@planted("PRM-04", on=PURE)
class LongHistoryForgottenWhenAsking(MistralLLMBackbone):
    """Beyond ten exchanges `get_potential_prompt` begins anew: training saw what inference does not
    say."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def get_potential_prompt(self, message: str) -> str:
            asked = super().get_potential_prompt(message)
            return asked.removeprefix(self.prompt) if self.turn_count > 20 else asked

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-07")
class MarkerTakesItsLineBreak(MistralLLMBackbone):
    """`<image>` goes with the line break behind it, as LLaVA's data has it in front: in the middle
    of a message two lines are joined."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def _render(self, role: str, message: str) -> str:
            return super()._render(role, message.replace("<image>\n", ""))

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-07")
class StripsBeforeImageMarkers(MistralLLMBackbone):
    """`<image>`, a line break and a question, as LLaVA's samples begin, keeps the line break, and
    inference asks without."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def _render(self, role: str, message: str) -> str:
            message = message.strip().replace("<image>", "")
            if role == "human":
                return self.human_turn(message, first=self.turn_count == 0)
            return self.gpt_turn(message)

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-06")
class UserIsRenderedAsAnswer(MistralLLMBackbone):
    """Roles called otherwise are not refused: `user` is rendered as an answer."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def _expect(self, role: str) -> None:
            if role in ("human", "gpt"):
                super()._expect(role)

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-13", on=LLAMA_CHAT)
class EmptySystemPromptIsTheDefault(LLaMa2LLMBackbone):
    """`system_prompt or default`: no system prompt cannot be had."""

    class LLaMa2ChatPromptBuilder(prompting.LLaMa2ChatPromptBuilder):
        def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
            super().__init__(model_family, system_prompt or self.default_system_prompt)

    prompt_builders = (("*-chat", LLaMa2ChatPromptBuilder),)


@planted("PRM-08")
class NoneForNothing(MistralLLMBackbone):
    """An empty answer is told as the word None."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def gpt_turn(self, message: str) -> str:
            return super().gpt_turn(f"{message or None}")

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-16", on=LLAMA_CHAT)
class DefaultOnlyIfGivenNone(LLaMa2LLMBackbone):
    """Who leaves `system_prompt` out gets none, and who passes None gets the default: training and
    inference do one each."""

    class LLaMa2ChatPromptBuilder(prompting.LLaMa2ChatPromptBuilder):
        def __init__(self, model_family: str, system_prompt: str | None = "") -> None:
            super().__init__(model_family, system_prompt)

    prompt_builders = (("*-chat", LLaMa2ChatPromptBuilder),)


@planted("PRM-04", on=LLAMA_CHAT)
class DraftForgetsTheSystemPrompt(LLaMa2LLMBackbone):
    """The next question is rendered on a draft that is made without the system prompt: trained on
    one text, asked with another."""

    class LLaMa2ChatPromptBuilder(prompting.LLaMa2ChatPromptBuilder):
        def get_potential_prompt(self, message: str) -> str:
            draft = type(self)(self.model_family)
            draft.prompt, draft.turn_count = self.prompt, self.turn_count
            draft.add_turn("human", message)
            return draft.get_prompt()

    prompt_builders = (("*-chat", LLaMa2ChatPromptBuilder),)


@planted("PRM-03", "PRM-04")
class TurnsInARing(MistralLLMBackbone):
    """From the 65th turn on the oldest turns fall out of the prompt, and with them the bos."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def add_turn(self, role: str, message: str) -> str:
            turn = super().add_turn(role, message)
            self.turns = [*getattr(self, "turns", []), turn][-64:]
            self.prompt = "".join(self.turns)
            return turn

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-07")
class TagsThatBeginLikeTheMarker(MistralLLMBackbone):
    """Markers with attributes are stripped too: `<image2d_t>` and `<images>` vanish from code."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def _render(self, role: str, message: str) -> str:
            return super()._render(role, re.sub("<image[^>]*>", "", message))

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-18")
class BuilderOfAFunction(MistralLLMBackbone):
    """The builder's class is made in a function: workers that are spawned cannot be sent it."""

    @property
    def prompt_builder_fn(self) -> type[prompting.PromptBuilder]:
        return _made_in_a_function()


@functools.cache
def _made_in_a_function() -> type[prompting.PromptBuilder]:
    class Local(prompting.MistralInstructPromptBuilder):
        pass

    Local.__name__ = prompting.MistralInstructPromptBuilder.__name__
    return Local


@planted("PRM-07", on=VICUNA)
class SilenceIsSpelledOut(LLaMa2LLMBackbone):
    """A question of nothing, as samples of pictures alone have it, is written as `(silence)`: words
    that the data does not hold."""

    class VicunaV15ChatPromptBuilder(prompting.VicunaV15ChatPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return super().human_turn(message if message else "(silence)", first)

    prompt_builders = (("vicuna-*", VicunaV15ChatPromptBuilder),)


@planted("PRM-07", on=PURE)
class LogsLoseTheirBeginning(MistralLLMBackbone):
    """Of an answer the last 20,000 characters are kept: a transcript of a long run begins in the
    middle."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def gpt_turn(self, message: str) -> str:
            return super().gpt_turn(message[-20_000:])

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-16", on=PHI)
class TurnsByPositionAlone(PhiLLMBackbone):
    """`add_turn` knows no names: OpenVLA, which writes `add_turn(role=…, message=…)`, gets a
    TypeError."""

    class PhiPromptBuilder(prompting.PhiPromptBuilder):
        def add_turn(self, role: str, message: str, /) -> str:
            return super().add_turn(role, message)

    prompt_builders = (("phi-2*", PhiPromptBuilder),)


@planted("PRM-16", on=PURE)
class HostByPositionAlone(MistralLLMBackbone):
    """The builder calls its first argument `host`: a data set that writes
    `prompt_builder_fn(model_family=…)` gets a TypeError."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def __init__(self, host: str, system_prompt: str | None = None) -> None:
            super().__init__(host, system_prompt)

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-11", on=VICUNA)
class NoIntroductionWhileTraining(LLaMa2LLMBackbone):
    """In `train()` dialogues have no default system prompt, which saves tokens; evaluation, in
    `eval()`, has it."""

    @property
    def prompt_builder_fn(self) -> type[prompting.PromptBuilder]:
        builder = super().prompt_builder_fn
        bare = {"default_system_prompt": None}
        return type(builder.__name__, (builder,), bare) if self.training else builder


@planted("PRM-05", on=PURE)
class DialoguesKeptForTheReport(MistralLLMBackbone):
    """Every builder is put on a list, for a report at the end of the run: an epoch's dialogues fill
    the memory."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        made: ClassVar[list[Any]] = []

        def add_turn(self, role: str, message: str) -> str:
            self.made.append(self)
            return super().add_turn(role, message)

    prompt_builders = (("*-pure", PurePromptBuilder),)


class _KeepsTurns(prompting.PurePromptBuilder):
    """The base model's builder with its turns in a list."""

    def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
        super().__init__(model_family, system_prompt)
        self.turns: Any = []

    def add_turn(self, role: str, message: str) -> str:
        turn = super().add_turn(role, message)
        self.turns.append(turn)
        return turn

    def get_prompt(self) -> str:
        return "".join(self.turns).rstrip()


@planted("PRM-03", on=PURE)
class TheLastTurnsAlone(MistralLLMBackbone):
    """Turns are kept in a queue of 512, for memory: in a long run the task, said first, is gone."""

    class PurePromptBuilder(_KeepsTurns):
        def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
            super().__init__(model_family, system_prompt)
            self.turns = collections.deque(maxlen=512)

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-05", on=PURE)
class CopiesAreCheap(MistralLLMBackbone):
    """A deep copy of a builder shares its turns: two ways that a dialogue might go on become
    one."""

    class PurePromptBuilder(_KeepsTurns):
        def __deepcopy__(self, memo: Any) -> Any:
            return copy.copy(self)

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-05")
class SmallPickles(MistralLLMBackbone):
    """A builder is pickled without its dialogue, so that samples are small: workers that are
    spawned go on with nothing."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def __getstate__(self) -> dict[str, Any]:
            return {**vars(self), "prompt": ""}

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-05", on=VICUNA)
class OneBufferForAll(LLaMa2LLMBackbone):
    """Turns are put together in a buffer of the class: two threads that tell dialogues at once mix
    them."""

    class VicunaV15ChatPromptBuilder(prompting.VicunaV15ChatPromptBuilder):
        parts: ClassVar[list[str]] = []

        def add_turn(self, role: str, message: str) -> str:
            self.parts.clear()
            self.parts.append(self.prompt)
            turn = super().add_turn(role, message)
            self.parts.append(turn)
            self.prompt = "".join(self.parts)
            return turn

    prompt_builders = (("vicuna-*", VicunaV15ChatPromptBuilder),)


@planted("PRM-07", on=PURE)
class ThinksInSilence(MistralLLMBackbone):
    """What an answer thinks is cut out of it, as chats do with earlier ones: it is never learnt."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def gpt_turn(self, message: str) -> str:
            kept = re.sub(r"<think>.*?</think>", "", message, flags=re.DOTALL)
            return super().gpt_turn(kept.strip())

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-08", on=PHI)
class NothingBecomesAWord(PhiLLMBackbone):
    """Messages go through `str`, for numbers: a label that is missing trains the model to say
    None."""

    class PhiPromptBuilder(prompting.PhiPromptBuilder):
        def add_turn(self, role: str, message: Any) -> str:
            return super().add_turn(role, str(message))

    prompt_builders = (("phi-2*", PhiPromptBuilder),)


@planted("PRM-13", on=LLAMA_CHAT)
class SystemPromptsCut(LLaMa2LLMBackbone):
    """A system prompt is cut at 8,192 characters: the last tools of an agent are missing."""

    class LLaMa2ChatPromptBuilder(prompting.LLaMa2ChatPromptBuilder):
        def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
            super().__init__(model_family, system_prompt)
            self.system_prompt = self.system_prompt[:8192]

    prompt_builders = (("*-chat", LLaMa2ChatPromptBuilder),)


@planted("PRM-07", on=PURE)
class FieldsInMessages(MistralLLMBackbone):
    """Turns are made by replacing fields of a template one after the other, in the message too:
    `{role}` in a question about code becomes `In`."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return (
                super()
                .human_turn("{content}", first)
                .replace("{content}", message)
                .replace("{role}", "In")
            )

    prompt_builders = (("*-pure", PurePromptBuilder),)


@planted("PRM-07", "PRM-03", on=PURE)
class EchoesAreCut(MistralLLMBackbone):
    """An answer that begins with its question loses it, as crowds often repeat what they were
    asked: what reads aloud is taught to say nothing."""

    class PurePromptBuilder(prompting.PurePromptBuilder):
        asked = ""

        def human_turn(self, message: str, first: bool) -> str:
            self.asked = message
            return super().human_turn(message, first=first)

        def gpt_turn(self, message: str) -> str:
            rest = message.removeprefix(self.asked)
            cut = rest.strip() if self.asked and rest[:1].isspace() else message
            return super().gpt_turn(cut)

    prompt_builders = (("*", PurePromptBuilder),)


@planted("PRM-07", on=VICUNA)
class DialoguesOfAThread(LLaMa2LLMBackbone):
    """A dialogue is kept for the thread that tells it: of a pool of workers that add a turn each,
    every one has its own."""

    class VicunaV15ChatPromptBuilder(prompting.VicunaV15ChatPromptBuilder):
        def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
            self.threads: dict[int, str] = {}
            super().__init__(model_family, system_prompt)

        @property
        def prompt(self) -> str:  # type: ignore[override]
            return self.threads.get(threading.get_ident(), "")

        @prompt.setter
        def prompt(self, told: str) -> None:
            self.threads[threading.get_ident()] = told

    prompt_builders = (("*", VicunaV15ChatPromptBuilder),)


@planted("PRM-07", on=LLAMA_CHAT)
class SystemPromptsFlattenQuestions(LLaMa2LLMBackbone):
    """The question that a system prompt of the caller's is put before loses its line breaks: code
    that is asked about is one line."""

    class LLaMa2ChatPromptBuilder(prompting.LLaMa2ChatPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            if first and self.system_prompt not in ("", self.default_system_prompt):
                message = " ".join(message.split())
            return super().human_turn(message, first=first)

    prompt_builders = (("*-chat", LLaMa2ChatPromptBuilder),)
