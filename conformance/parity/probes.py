"""Models and inputs that parity is measured on: drawn, seeded, and the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from conformance.hub.weights import probe_tensors
from conformance.parity.library import library_config


def drawn_ids(vocabulary: int, length: int, seed: int) -> torch.Tensor:
    """Ids over the whole vocabulary, `(1, length)`."""
    return torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(seed))


def held_bytes(model: torch.nn.Module) -> int:
    """The bytes of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def untrained(model_class: type, config: Mapping[str, Any], attention: str, seed: int) -> Any:
    """A float32 model of a parsed `config.json` with probe weights of this seed, in `eval()`, with
    the named attention."""
    with torch.random.fork_rng(devices=[]):
        llm = model_class._from_config(  # type: ignore[attr-defined]
            library_config(config), attn_implementation=attention
        )
    llm = llm.to(torch.float32).eval()
    parameters = dict(llm.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    drawn = probe_tensors(
        shapes,
        seed=str(seed),
        vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings")),
        dtype="float32",
    )
    with torch.no_grad():
        for name, tensor in drawn:
            parameters[name].copy_(tensor)
    return llm
