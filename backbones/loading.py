"""Loads a published checkpoint alike under every supported transformers: all of it, or an error."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_flash_attn_2_available

from backbones.transformers_releases import DTYPE, ZeroRandomFills, published_tokenizer

BosConvention = Literal["auto", "prompt", "none"]
"""Who puts the bos before a text: the tokenizer, the prompt builder, or nobody."""

Fact = TypeVar("Fact")

MASTER_DTYPE = torch.float32
"""The dtype of the trainable parameters, in both modes, whatever the checkpoint was saved in."""

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
SHOWN_FAULTS = 5


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be loaded whole; the message names the files and tensors."""


@dataclass(frozen=True)
class LanguageModelPart:
    """What is loaded: the model of class `llm_cls` that is published as `hub_path`, or, with
    `inside`, the language model at that module of a vision-language checkpoint.

    A checkpoint that a backbone saved is that of the language model alone, whatever it was loaded
    from.
    """

    llm_cls: Any
    hub_path: str
    inside: str | None
    token: str | None

    def find(self, file: str) -> str | None:
        """The path of a file of the checkpoint, None if there is no such file."""
        return cached_file(
            self.hub_path, file, token=self.token, _raise_exceptions_for_missing_entries=False
        )

    @functools.cached_property
    def is_nested(self) -> bool:
        config = self.find("config.json") if self.inside else None
        return config is not None and "text_config" in _json(config)

    def config(self) -> Any:
        """The language model's own config."""
        config_class = self.llm_cls.config_class
        if not self.is_nested:
            return config_class.from_pretrained(self.hub_path, token=self.token)
        return config_class(**_json(self.find("config.json"))["text_config"])

    def name(self, tensor: str) -> str | None:
        """What the language model calls a tensor of the checkpoint; None for what is not its
        own: vision tower and connector."""
        if not self.is_nested:
            return tensor
        if tensor.startswith(f"{self.inside}."):
            return self.llm_cls.base_model_prefix + tensor[len(self.inside or "") :]
        return tensor if tensor.startswith("lm_head.") else None

    def own(self, facts: Mapping[str, Fact]) -> dict[str, Fact]:
        """Facts by tensor of the checkpoint, as facts by tensor of the language model."""
        named = ((self.name(stored), fact) for stored, fact in facts.items())
        return {name: fact for name, fact in named if name is not None}


def load_weights(part: LanguageModelPart, attention: str | None) -> PreTrainedModel:
    """The published model with its published weights, in float32.

    The headers of the weight files are compared with the architecture first: transformers itself
    may leave parameters uninitialised, with a warning, or in 4.x without one if the index names a
    tensor that its file lacks.

    Raises:
        CheckpointError: a file is missing or unreadable, a tensor is missing, mis-shaped or left
            over, or there are no safetensors (nothing is ever unpickled).
    """
    if faults := _faults(part):
        more = f"; and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        shown = "; ".join(faults[:SHOWN_FAULTS])
        raise CheckpointError(
            f"the checkpoint {part.hub_path} cannot be loaded whole: {shown}{more}"
        )
    if part.is_nested:
        return _filled(part, build_without_weights(part, attention))
    return part.llm_cls.from_pretrained(
        part.hub_path, token=part.token, use_safetensors=True, **_options(attention)
    )


def build_without_weights(part: LanguageModelPart, attention: str | None) -> PreTrainedModel:
    """The published architecture, with the parameters of `load_weights` but no weight file read.

    Names, shapes and dtypes are the same. Values are zero or one until a state dict is loaded:
    drawing billions of random numbers would take minutes.
    """
    with ZeroRandomFills():
        return part.llm_cls._from_config(part.config(), **_options(attention))


def _filled(part: LanguageModelPart, llm: PreTrainedModel) -> PreTrainedModel:
    """`llm` with the tensors that are its own, a file at a time."""
    parameters = dict(llm.named_parameters(remove_duplicate=False))
    for file in sorted(set(_indexed_files(part.find).values())) or [WEIGHTS]:
        with safe_open(part.find(file), framework="pt") as shard, torch.no_grad():
            for stored in shard.keys():  # noqa: SIM118
                if (name := part.name(stored)) in parameters:
                    parameters[name].copy_(shard.get_tensor(stored))
    return llm


def _json(file: str | None) -> Any:
    return json.loads(Path(str(file)).read_text(encoding="utf-8"))


def load_generation_config(hub_path: str, token: str | None) -> GenerationConfig:
    """Greedy decoding that stops where the published generation config stops.

    Only token ids and the length limit are taken from it: sampling parameters make
    `save_pretrained` refuse a greedy config, and with penalties greedy decoding would differ from
    the argmax of the logits.
    """
    published = GenerationConfig.from_pretrained(hub_path, token=token)
    return GenerationConfig(
        bos_token_id=published.bos_token_id,
        eos_token_id=published.eos_token_id,
        max_length=published.max_length,
        do_sample=False,
    )


