"""The language model inside a vision-language checkpoint, as a checkpoint of its own.

A vision-language model publishes its decoder under a name of its own (`model.text_model`) and the
decoder's config as `text_config`, which may leave sizes to its class. What the suite compares a
backbone with is the decoder alone: its tensors under the names that its own class has for them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conformance.hub.probe_sizes import parts_beside_text
from conformance.hub.published import CONFIG, TEXT_CONFIG, text_part

_INNER = "model"
"""What the inner model of a causal language model of transformers is called."""
_HEAD = "lm_head"
_LEFT_OUT = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
    "sliding_window_pattern",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "query_pre_attn_scalar",
    "rms_norm_eps",
)
"""What a published part of a vision-language config may leave to the defaults of its class, by its
names there: LLaVA's says of its decoder that it is a Llama, and no more."""


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A vision-language config in which each part says what it leaves to its class. Others are as
    they are. Imports transformers.

    Raises:
        ValueError: transformers does not know the model type, or refuses the config.
    """
    if text_part(config) is config:
        return dict(config)
    from transformers import AutoConfig

    fields = {key: value for key, value in config.items() if key != "model_type"}
    whole = AutoConfig.for_model(config["model_type"], **fields)
    parts = {
        key: {**_defaults(getattr(whole, key, None), config[key]), **config[key]}
        for key in (TEXT_CONFIG, *parts_beside_text(config))
    }
    # Whether the head is the embedding the whole model's class says, to its decoder too.
    tied = {"tie_word_embeddings": bool(getattr(whole, "tie_word_embeddings", False))}
    parts[TEXT_CONFIG] = {**tied, **parts[TEXT_CONFIG]}
    return {**tied, **config, **parts}


def _defaults(part: Any, said: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: getattr(part, key, None) for key in _LEFT_OUT if key not in said}
    return {key: value for key, value in found.items() if value is not None}


def causal_model_without_memory(config: Any) -> Any:
    """The library's causal language model of a decoder's config, on the meta device; None if the
    library has no such class (for Qwen2-VL's decoder, say), or cannot build it so."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception:
        return None


def decoder_within(model: Any) -> Any:
    """The part of a model that text passes through: what holds the input embedding."""
    embedding = model.get_input_embeddings()
    return next(m for m in model.modules() if any(child is embedding for child in m.children()))


def place_of(embedding: str, own: str = f"{_INNER}.embed_tokens.weight") -> str | None:
    """Where the language model stands whose input embedding is the tensor `embedding` of the
    checkpoint, and `own` to its own class; None if the one is not the other behind a prefix."""
    inner, _, rest = own.partition(".")
    if inner != _INNER or not embedding.endswith(f".{rest}"):
        return None
    return embedding.removesuffix(f".{rest}")


def is_head(tensor: str) -> bool:
    """Whether a tensor is the head's, by its name in any checkpoint."""
    return tensor.split(".")[-2:-1] == [_HEAD]


def own_name(tensor: str, inside: str) -> str | None:
    """The name that a tensor of the checkpoint has in the language model, which stands at `inside`;
    None for one that is not the language model's."""
    if tensor.startswith(f"{inside}."):
        return f"{_INNER}{tensor[len(inside) :]}"
    head = _head(inside)
    return f"{_HEAD}{tensor[len(head) :]}" if tensor.startswith(f"{head}.") else None


def stored_name(tensor: str, inside: str | None) -> str:
    """The name in the checkpoint of a tensor that the language model calls `tensor`."""
    if inside is None:
        return tensor
    for own, stored in ((_INNER, inside), (_HEAD, _head(inside))):
        if tensor.startswith(f"{own}."):
            return f"{stored}{tensor[len(own) :]}"
    return tensor


def _head(inside: str) -> str:
    """Where the head stands: beside the inner model of a language model that is stored whole, as
    LLaVA's `language_model.model` is, and else at the top."""
    above, _, last = inside.rpartition(".")
    return f"{above}.{_HEAD}" if above and last == _INNER else _HEAD


def decoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the decoder: `text_config` with the checkpoint's dtype, or all of it where
    nothing is nested."""
    own = text_part(config)
    dtypes = {key: config[key] for key in ("torch_dtype", "dtype") if key in config}
    return {**dtypes, **own}


def is_nested(snapshot: Path) -> bool:
    """Whether the checkpoint in this directory is a vision-language model's."""
    return TEXT_CONFIG in json.loads((snapshot / CONFIG).read_text(encoding="utf-8"))


def extract(snapshot: Path, inside: str, target: Path) -> None:
    """Write the checkpoint of the language model alone into `target`, a new directory: its config
    and tensors; what else there is in `snapshot` by links."""
    from safetensors.torch import load_file, save_file

    target.mkdir(parents=True)
    tensors = {}
    for path in sorted(snapshot.iterdir()):
        if path.suffix == ".safetensors":
            named = ((own_name(name, inside), tensor) for name, tensor in load_file(path).items())
            tensors.update({name: tensor for name, tensor in named if name is not None})
        elif path.name == CONFIG:
            config = decoder_config(json.loads(path.read_text(encoding="utf-8")))
            (target / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        elif not path.name.endswith(".safetensors.index.json"):
            (target / path.name).symlink_to(path.resolve())
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def put_back(snapshot: Path, own: Path, inside: str | None) -> None:
    """Make `snapshot` the checkpoint that was saved in `own`, whose files move.

    Where the language model alone was saved, and `snapshot` is a vision-language model's, it takes
    the place of the one in there: a class that reads such checkpoints need not read others.
    """
    from safetensors.torch import load_file, save_file

    alone = (own / CONFIG).is_file() and not is_nested(own)
    if inside is not None and alone and is_nested(snapshot):
        config = json.loads((snapshot / CONFIG).read_text(encoding="utf-8"))
        saved = json.loads((own / CONFIG).read_text(encoding="utf-8"))
        rows = {"vocab_size": saved["vocab_size"]}
        config |= {TEXT_CONFIG: {**config[TEXT_CONFIG], **rows}}
        config |= rows if "vocab_size" in config else {}
        (own / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        tensors = {}
        for path in sorted(snapshot.glob("*.safetensors")):
            tensors.update(load_file(path))
        for path in sorted(own.glob("*.safetensors")):
            named = load_file(path).items()
            tensors.update({stored_name(name, inside): tensor for name, tensor in named})
            path.unlink()
        (own / "model.safetensors.index.json").unlink(missing_ok=True)
        save_file(tensors, own / "model.safetensors", metadata={"format": "pt"})
    for path in snapshot.iterdir():
        path.unlink()
    for path in own.iterdir():
        shutil.move(path, snapshot / path.name)
