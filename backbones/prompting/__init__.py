"""Prompt builders, one file per format."""

from backbones.prompting.builder import PromptBuilder
from backbones.prompting.llama2_chat import LLaMa2ChatPromptBuilder
from backbones.prompting.mistral_instruct import (
    MistralInstructPromptBuilder,
    MistralTekkenInstructPromptBuilder,
    MistralV3InstructPromptBuilder,
)
from backbones.prompting.phi import PhiPromptBuilder
from backbones.prompting.pure import (
    ByteLevelPurePromptBuilder,
    MetaspacePurePromptBuilder,
    PurePromptBuilder,
)
from backbones.prompting.vicuna_v15 import VicunaV15ChatPromptBuilder

__all__ = [
    "ByteLevelPurePromptBuilder",
    "LLaMa2ChatPromptBuilder",
    "MetaspacePurePromptBuilder",
    "MistralInstructPromptBuilder",
    "MistralTekkenInstructPromptBuilder",
    "MistralV3InstructPromptBuilder",
    "PhiPromptBuilder",
    "PromptBuilder",
    "PurePromptBuilder",
    "VicunaV15ChatPromptBuilder",
]