def load_tokenizer(
    hub_path: str, max_length: int, bos_convention: BosConvention, token: str | None
) -> PreTrainedTokenizerBase:
    """The published tokenizer, padding and truncating on the right, at most `max_length` tokens
    long.

    Raises:
        ValueError: its handling of bos contradicts the family's convention.
    """
    tokenizer = published_tokenizer(
        hub_path,
        token=token,
        model_max_length=max_length,
        padding_side="right",
        truncation_side="right",
    )
    text = "Test 123"
    prefix = [tokenizer.bos_token_id] if bos_convention == "auto" else []
    expected, observed = (
        prefix + tokenizer(text, add_special_tokens=False).input_ids,
        tokenizer(text).input_ids,
    )
    if observed != expected:
        raise ValueError(
            f"the tokenizer of {hub_path} encodes {text!r} to {observed}, but bos convention "
            f"{bos_convention!r} requires {expected}: check add_bos_token in its "
            "tokenizer_config.json, and bos_convention in the family's class"
        )
    return tokenizer


def choose_attention(use_flash_attention_2: bool, exact: str | None) -> str | None:
    """The attention to ask transformers for: the one that is `exact` for the family, if there is
    one, else flash attention where it was requested and is installed; None for the library's
    choice."""
    if not use_flash_attention_2:
        return exact
    if exact is None and is_flash_attn_2_available():
        return "flash_attention_2"
    why = (
        "it needs CUDA and `pip install flash-attn`; torch's attention is used instead"
        if exact is None
        else f"this family is computed in full by {exact!r} attention alone, which is used instead"
    )
    warnings.warn(
        f"flash-attention 2 was requested, but {why}. Pass use_flash_attention_2=False to choose "
        "that yourself.",
        stacklevel=3,
    )
    return exact


def _options(attention: str | None) -> dict[str, Any]:
    chosen = {} if attention is None else {"attn_implementation": attention}
    return {DTYPE: MASTER_DTYPE, **chosen}


def _faults(part: LanguageModelPart) -> list[str]:
    """The faults that keep a checkpoint from being loaded whole; reads no tensor's data."""
    try:
        file_of = _indexed_files(part.find)
    except CheckpointError as fault:
        return [str(fault)]
    shapes, faults = _shapes_on_disk(part.find, file_of)
    if faults:
        return faults
    with torch.device("meta"):
        llm = part.llm_cls(part.config())
    shapes, file_of = part.own(shapes), part.own(file_of)
    return [*_misfits(llm, shapes, file_of), *_leftovers(llm, shapes, file_of)]


def _indexed_files(find: Callable[[str], str | None]) -> dict[str, str]:
    """The file of each tensor according to the index; empty for a checkpoint of one file."""
    index = find(WEIGHTS_INDEX)
    if index is None and find(WEIGHTS) is None:
        raise CheckpointError(
            f"it has neither {WEIGHTS} nor {WEIGHTS_INDEX}; pickled weights are not read, "
            f"convert them"
        )
    try:
        return (
            {}
            if index is None
            else json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        )
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"file {WEIGHTS_INDEX} cannot be read ({error!r}): delete it and download it again"
        ) from error


def _shapes_on_disk(
    find: Callable[[str], str | None], file_of: dict[str, str]
) -> tuple[dict[str, list[int]], list[str]]:
    """The shape of each tensor, from the file headers, and the faults of missing or unreadable
    files.

    Adds to `file_of` the tensors that a file holds and the index does not name.
    """
    shapes: dict[str, list[int]] = {}
    faults = []
    for file in sorted(set(file_of.values())) or [WEIGHTS]:
        if (path := find(file)) is None:
            faults.append(f"file {file} is missing: download it")
            continue
        try:
            with safe_open(path, framework="pt") as shard:
                names = shard.keys()
                shapes |= {name: list(shard.get_slice(name).get_shape()) for name in names}
                file_of |= dict.fromkeys(names, file)
        except (SafetensorError, OSError) as error:
            faults.append(f"file {file} cannot be read ({error}): delete it and download it again")
    return shapes, faults


def _misfits(llm: Any, shapes: dict[str, list[int]], file_of: dict[str, str]) -> Iterator[str]:
    """Tensors of the architecture that the checkpoint lacks or has in another shape."""
    for name, parameter in llm.named_parameters():  # A tied parameter counts once.
        wanted = list(parameter.shape)
        if name not in shapes:
            yield f"tensor {name} is missing from {file_of.get(name, 'every file')}"
        elif shapes[name] != wanted:
            yield (
                f"tensor {name} in {file_of[name]} has shape {shapes[name]}, its config.json "
                f"wants {wanted}"
            )


def _leftovers(llm: Any, shapes: dict[str, list[int]], file_of: dict[str, str]) -> Iterator[str]:
    """Tensors of the checkpoint that the architecture has no place for."""
    known = {name for name, _ in llm.named_parameters(remove_duplicate=False)}
    for name in sorted(shapes.keys() - known):
        # Old Llama checkpoints hold rotary buffers, which every release computes for itself.
        if not name.endswith("rotary_emb.inv_freq"):
            yield f"tensor {name} in {file_of[name]} has no place in {type(llm).__name__}"
