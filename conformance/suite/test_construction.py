"""CON: construction and the contract."""

from __future__ import annotations

import enum
import functools
import importlib.util
import inspect
import io
import logging
import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from conformance.assertions import (
    BLOCKS_USERS_OF,
    Blocked,
    ClauseFailure,
    NotApplicable,
    quoted,
    refusal,
    require,
)
from conformance.catalogue import MUST, SHOULD, catalogue, requirement
from conformance.hub import HubCall, Recipe
from conformance.subject.contract import (
    CANARY_TOKEN,
    INSTANCE_MEMBERS,
    REQUIRED_MEMBERS,
    eos_ids_of,
    lacks_member,
)
from conformance.subject.process_state import is_mild
from conformance.subject.raised import where
from conformance.subject.secrets import places_in, watching
from conformance.subject.subject import Subject
from conformance.suite.advice import SIGNATURE, to_mend
from conformance.suite.identity import differing_traits, first_of, prompt_traits, traits
from conformance.suite.models import (
    probe_ids,
    same_tensor,
    tensors_to_find,
)
from conformance.suite.properties import for_all
from conformance.suite.random_streams import seed_all, streams_restored
from conformance.suite.strategies import UNKNOWN_ID
from conformance.suite.uses import uses_of

GARBAGE = b"not a safetensors file"

_REVISION = " (its revision or list of files)"


@requirement("CON-03", MUST)
def test_no_member_is_missing(subject: Subject) -> None:
    """No abstract member is left and every required member of the contract is defined: checked on
    the class, before anything is built (for a factory: on what it returns), naming what is missing.
    `last_layer_finetune_modules` is optional; a missing member blocks only the clauses that use it.
    """
    owner = subject.factory if _shows_its_members(subject.factory) else _constructed(subject)
    abstract = _abstract_members(subject)
    missing = sorted({*abstract, *(name for name in REQUIRED_MEMBERS if lacks_member(owner, name))})
    missing = [name for name in missing if name not in subject.optional_absent]
    if missing and not abstract and inspect.isclass(owner):
        # What `__init__` assigns does not show on the class: a member that seems missing may be
        # there once it has run.
        missing = (
            [name for name in missing if subject.lacks(name)] if _constructs(subject) else missing
        )
    require(
        not missing,
        observed=f"{'abstract or ' if abstract else ''}missing member(s): {', '.join(missing)}",
        expected="every required member of the contract defined",
        mend=f"define {', '.join(missing)} on {getattr(owner, '__name__', type(owner).__name__)}",
        missing=missing,
    )


@requirement("CON-01", MUST)
def test_training_mode_holds_the_checkpoint(subject: Subject) -> None:
    """The subject constructs in training mode with the documented arguments, from the checkpoint
    that its id stands for, and every tensor of it is in the model bit-equal in the declared master
    dtype (vocabulary-sized tensors by EMB-04); layers that are declared cut off and modules that
    are declared outside the language model are not asked. Nothing that the checkpoint lacks is left
    uninitialised."""
    if _abstract_members(subject):
        raise Blocked("CON-03")
    llm = _constructed(subject).llm
    meant = subject.recipes_by_id.get(subject.backbone_id)
    require(
        meant is None or meant.hub_id == subject.weights_hub_id,
        observed=f"the id {subject.backbone_id} stands for {meant.hub_id if meant else ''}, but "
        f"weights of {subject.weights_hub_id} were loaded",
        expected="the weights that the id stands for",
        mend="correct the hub id in the table of ids, or the recipe's `backbone_ids`",
    )
    ours, wanted = llm.state_dict(), tensors_to_find(subject)
    require(
        bool(wanted),
        observed="every tensor of the checkpoint is of the vocabulary, of a layer that is declared "
        "to be cut off, or of a module declared outside",
        expected="a language model whose weights can be looked for",
        mend="declare what is not the language model alone, in `outside` and `layers_kept`",
    )
    wrong = _lost(subject, ours, ((name, subject.checkpoint[name]) for name in wanted))
    first = next(iter(wrong), "")
    require(
        not wrong,
        observed=f"{len(wrong)} of {len(subject.checkpoint)} checkpoint tensors are not in the "
        f"model as published; "
        f"the first, `{first}`, " + ("has other values" if first in ours else "is not there"),
        expected=f"every tensor there, bit-equal in {subject.declared.master_dtype}",
        mend="load with `from_pretrained`, and change no weights after",
        tensors=wrong[:20],
    )


@requirement("CON-01", MUST)
def test_every_digit_is_loaded(subject: Subject) -> None:
    """Values that no narrower dtype holds arrive as they are: the weights pass through none on
    their way."""
    stored: dict[str, torch.Tensor] = {}
    with subject.hub_variant(functools.partial(_with_all_digits, stored)):
        state = subject.build().llm.state_dict()
    expected = {name: stored[subject.name_on_disk(name)] for name in tensors_to_find(subject)}
    wrong = _lost(subject, state, expected.items())
    first = next(iter(wrong), "")
    there = f"{float(expected[first].flatten()[0]):.9g}" if wrong else ""
    read = f"has {float(state[first].flatten()[0]):.9g}" if first in state else "is not there so"
    require(
        not wrong,
        observed=f"{len(wrong)} of {len(expected)} tensors lose digits: where the checkpoint has "
        f"{there}, `{first}` {read}",
        expected=f"every tensor as published, bit-equal in {subject.declared.master_dtype}",
        mend="load into the master dtype at once: another half precision holds fewer digits, or "
        "smaller ones",
        tensors=wrong[:20],
    )


@requirement("CON-01", MUST)
def test_nothing_is_left_uninitialised(subject: Subject) -> None:
    """Every parameter of a backbone for training has a value: what the checkpoint lacks is drawn or
    set, and is not what the memory held before."""
    with _empty_tensors_are_nan():
        backbone = subject.build()
        held = dict(backbone.llm.named_parameters())
    outside = subject.lie_outside(backbone)
    empty = [
        name
        for name, parameter in held.items()
        if id(parameter) not in outside and bool(parameter.detach().float().isnan().any())
    ]
    require(
        not empty,
        observed=f"{len(empty)} of {len(held)} parameters are never given a value, the "
        f"first is `{empty[0] if empty else ''}`",
        expected="a value for each of them",
        mend="initialise what the checkpoint lacks after `from_pretrained`: values that "
        "`__init__` sets are lost there, and the inner model's `_init_weights` does not know them",
        tensors=empty[:20],
    )


