"""Keeps rotary frequencies in float32 while everything else goes to half precision.

A frequency rounded to bfloat16 turns a query by an angle whose error grows with its position: at
1,024 positions it is larger than all other rounding together
(https://github.com/huggingface/transformers/issues/25681).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

FREQUENCIES = "inv_freq"
"""How the names of their buffers end in transformers: `inv_freq` and `original_inv_freq`, from 4.40
(a module per layer) to 5.x (one module for all layers), and `full_attention_inv_freq` and the like
where kinds of layers have their own (Gemma 3 in 5.x)."""


def keep_rotary_float32(llm: nn.Module) -> None:
    """Keeps `llm`'s rotary frequencies float32 from now on, whoever casts the model.

    There are two ways to cast: `.to(dtype)`, `.half()` and the like go through `_apply`, at `llm`
    or at any module around it; FSDP's `buffer_dtype` overwrites a buffer's data in place. The first
    is undone at once, the second before the next forward. Buffers stay buffers, so devices,
    sharding, state dicts and pickles are as before.
    """
    for module in llm.modules():
        exact = {
            name: buffer.detach().clone()
            for name, buffer in module.named_buffers(recurse=False)
            if name.endswith(FREQUENCIES)
        }
        if exact:
            object.__setattr__(module, "_apply", functools.partial(_apply_to_all_but_dtype, module))
            module.register_forward_pre_hook(functools.partial(_restore, exact))


def _apply_to_all_but_dtype(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    before = dict(module.named_buffers(recurse=False))
    type(module)._apply(module, *args, **kwargs)  # type: ignore[no-untyped-call]
    for name, buffer in before.items():
        cast = module.get_buffer(name)
        if cast.dtype != buffer.dtype:
            setattr(module, name, buffer.to(cast.device))
    return module


def _restore(exact: dict[str, torch.Tensor], module: nn.Module, args: tuple[Any, ...]) -> None:
    for name, frequencies in exact.items():
        buffer = module.get_buffer(name)
        if buffer.dtype != frequencies.dtype:
            setattr(module, name, frequencies.to(buffer.device))
