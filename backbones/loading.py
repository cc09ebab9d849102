"""Reads a published checkpoint the same way under every supported transformers: all of it, or an error."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_flash_attn_2_available

from backbones.transformers_releases import DTYPE, ZeroRandomFills, published_tokenizer

BosConvention = Literal["auto", "prompt"]
"""Who puts the bos before a text: the tokenizer, or the prompt builder."""

MASTER_DTYPE = torch.float32
"""Of the trainable parameters, in both modes, whatever the checkpoint was saved in."""

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
SHOWN_FAULTS = 5


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be loaded whole; the message names the files and tensors."""


def load_weights(
    llm_cls: type[PreTrainedModel], hub_path: str, use_flash_attention_2: bool, token: str | None
) -> PreTrainedModel:
    """The published model with its published weights, in float32.

    Raises:
        CheckpointError: a file is missing or unreadable, a tensor is missing, mis-shaped or left over, or there are no
            safetensors (nothing is ever unpickled). transformers itself only logs some of these.
    """
    attention = _attention(use_flash_attention_2)
    try:
        llm, report = llm_cls.from_pretrained(
            hub_path,
            token=token,
            use_safetensors=True,
            output_loading_info=True,
            **{DTYPE: MASTER_DTYPE},
            **attention,
        )
    except Exception as error:
        faults = _faults(llm_cls, hub_path, token)
        if not faults:
            raise
        raise CheckpointError(_describe(hub_path, faults)) from error
    # Old Llama checkpoints hold rotary buffers, which every release computes for itself.
    left_over = [name for name in report["unexpected_keys"] if not name.endswith("rotary_emb.inv_freq")]
    if report["missing_keys"] or left_over:
        faults = _faults(llm_cls, hub_path, token)
        faults += [f"tensor {name} has no place in {llm_cls.__name__}" for name in sorted(left_over)]
        raise CheckpointError(_describe(hub_path, faults or [f"tensor {n} is missing" for n in report["missing_keys"]]))
    return llm


def build_without_weights(
    llm_cls: type[PreTrainedModel], hub_path: str, use_flash_attention_2: bool, token: str | None
) -> PreTrainedModel:
    """The published architecture, every parameter as `load_weights` names, shapes and types it, and no weight file read.

    Parameters are zero or one until a state dict is loaded: drawing billions of random numbers would cost minutes.
    """
    config = llm_cls.config_class.from_pretrained(hub_path, token=token)
    with ZeroRandomFills():
        return llm_cls._from_config(config, **{DTYPE: MASTER_DTYPE}, **_attention(use_flash_attention_2))


def load_generation_config(hub_path: str, token: str | None) -> GenerationConfig:
    """Greedy decoding that stops where the published generation config stops.

    Only token ids and the length limit are taken from it: sampling parameters make `save_pretrained` refuse a greedy
    config, and penalties would make greedy decoding something else than the argmax of the logits.
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
    """The published tokenizer, padding and truncating on the right, at most `max_length` tokens long.

    Raises:
        ValueError: it does not treat bos as the family says.
    """
    tokenizer = published_tokenizer(
        hub_path, token=token, model_max_length=max_length, padding_side="right", truncation_side="right"
    )
    text = "Test 123"
    prefix = [tokenizer.bos_token_id] if bos_convention == "auto" else []
    expected, observed = prefix + tokenizer(text, add_special_tokens=False).input_ids, tokenizer(text).input_ids
    if observed != expected:
        raise ValueError(
            f"the tokenizer of {hub_path} encodes {text!r} to {observed}, but with its bos convention "
            f"{bos_convention!r} {expected} is right: check add_bos_token in its tokenizer_config.json, and "
            "bos_convention in the family's class"
        )
    return tokenizer


def _attention(use_flash_attention_2: bool) -> dict[str, str]:
    if not use_flash_attention_2:
        return {}
    if is_flash_attn_2_available():
        return {"attn_implementation": "flash_attention_2"}
    warnings.warn(
        "flash-attention 2 was asked for, but it needs a CUDA device and `pip install flash-attn`; torch's own attention "
        "is used. Pass use_flash_attention_2=False to say so yourself.",
        stacklevel=4,
    )
    return {}


def _faults(llm_cls: type[PreTrainedModel], hub_path: str, token: str | None) -> list[str]:
    """What is wrong with the files of a checkpoint that transformers has just tried to load."""
    index = _local_file(hub_path, WEIGHTS_INDEX)
    if index is None and _local_file(hub_path, WEIGHTS) is None:
        return [f"neither {WEIGHTS} nor {WEIGHTS_INDEX} is there, and pickled weights are not read: convert them first"]
    config: PretrainedConfig = llm_cls.config_class.from_pretrained(hub_path, token=token)
    with torch.device("meta"):
        expected = {name: list(tensor.shape) for name, tensor in llm_cls(config).state_dict().items()}
    if index is None:
        file_of = dict.fromkeys(expected, WEIGHTS)
    else:
        file_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]

    faults, shapes = [], {}
    for file in sorted(set(file_of.values())):
        path = _local_file(hub_path, file)
        if path is None:
            faults.append(f"file {file} is missing")
            continue
        try:
            with safe_open(path, framework="pt") as shard:
                names = shard.keys()
                shapes |= {name: shard.get_slice(name).get_shape() for name in names}
        except (SafetensorError, OSError) as error:
            faults.append(f"file {file} cannot be read ({error}): delete it and download it again")
    if faults:
        return faults
    for name, shape in expected.items():
        file = file_of.get(name, "no file of the index")
        if name not in shapes:
            faults.append(f"tensor {name} is missing (expected in {file})")
        elif list(shapes[name]) != shape:
            faults.append(f"tensor {name} in {file} has shape {list(shapes[name])}, the config wants {shape}")
    return faults


def _local_file(hub_path: str, file: str) -> Path | None:
    found = os.path.join(hub_path, file) if os.path.isdir(hub_path) else try_to_load_from_cache(hub_path, file)
    return Path(found) if isinstance(found, str) and os.path.exists(found) else None


def _describe(hub_path: str, faults: list[str]) -> str:
    more = f"; and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
    return f"the checkpoint {hub_path} cannot be loaded whole: {'; '.join(faults[:SHOWN_FAULTS])}{more}"