@contextmanager
def _empty_tensors_are_nan() -> Iterator[None]:
    """What `torch.empty` returns is filled with NaN while the body runs."""
    algorithms = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    deterministic: Any = torch.utils.deterministic  # whose settings are properties of the module
    filled = deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.use_deterministic_algorithms(True, warn_only=True)
            deterministic.fill_uninitialized_memory = True
            yield
        finally:
            deterministic.fill_uninitialized_memory = filled
            torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])


@requirement("CON-01", MUST)
def test_a_checkpoint_that_does_not_fit_is_refused(subject: Subject) -> None:
    """A checkpoint with a tensor of another shape than the config's is refused, as the library
    does, and not filled up with drawn values."""
    name = next(iter(tensors_to_find(subject)), None)
    if name is None:
        raise NotApplicable("the checkpoint has no tensor beside those of the vocabulary")
    with (
        subject.hub_variant(functools.partial(_shorten, subject.name_on_disk(name))),
        refusal() as refused,
    ):
        _ = subject.build().llm  # some load it when it is first asked for
    require(
        bool(refused),
        observed=f"with `{name}` cut short in the checkpoint, construction went through",
        expected="an error, as the library raises: a tensor that does not fit is of another model",
        mend="load without `ignore_mismatched_sizes=True`, and `strict`",
        tensor=name,
    )


@requirement("CON-01", MUST)
def test_weights_that_cannot_be_read_are_refused(subject: Subject) -> None:
    """Weights that cannot be read end construction for training: a run that begins from nothing
    looks like one that learns slowly."""
    with subject.hub_variant(_spoil_weights), refusal(Exception) as refused:
        _ = subject.build().llm
    require(
        bool(refused),
        observed="with unreadable weight files, construction for training went through",
        expected="an error: what the model would start from is not the checkpoint",
        mend="let the library's error through, and build from the config alone in inference mode "
        "only",
    )


@requirement("CON-02", MUST, needs=["CON-01"], uses=["inference_mode"])
def test_inference_mode_reads_no_weights(subject: Subject) -> None:
    """With `inference_mode=True` it constructs without reading any weight file, with the names,
    shapes and dtypes of CON-01."""
    with subject.hub_variant(_spoil_weights):
        try:
            backbone = subject.build(inference_mode=True)
        except Exception as error:
            raise ClauseFailure(
                observed=f"with unreadable weight files, construction raised "
                f"{type(error).__name__}: {quoted(str(error))}",
                expected="no weight file read in inference mode",
                mend="build from the config alone (`llm_cls._from_config(config)`, on a class "
                "that has it); the VLM's "
                "own checkpoint brings the weights",
            ) from error
    expected, observed = _signature_of(subject.training.llm), _signature_of(backbone.llm)
    differing = sorted(
        name for name in {*expected, *observed} if expected.get(name) != observed.get(name)
    )
    first = differing[0] if differing else ""
    require(
        not differing,
        observed=f"{len(differing)} tensors differ between the modes; in inference mode "
        f"`{first}` is {observed.get(first)}",
        expected=f"{expected.get(first)}, as in training mode",
        mend="resize in both modes, and pass the master dtype to `_from_config` explicitly",
        tensors=differing[:20],
    )


@requirement("CON-04", MUST, needs=["CON-01"], uses=["backbone_id"])
def test_unknown_id_is_refused(subject: Subject) -> None:
    """An unknown or misspelt id is refused with an error that names it, before anything is loaded.
    Listing the known ids: SHOULD (CON-12)."""
    for unknown in dict.fromkeys((UNKNOWN_ID, _misspelt(subject.backbone_id))):
        if unknown in subject.recipes_by_id:
            continue
        asked_before = len(subject.tap.calls)
        error = _error_for_unknown_id(subject, unknown)
        asked = [_address(call) for call in subject.tap.calls[asked_before:]]
        require(
            error is not None and unknown in str(error) and not asked,
            observed=f"the id {unknown!r} " + (
                "was accepted" if error is None else f"made the constructor ask the hub for "
                    f"{asked[0]}" if asked
                else f"was refused with {type(error).__name__}: {quoted(str(error))}"
            ),
            expected="an error that names the id, before the hub is asked for anything",
            mend="look the id up first and raise a ValueError that names it and the known ids",
        )  # fmt: skip


def _misspelt(backbone_id: str) -> str:
    """The id with two letters exchanged, as fingers do: `msitral-…`."""
    for at, (one, other) in enumerate(pairwise(backbone_id)):
        if at and one != other and (one + other).isalpha():
            return f"{backbone_id[:at]}{other}{one}{backbone_id[at + 2 :]}"
    return UNKNOWN_ID


@requirement("CON-05", MUST, uses=["use_flash_attention_2"])
def test_flash_attention_is_a_choice(subject: Subject) -> None:
    """`use_flash_attention_2=False` never needs flash-attn; `True` without it falls back with a
    warning or raises a clear ImportError before weights load (probe weights are sharded so that
    this shows). The implementation in force is readable."""
    try:
        llm = subject.training.llm
    except Exception as error:
        if not _wants_flash(error):
            raise Blocked("CON-01") from error
        raise ClauseFailure(
            observed="with use_flash_attention_2=False construction raised "
            f"{type(error).__name__}: {quoted(str(error), 300)}",
            expected="construction without flash-attn",
            mend="ask for flash attention only where `use_flash_attention_2` is True",
        ) from error
    plain = _attention_of(llm)
    require(
        plain is not None and "flash" not in plain,
        observed=f"with use_flash_attention_2=False the attention in force reads {plain!r}",
        expected="a readable implementation other than flash attention",
        mend="pass the choice on as `attn_implementation`, and leave `llm.config` to say which is "
        "in force",
    )
    if importlib.util.find_spec("flash_attn") is not None:
        return
    with _recorded_warnings() as said, refusal() as refused:
        attention = _attention_of(subject.build(use_flash_attention_2=True).llm)
    if not refused:
        require(
            bool(said) and attention is not None and "flash" not in attention,
            observed=f"without flash-attn, use_flash_attention_2=True built {attention!r} "
            f"attention and "
            + (
                f"warned: {quoted(said[0])}"
                if said
                else "gave no warning that names flash attention"
            ),
            expected="a warning that names it, and another attention implementation in force",
            mend="warn with `warnings.warn` and fall back to `sdpa`",
            # What is built is of use.
            partial=attention is not None and "flash" not in attention,
        )
        return
    refusing = refused[0]
    require(
        _wants_flash(refusing),
        observed="without flash-attn, use_flash_attention_2=True raised "
        f"{type(refusing).__name__}: {quoted(str(refusing))}",
        expected="a warning and other attention, or an ImportError that names flash-attn",
        mend='pass `attn_implementation="flash_attention_2"`: newer releases of transformers '
        "refuse the older keyword",
    )
    with subject.hub_variant(_spoil_weights), refusal() as early:
        subject.build(use_flash_attention_2=True)
    require(
        bool(early) and isinstance(early[0], ImportError),
        observed=f"without flash-attn the ImportError comes after the weights were read: "
        f"unreadable ones raised "
        f"{type(early[0]).__name__ if early else 'nothing'} first",
        expected="the ImportError before any weight file is read",
        mend="check for flash-attn before calling `from_pretrained`",
    )


