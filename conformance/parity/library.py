"""Access to the installed transformers, whatever its release: configs, dtypes, attentions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

import torch

from conformance.hub.language_model import causal_model_without_memory

SUCCESSORS = {
    "use_flash_attention_2": '`attn_implementation="flash_attention_2"`, where it is asked for,',
    "use_auth_token": "`token=…`",
    "load_in_8bit": "`quantization_config=BitsAndBytesConfig(load_in_8bit=True)`",
    "load_in_4bit": "`quantization_config=BitsAndBytesConfig(load_in_4bit=True)`",
    # 4.56 renamed it; before, the newer name is unknown.
    "torch_dtype": "`dtype=…`",
    "dtype": "`torch_dtype=…`",
    "past_key_value": "`past_key_values=…`",
}
"""Keywords that some releases of transformers take and others do not, and what takes their place
there."""


def version() -> str:
    """The installed release of transformers."""
    import transformers

    return str(transformers.__version__)


def library_config(config: Mapping[str, Any], **changes: Any) -> Any:
    """The transformers config object of a parsed `config.json`, without token ids, which a smaller
    vocabulary may lack."""
    import transformers

    no_tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    # transformers 5 writes thetas into the tables for rotary scaling that it is given.
    own = deepcopy({**config, **no_tokens, **changes})
    return transformers.AutoConfig.for_model(**own)


def text_config(llm: Any) -> Any:
    """The config of the language model itself, even if the wrapped model nests it."""
    return (
        llm.config.get_text_config()
        if hasattr(llm.config, "get_text_config")
        else getattr(llm.config, "text_config", llm.config)
    )


def keep_layers(llm: Any, kept: int | None) -> None:
    """Cut the decoder of `llm` off behind its first `kept` layers; None keeps them all."""

    if kept is None:
        return
    count = text_config(llm).num_hidden_layers
    for module in list(llm.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.ModuleList) and len(child) == count:
                setattr(module, name, child[:kept])
    text_config(llm).num_hidden_layers = kept


def text_parameters(llm: Any) -> frozenset[str]:
    """The parameters of transformers' own text model under the config of `llm`, by name; none if it
    has no class for it."""
    model = causal_model_without_memory(text_config(llm))
    return frozenset() if model is None else frozenset(dict(model.named_parameters()))


def in_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The argument of the installed transformers for the dtype to load or build a model in."""
    import transformers

    # https://github.com/huggingface/transformers/pull/39782: `torch_dtype` became `dtype`.
    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return {"dtype" if release >= (4, 56) else "torch_dtype": dtype}


def unround_buffers(llm: Any) -> None:
    """Restore the digits of rotary tables that were rounded when the model was loaded in half
    precision.

    Before transformers 4.48 some are made in the dtype of loading, and `.to(float32)` keeps the
    rounded values. A buffer is replaced only by one that its class makes in float32 and that rounds
    to the same bits, so a wrong one stays.
    """
    half = {
        name: buffer
        for name, buffer in llm.named_buffers()
        if name not in llm.state_dict()
        and buffer.dtype.is_floating_point
        and buffer.dtype.itemsize == 2
    }
    if not half or not hasattr(type(llm), "_from_config"):
        return
    with torch.random.fork_rng(devices=[]):
        full = dict(type(llm)._from_config(llm.config, **in_dtype(torch.float32)).named_buffers())
    for name, buffer in half.items():
        exact = full.get(name)
        if exact is not None and torch.equal(exact.to(buffer.dtype), buffer):
            parent, _, leaf = name.rpartition(".")
            setattr(llm.get_submodule(parent), leaf, exact.to(buffer.device))


def attentions_of(llm: Any) -> tuple[str, ...]:
    """The attention implementations that the model's class has and the machine can run, the
    installed flash-attn included."""
    from transformers.utils.import_utils import is_flash_attn_2_available

    has_sdpa = getattr(type(llm), "_supports_sdpa", True)
    has_flash = getattr(
        type(llm), "_supports_flash_attn", getattr(type(llm), "_supports_flash_attn_2", False)
    )
    return (
        "eager",
        *(("sdpa",) if has_sdpa else ()),
        *(("flash_attention_2",) if has_flash and is_flash_attn_2_available() else ()),
    )


@contextmanager
def attention_of(llm: Any, implementation: str, *, comparable: bool = False) -> Iterator[Any]:
    """`llm` with this attention while the body runs: itself if it has it or can switch, else
    (before transformers 4.48) a new model with the same tensors.

    A new model lacks what was done to `llm` after it was built; with `comparable` either all
    implementations come from switching, or all are new models.
    """
    before = llm.config._attn_implementation
    switches = hasattr(llm, "set_attn_implementation")
    if switches or (before == implementation and not comparable):
        if before != implementation:
            llm.set_attn_implementation(implementation)
        try:
            yield llm
        finally:
            if before != implementation:
                llm.set_attn_implementation(before)
        return
    with torch.random.fork_rng(devices=[]):
        other = type(llm)._from_config(llm.config, attn_implementation=implementation)
    _cut_alike(other, llm)
    parameter = next(llm.parameters())
    other = other.to(parameter.device)
    cast_parameters(other, parameter.dtype)
    other.load_state_dict(llm.state_dict())
    yield other.eval()


def _cut_alike(other: Any, llm: Any) -> None:
    """Cut the lists of modules in `other` to the lengths that they have in `llm`, whose config may
    not tell that layers were cut off."""
    for name, module in llm.named_modules():
        if isinstance(module, torch.nn.ModuleList):
            parent, _, last = name.rpartition(".")
            whole = other.get_submodule(name)
            if len(whole) > len(module):
                setattr(other.get_submodule(parent), last, whole[: len(module)])


def in_float32(backbone: Any) -> Any:
    """`backbone` in float32 throughout, the digits of its rotary tables restored."""
    unround_buffers(backbone.llm)
    return backbone.to(torch.float32)


def cast_parameters(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters alone, as FSDP's mixed precision with float32 buffers does; `.to()` would
    cast buffers too."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def published_name(model: Any, name: str) -> str:
    """The name under which checkpoints have the tensor that this model's state dict has as `name`:
    transformers 5 renames some as it loads."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before 5
        return name
    # A model of somebody's own has no such table.
    with suppress(Exception):
        (published,) = revert_weight_conversion(model, {name: model.state_dict()[name]})
        return str(published)
    return name
