"""Defects in generation."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from backbones.mistral import MistralLLMBackbone
from tests.mutants import PURE, planted


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


@planted("GEN-04")
class RepeatedActionsForbidden(MistralLLMBackbone):
    """No seven tokens may occur twice: an action of seven dimensions is not held."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.generation_config.no_repeat_ngram_size = 7


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


@planted("GEN-02")
class StopsAtOneEosAlone(MistralLLMBackbone):
    """Generation is told the tokenizer's eos: of several ids in the generation config the others do
    not stop it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        generate, eos = self.llm.generate, self.tokenizer.eos_token_id
        self.llm.generate = lambda *args, **options: generate(
            *args, **{"eos_token_id": eos, **options}
        )


@planted("GEN-02")
class FirstRowEndsTheBatch(MistralLLMBackbone):
    """Generation ends for the whole batch when its first row ends, as it did for one prompt."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        generate, config = self.llm.generate, self.llm.generation_config

        def first_alone(*args: Any, **options: Any) -> Any:
            out = generate(*args, **options)
            stops = config.eos_token_id
            if isinstance(out, torch.Tensor) and "input_ids" in options:
                begin = options["input_ids"].shape[1]
                stops = stops if isinstance(stops, list) else [stops]
                ends = [i for i, token in enumerate(out[0].tolist()) if token in stops]
                ends = [i for i in ends if i >= begin]
                return out[:, : ends[0] + 1] if ends else out
            return out

        self.llm.generate = first_alone


@planted("GEN-05")
class BeamsMixTheRows(MistralLLMBackbone):
    """For beams and several sequences a batch is repeated and not interleaved: answers come back
    for the wrong prompt."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm._expand_inputs_for_generation = self.expanded

    @staticmethod
    def expanded(
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Any = None,
        **options: Any,
    ) -> Any:
        def repeated(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return value.repeat(expand_size, *(1,) * (value.dim() - 1))

        return repeated(input_ids), {name: repeated(value) for name, value in options.items()}


@planted("GEN-05")
class CallersConfigIsIgnored(MistralLLMBackbone):
    """`generate(generation_config=...)` decodes by the model's own config: none of the caller's
    bounds and stops holds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        generate = self.llm.generate

        def by_own_config(*args: Any, generation_config: Any = None, **options: Any) -> Any:
            if generation_config is not None:
                options.setdefault("max_new_tokens", 6)
            return generate(*args, **options)

        self.llm.generate = by_own_config


@planted("GEN-05", on=PURE, since="4.57")
class OneNewTokenACall(MistralLLMBackbone):
    """Behind a cache the last id alone is read, as if there never were several: of a question that
    follows a shared beginning all but its last token is lost."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        prepare = self.llm.prepare_inputs_for_generation

        @functools.wraps(prepare)
        def prepared(*args: Any, **options: Any) -> Any:
            inputs = prepare(*args, **options)
            cache = inputs.get("past_key_values")
            length = cache.get_seq_length() if hasattr(cache, "get_seq_length") else 0
            for name in ("input_ids", "position_ids", "cache_position"):
                if length and isinstance(inputs.get(name), torch.Tensor):
                    inputs[name] = inputs[name][..., -1:]
            return inputs

        self.llm.prepare_inputs_for_generation = prepared


class _Generates(MistralLLMBackbone):
    """The Mistral reference, of whose `generate` a defect changes the arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        generate = self.llm.generate

        @functools.wraps(generate)
        def changed(*args: Any, **options: Any) -> Any:
            self.change(options)
            return generate(*args, **options)

        self.llm.generate = changed

    def change(self, options: dict[str, Any]) -> None:
        raise NotImplementedError


@planted("GEN-05")
class NobodyReadsAlong(_Generates):
    """`streamer` is dropped on the way: a chat shows nothing until the answer is complete."""

    def change(self, options: dict[str, Any]) -> None:
        options.pop("streamer", None)


@planted("GEN-05", on=PURE)
class StopsAreItsOwn(_Generates):
    """The stops are those of the backbone, whatever the caller says: a format that ends in another
    token runs on."""

    def change(self, options: dict[str, Any]) -> None:
        options.pop("eos_token_id", None)


@planted("GEN-05", on=PURE)
class WordsAreNotForbidden(_Generates):
    """Arguments that the author does not know are left out, `bad_words_ids` among them."""

    def change(self, options: dict[str, Any]) -> None:
        options.pop("bad_words_ids", None)


@planted("GEN-05")
class AlwaysTheSameTemperature(_Generates):
    """`temperature` and `top_p` are dropped, as greedy decoding warns of them: samples are drawn at
    another temperature than a table says."""

    def change(self, options: dict[str, Any]) -> None:
        for name in ("temperature", "top_p"):
            options.pop(name, None)


