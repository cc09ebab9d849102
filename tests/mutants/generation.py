"""Defects in generation."""

from __future__ import annotations

from typing import Any

from backbones.mistral import MistralLLMBackbone
from tests.mutants import planted


@planted("GEN-04", defects=("D69",))
class RepetitionPenaltySurvives(MistralLLMBackbone):
    """A published repetition penalty outlives `do_sample=False`: most greedy tokens are not the
    most probable ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.generation_config.repetition_penalty = 1.05


@planted("GEN-04", defects=("D69",))
class RepeatedPairsForbidden(MistralLLMBackbone):
    """No pair of tokens may occur twice: an action whose bins repeat cannot be generated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.generation_config.no_repeat_ngram_size = 2


@planted("GEN-05")
class EmbeddedPromptsLoseTheirMask(MistralLLMBackbone):
    """`llm.generate(inputs_embeds=…)` forgets the mask: left padding is read."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        generate = self.llm.generate

        def forgetful(*args: Any, **options: Any) -> Any:
            if options.get("inputs_embeds") is not None:
                options.pop("attention_mask", None)
            return generate(*args, **options)

        self.llm.generate = forgetful
