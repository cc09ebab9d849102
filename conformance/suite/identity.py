"""What can be read off a backbone and must not depend on how it was built, nor on the process."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from typing import Any

import torch

from conformance.assertions import Blocked, quoted, refusal
from conformance.control.calls import declared_dropout
from conformance.parity.library import published_name
from conformance.subject.subject import Host, Subject
from conformance.suite.dialogues import turns_of
from conformance.suite.models import first_rows, same_tensor
from conformance.suite.random_streams import seed_all, streams_restored

MAY_DIFFER = {
    "use_cache", "_name_or_path", "transformers_version", "torch_dtype", "dtype", "vocab_size",
}  # fmt: skip
"""Keys of a config that say how it came about, that the documented modes differ in, or that EMB-03
holds to the rows in each mode."""
_TEXT = "The quick brown fox, 42 times: naïve “quotes” &amp; <b>tags</b>\n\tand\u00a0spaces."
_DIALOGUE = ("What do you see?", "A cup.", "And now?", "A plate.")
_SYSTEM = "You are a robot arm."
_DIGITS = 16
_ABSENT = "absent"
_SEED = 25
"""Of the streams while an instance is built: what is drawn from them is then another's than the
shared instance's."""


def traits(backbone: Any) -> dict[str, Any]:
    """Name and value of everything that a constructor decides, whatever was loaded: members of the
    contract, configs, parameters by shape, buffers, dropout rates, the tokenizer's settings."""
    llm, tokenizer = backbone.llm, backbone.get_tokenizer()
    found: dict[str, Any] = {
        member: getattr(backbone, member, None)
        for member in (
            "identifier", "embed_dim", "pad_token_id", "half_precision_dtype",
            "transformer_layer_cls",
        )
    }  # fmt: skip
    for key, value in _leaves(plain(getattr(llm, "config", None))):
        found[f"`{key}` of the config"] = value
    found |= generation_traits(getattr(llm, "generation_config", None))
    found["the class of `llm`"] = type(llm)
    found |= {f"the shape of `{n}`": tuple(p.shape) for n, p in llm.named_parameters()}
    found |= {f"the buffer `{name}`": buffer for name, buffer in llm.named_buffers()}
    found |= {f"the dropout rate of {name}": p for name, p in declared_dropout(llm).items()}
    return found | {
        f"`{name}` of the tokenizer": getattr(tokenizer, name, None)
        for name in ("padding_side", "truncation_side", "special_tokens_map", "all_special_ids")
    }