@requirement("CON-06", MUST, needs=["CON-01"], uses=["forward"])
def test_cache_and_greedy_defaults(subject: Subject) -> None:
    """In training mode a forward returns no cache, in inference mode it can; generation defaults
    are greedy and `save_pretrained` accepts them."""
    ids = probe_ids(subject)
    with torch.no_grad():
        in_training = subject.training.forward(
            input_ids=ids, attention_mask=torch.ones_like(ids)
        ).past_key_values
        in_inference = subject.inference.forward(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True
        ).past_key_values
    require(
        in_training is None and in_inference is not None,
        observed=f"a cache is returned in training mode: {in_training is not None}; in inference "
        f"mode with use_cache: "
        f"{in_inference is not None}",
        expected="no cache in training mode, one in inference mode",
        mend="set `llm.config.use_cache = inference_mode`",
    )
    for mode, backbone in (("training", subject.training), ("inference", subject.inference)):
        require(
            not backbone.llm.generation_config.do_sample,
            observed=f"in {mode} mode generation samples by default (do_sample=True)",
            expected="greedy generation",
            mend="set `llm.generation_config.do_sample = False` and neutral temperature and top_p",
        )
        with tempfile.TemporaryDirectory() as folder, refusal() as refused:
            backbone.llm.generation_config.save_pretrained(folder)
        require(
            not refused,
            observed=f"in {mode} mode the generation config cannot be saved: "
            f"{quoted(''.join(map(str, refused)))}",
            expected="a generation config that `save_pretrained` accepts",
            mend="with do_sample=False, set temperature and top_p to 1.0 (or None)",
        )


@requirement("CON-07", MUST, needs=["CON-01"], uses=["hf_token"])
def test_token_leaks_nowhere(subject: Subject) -> None:
    """`hf_token` appears in no repr, log record of any logger, warning, output or exception, in
    nothing that can be reached from the backbone, in no file written anywhere, in no environment
    variable and no other program's arguments: in either mode, and after every use that hosts make
    of a backbone."""
    with watching() as watch:
        backbones = {"training": subject.build(), "inference": subject.build_for_inference()}
        for mode, backbone in backbones.items():
            for use in uses_of(subject, backbone, mode).values():
                with suppress(Exception):  # Whether these work is judged by other clauses.
                    use()
        watch.tell("the error for an unknown id", _told(_error_for_unknown_id(subject)))
        for what, spoil in (("unreadable weights", _spoil_weights), ("no tokenizer", _lose_files)):
            with subject.hub_variant(spoil), refusal(Exception) as refused:
                subject.build()
            watch.tell(f"the error for {what}", _told(refused[0] if refused else None))
        for backbone in backbones.values():
            watch.tell("repr(backbone)", repr(backbone))
            watch.tell("repr(llm.config)", repr(backbone.llm.config))
            watch.tell("repr(llm.generation_config)", repr(backbone.llm.generation_config))
            watch.tell("repr(tokenizer)", repr(backbone.get_tokenizer()))
        written = watch.leaks()
    kept = {place for backbone in backbones.values() for place in places_in(backbone)}
    leaks = list(dict.fromkeys([*written, *watch.leaks(), *sorted(kept)]))
    require(
        not leaks,
        observed=f"hf_token appears in {', '.join(leaks[:6])}"
        + (f" and {len(leaks) - 6} more places" if len(leaks) > 6 else ""),
        expected="the token nowhere but in hub calls",
        mend="store it nowhere, keep it out of messages, and pass it to hub calls only",
        places=leaks[:20],
    )


def _keywords(subject: Subject) -> st.SearchStrategy[list[str]]:
    names = (
        "attention_mask", "position_ids", "labels", "use_cache", "output_hidden_states",
        "return_dict",
        "inputs_embeds", "past_key_values", "output_attentions",
    )  # fmt: skip
    return st.lists(st.sampled_from(names), unique=True).map(sorted)


@requirement("CON-08", MUST, needs=["CON-01"], uses=["forward"])
@for_all(keywords=_keywords)
def test_forward_passes_everything_on(subject: Subject, keywords: list[str]) -> None:
    """`forward` passes every documented keyword on and returns what the wrapped model returns: the
    same fields with the same values, in a class of its own if it likes, and a tuple when
    `return_dict=False`."""
    backbone = subject.training
    _require_logits(subject)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with refusal() as refused:
            expected = backbone.llm(**_arguments(subject, keywords))
        if refused:
            return  # this transformers version takes no such combination
        observed = backbone.forward(**_arguments(subject, keywords))
    difference = _difference_of_results(observed, expected)
    require(
        difference is None,
        observed=f"with {', '.join(keywords) or 'input_ids alone'}, {difference}",
        expected="what `llm` returns for the same keywords",
        mend="pass each keyword of `forward` on to `self.llm` under its own name and return the "
        "result untouched",
    )


@requirement("CON-09", MUST, needs=["CON-01"])
def test_trainable_parameters_are_master_weights(subject: Subject) -> None:
    """In training mode the trainable parameters are in the declared master dtype (float32 unless
    declared), but for those of modules that are declared outside."""
    master = getattr(torch, subject.declared.master_dtype)
    outside = subject.lie_outside(subject.training)
    wrong = {
        name: str(p.dtype)
        for name, p in subject.training.named_parameters()
        if p.requires_grad and p.dtype != master and id(p) not in outside
    }
    first = next(iter(wrong), None)
    require(
        not wrong,
        observed=f"{len(wrong)} trainable parameters are in another dtype; the first, `{first}`, "
        f"is {wrong.get(first or '')}",
        expected=f"{subject.declared.master_dtype} master weights",
        mend="pass the dtype to `from_pretrained` (transformers 5 defaults to the checkpoint's "
        "own)",
    )


