"""How far back one decoder layer looks: found by its gradient, not by its masks or its config."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch

#: The library's way of counting is measured with this window, in a sequence of this length.
_WINDOW = 16
_LENGTH = 48


def keys_seen(
    run: Callable[[torch.Tensor], Any], layers: Sequence[torch.nn.Module], length: int
) -> tuple[tuple[int, ...], ...]:
    """For each of ``layers``, how many positions of its input the last position of its output depends on, and on which.

    ``run`` calls the model on ids of shape (1, ``length``). An entry lists the ages of the positions seen: 0 is the last
    position itself. A share of attention that is masked is exactly zero, and so is its gradient.
    """
    inputs: dict[int, torch.Tensor] = {}
    outputs: dict[int, torch.Tensor] = {}

    def hook(index: int, layer: torch.nn.Module) -> list[Any]:
        def detach(module: Any, args: Any, kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            inputs[index] = hidden.detach().requires_grad_()
            return (
                ((inputs[index], *args[1:]), kwargs)
                if args
                else (args, {**kwargs, "hidden_states": inputs[index]})
            )

        def keep(module: Any, args: Any, output: Any) -> None:
            outputs[index] = output[0] if isinstance(output, tuple) else output

        return [layer.register_forward_pre_hook(detach, with_kwargs=True), layer.register_forward_hook(keep)]

    with ExitStack() as hooks, torch.enable_grad():
        for index, layer in enumerate(layers):
            for handle in hook(index, layer):
                hooks.callback(handle.remove)
        run(torch.arange(length)[None] + 1)
        return tuple(_ages(inputs[index], outputs[index]) for index in range(len(layers)))


def library_windows(llm: Any, config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """How many keys a query of each layer sees at most, in transformers' own class under this config; None for all.

    It is measured, on an untrained model with the attention of ``llm``: releases differ by one in how they count.
    """
    layers = int(config["num_hidden_layers"])
    window = config.get("sliding_window")
    if not window:
        return (None,) * layers
    attention = getattr(llm.config, "_attn_implementation", "eager")
    seen = _keys_seen_in_library(json.dumps({**config, "sliding_window": _WINDOW}), attention)
    return tuple(None if count is None else window + count - _WINDOW for count in seen)


@cache
def _keys_seen_in_library(config: str, attention: str) -> tuple[int | None, ...]:
    import transformers

    fields = json.loads(config)
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        fields[token] = None
    model_config = transformers.AutoConfig.for_model(**{**fields, "vocab_size": 2 * _LENGTH})
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(model_config, attn_implementation=attention)
    ages = keys_seen(model.eval(), model.base_model.layers, _LENGTH)
    return tuple(None if len(seen) == _LENGTH else len(seen) for seen in ages)


def _ages(given: torch.Tensor, made: torch.Tensor) -> tuple[int, ...]:
    weights = torch.linspace(-1, 1, made.shape[-1], dtype=made.dtype)
    (gradient,) = torch.autograd.grad((made[0, -1] * weights).sum(), given)
    moved = (gradient[0] != 0).any(dim=-1)
    return tuple(len(moved) - 1 - int(position) for position in moved.nonzero().flip(0).flatten())
