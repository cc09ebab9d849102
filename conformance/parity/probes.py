"""Models and inputs that parity is measured on: drawn, seeded, and the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from conformance.hub.weights import has_tied_head, norm_centre, probe_tensors
from conformance.oracle import architecture_of
from conformance.parity.library import library_config


def drawn_ids(vocabulary: int, length: int, seed: int) -> torch.Tensor:
    """Ids over the whole vocabulary, `(1, length)`."""
    return torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(seed))


def held_bytes(model: torch.nn.Module) -> int:
    """The bytes of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def in_shape(
    config: Mapping[str, Any], *, heads: int, key_value_heads: int, layers: int
) -> dict[str, Any]:
    """The config in another, small shape, in which everything that goes by layer or by head fits:
    the list of layers' types goes round, and LongRoPE's factors are spread over the frequencies
    that there are.

    Raises:
        NoReference, InvalidConfig: as `conformance.oracle.architecture_of`.
    """
    published = architecture_of(config)
    share = published.rotary.dimensions / published.head_dimension
    # The part of each head that is rotated must be even.
    width = 20 if int(20 * share) % 2 == 0 else 40
    changed = {
        **config,
        "num_attention_heads": heads, "num_key_value_heads": key_value_heads,
        "num_hidden_layers": layers, "hidden_size": width * heads, "intermediate_size": 48,
    }  # fmt: skip
    if types := config.get("layer_types"):
        changed["layer_types"] = [types[layer % len(types)] for layer in range(layers)]
    frequencies = int(int(config.get("head_dim") or width) * share) // 2
    for table in ("rope_scaling", "rope_parameters"):
        by_frequency = {
            name: [value[place * len(value) // frequencies] for place in range(frequencies)]
            for name, value in (config.get(table) or {}).items()
            if name in ("short_factor", "long_factor")
        }
        if by_frequency:
            changed[table] = {**config[table], **by_frequency}
    return changed


def untrained(
    model_class: type,
    config: Mapping[str, Any],
    attention: str,
    seed: int,
    *,
    of: Iterable[str] | None = None,
) -> Any:
    """A float32 model of a parsed `config.json` with probe weights of this seed, in `eval()`, with
    the named attention.

    With the tensors `of` a checkpoint by name, parameters of none of their kinds (the last two
    parts of a name) stay as the class makes them: adapters begin at zero.
    """
    # In the dtype of the config some buffers would be rounded: rotary tables in older releases,
    # the scale of Gemma's embeddings in newer ones.
    fields = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    with torch.random.fork_rng(devices=[]):
        llm = model_class._from_config(  # type: ignore[attr-defined]
            library_config(fields, torch_dtype="float32"), attn_implementation=attention
        )
    llm = llm.to(torch.float32).eval()
    kinds = None if of is None else set(map(_kind, of))
    parameters = {
        name: parameter
        for name, parameter in llm.named_parameters()
        if kinds is None or _kind(name) in kinds
    }
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    drawn = probe_tensors(
        shapes,
        seed=str(seed),
        vocabulary=config["vocab_size"],
        tied=has_tied_head(shapes, config["vocab_size"]),
        dtype="float32",
        centre=norm_centre(config),
    )
    with torch.no_grad():
        for name, tensor in drawn:
            parameters[name].copy_(tensor)
    return llm


def _kind(name: str) -> str:
    return ".".join(name.split(".")[-2:])