@requirement("CON-10", SHOULD, needs=["CON-01"])
def test_construction_ignores_the_global_rng(subject: Subject) -> None:
    """Two builds from different global RNG states are bit-equal, new embedding rows included."""
    states = []
    with streams_restored():
        for seed in (1, 2):
            seed_all(seed)
            states.append(subject.build().state_dict())
    outside = tuple(f"{path}." for path in subject.declared.outside)
    differing = [
        name
        for name in states[0]
        if not name.startswith(outside) and not same_tensor(states[0][name], states[1].get(name))
    ]
    require(
        not differing,
        observed=f"{len(differing)} tensors differ between two builds, the first is "
        f"{differing[:1]}",
        expected="the same bits whatever the global RNG state",
        mend="initialise new embedding rows with a generator of their own",
        tensors=differing[:20],
    )


@requirement("CON-11", MUST, needs=["CON-01"])
def test_construction_and_use_leave_the_process_alone(subject: Subject) -> None:
    """Construction, even where it raises, and every use that hosts make of a backbone leave the
    process as it was: every setting of torch, NumPy, Python and logging that changes what the rest
    of the process computes or says, environment, working directory, signal handlers. Neither seeds
    a random generator."""
    changed: dict[str, str] = {}
    with refusal():  # CON-05 judges that; libraries leave something behind as they raise
        for name, told in subject.changes_by_building(inference_mode=False, flash=True).items():
            if not is_mild(name):
                changed[name] = f"construction with use_flash_attention_2=True changed {told}"
    for told, changes in _by_refused_constructions(subject).items():
        for name, change in changes.items():
            if not is_mild(name):
                changed.setdefault(name, f"{told} changed {change}")
    for mode in ("training", "inference"):
        inference = mode == "inference"
        found = {
            f"construction in {mode} mode": subject.changes_by_building(inference_mode=inference)
        }
        _, seeded = _changed_and_seeded(
            subject, functools.partial(subject.build, inference_mode=inference)
        )
        for stream in seeded:
            changed.setdefault(stream, f"construction in {mode} mode seeds {stream}")
        # Uses leave traces in it, so it is not the shared instance.
        backbone = subject.build_for_inference() if inference else subject.build()
        for name, use in uses_of(subject, backbone, mode).items():
            found[name], seeded = _changed_and_seeded(subject, use)
            for stream in seeded:
                changed.setdefault(stream, f"{name} seeds {stream}")
        for place in subject.replaced_in_libraries(backbone):
            changed.setdefault(place, f"code of the subject's own stands in `{place}`")
        for cause, changes in found.items():
            for name, told in changes.items():
                if not is_mild(name):
                    changed.setdefault(name, f"{cause} changed {told}")
    require(
        not changed,
        observed="; ".join(changed.values()),
        expected="the process as it was before",
        mend="set such state inside a context manager, or not at all",
    )


def _by_refused_constructions(subject: Subject) -> dict[str, Mapping[str, str]]:
    """What constructions that raise change, before a library has anything to leave behind: hosts
    catch the error and take another model."""
    found = {}
    if not subject.lacks("backbone_id"):
        found["construction with an id that is refused"] = subject.changes_by_building(
            inference_mode=False, refused=UNKNOWN_ID
        )
    for told, patterns in {
        "any of the checkpoint's files": ("*",),
        "the checkpoint's weights": ("*.safetensors", "*.safetensors.index.json", "*.bin*"),
    }.items():
        with subject.tap.without(*patterns):
            found[f"construction without {told}"] = subject.changes_by_building(
                inference_mode=False, refused=subject.backbone_id
            )
    return found


