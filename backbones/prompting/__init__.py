"""Prompt builders, one file per format."""

from backbones.prompting.builder import PromptBuilder
from backbones.prompting.chatml import (
    ChatMLPromptBuilder,
    Qwen25PromptBuilder,
    SmolLM2PromptBuilder,
)
from backbones.prompting.gemma import Gemma3PromptBuilder, GemmaPromptBuilder
from backbones.prompting.idefics2 import Idefics2PromptBuilder
from backbones.prompting.llama2_chat import LLaMa2ChatPromptBuilder
from backbones.prompting.llama3 import Llama3PromptBuilder, Llama31PromptBuilder
from backbones.prompting.mistral_instruct import (
    MistralInstructPromptBuilder,
    MistralTekkenInstructPromptBuilder,
    MistralV3InstructPromptBuilder,
)
from backbones.prompting.phi import PhiPromptBuilder
from backbones.prompting.phi3 import Phi3PromptBuilder
from backbones.prompting.pure import (
    ByteLevelPurePromptBuilder,
    EndOfTextPurePromptBuilder,
    GemmaPurePromptBuilder,
    Llama3PurePromptBuilder,
    MetaspacePurePromptBuilder,
    PurePromptBuilder,
)
from backbones.prompting.vicuna_v15 import VicunaV15ChatPromptBuilder

__all__ = [
    "ByteLevelPurePromptBuilder",
    "ChatMLPromptBuilder",
    "EndOfTextPurePromptBuilder",
    "Gemma3PromptBuilder",
    "GemmaPromptBuilder",
    "GemmaPurePromptBuilder",
    "Idefics2PromptBuilder",
    "LLaMa2ChatPromptBuilder",
    "Llama3PromptBuilder",
    "Llama3PurePromptBuilder",
    "Llama31PromptBuilder",
    "MetaspacePurePromptBuilder",
    "MistralInstructPromptBuilder",
    "MistralTekkenInstructPromptBuilder",
    "MistralV3InstructPromptBuilder",
    "Phi3PromptBuilder",
    "PhiPromptBuilder",
    "PromptBuilder",
    "PurePromptBuilder",
    "Qwen25PromptBuilder",
    "SmolLM2PromptBuilder",
    "VicunaV15ChatPromptBuilder",
]
