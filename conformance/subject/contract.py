"""The contract that a backbone keeps, and how to check an object for its members without running
it."""

from __future__ import annotations

import inspect
from typing import Any

CANARY_TOKEN = "hf_ConformanceCanaryDoNotKeepMe"
"""The `hf_token` of every construction: easily recognised wherever it leaks, valid nowhere."""
LLM_MAX_LENGTH = 2048
"""The `llm_max_length` of every construction, in tokens."""

ARGUMENTS = (
    "backbone_id",
    "llm_max_length",
    "hf_token",
    "inference_mode",
    "use_flash_attention_2",
)
"""What a constructor is called with: the first by position, the others by name."""
REQUIRED_MEMBERS = (
    "get_tokenizer",
    "get_fsdp_wrapping_policy",
    "enable_gradient_checkpointing",
    "embed_input_ids",
    "forward",
    "prompt_builder_fn",
    "transformer_layer_cls",
    "half_precision_dtype",
    "embed_dim",
    "pad_token_id",
)
"""Members of the contract that a VLM calls on any backbone (OpenVLA's `LLMBackbone`)."""
INSTANCE_MEMBERS = ("llm", "identifier")
"""Members that only an instance has."""
BUILDER_MEMBERS = ("add_turn", "get_prompt", "get_potential_prompt")
"""Members of a prompt builder that hosts call."""
HOST_MODEL_FAMILIES = ("prismatic", "openvla")
"""What Prismatic's hosts pass to prompt builders as `model_family`."""
OPTIONAL_MEMBERS = ("last_layer_finetune_modules",)

_MODULE_REGISTRIES = ("_modules", "_parameters", "_buffers")
"""Where an `nn.Module` keeps what is assigned to it; a class has none of them."""


def eos_ids_of(generation_config: Any) -> tuple[int, ...]:
    """`eos_token_id` as a tuple, whether it is None, one id or a list."""
    eos = getattr(generation_config, "eos_token_id", None)
    return () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)


def lacks_member(owner: Any, member: str) -> bool:
    """Whether `owner` (a class or an instance) has no attribute `member`; properties are not
    evaluated."""
    try:
        found = inspect.getattr_static(owner, member)
    except AttributeError:
        if any(member in vars(owner).get(registry, ()) for registry in _MODULE_REGISTRIES):
            return False
        # A wrapper may pass on what it lacks itself; a class cannot.
        return inspect.isclass(owner) or not hasattr(owner, member)
    # Every `nn.Module` has a forward; the unimplemented default does not count.
    return getattr(found, "__name__", "") == "_forward_unimplemented"
