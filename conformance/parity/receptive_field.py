"""How far back one decoder layer looks: measured by its gradient, not read from masks or config."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from conformance.parity.library import library_config
from conformance.parity.modules import hidden_in, with_hidden
from conformance.parity.reference import Reference

_WINDOW = 16
"""The window, and below it the sequence length, to measure how the library counts."""
_LENGTH = 48
_WIDEST = 512


def keys_seen(
    run: Callable[[torch.Tensor], Any], layers: Sequence[torch.nn.Module], ids: torch.Tensor
) -> tuple[tuple[int, ...], ...]:
    """For each of `layers`, the positions of its input on which the last position of its output
    depends.

    `run` calls the model on `ids`, of shape (1, sequence). An entry lists the ages of the positions
    seen: 0 is the last position itself. Masked attention is exactly zero, and so is its gradient.
    """
    inputs: dict[int, torch.Tensor] = {}
    outputs: dict[int, torch.Tensor] = {}

    def hook(index: int, layer: torch.nn.Module) -> list[Any]:
        def detach(module: Any, args: Any, kwargs: Any) -> Any:
            inputs[index] = hidden_in(args, kwargs).detach().requires_grad_()
            return with_hidden(args, kwargs, inputs[index])

        def keep(module: Any, args: Any, output: Any) -> None:
            outputs[index] = output[0] if isinstance(output, tuple) else output

        return [
            layer.register_forward_pre_hook(detach, with_kwargs=True),
            layer.register_forward_hook(keep),
        ]

    with ExitStack() as hooks, torch.enable_grad():
        for index, layer in enumerate(layers):
            for handle in hook(index, layer):
                hooks.callback(handle.remove)
        run(ids)
        return tuple(_ages(inputs[index], outputs[index]) for index in range(len(layers)))


def library_windows(llm: Any, config: Mapping[str, Any]) -> tuple[int | None, ...] | None:
    """The most keys that a query of each layer sees, in transformers' own class under this config;
    None for all.

    Measured on an untrained model with the attention of `llm`: releases differ by one in how they
    count. The whole result is None if transformers has no class of its own for the config.
    """
    config = config.get("text_config", config)
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    attention = getattr(llm.config, "_attn_implementation", None) or "eager"
    # Widths do not matter here, and a published one takes gigabytes. Nor does rotation, whose
    # settings may go by width.
    if config.get("hidden_size", 0) > _WIDEST:
        heads = int(config["num_attention_heads"])
        config = {**config, "hidden_size": 20 * heads, "head_dim": 20, "intermediate_size": 32}
        config |= {"rope_scaling": None, "rope_parameters": None, "partial_rotary_factor": 1.0}
    seen = _keys_seen_in_library(
        json.dumps({**config, **({"sliding_window": _WINDOW} if window else {})}), attention
    )
    if seen is None or not window:
        return seen
    return tuple(None if count is None else window + count - _WINDOW for count in seen)


def reference_as_installed(llm: Any, config: Mapping[str, Any]) -> Reference:
    """The reference for `llm`, with windows as the installed library counts them.

    Raises:
        NoReference, InvalidConfig: as `Reference.of`.
    """
    reference = Reference.of(llm, config)
    if not any(reference.architecture.windows):
        return reference
    windows = library_windows(llm, config) or reference.architecture.windows
    return replace(reference, architecture=replace(reference.architecture, windows=windows))


@cache
def _keys_seen_in_library(config: str, attention: str) -> tuple[int | None, ...] | None:
    import transformers

    try:
        model_config = library_config(json.loads(config), vocab_size=2 * _LENGTH)
        with torch.random.fork_rng(devices=[]):
            model = transformers.AutoModelForCausalLM.from_config(
                model_config, attn_implementation=attention
            )
    # A custom model type, or an attention that the model lacks.
    except (ValueError, KeyError, TypeError):
        return None
    layers = next(
        (
            list(module)
            for module in model.modules()
            if isinstance(module, torch.nn.ModuleList)
            and len(module) == model_config.num_hidden_layers
        ),
        None,
    )
    if layers is None:
        return None
    ages = keys_seen(model.eval(), layers, torch.arange(_LENGTH)[None])
    return tuple(None if len(seen) == _LENGTH else len(seen) for seen in ages)


def _ages(given: torch.Tensor, made: torch.Tensor) -> tuple[int, ...]:
    weights = torch.linspace(-1, 1, made.shape[-1], dtype=made.dtype)
    (gradient,) = torch.autograd.grad((made[0, -1] * weights).sum(), given)
    moved = (gradient[0] != 0).any(dim=-1)
    return tuple(len(moved) - 1 - int(position) for position in moved.nonzero().flip(0).flatten())