def _leaves(config: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a config that may not differ, by their paths; those of its parts too."""
    for key, value in config.items():
        if key in MAY_DIFFER or "attn_implementation" in key:
            continue
        if key.endswith("_config") and isinstance(value, Mapping):
            yield from _leaves(value, f"{within}{key}.")
        else:
            yield f"{within}{key}", value


def encoding_traits(tokenizer: Any) -> dict[str, Any]:
    """How a text with everything in it is encoded, and decoded."""
    ids = tokenizer(_TEXT).input_ids
    return {"the encoding of a text": ids, "the decoding of ids": tokenizer.decode(ids)}


def prompt_traits(subject: Subject, backbone: Any) -> dict[str, Any]:
    """The prompts of a dialogue for each host that works, with a system prompt and without."""
    found: dict[str, Any] = {}
    with suppress(Blocked):  # PRM-16 judges what fails every host
        for family in sorted({host.model_family for host in subject.working_hosts}):
            host = Host(family, backbone.prompt_builder_fn, "training")
            for told, system_prompt in (("the prompt", None), ("the prompt with system", _SYSTEM)):
                builder = host.builder(system_prompt)
                turns_of(builder, _DIALOGUE)
                found[f"{told} for {family!r}"] = builder.get_prompt()
    return found


def generation_traits(generation_config: Any) -> dict[str, Any]:
    """The settings of a generation config that do not say how it came about."""
    return {
        f"`{key}` of the generation config": value
        for key, value in plain(generation_config).items()
        if key not in MAY_DIFFER
    }


def configs_of(backbone: Any) -> dict[str, Any]:
    """The settings of both configs of `llm`, by name."""
    return {
        **plain(getattr(backbone.llm, "config", None)),
        **generation_traits(getattr(backbone.llm, "generation_config", None)),
    }


def plain(config: Any) -> Mapping[str, Any]:
    """A config as a mapping; empty if there is none."""
    return config.to_dict() if hasattr(config, "to_dict") else {}


def differing_traits(
    found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """The traits that are not the same in both, by name: the found value and the wanted one, as a
    message shows them."""
    return {
        name: (quoted(found.get(name, _ABSENT)), quoted(wanted.get(name, _ABSENT)))
        for name in {**wanted, **found}
        if not _equal(found.get(name, _ABSENT), wanted.get(name, _ABSENT))
    }


def first_of(differing: Mapping[str, tuple[str, str]]) -> tuple[str, str, str]:
    """Name, found and wanted value of the first trait that differs; empty if none does."""
    return next(((name, *values) for name, values in differing.items()), ("", "", ""))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def traits_as_text(subject: Subject) -> dict[str, str]:
    """The traits of a fresh training-mode instance and all that is particular to this instance
    (order and values of what was loaded, ids of tokens, prompts, wrap units), as text that another
    process can compare."""
    # A buffer may come into being with the first call: 4.40's Gemma has its frequencies then.
    with streams_restored():
        seed_all(_SEED)
        backbone = subject.build()
    llm, tokenizer = backbone.llm, backbone.get_tokenizer()
    parameters = dict(llm.named_parameters())
    # What the checkpoint lacks may be drawn anew at each construction: whole tensors, added rows.
    shapes, before = subject.checkpoint.shapes, dict(subject.training.llm.named_parameters())
    on_disk = {n: n if n in shapes else published_name(llm, n) for n in parameters}
    loaded = {
        name: first_rows(parameter, next(iter(shapes[on_disk[name]]), 1))
        for name, parameter in parameters.items()
        if on_disk[name] in shapes
    }
    loaded |= {n: p for n, p in parameters.items() if same_tensor(before.get(n), p)}
    found = {
        **traits(backbone),
        **encoding_traits(tokenizer),
        **{f"parameter {place} of `llm`": name for place, name in enumerate(parameters)},
        "what is trained": [n for n, p in parameters.items() if p.requires_grad],
        **{f"the dtype of `{name}`": p.dtype for name, p in parameters.items()},
        **{f"the values of `{name}`": values for name, values in loaded.items()},
        **{
            f"the id of {one.content!r}": token
            for token, one in tokenizer.added_tokens_decoder.items()
        },
        "the ids of the vocabulary": _digest(repr(sorted(tokenizer.get_vocab().items())).encode()),
        "the modules that the wrap policy takes": _wrapped(backbone),
    }
    found |= prompt_traits(subject, backbone)
    # Each process has a cache of its own.
    home = str(subject.view.home)
    return {name: _as_text(value).replace(home, "<cache>") for name, value in found.items()}


def _wrapped(backbone: Any) -> Any:
    """The modules of `llm` that become units of their own, or what kept the policy from saying."""
    with refusal() as refused:
        policy = backbone.get_fsdp_wrapping_policy()
        units = [
            name
            for name, module in backbone.llm.named_modules()
            if policy(
                module=module,
                recurse=False,
                nonwrapped_numel=sum(one.numel() for one in module.parameters()),
            )
        ]
    return type(refused[0]) if refused else units


def _as_text(value: Any) -> str:
    """`value` in words that are the same wherever it is: sets and mappings sorted, tensors as
    digests, no addresses."""
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {tuple(value.shape)} {_digest(data)}"
    if inspect.isclass(value):
        return value.__qualname__
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(sorted(f"{key!s}: {_as_text(one)}" for key, one in value.items())) + "}"
        )
    if isinstance(value, Set):
        return "{" + ", ".join(sorted(map(_as_text, value))) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_as_text, value)) + "]"
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return repr(value)
    return type(value).__qualname__


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]