@planted("GEN-05")
class StreamsAtTheEnd(MistralLLMBackbone):
    """A streamer is told everything once all is there: who skips the prompt reads nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        generate = self.llm.generate

        @functools.wraps(generate)
        def late(*args: Any, streamer: Any = None, **options: Any) -> Any:
            out = generate(*args, **options)
            if streamer is not None:
                streamer.put(out if isinstance(out, torch.Tensor) else out.sequences)
                streamer.end()
            return out

        self.llm.generate = late


class _EndsOnce(StoppingCriteria):
    """Remembers which rows have ended for as long as texts grow."""

    def __init__(self, eos: int) -> None:
        self.eos, self.ended, self.length = eos, torch.zeros(0, dtype=torch.bool), 0

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        rows, length = input_ids.shape
        if len(self.ended) != rows or length <= self.length:
            self.ended = torch.zeros(rows, dtype=torch.bool)
        self.length = length
        self.ended = self.ended | (input_ids[:, -1] == self.eos)
        return self.ended


@planted("GEN-05", on=PURE)
class EndedOnce(_Generates):
    """A stopping criterion is kept from call to call: a chat's next question, longer than all
    before it, counts as ended, and is answered by one token."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ends = _EndsOnce(self.tokenizer.eos_token_id)

    def change(self, options: dict[str, Any]) -> None:
        theirs = options.get("stopping_criteria") or []
        options["stopping_criteria"] = StoppingCriteriaList([*theirs, self.ends])


@planted("GEN-05", on=PURE)
class CacheLeftOnByTwo(MistralLLMBackbone):
    """`generate` turns the cache on and puts back what it found: of two that overlap, the second
    finds it on, and puts that back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        generate, config = self.llm.generate, self.llm.config

        @functools.wraps(generate)
        def cached(*args: Any, **options: Any) -> Any:
            before, config.use_cache = config.use_cache, True
            try:
                return generate(*args, **options)
            finally:
                config.use_cache = before

        self.llm.generate = cached


@planted("GEN-05")
class OnesForAMask(_Generates):
    """Without a mask one of ones is made, as the library warns of its absence: hosts that hand over
    padded ids alone generate behind visible pads."""

    def change(self, options: dict[str, Any]) -> None:
        ids = options.get("input_ids")
        if ids is not None and options.get("attention_mask") is None:
            options["attention_mask"] = torch.ones_like(ids)


@planted("GEN-05", on=PURE)
class EvalFromThenOn(MistralLLMBackbone):
    """`generate` goes to eval() and stays there: after a sample for the log a run trains without
    dropout or checkpointing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        generate = self.llm.generate

        @functools.wraps(generate)
        def evaluated(*args: Any, **options: Any) -> Any:
            self.llm.eval()
            return generate(*args, **options)

        self.llm.generate = evaluated


@planted("GEN-05", on=PURE)
class SettingsOfConstruction(MistralLLMBackbone):
    """`generate` reads the generation config of construction: what a host sets since counts for
    nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        generate, settings = self.llm.generate, copy.deepcopy(self.llm.generation_config)

        @functools.wraps(generate)
        def by_settings(*args: Any, generation_config: Any = None, **options: Any) -> Any:
            config = generation_config or settings
            return generate(*args, generation_config=config, **options)

        self.llm.generate = by_settings


@planted("GEN-05")
class BrokenOffForGood(MistralLLMBackbone):
    """What a generation was given is put back when it returns, and not when it raises: after a
    client has gone, all are answered by its limits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        generate, kept = self.llm.generate, dict[str, Any]()

        @functools.wraps(generate)
        def remembering(*args: Any, **options: Any) -> Any:
            limit = kept.get("max_new_tokens")
            if limit is not None and "max_new_tokens" in options:
                options["max_new_tokens"] = limit + 1
            kept["max_new_tokens"] = options.get("max_new_tokens")
            out = generate(*args, **options)
            kept.clear()
            return out

        self.llm.generate = remembering


@planted("GEN-05")
class EmbeddingsWithoutBeams(_Generates):
    """Beams are dropped where a prompt comes as embeddings, "not supported" in an old release."""

    def change(self, options: dict[str, Any]) -> None:
        if "inputs_embeds" in options:
            options.pop("num_beams", None)
            options.pop("num_return_sequences", None)


@planted("GEN-05")
class CountsInHalfPrecision(MistralLLMBackbone):
    """Generation counts positions of a padded prompt in the model's dtype: bfloat16 stops at
    256."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        prepare = self.llm.prepare_inputs_for_generation

        @functools.wraps(prepare)
        def counted(*args: Any, **options: Any) -> Any:
            prepared = prepare(*args, **options)
            mask, given = prepared.get("attention_mask"), prepared.get("input_ids")
            if given is not None and isinstance(mask, torch.Tensor) and mask.dim() == 2:
                positions = mask.to(self.llm.dtype).cumsum(-1).long() - 1
                prepared["position_ids"] = positions.clamp(min=0)[:, -given.shape[1] :]
            return prepared

        self.llm.prepare_inputs_for_generation = counted


@planted("GEN-05", on=PURE, since="5.0")
class FixedCacheOfTheMasters(_Generates):
    """Generation takes a cache of a fixed size in the dtype of the weights: under autocast it takes
    no keys, and a validation between two steps raises."""

    def change(self, options: dict[str, Any]) -> None:
        if torch.is_autocast_cpu_enabled():
            options["cache_implementation"] = "static"
