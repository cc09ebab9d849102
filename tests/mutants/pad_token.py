"""Defects in the pad token and its wiring."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AddedToken

from backbones.mistral import MistralLLMBackbone
from tests.mutants import PURE, planted
from tests.mutants.steps import MistralInSteps, same_class_but


@planted("PAD-01")
class NoPad(MistralInSteps):
    """Nobody added a pad token: the first batch of two lengths raises."""

    def add_pad(self) -> None:
        """Left to the caller."""


@planted("PAD-01")
class PadIsPlainText(MistralInSteps):
    """The pad token was added as a word like any other: decoded answers end in
    `<PAD><PAD><PAD>`."""

    def add_pad(self) -> None:
        self.tokenizer.add_tokens([AddedToken("<PAD>", special=False)])
        self.tokenizer.pad_token = "<PAD>"


@planted("PAD-02", defects=("D8",))
class ConfigKeepsThePublishedPad(MistralLLMBackbone):
    """The model's config was not told: lengths are measured with another pad than batches are
    filled with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.config.pad_token_id = 0


@planted("PAD-02")
class PadRemembered(MistralLLMBackbone):
    """`pad_token_id` is the vocabulary's size of the day: a collator fills batches with a word."""

    @property
    def pad_token_id(self) -> int:
        return self.tokenizer.vocab_size - 1


@planted("PAD-03", defects=("D6",))
class PadIsEos(MistralInSteps):
    """The pad is eos: collators ignore both as labels, and the model never learns to stop."""

    def add_pad(self) -> None:
        self.tokenizer.pad_token = self.tokenizer.eos_token


@planted("PAD-03")
class PadIsUnknown(MistralInSteps):
    """The pad is the unknown token: a character that the vocabulary lacks is taken for padding."""

    def add_pad(self) -> None:
        self.tokenizer.pad_token = self.tokenizer.unk_token


@planted("PAD-03", defects=("D9",))
class PadAmongTheStops(MistralLLMBackbone):
    """The pad is among the ids that end generation: left-padded rows complete to nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.generation_config.eos_token_id = [2, self.pad_token_id]


@planted("PAD-04", defects=("D8",))
class GenerationPadLeftUnset(MistralLLMBackbone):
    """The generation config's pad stays None: finished rows are filled with eos."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.generation_config.pad_token_id = None


@planted("EMB-02", "PAD-05", defects=("D11",))
class PadBeyondTheRows(MistralInSteps):
    """A pad token was added and the embedding not resized: its id has no row, and CUDA asserts."""

    def resize(self) -> None:
        self.llm.config.pad_token_id = self.llm.generation_config.pad_token_id = self.pad_token_id


@planted("PAD-05")
class PadRefusedByTheLookup(MistralLLMBackbone):
    """The lookup refuses what the published vocabulary does not have: a padded batch raises."""

    def embed_input_ids(self, input_ids: Any) -> Any:
        if bool((input_ids >= self.tokenizer.vocab_size).any()):
            raise IndexError("no such token")
        return super().embed_input_ids(input_ids)


@planted("PAD-06")
class PadsOnTheLeft(MistralLLMBackbone):
    """Batches pad on the left, as for generation: image patches are spliced into the padding."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokenizer.padding_side = "left"


@planted("PAD-06", defects=("D7",))
class MaskHidesEveryEos(MistralLLMBackbone):
    """The attention mask is computed from ids, eos counted as padding: an eos inside the text goes
    unattended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        same_class_but(self.tokenizer, __call__=_masked_by_id)


@planted("PAD-06")
class CollatorsHideEveryEos(MistralLLMBackbone):
    """What a collator pads without a mask gets one computed from its ids, eos counted as
    padding."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        same_class_but(self.tokenizer, pad=_padded_and_masked_by_id)


def _padded_and_masked_by_id(tokenizer: Any, features: Any, *args: Any, **kwargs: Any) -> Any:
    batch = super(type(tokenizer), tokenizer).pad(features, *args, **kwargs)
    one = features[0] if isinstance(features, list) else features
    if "attention_mask" not in one and isinstance(batch["input_ids"], torch.Tensor):
        ids = batch["input_ids"]
        hidden = (ids == tokenizer.pad_token_id) | (ids == tokenizer.eos_token_id)
        batch["attention_mask"] = (~hidden).long()
    return batch


def _masked_by_id(tokenizer: Any, *args: Any, **kwargs: Any) -> Any:
    encoded = super(type(tokenizer), tokenizer).__call__(*args, **kwargs)
    rows = encoded["input_ids"]
    if isinstance(rows, list) and rows and isinstance(rows[0], list):
        hidden = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        encoded["attention_mask"] = [[int(token not in hidden) for token in ids] for ids in rows]
    return encoded


@planted("PAD-07")
class PadIsAWord(MistralInSteps):
    """An "unused" entry of the vocabulary serves as pad: text that contains it is taken for
    padding."""

    def add_pad(self) -> None:
        self.tokenizer.add_special_tokens({"pad_token": "ж"})


@planted("PAD-08", "TOK-04", on=PURE)
class WordsAddedWithThePad(MistralInSteps):
    """Words of the robot's were added along with the pad: text that the model knows encodes to rows
    it never saw."""

    def add_pad(self) -> None:
        super().add_pad()
        self.tokenizer.add_tokens([AddedToken("arm", normalized=False)])


@planted("PAD-09", defects=("D13",))
class MaskDroppedFromPatches(MistralLLMBackbone):
    """Spliced inputs that come with labels lose their mask on the way: right-padded batches hide
    it, left-padded ones train the pad row."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.register_forward_pre_hook(_without_a_mask, with_kwargs=True)


def _without_a_mask(llm: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if kwargs.get("labels") is None or kwargs.get("inputs_embeds") is None:
        return args, kwargs
    return args, {**kwargs, "attention_mask": None}


@planted("PAD-06")
class MaskFilledWithPad(MistralLLMBackbone):
    """`tokenizer.pad`, which collators call, fills the mask with the pad id too: padding is
    attended to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain = type(self.tokenizer)

        def pad(tokenizer: Any, encoded: Any, *args: Any, **options: Any) -> Any:
            padded = plain.pad(tokenizer, encoded, *args, **options)
            if options.get("return_tensors") == "pt":
                mask = padded["attention_mask"]
                mask[mask == 0] = tokenizer.pad_token_id
            return padded

        same_class_but(self.tokenizer, pad=pad)


@planted("PAD-06")
class PadsOnTheRightAlways(MistralLLMBackbone):
    """Each call sets `padding_side` back to the right: batched generation, which asked for the
    left, goes on from padding."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain = type(self.tokenizer)

        def call(tokenizer: Any, *args: Any, **options: Any) -> Any:
            tokenizer.padding_side = "right"
            return plain.__call__(tokenizer, *args, **options)

        same_class_but(self.tokenizer, __call__=call)