def _changed_and_seeded(
    subject: Subject, use: Callable[[], Any]
) -> tuple[Mapping[str, str], list[str]]:
    """What a use changes in the process, and the random streams that stand at the same place after
    it, wherever they stood before."""
    after: list[dict[str, Any]] = []

    def seeded(seed: int) -> None:
        seed_all(seed)
        use()
        after.append(_streams())

    with streams_restored(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changes = subject.changes_by(lambda: seeded(20))
        with suppress(Exception):
            seeded(21)
    alike = (
        [name for name in after[0] if after[0][name] == after[-1][name]] if len(after) > 1 else []
    )
    return changes, alike


@requirement("CON-12", SHOULD, needs=["CON-04"])
def test_construction_leaves_random_streams_alone(subject: Subject) -> None:
    """Construction also leaves RNG streams, warning filters, search paths, limits and verbosity
    alone; errors list the known ids."""
    with streams_restored(), warnings.catch_warnings():
        # Earlier constructions may have left streams and filters as this one would: start from
        # others.
        seed_all(20)
        warnings.filterwarnings("ignore", message="a filter of the conformance suite's own")
        before = _streams_and_filters()
        changes = subject.changes_by_building(inference_mode=False)
        after = _streams_and_filters()
    moved = [name for name in before if before[name] != after[name]]
    moved += [told for name, told in changes.items() if is_mild(name)]
    require(
        not moved,
        observed=f"construction changed {', '.join(moved)}",
        expected="all of them unchanged",
        mend="draw new rows from a generator of their own, and change filters inside "
        "`warnings.catch_warnings()`",
    )
    if subject.lacks("backbone_id"):
        return
    error = _error_for_unknown_id(subject)
    require(
        subject.backbone_id in str(error),
        observed=f"the error for an unknown id is {quoted(str(error))}",
        expected=f"the known ids listed, {subject.backbone_id} among them",
        mend="name the known ids in the error",
    )


@requirement("CON-13", MUST, needs=["CON-01"])
def test_generation_config_survives_both_modes(subject: Subject) -> None:
    """Both modes carry the checkpoint's generation config: the same eos ids, the same pad. Beside
    the published eos ids only special tokens, such as the one that ends a turn, stop generation."""
    published = subject.published_generation_config()
    eos = set(eos_ids_of(published)) if published is not None else set()
    configs = {
        "training": subject.training.llm.generation_config,
        "inference": subject.inference.llm.generation_config,
    }
    found = {mode: set(eos_ids_of(config)) for mode, config in configs.items()}
    require(
        found["training"] == found["inference"] and eos <= found["training"],
        observed=f"eos ids are {sorted(found['training'])} in training mode and "
        f"{sorted(found['inference'])} in inference mode",
        expected=f"the same in both, the published {sorted(eos)} among them",
        mend="load `GenerationConfig.from_pretrained(hub_id)` in both modes: `_from_config` "
        "ignores the published file",
    )
    declared = set(eos_ids_of(subject.training.llm.config))
    known = found["training"] | set(eos_ids_of(subject.published_config_object()))
    require(
        declared <= known,
        observed=f"`llm.config.eos_token_id` is {sorted(declared)}, and generation stops at "
        f"{sorted(found['training'])}",
        expected=f"eos ids among {sorted(known)}, the published ones included",
        mend="leave the config's eos as it is published: engines that serve the saved model read "
        "it there",
    )
    special = set(subject.tokenizer.all_special_ids) | set(subject.tokenizer.added_tokens_decoder)
    text = sorted(found["training"] - eos - special - {subject.terminator_id})
    require(
        not text,
        observed=f"generation stops at {[subject.tokenizer.decode([one]) for one in text]} too, "
        f"ids {text}, which stand in ordinary text",
        expected=f"the published eos ids {sorted(eos)}, and at most special tokens beside them",
        mend="stop at what ends a turn, and at nothing that an answer may hold",
    )
    for mode, config in configs.items():
        bounds = {
            name: (getattr(config, name, None), getattr(published, name, None))
            for name in ("max_new_tokens", "min_new_tokens", "max_time", "num_beams")
        }
        changed = {
            name: value for name, (value, as_published) in bounds.items()
            if value not in (None, as_published, 1 if name == "num_beams" else None)
        }  # fmt: skip
        require(
            not changed,
            observed=f"in {mode} mode the generation config has {changed}, which is not published",
            expected="bounds as they are published, which a caller's own can replace",
            mend="leave how long an answer may be to the call: what the config bounds outranks a "
            "caller's `max_length`",
        )
    pads = {config.pad_token_id for config in configs.values()} - {None}
    require(
        len(pads) <= 1,
        observed=f"generation pads with {configs['training'].pad_token_id} in training and "
        f"{configs['inference'].pad_token_id} in inference mode",
        expected="one pad id",
        mend="set `llm.generation_config.pad_token_id` in both modes",
    )


@requirement("CON-15", MUST, needs=["CON-01"])
def test_members_have_their_types(subject: Subject) -> None:
    """On the instance every member has the documented type: `llm` a registered submodule,
    `identifier` the id asked for, `embed_dim` the embedding width, `get_tokenizer()` the tokenizer.
    """
    from transformers import PreTrainedTokenizerBase

    backbone = subject.training
    width = backbone.llm.get_input_embeddings().weight.shape[1]
    checks: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "llm": ("a submodule", lambda value: any(module is value for module in backbone.modules())),
        "identifier": (f"the id asked for, "
            f"{subject.backbone_id!r}", lambda value: value == subject.backbone_id),
        "get_tokenizer": (
            "a method that returns the tokenizer, the same one each time",
            lambda value: isinstance(value(), PreTrainedTokenizerBase) and value() is value(),
        ),
        "embed_dim": (f"the embedding width {width}", lambda value: value == width),
        # None if there is no pad token at all, which PAD-01 reports.
        "pad_token_id": ("a token id", lambda value: value is None or isinstance(value, int)),
        "half_precision_dtype": ("a torch.dtype", lambda value: isinstance(value, torch.dtype)),
        "transformer_layer_cls": ("a class", inspect.isclass),
        "prompt_builder_fn": ("a callable", callable),
        "get_fsdp_wrapping_policy": ("a method that returns the "
            "policy", lambda value: value() is not None),
        "enable_gradient_checkpointing": ("a method", callable),
        "embed_input_ids": ("a method", callable),
        "last_layer_finetune_modules": (
            "modules of "
                "llm", lambda value: all(isinstance(module, torch.nn.Module) for module in value)
        ),
    }  # fmt: skip
    wrong = {}
    for name, (documented, valid) in checks.items():
        if not subject.lacks(name) and not valid(value := getattr(backbone, name)):
            given = value() if inspect.ismethod(value) else value
            anew = name == "get_tokenizer" and isinstance(given, PreTrainedTokenizerBase)
            told = f"{_named(given)}, another one each time" if anew else _named(given)
            wrong[name] = (told, documented)
        elif subject.lacks(name) and name in INSTANCE_MEMBERS:
            wrong[name] = ("missing", documented)
    require(
        not wrong,
        observed=", ".join(f"{name} is {found}" for name, (found, _) in wrong.items()),
        expected=", ".join(documented for _, documented in wrong.values()),
        mend=f"return what the contract documents for {' and '.join(wrong)}",
        members=list(wrong),
    )


@requirement("CON-14", MUST, needs=["CON-01"], uses=["hf_token"])
def test_token_reaches_every_hub_call(subject: Subject) -> None:
    """`hf_token` reaches every hub call (config, weights, tokenizer, generation config): gated
    models load. Without one the same backbone is built, from public files."""
    calls = _calls_of_both_modes(subject)
    without = _requests_without_token(calls)
    if without:
        # Some releases lose the token on their way to a config, as the control shows.
        by_library: Sequence[HubCall] = ()
        with refusal():
            by_library = _calls_of_both_modes(subject.canonical())
        times = max(1, _tokenizers_in(calls) / max(1, _tokenizers_in(by_library)))
        lost = _requests_without_token(by_library)
        without = Counter({one: n for one, n in without.items() if n > times * lost[one]})
    # The repository's revision is requested with every file, so it does not show which call it was.
    bare = sorted({address for address in without if not address.endswith(_REVISION)} or without)
    require(
        bool(calls) and not bare,
        observed=f"asked the hub without hf_token for {', '.join(bare)}"
        if calls
        else "asked the hub for nothing",
        expected="hf_token passed with every hub call",
        mend="pass `token=hf_token` to each `from_pretrained`, the tokenizer's and the generation "
        "config's too",
        files=bare,
    )


def _calls_of_both_modes(subject: Subject) -> Sequence[HubCall]:
    asked_before = len(subject.tap.calls)
    subject.build()
    subject.build_for_inference()
    return subject.tap.calls[asked_before:]


