"""What clauses need of a model: probe inputs, bitwise comparison, parameters with a row per
token."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from conformance.assertions import Blocked, ClauseFailure, NotApplicable, refusal
from conformance.control.calls import IGNORED_LABEL as IGNORED_LABEL
from conformance.oracle import InvalidConfig, NoReference
from conformance.oracle.shapes import parameter_shapes
from conformance.parity.library import (
    in_dtype,
    keep_layers,
    published_name,
    text_config,
    text_parameters,
)
from conformance.parity.receptive_field import reference_as_installed
from conformance.parity.reference import Reference
from conformance.subject.subject import Subject

_TOKENS_BEFORE, _TOKENS_BEHIND = 4, 12
"""How many tokens are shown of two encodings before and behind their first difference."""


def probe_ids(subject: Subject, batch: int = 2, length: int = 8) -> torch.Tensor:
    """Fixed ordinary token ids, `(batch, length)`: spread over the vocabulary, none of them
    special."""
    special = set(subject.tokenizer.all_special_ids)
    rows = len(subject.tokenizer)
    ordinary = (
        token
        for token in ((17 + 7919 * step) % rows for step in range(10 * batch * length))
        if token not in special
    )
    return torch.tensor([[next(ordinary) for _ in range(length)] for _ in range(batch)])


def built_both_ways(subject: Subject) -> Iterator[tuple[str, Any]]:
    """A fresh backbone for training and one for inference, with what each was built for. Its `llm`
    has been asked for: some build it only then."""
    for built, build in (("training", subject.build), ("inference", subject.build_for_inference)):
        backbone = build()
        _ = backbone.llm
        yield built, backbone


def positions_of(llm: Any) -> int:
    """The published number of positions; 2,048 if the config does not say."""
    return int(getattr(text_config(llm), "max_position_embeddings", None) or 2048)


def is_routed(llm: Any) -> bool:
    """Whether tokens are routed to experts: rounding may then send one elsewhere, which no gate on
    errors allows for."""
    config = text_config(llm)
    return any(
        getattr(config, key, None)
        for key in ("num_experts", "num_local_experts", "n_routed_experts")
    )


def logits_of(output: Any) -> torch.Tensor:
    """The logits that a forward returned.

    Raises:
        Blocked: by CON-08, if it returned something without `logits`.
    """
    logits = getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise Blocked("CON-08")
    return logits


def reference_of(subject: Subject, llm: Any, config: Mapping[str, Any] | None = None) -> Reference:
    """What `llm` should compute under `config` (the published one), windows as the installed
    library counts them.

    Raises:
        NotApplicable: for a family without a reference.
        ClauseFailure: for a config that contradicts itself or the tensors.
    """
    if subject.declared.attention != "causal":
        raise NotApplicable(
            f'`attention = "{subject.declared.attention}"` is declared; the reference is causal'
        )
    with judging_config(
        expected="a config that describes the checkpoint's tensors",
        mend="correct `config.json`, or the constructor that changes what was loaded",
    ):
        reference = reference_as_installed(llm, config or subject.published_config)
    return replace(reference, tokens=len(subject.tokenizer))


@contextmanager
def judging_config(*, expected: str, mend: str) -> Iterator[None]:
    """Turn the oracle's errors on a config into outcomes: without a reference the clause is not
    applicable, a contradiction fails it."""
    try:
        yield
    except NoReference as reason:
        raise NotApplicable(str(reason)) from None
    except InvalidConfig as contradiction:
        raise ClauseFailure(str(contradiction), expected, mend) from None


def published_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter that a published config describes, by the family's table.

    Raises:
        NotApplicable: for a family without a reference.
        ClauseFailure: for a config that no decoder can have.
    """
    with judging_config(
        expected="a config that a decoder can have",
        mend="correct the published config in the recipe, or the checkpoint's `config.json`",
    ):
        return parameter_shapes(config)


