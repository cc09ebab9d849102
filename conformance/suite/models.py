"""What clauses ask of a model: probe inputs, comparison by bits, and which parameters are as tall as the vocabulary."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from conformance.subject import Subject

IGNORED_LABEL = -100


def probe_ids(subject: Subject, batch: int = 2, length: int = 8) -> torch.Tensor:
    """Fixed ordinary token ids, ``(batch, length)``: spread over the vocabulary, none of them special."""
    special = set(subject.tokenizer.all_special_ids)
    rows = len(subject.tokenizer)
    ordinary = (
        token
        for token in ((17 + 7919 * step) % rows for step in range(10 * batch * length))
        if token not in special
    )
    return torch.tensor([[next(ordinary) for _ in range(length)] for _ in range(batch)])


def same_tensor(observed: torch.Tensor | None, expected: torch.Tensor) -> bool:
    """Bit-equality, NaN included; dtype and shape count."""
    if observed is None or observed.dtype != expected.dtype or observed.shape != expected.shape:
        return False
    return torch.equal(observed, expected) or bool(
        ((observed == expected) | (observed.isnan() & expected.isnan())).all()
    )


def vocabulary_parameters(llm: Any) -> set[str]:
    """State-dict names of the parameters with one row a token: the input embedding and the output head."""
    modules = [llm.get_input_embeddings(), llm.get_output_embeddings()]
    parameters = {
        id(parameter) for module in modules if module is not None for parameter in module.parameters()
    }
    return {
        name
        for name, parameter in llm.named_parameters(remove_duplicate=False)
        if id(parameter) in parameters
    }


def vocabulary_tensors(subject: Subject) -> dict[str, str]:
    """State-dict name of each parameter with one row a token, and the name that its tensor has in the checkpoint.

    Releases rename modules as they load (a nested language model's, say), but not the last two parts of a name. A head
    that is tied to the embedding has no tensor of its own in a checkpoint, and is left out.
    """
    names: dict[str, str] = {}
    for name in sorted(vocabulary_parameters(subject.training.llm)):
        namesakes = [other for other in subject.checkpoint if other.split(".")[-2:] == name.split(".")[-2:]]
        if name in namesakes or len(namesakes) == 1:
            names[name] = name if name in namesakes else namesakes[0]
    return names


def decoder_layers(backbone: Any) -> list[torch.nn.Module]:
    """The instances of ``transformer_layer_cls`` in ``llm``, in order; none where that is no class."""
    layer_cls = backbone.transformer_layer_cls
    modules: list[torch.nn.Module] = list(backbone.llm.modules()) if inspect.isclass(layer_cls) else []
    return [module for module in modules if isinstance(module, layer_cls)]


def text_config(llm: Any) -> Any:
    """The config of the language model itself, where the wrapped model nests it."""
    return (
        llm.config.get_text_config()
        if hasattr(llm.config, "get_text_config")
        else getattr(llm.config, "text_config", llm.config)
    )


def next_multiple(of: int, count: int) -> int:
    """The smallest multiple of ``of`` that is at least ``count``."""
    return -(-count // of) * of