def _requests_without_token(calls: Sequence[HubCall]) -> Counter[str]:
    """How often each file was requested without the token."""
    return Counter(
        _address(call)
        for call in calls
        if call.token != CANARY_TOKEN and call.found and not call.cache_only
    )


def _tokenizers_in(calls: Sequence[HubCall]) -> int:
    return sum(call.filename == "tokenizer_config.json" for call in calls)


@requirement("CON-14", MUST, needs=["CON-01"], uses=["hf_token"])
def test_no_token_is_no_difference(subject: Subject) -> None:
    """`hf_token` reaches every hub call (config, weights, tokenizer, generation config): gated
    models load. Without one the same backbone is built, from public files."""
    with refusal() as refused:
        backbone = subject.build(hf_token=None)
    require(
        not refused,
        observed=f"with hf_token=None construction raised "
        f"{type(refused[0]).__name__ if refused else ''}: {quoted(''.join(map(str, refused)))}",
        expected="a backbone: public models need no token",
        mend="take None, and pass it on",
    )
    difference = _difference_of_builds(subject, backbone)
    require(
        difference is None,
        observed=f"with hf_token=None {difference}",
        expected="the backbone that is built with a token",
        mend="let the token decide nothing but what the hub is shown",
    )


_OF_EVERY_ID = (
    "CON-13", "PAD-01", "PAD-02", "PAD-03", "PAD-05", "PAD-06", "EMB-01", "EMB-02", "EMB-03",
    "EMB-04", "EMB-06", "TOK-03", "HALF-01",
)  # fmt: skip
"""Clauses that take little time, build no prompt, and are asked of the other ids too."""


@requirement("CON-17", MUST, needs=["CON-02", "CON-04", *_OF_EVERY_ID], uses=["backbone_id"])
def test_every_id_is_what_it_stands_for(subject: Subject) -> None:
    """What is loaded under an id (weights, tokenizer, generation config) is what the id stands for,
    under the other ids of the family too that the class knows: each constructs, under its own name,
    the others' prompt builders, if they have one, are those of the rule, and what holds of pad
    token, rows, generation config, tokenizer and half precision under this id holds under the
    others. Building another one leaves the first as it was."""
    recipes = subject.recipes_by_id
    before = _traits_now(subject)
    listed = str(_error_for_unknown_id(subject))
    others = [
        name
        for name, recipe in recipes.items()
        if name != subject.backbone_id and recipe.family == subject.recipe.family and name in listed
    ]
    for name in ([subject.backbone_id] if subject.backbone_id in recipes else []) + others:
        asked_before = len(subject.tap.calls)
        with refusal() as refused:
            backbone = subject.build(name, inference_mode=True)
        require(
            not refused,
            observed=f"the id {name!r}, which the class lists, made construction raise "
            f"{type(refused[0]).__name__ if refused else ''}: {quoted(''.join(map(str, refused)))}",
            expected="a backbone for each listed id",
            mend=f"correct the row of {name!r} in the table of ids, or drop it",
            id=name,
        )
        _require_untouched(subject, before, name)
        _require_own_files(name, recipes[name], subject.tap.calls[asked_before:])
        rule = subject.declared.builder_for(name)
        builder = rule
        if name != subject.backbone_id:  # whose builder PRM-01 judges
            with refusal(ValueError):
                builder = _builder_of(backbone) or rule
        dtype = next(backbone.llm.parameters()).dtype
        found = (backbone.identifier, builder, str(dtype), len(backbone.get_tokenizer()) > 0)
        own = next(subject.training.llm.parameters()).dtype
        right = (name, rule or builder, str(own), True)
        require(
            found == right,
            observed=f"the id {name!r} gives identifier {found[0]!r}, prompt builder {found[1]}, "
            f"parameters in {found[2]}",
            expected=f"identifier {right[0]!r}, prompt builder {right[1]}, parameters in "
            f"{right[2]}",
            mend="let the id choose its row of the table and nothing else",
            id=name,
        )
        if name != subject.backbone_id:
            _require_of(name, subject.under(name))


@requirement("CON-17", MUST)
def test_a_model_of_another_vocabulary_changes_nothing(subject: Subject) -> None:
    """A model with another tokenizer, where the class lists one, leaves the one that was built
    before as it was."""
    before, listed = _traits_now(subject), str(_error_for_unknown_id(subject))
    name = next(
        (
            one
            for one, recipe in subject.recipes_by_id.items()
            if one in listed and recipe.family != subject.recipe.family
        ),
        None,
    )
    if name is None:
        raise NotApplicable("the class lists no model with another tokenizer")
    with refusal() as refused:
        subject.build(name, inference_mode=True)
    if refused:  # it needs another release, say
        raise NotApplicable(f"{name!r} cannot be built here: {refused[0]}")
    _require_untouched(subject, before, name)


def _require_untouched(subject: Subject, before: dict[str, Any], name: str) -> None:
    """The shared instance is what it was before another one was built under `name`."""
    changed = differing_traits(_traits_now(subject), before)
    first, now, then = first_of(changed)
    if changed:  # which is no fault of what other clauses look at
        subject.build()
    require(
        not changed,
        observed=f"once {name!r} was built too, {first} of the one that was built before is {now}, "
        f"and was {then}",
        expected="what it was: a script has a teacher and a student, or compares two sizes",
        mend="keep on the instance what depends on the id, and nothing on the class or in the "
        "module",
        differing=list(changed)[:20],
        id=name,
    )


def _traits_now(subject: Subject) -> dict[str, Any]:
    """Of the shared instance; its buffers may come into being with a call."""
    backbone = subject.training
    return {
        name: value
        for name, value in {**traits(backbone), **prompt_traits(subject, backbone)}.items()
        if not isinstance(value, torch.Tensor)
    }


def _require_of(name: str, other: Subject) -> None:
    from conformance.suite.collection import clause_tests

    tests = clause_tests()
    for clause in _OF_EVERY_ID:
        if any(other.lacks(member) for member in catalogue()[clause].uses):
            continue
        for test in tests[clause]:
            try:
                test(other)
            except (NotApplicable, Blocked):
                continue
            except ClauseFailure as failure:
                raise ClauseFailure(
                    observed=f"under the id {name!r} {clause} does not hold: {failure}",
                    expected="what holds under the id that is judged",
                    mend="let the id choose its row of the table and nothing else",
                    id=name,
                    clause=clause,
                ) from failure


