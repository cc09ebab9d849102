"""Defects in the pad token and its wiring."""

from __future__ import annotations

from typing import Any

from backbones.mistral import MistralLLMBackbone
from tests.mutants import planted


@planted("PAD-04", defects=("D8",))
class GenerationPadLeftUnset(MistralLLMBackbone):
    """The generation config's pad stays None: finished rows are filled with eos."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.generation_config.pad_token_id = None
