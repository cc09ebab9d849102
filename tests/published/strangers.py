"""Models without a recipe, as they are named on a command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from packaging.version import Version

from tests.forks import Case
from tests.published import backbones, vision_language, write_published

FAMILY = {
    "qwen25-0_5b-instruct": "qwen2", "pythia-70m": "gpt_neox", "qwen3-0_6b-instruct": "qwen3",
    "llama3_2-1b-instruct": "llama3", "gemma1.1-2b-instruct": "gemma",
    "gemma2-9b-instruct": "gemma2",
    "gemma3-270m-instruct": "gemma3", "phi3-mini": "phi3", "olmo2-1b": "olmo2",
    "stablelm2-1_6b": "stablelm", "llava-7b": "llava", "smolvlm2-500m": "smolvlm",
    "qwen25-vl-3b-instruct": "qwen25_vl",
    "qwen3-vl-4b-instruct": "qwen3_vl",
}  # fmt: skip
"""The family in `tests.published.CONFIGS` of each backbone id."""


MODELS = backbones.MODELS | vision_language.MODELS | vision_language.WHOLE
"""Hub id and class of the model, by backbone id."""


def class_for(backbone_id: str) -> type[backbones.AnyBackbone]:
    """The sound class that knows this id."""
    if backbone_id in vision_language.WHOLE:
        return vision_language.AWholeVisionModel
    inside = backbone_id in vision_language.MODELS
    return vision_language.InsideAVisionModel if inside else backbones.AnyBackbone


def declared_for(backbone_id: str) -> Mapping[str, Any]:
    """What its `[subject]` table says."""
    return vision_language.OUTSIDE if backbone_id in vision_language.WHOLE else {}


def named_folder(backbone_id: str, home: Path) -> str:
    """`ORG/NAME=FOLDER` of this id's model, its published files written below `home`. Models for
    instructions have a template."""
    folder = home / backbone_id
    if "instruct" in backbone_id:
        write_published(folder, FAMILY[backbone_id])
    else:
        write_published(folder, FAMILY[backbone_id], template=None)
    return f"{MODELS[backbone_id][0]}={folder}"


def is_there(backbone_id: str) -> bool:
    """Whether the installed transformers has this id's family, with all that its config asks for:
    Llama 3.1's scaling is younger than its class."""
    if backbone_id in vision_language.WHOLE and Version(transformers.__version__) < Version("5"):
        return False  # in 4.57 positions and cached calls depend on the last call
    if "llama3" in backbone_id and Version(transformers.__version__) < Version("4.43"):
        return False
    return hasattr(transformers, MODELS[backbone_id][1])


def stranger_cases(home: Path) -> list[Case]:
    """The sound class under each id whose family the installed transformers has."""
    return [
        Case(one, class_for(one), one, declared_for(one), models=(named_folder(one, home),))
        for one in FAMILY
        if is_there(one)
    ]