def _require_own_files(name: str, recipe: Recipe, calls: Sequence[HubCall]) -> None:
    wrong = next((call for call in calls if call.found and call.repo_id != recipe.hub_id), None)
    require(
        wrong is None,
        observed=f"the id {name!r} stands for {recipe.hub_id}, but "
        f"{_address(wrong) if wrong else ''} was loaded",
        expected=f"files of {recipe.hub_id} alone",
        mend="correct the hub id in the table of ids, or the recipe's `backbone_ids`",
        id=name,
    )


def _difference_of_builds(subject: Subject, observed: Any) -> str | None:
    """How a backbone built otherwise differs from the shared one, the checkpoint's values
    included."""
    expected = subject.training
    for name in ("config", "generation_config"):
        ours, theirs = (_without_token(getattr(b.llm, name)) for b in (observed, expected))
        if ours != theirs:
            return f"the {name.replace('_', ' ')} differs"
    differing = _differing_parameter(subject, observed)
    if differing is not None:
        return f"the parameter `{differing}` differs in value, dtype or whether it is trained"
    tokenizers = observed.get_tokenizer(), expected.get_tokenizer()
    for fact in ("padding_side", "truncation_side", "model_max_length", "pad_token_id"):
        a, b = (getattr(tokenizer, fact) for tokenizer in tokenizers)
        if a != b:
            return f"the tokenizer's {fact} is {a!r} instead of {b!r}"
    if len({tuple(tokenizer("Pick up the cup.").input_ids) for tokenizer in tokenizers}) > 1:
        return "the tokenizer encodes a text otherwise"
    builders = [_builder_of(backbone) for backbone in (observed, expected)]
    return None if builders[0] == builders[1] else f"the prompt builder is {builders[0]}"


def _builder_of(backbone: Any) -> str:
    """The name of the prompt builder; empty if it has none, or there is no builder at all."""
    if lacks_member(backbone, "prompt_builder_fn"):
        return ""
    return getattr(backbone.prompt_builder_fn, "__name__", "")


def _without_token(config: Any) -> dict[str, Any]:
    """A config's values but for a token, which CON-07 looks for."""
    return {
        key: value for key, value in config.to_dict().items() if value not in (None, CANARY_TOKEN)
    }


def _differing_parameter(subject: Subject, observed: Any) -> str | None:
    """The first parameter that differs from the shared backbone's: what did not come from the
    checkpoint may be drawn anew at each construction, and only its values may."""
    ours = dict(observed.llm.named_parameters())
    theirs = dict(subject.training.llm.named_parameters())

    def differs(name: str) -> bool:
        if name not in ours or name not in theirs:
            return True
        one, other = ours[name], theirs[name]
        rows = subject.checkpoint.shapes.get(name, (0,))[0]
        return (
            one.requires_grad != other.requires_grad
            or (one.dtype, one.shape) != (other.dtype, other.shape)
            or not same_tensor(one.detach()[:rows], other.detach()[:rows])
        )

    return next((name for name in sorted({*ours, *theirs}) if differs(name)), None)


def _constructed(subject: Subject) -> Any:
    try:
        return subject.training
    except ClauseFailure:
        raise
    except (Exception, SystemExit) as error:
        if _wants_flash(error):
            raise Blocked("CON-05") from error
        told = (
            f"sys.exit({error.code!r})"
            if isinstance(error, SystemExit)
            else f"{type(error).__name__}: {quoted(str(error), 400)}"
        )
        raise ClauseFailure(
            observed=f"construction ended in {told} at {where(error, subject.factory)}",
            expected=f"a backbone from {SIGNATURE}",
            mend=to_mend(error, subject.factory, subject.backbone_id),
        ) from error


def _constructs(subject: Subject) -> bool:
    with suppress(Exception, SystemExit):
        return subject.training is not None
    return False


def _wants_flash(error: BaseException) -> bool:
    return isinstance(error, ImportError) and "flash" in str(error).lower()


def _address(call: HubCall) -> str:
    return f"{call.repo_id}/{call.filename}" if call.filename else f"{call.repo_id}{_REVISION}"


def _named(value: Any) -> str:
    """A value in short form for a message: plain ones spelled out, functions and classes by name,
    others by type."""
    if isinstance(value, enum.Enum) or hasattr(value, "__name__"):
        return str(getattr(value, "name", None) or value.__name__)
    plain = value is None or isinstance(value, (bool, int, float, str, torch.dtype))
    return quoted(value, 60) if plain else f"a {type(value).__name__}"


def _shows_its_members(factory: Any) -> bool:
    """Whether the factory shows the members of what it makes: a function does not, nor a class that
    delegates them."""
    return inspect.isclass(factory) and getattr(factory, "__getattr__", None) in (
        None,
        torch.nn.Module.__getattr__,
    )


def _abstract_members(subject: Subject) -> list[str]:
    return (
        sorted(getattr(subject.factory, "__abstractmethods__", ()))
        if inspect.isclass(subject.factory)
        else []
    )


def _spoil_weights(snapshot: Path) -> None:
    for path in snapshot.glob("*.safetensors"):
        path.write_bytes(GARBAGE)


def _lose_files(snapshot: Path) -> None:
    """Leave nothing of the tokenizer: what the hub refuses, a library misses."""
    for path in snapshot.glob("*token*"):
        path.unlink()


def _lost(
    subject: Subject,
    state: Mapping[str, torch.Tensor],
    published: Iterable[tuple[str, torch.Tensor]],
) -> list[str]:
    """The names of published tensors that are not in the state dict, bit-equal in the declared
    master dtype. CON-09 checks the dtype in which the model keeps them."""
    master = getattr(torch, subject.declared.master_dtype)
    # Releases rename modules as they load (a nested language model's, say): a tensor without a
    # namesake may be elsewhere.
    elsewhere = [tensor for name, tensor in state.items() if name not in subject.checkpoint]
    return [
        name
        for name, tensor in published
        if not any(
            same_tensor(found.to(master), tensor.to(master))
            for found in ([state[name]] if name in state else elsewhere)
        )
    ]


_WITH_ALL_DIGITS = {
    torch.bfloat16: 2.0**-30,  # too small for float16
    torch.float16: 1 + 2.0**-10,  # more digits than bfloat16 has
    torch.float32: 1 + 2.0**-20,
}
"""A value of each dtype that the next narrower ones round."""


