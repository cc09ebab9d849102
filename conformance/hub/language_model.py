"""The language model inside a vision-language checkpoint, as a checkpoint of its own.

A vision-language model publishes its decoder under a name of its own (`model.text_model`) and the
decoder's config as `text_config`. What the suite compares a backbone with is the decoder alone: its
tensors under the names that its own class has for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conformance.hub.published import CONFIG, text_part

_INNER = "model"
"""What the inner model of a causal language model of transformers is called."""
_HEAD = "lm_head."


def own_name(tensor: str, inside: str) -> str | None:
    """The name that a tensor of the checkpoint has in the language model, which stands at `inside`;
    None for one that is not the language model's."""
    if tensor.startswith(f"{inside}."):
        return f"{_INNER}{tensor[len(inside) :]}"
    return tensor if tensor.startswith(_HEAD) else None


def stored_name(tensor: str, inside: str | None) -> str:
    """The name in the checkpoint of a tensor that the language model calls `tensor`."""
    if inside is None or not tensor.startswith(f"{_INNER}."):
        return tensor
    return f"{inside}{tensor[len(_INNER) :]}"


def decoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the decoder: `text_config` with the checkpoint's dtype, or all of it where
    nothing is nested."""
    own = text_part(config)
    dtypes = {key: config[key] for key in ("torch_dtype", "dtype") if key in config}
    return {**dtypes, **own}


def is_nested(snapshot: Path) -> bool:
    """Whether the checkpoint in this directory is a vision-language model's."""
    return "text_config" in json.loads((snapshot / CONFIG).read_text(encoding="utf-8"))


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