def configurable_class(subject: Subject) -> type:
    """The class of `llm`.

    Raises:
        NotApplicable: if it cannot be built from a config alone.
    """
    model_class = type(subject.training.llm)
    if not hasattr(model_class, "_from_config"):
        raise NotApplicable(
            f"`llm` is a {model_class.__name__}, which cannot be built from a config alone"
        )
    return model_class


def loaded_in(subject: Subject, dtype: torch.dtype) -> Any:
    """The subject's model class, loaded from the checkpoint in `dtype` the way that transformers
    documents."""
    model_class = type(subject.training.llm)
    if not hasattr(model_class, "from_pretrained"):
        raise NotApplicable(f"a {model_class.__name__} has no `from_pretrained`")
    llm = model_class.from_pretrained(subject.published, **in_dtype(dtype)).eval()
    keep_layers(llm, subject.declared.layers_kept)
    return llm


def first_rows(parameter: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` rows of a parameter; a scalar has none, and is itself."""
    values = parameter.detach()
    return values[:count] if values.dim() else values


def same_tensor(observed: torch.Tensor | None, expected: torch.Tensor) -> bool:
    """Bit-equality, NaN included; dtype and shape count."""
    if observed is None or observed.dtype != expected.dtype or observed.shape != expected.shape:
        return False
    return torch.equal(observed, expected) or bool(
        ((observed == expected) | (observed.isnan() & expected.isnan())).all()
    )


@contextmanager
def in_place_of_llm(backbone: Any, other: Any) -> Iterator[bool]:
    """Put another model in the place of `llm` while the body runs, and say whether it can be."""
    own = backbone.llm
    with refusal():
        backbone.llm = other
    taken = backbone.llm is other
    try:
        yield taken
    finally:
        if taken:
            backbone.llm = own


def vocabulary_parameters(llm: Any) -> set[str]:
    """State-dict names of the parameters with one row per token: the input embedding and the output
    head."""
    modules = [llm.get_input_embeddings(), llm.get_output_embeddings()]
    parameters = {
        id(parameter)
        for module in modules
        if module is not None
        for parameter in module.parameters()
    }
    return {
        name
        for name, parameter in llm.named_parameters(remove_duplicate=False)
        if id(parameter) in parameters
    }


def vocabulary_tensors(subject: Subject) -> dict[str, str]:
    """State-dict name of each parameter with one row per token, and the name of its tensor in the
    checkpoint.

    Releases rename modules as they load (a nested language model's, say): mostly not the last two
    parts of a name, and where they do (GPT-NeoX's head) the library knows both. A head that is tied
    to the embedding has no tensor of its own in a checkpoint, and is left out.
    """
    names: dict[str, str] = {}
    for name in sorted(vocabulary_parameters(subject.training.llm)):
        namesakes = [
            other for other in subject.checkpoint if other.split(".")[-2:] == name.split(".")[-2:]
        ]
        if name in namesakes or len(namesakes) == 1:
            names[name] = name if name in namesakes else namesakes[0]
        elif (published := published_name(subject.training.llm, name)) in subject.checkpoint:
            names[name] = published
    return names


def layer_count(subject: Subject, backbone: Any) -> int:
    """How many decoder layers the backbone should have: those that are declared kept, or else as
    many as its config says."""
    return subject.declared.layers_kept or int(text_config(backbone.llm).num_hidden_layers)


def is_cut_off(subject: Subject, tensor: str) -> bool:
    """Whether a tensor of the checkpoint belongs to a layer that is declared not to be kept."""
    kept = subject.declared.layers_kept
    layer = next((int(part) for part in tensor.split(".") if part.isdecimal()), None)
    return kept is not None and layer is not None and layer >= kept


def tensors_outside(subject: Subject) -> frozenset[str]:
    """The checkpoint's tensors that are those of modules which are declared not to be the language
    model, found by as much of their names as the checkpoint has, from the module's own name on: an
    action expert may have the language model's very layers. A parameter of `llm` that lies in none
    of these modules is never among them."""
    backbone, found = subject.training, set[str]()
    beside = subject.lie_outside(backbone)
    for path, module in subject.outside(backbone).items():
        parts = path.split(".")
        for name in module.state_dict():
            for start in range(len(parts)):
                ending = ".".join(["", *parts[start:], name])
                namesakes = {one for one in subject.checkpoint if f".{one}".endswith(ending)}
                if namesakes:
                    found |= namesakes
                    break
    own = {name for name, one in backbone.llm.named_parameters() if id(one) not in beside}
    return frozenset(found - own)


def tensors_to_find(subject: Subject) -> list[str]:
    """The checkpoint's tensors that the backbone must have as they are: all but those of the
    vocabulary, of layers that are declared to be cut off, and of modules declared outside."""
    vocabulary, outside = set(vocabulary_tensors(subject).values()), tensors_outside(subject)
    ours = subject.training.llm.state_dict()
    return [
        name
        for name in subject.checkpoint
        if name not in vocabulary
        and name not in outside
        and not name.endswith("rotary_emb.inv_freq")
        and not (is_cut_off(subject, name) and name not in ours)
    ]


def decoder_layers(backbone: Any) -> list[torch.nn.Module]:
    """The instances of `transformer_layer_cls` in `llm`, in order; none if that is not a class."""
    layer_cls = backbone.transformer_layer_cls
    modules: list[torch.nn.Module] = (
        list(backbone.llm.modules()) if inspect.isclass(layer_cls) else []
    )
    return [module for module in modules if isinstance(module, layer_cls)]


def beside_text(backbone: Any, ids: torch.Tensor) -> set[str]:
    """Names in `llm` of the parameters that belong to another modality: a forward over `ids` does
    not enter their module nor any around it below `llm`, no decoder layer holds them, and the
    library's text model of the config has none of that name."""
    llm, entered, handles = backbone.llm, {backbone.llm}, []
    modules = dict(llm.named_modules())
    for module in modules.values():
        handles.append(module.register_forward_pre_hook(lambda m, _: entered.add(m)))
    try:
        with torch.no_grad():
            backbone.forward(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()
    text = {module for layer in decoder_layers(backbone) for module in layer.modules()}
    named = text_parameters(llm)

    def is_beside(name: str) -> bool:
        owner = modules[name.rpartition(".")[0]]
        return owner not in entered | text and not any(name.endswith(own) for own in named)

    return {name for name, _ in llm.named_parameters() if is_beside(name)}


def next_multiple(of: int, count: int) -> int:
    """The smallest multiple of `of` that is at least `count`."""
    return -(-count // of) * of


def tokens_apart(
    subject: Subject, observed: Sequence[int], expected: Sequence[int]
) -> dict[str, list[list[Any]]]:
    """Two encodings around their first difference, each token as its id and its piece: evidence
    that a report shows token by token. Empty if they are the same."""
    if list(observed) == list(expected):
        return {}
    apart = next(
        (place for place, (a, b) in enumerate(zip(observed, expected, strict=False)) if a != b),
        min(len(observed), len(expected)),
    )
    shown = slice(max(apart - _TOKENS_BEFORE, 0), apart + _TOKENS_BEHIND)
    return {
        "observed": _pieces(subject, observed[shown]),
        "expected": _pieces(subject, expected[shown]),
    }


def _pieces(subject: Subject, ids: Sequence[int]) -> list[list[Any]]:
    pieces: list[Any] = [None] * len(ids)
    with suppress(Exception):  # the ids tell as much, and a broken tokenizer is judged elsewhere
        pieces = list(subject.tokenizer.convert_ids_to_tokens(list(ids)))
    return [
        [int(token), None if p is None else str(p)] for token, p in zip(ids, pieces, strict=True)
    ]