def _with_all_digits(stored: dict[str, torch.Tensor], snapshot: Path) -> None:
    """Begin every tensor with such a value, and note what is stored then."""

    def begun(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype in _WITH_ALL_DIGITS:
            tensor.view(-1)[0] = _WITH_ALL_DIGITS[tensor.dtype]
        stored[name] = tensor
        return tensor

    _rewrite(snapshot, begun)


def _shorten(name: str, snapshot: Path) -> None:
    """Give a tensor of the checkpoint one row less."""
    _rewrite(snapshot, lambda one, tensor: tensor[:-1].clone() if one == name else tensor)


def _rewrite(snapshot: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Store what `change` makes of each tensor, by its name."""
    for path in snapshot.glob("*.safetensors"):
        tensors = {name: change(name, tensor) for name, tensor in load_file(path).items()}
        path.unlink()  # it may be shared with other snapshots
        save_file(tensors, path, metadata={"format": "pt"})


def _signature_of(llm: Any) -> dict[str, str]:
    return {
        name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in llm.state_dict().items()
    }


def _error_for_unknown_id(subject: Subject, unknown: str = UNKNOWN_ID) -> BaseException | None:
    with refusal(Exception) as refused:
        subject.build(unknown)
    return refused[0] if refused else None


def _told(error: BaseException | None) -> str:
    """An exception's text and notes with those of everything it was raised from."""
    texts = []
    while error is not None:
        texts += [f"{error!r} {error}", *getattr(error, "__notes__", ())]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def _attention_of(llm: Any) -> str | None:
    return getattr(llm.config, "_attn_implementation", None)


def _arguments(subject: Subject, keywords: list[str]) -> dict[str, Any]:
    """Keyword arguments of a forward over `(2, 6)` ids, each chosen so that dropping it shows in
    the result."""
    llm, ids = subject.training.llm, probe_ids(subject, batch=2, length=6)
    mask = torch.ones_like(ids)
    made: dict[str, Any] = {"input_ids": ids}
    if "inputs_embeds" in keywords:
        made = {"inputs_embeds": llm.get_input_embeddings()(ids).detach() * 0.5}
    if "past_key_values" in keywords:
        made["past_key_values"] = llm(input_ids=ids[:, :3], use_cache=True).past_key_values
        mask = torch.ones(2, 9, dtype=torch.long)
    if "attention_mask" in keywords:
        made["attention_mask"] = mask.clone()
        made["attention_mask"][1, :2] = 0
    if "position_ids" in keywords:
        # Below the number of keys: 4.40.1 raises beyond it.
        made["position_ids"] = torch.arange(6).flip(0).expand(2, 6).contiguous()
    if "labels" in keywords:
        made["labels"] = ids
    flags = {
        "use_cache": True,
        "output_hidden_states": True,
        "output_attentions": True,
        "return_dict": False,
    }
    return {**made, **{name: value for name, value in flags.items() if name in keywords}}


def _require_logits(subject: Subject) -> None:
    """Fail the clause, and block all that use `forward`, unless it returns logits for ids."""
    with torch.no_grad(), refusal() as refused:
        result = subject.training.forward(input_ids=probe_ids(subject, batch=2, length=6))
    require(
        not refused and isinstance(getattr(result, "logits", None), torch.Tensor),
        observed="`forward(input_ids=…)` "
        + (
            f"raised {type(refused[0]).__name__}: {quoted(str(refused[0]))}"
            if refused
            else f"returned a {type(result).__name__} without `logits`"
        ),
        expected="what the language model returns, with `logits` of shape (batch, sequence, "
        "vocabulary)",
        mend="return the language model's output as it is",
        **{BLOCKS_USERS_OF: "forward"},
    )


def _difference_of_results(observed: Any, expected: Any) -> str | None:
    """How what `forward` returned differs from what `llm` returned; a caller's own class of outputs
    is no difference."""
    if not hasattr(expected, "keys"):
        return _difference(observed, expected)
    if isinstance(observed, (tuple, list, torch.Tensor)):
        return f"a {type(observed).__name__} came back instead of a {type(expected).__name__}"
    missing = [name for name in expected if getattr(observed, name, None) is None]
    if missing:
        return f"a {type(observed).__name__} without `{missing[0]}` came back"
    return next(
        (
            f"`{name}`: {found}"
            for name in expected
            if (found := _difference(getattr(observed, name), expected[name]))
        ),
        None,
    )


def _difference(observed: Any, expected: Any) -> str | None:
    if type(observed) is not type(expected):
        return f"a {type(observed).__name__} came back instead of a {type(expected).__name__}"
    if isinstance(expected, torch.Tensor):
        return None if same_tensor(observed, expected) else "the returned tensors differ"
    if not isinstance(expected, (tuple, list)):
        return None
    if len(observed) != len(expected):
        return f"{len(observed)} items came back instead of {len(expected)}"
    pairs = [
        (str(index), a, b) for index, (a, b) in enumerate(zip(observed, expected, strict=True))
    ]
    return next(
        (f"`{name}`: {found}" for name, a, b in pairs if (found := _difference(a, b))), None
    )


@contextmanager
def _recorded_log() -> Iterator[list[str]]:
    """Every log record of every library, at any level, and every warning, as text."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                lines.append(self.format(record))
            except Exception:  # A record whose arguments do not fit is still a record.
                lines.append(f"{record.msg} {record.args}")

    collector = Collector(logging.DEBUG)
    loggers = [
        logging.getLogger(),
        *(logging.getLogger(name) for name in ("transformers", "huggingface_hub")),
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(collector)
        logger.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield lines
        lines.extend(str(item.message) for item in warned)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(collector)
            logger.setLevel(level)


@contextmanager
def _recorded_warnings() -> Iterator[list[str]]:
    """The messages about flash attention, in warnings, in logs or on the terminal."""
    said: list[str] = []
    printed = io.StringIO()
    with _recorded_log() as lines, redirect_stdout(printed), redirect_stderr(printed):
        yield said
    said.extend(
        line for line in (*lines, *printed.getvalue().splitlines()) if "flash" in line.lower()
    )


def _streams() -> dict[str, Any]:
    return {
        "torch's RNG stream": torch.random.get_rng_state().tolist(),
        "Python's RNG stream": random.getstate(),
        "NumPy's RNG stream": repr(np.random.get_state(legacy=False)),
    }


def _streams_and_filters() -> dict[str, Any]:
    return {**_streams(), "the warning filters": list(warnings.filters)}
