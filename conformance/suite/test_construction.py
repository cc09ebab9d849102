"""CON: construction and the contract."""

from __future__ import annotations

import importlib.util
import inspect
import io
import logging
import os
import random
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from conformance.assertions import Blocked, ClauseFailure, quoted, refusal, require
from conformance.catalogue import MUST, SHOULD, requirement
from conformance.properties import for_all
from conformance.subject import (
    CANARY_TOKEN,
    INSTANCE_MEMBERS,
    OPTIONAL_MEMBERS,
    REQUIRED_MEMBERS,
    Subject,
    eos_ids_of,
    lacks_member,
)
from conformance.suite.models import probe_ids, same_tensor, vocabulary_parameters

UNKNOWN_ID = "no-such-backbone-13b"
GARBAGE = b"not a safetensors file"


@requirement("CON-03", MUST)
def test_no_member_is_missing(subject: Subject) -> None:
    """No abstract member is left and every required member of the contract is defined: checked on the class, before
    anything is built (for a factory: on what it returns), naming what is missing. `last_layer_finetune_modules` is
    optional; a missing member blocks only the clauses that use it."""
    owner = subject.factory if inspect.isclass(subject.factory) else _constructed(subject)
    abstract = _abstract_members(subject)
    missing = sorted({*abstract, *(name for name in REQUIRED_MEMBERS if lacks_member(owner, name))})
    missing = [name for name in missing if name not in subject.optional_absent]
    require(
        not missing,
        observed=f"{'abstract or ' if abstract else ''}missing member(s): {', '.join(missing)}",
        expected="every required member of the contract defined",
        mend=f"define {', '.join(missing)} on {getattr(owner, '__name__', type(owner).__name__)}",
        missing=missing,
    )


@requirement("CON-01", MUST)
def test_training_mode_holds_the_checkpoint(subject: Subject) -> None:
    """The subject constructs in training mode with the documented arguments, and every checkpoint tensor is in the
    model bit-equal in the declared master dtype (vocabulary-sized tensors by EMB-04)."""
    if _abstract_members(subject):
        raise Blocked("CON-03")
    llm = _constructed(subject).llm
    master = getattr(torch, subject.declared.master_dtype)
    state = llm.state_dict()
    vocabulary = vocabulary_parameters(llm)
    wrong = [
        name
        for name, tensor in subject.checkpoint.items()
        if name not in vocabulary
        and not name.endswith("rotary_emb.inv_freq")
        and not (name in state and same_tensor(state[name], tensor.to(master)))
    ]
    require(
        not wrong,
        observed=f"{len(wrong)} of {len(subject.checkpoint)} checkpoint tensors differ in the model, the first is {wrong[:1]}",
        expected=f"every tensor bit-equal in {subject.declared.master_dtype}",
        mend="load with `from_pretrained` under the checkpoint's own names and an explicit dtype, and change no weights after",
        tensors=wrong[:20],
    )


@requirement("CON-02", MUST, needs=["CON-01"])
def test_inference_mode_reads_no_weights(subject: Subject) -> None:
    """With `inference_mode=True` it constructs without reading any weight file, with the names, shapes and dtypes of
    CON-01."""
    with subject.hub_variant(_spoil_weights):
        try:
            backbone = subject.build(inference_mode=True)
        except Exception as error:
            raise ClauseFailure(
                observed=f"with unreadable weight files, construction raised {type(error).__name__}: {quoted(str(error))}",
                expected="no weight file read in inference mode",
                mend="build from the config alone (`llm_cls._from_config(config)`, on a class that has it); the VLM's own "
                "checkpoint brings the weights",
            ) from error
    expected, observed = _signature_of(subject.training.llm), _signature_of(backbone.llm)
    differing = sorted(name for name in {*expected, *observed} if expected.get(name) != observed.get(name))
    first = differing[0] if differing else ""
    require(
        not differing,
        observed=f"{len(differing)} tensors differ between the modes; `{first}` is {observed.get(first)} in inference mode",
        expected=f"{expected.get(first)}, as in training mode",
        mend="resize in both modes, and pass the master dtype to `_from_config` explicitly",
        tensors=differing[:20],
    )


@requirement("CON-04", MUST, needs=["CON-01"])
def test_unknown_id_is_refused(subject: Subject) -> None:
    """An unknown id is refused with an error that names the id, before anything is loaded. Listing the known ids:
    SHOULD (CON-12)."""
    asked_before = len(subject.tap.calls)
    error = _error_for_unknown_id(subject)
    asked = [call.filename for call in subject.tap.calls[asked_before:]]
    require(
        error is not None and UNKNOWN_ID in str(error) and not asked,
        observed=f"the id {UNKNOWN_ID!r} " + (
            "was accepted" if error is None else f"asked the hub for {asked[0]}" if asked
            else f"was refused with {type(error).__name__}: {quoted(str(error))}"
        ),
        expected="an error that names the id, before the hub is asked for anything",
        mend="look the id up first and raise a ValueError that names it and the known ids",
    )  # fmt: skip


@requirement("CON-05", MUST, needs=["CON-01"])
def test_flash_attention_is_a_choice(subject: Subject) -> None:
    """`use_flash_attention_2=False` never needs flash-attn; `True` without it falls back with a warning or raises a clear
    ImportError before weights load (probe weights are sharded so that this shows). The implementation in force is
    readable."""
    plain = _attention_of(subject.training.llm)
    require(
        plain is not None and "flash" not in plain,
        observed=f"with use_flash_attention_2=False the attention in force reads {plain!r}",
        expected="a readable implementation other than flash attention",
        mend="pass the choice on as the installed transformers wants it, and leave `llm.config` to say which is in force",
    )
    if importlib.util.find_spec("flash_attn") is not None and torch.cuda.is_available():
        return
    with _recorded_warnings() as said, refusal(ImportError) as refused:
        attention = _attention_of(subject.build(use_flash_attention_2=True).llm)
    if not refused:
        require(
            bool(said) and attention is not None and "flash" not in attention,
            observed=f"without flash-attn it was built with {attention!r} and {len(said)} warnings",
            expected="a warning, and another attention implementation in force",
            mend="warn with `warnings.warn` and fall back to `sdpa`",
        )
        return
    message = str(refused[0])
    with subject.hub_variant(_spoil_weights), refusal(Exception) as early:
        subject.build(use_flash_attention_2=True)
    require(
        "flash" in message.lower() and bool(early) and isinstance(early[0], ImportError),
        observed=f"without flash-attn: {type(refused[0]).__name__}: {quoted(message)}; with unreadable weights: "
        f"{type(early[0]).__name__ if early else 'no error'}",
        expected="an ImportError that names flash-attn, raised before any weight file is read",
        mend="check for flash-attn before calling `from_pretrained`",
    )


@requirement("CON-06", MUST, needs=["CON-01", "CON-02"], uses=["forward"])
def test_cache_and_greedy_defaults(subject: Subject) -> None:
    """In training mode a forward returns no cache, in inference mode it can; generation defaults are greedy and
    `save_pretrained` accepts them."""
    ids = probe_ids(subject)
    with torch.no_grad():
        in_training = subject.training.forward(input_ids=ids, attention_mask=torch.ones_like(ids)).past_key_values
        in_inference = subject.inference.forward(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True
        ).past_key_values
    require(
        in_training is None and in_inference is not None,
        observed=f"a cache is returned in training mode: {in_training is not None}; in inference mode with use_cache: "
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
            observed=f"in {mode} mode the generation config cannot be saved: {quoted(str(refused[0]) if refused else '')}",
            expected="a generation config that `save_pretrained` accepts",
            mend="with do_sample=False, set temperature and top_p to 1.0 (or None)",
        )


@requirement("CON-07", MUST, needs=["CON-01"])
def test_token_leaks_nowhere(subject: Subject) -> None:
    """`hf_token` appears in no repr, log line, exception, certificate or saved file."""
    output = io.StringIO()
    with _recorded_log() as log, redirect_stdout(output), redirect_stderr(output):
        backbone = subject.build(inference_mode=True)
    places = {
        "what construction printed": output.getvalue(),
        "a log line or warning": "\n".join(log),
        "repr(backbone)": repr(backbone),
        "repr(llm.config)": repr(backbone.llm.config),
        "repr(llm.generation_config)": repr(backbone.llm.generation_config),
        "repr(tokenizer)": repr(backbone.get_tokenizer()),
        "the error for an unknown id": _told(_error_for_unknown_id(subject)),
    }
    with subject.hub_variant(_spoil_weights), refusal(Exception) as refused:
        subject.build()
    places["the error for unreadable weights"] = _told(refused[0] if refused else None)
    with tempfile.TemporaryDirectory() as folder:
        backbone.llm.config.save_pretrained(folder)
        backbone.llm.generation_config.save_pretrained(folder)
        backbone.get_tokenizer().save_pretrained(folder)
        for path in Path(folder).rglob("*"):
            if path.is_file():
                places[f"the saved file {path.name}"] = path.read_text(encoding="utf-8", errors="replace")
    leaks = [place for place, text in places.items() if CANARY_TOKEN in text]
    require(
        not leaks,
        observed=f"hf_token appears in {', '.join(leaks)}",
        expected="the token nowhere but in hub calls",
        mend="do not store the token, and keep it out of messages and of what is passed to the config or tokenizer",
    )


def _keywords(subject: Subject) -> st.SearchStrategy[list[str]]:
    names = ("attention_mask", "position_ids", "labels", "use_cache", "output_hidden_states", "return_dict", "inputs_embeds",
             "past_key_values", "output_attentions")  # fmt: skip
    return st.lists(st.sampled_from(names), unique=True).map(sorted)


@requirement("CON-08", MUST, needs=["CON-01"], uses=["forward"])
@for_all(keywords=_keywords)
def test_forward_passes_everything_on(subject: Subject, keywords: list[str]) -> None:
    """`forward` passes every documented keyword on and returns what the wrapped model returns."""
    backbone = subject.training
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with refusal() as refused:
            expected = backbone.llm(**_arguments(subject, keywords))
        if refused:
            return  # this transformers version takes no such combination
        observed = backbone.forward(**_arguments(subject, keywords))
    difference = _difference(observed, expected)
    require(
        difference is None,
        observed=f"with {', '.join(keywords) or 'input_ids alone'}, {difference}",
        expected="what `llm` returns for the same keywords",
        mend="pass each keyword of `forward` on to `self.llm` under its own name and return the result untouched",
    )


@requirement("CON-09", MUST, needs=["CON-01"])
def test_trainable_parameters_are_master_weights(subject: Subject) -> None:
    """In training mode the trainable parameters are in the declared master dtype (float32 unless declared)."""
    master = getattr(torch, subject.declared.master_dtype)
    wrong = {name: str(p.dtype) for name, p in subject.training.named_parameters() if p.requires_grad and p.dtype != master}
    first = next(iter(wrong), None)
    require(
        not wrong,
        observed=f"{len(wrong)} trainable parameters are not, the first: {first} is {wrong.get(first or '')}",
        expected=f"{subject.declared.master_dtype} master weights",
        mend="pass the dtype to `from_pretrained` (transformers 5 defaults to the checkpoint's own)",
    )


@requirement("CON-10", SHOULD, needs=["CON-01"])
def test_construction_ignores_the_global_rng(subject: Subject) -> None:
    """Two builds from different global RNG states are bit-equal, new embedding rows included."""
    states = []
    with _rng_restored():
        for seed in (1, 2):
            torch.manual_seed(seed)
            random.seed(seed)
            states.append(subject.build().state_dict())
    differing = [name for name in states[0] if not same_tensor(states[0][name], states[1].get(name))]
    require(
        not differing,
        observed=f"{len(differing)} tensors differ between two builds, the first is {differing[:1]}",
        expected="the same bits whatever the global RNG state",
        mend="initialise new embedding rows with a generator of their own",
        tensors=differing[:20],
    )


@requirement("CON-11", MUST, needs=["CON-01"])
def test_construction_leaves_the_process_alone(subject: Subject) -> None:
    """Construction leaves the process as it was: default dtype, grad mode, default device, environment, working
    directory, signal handlers."""
    before = _process_state()
    try:
        subject.build()
        after = _process_state()
    finally:
        _restore_process(before)
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    require(
        not changed,
        observed="construction changed " + "; ".join(f"{name} from {quoted(a)} to {quoted(b)}" for name, (a, b) in changed.items()),
        expected="the process as it was before",
        mend="set such state inside a context manager, or not at all",
    )


@requirement("CON-12", SHOULD, needs=["CON-04"])
def test_construction_leaves_random_streams_alone(subject: Subject) -> None:
    """Construction also leaves RNG streams and warning filters alone; errors list the known ids."""
    with _rng_restored(), warnings.catch_warnings():
        before = (torch.random.get_rng_state().tolist(), random.getstate(), list(warnings.filters))
        subject.build()
        after = (torch.random.get_rng_state().tolist(), random.getstate(), list(warnings.filters))
    names = ("torch's RNG stream", "Python's RNG stream", "the warning filters")
    moved = [name for name, a, b in zip(names, before, after, strict=True) if a != b]
    require(
        not moved,
        observed=f"construction changed {', '.join(moved)}",
        expected="them left alone",
        mend="draw new embedding rows inside `torch.random.fork_rng()` or from a generator of their own",
    )
    error = _error_for_unknown_id(subject)
    require(
        subject.backbone_id in str(error),
        observed=f"the error for an unknown id is {quoted(str(error))}",
        expected=f"the known ids listed, {subject.backbone_id} among them",
        mend="name the known ids in the error",
    )


@requirement("CON-13", MUST, needs=["CON-01", "CON-02"])
def test_generation_config_survives_both_modes(subject: Subject) -> None:
    """Both modes carry the checkpoint's generation config: the same eos ids, the same pad."""
    published = subject.published_generation_config()
    eos = set(eos_ids_of(published)) if published is not None else set()
    configs = {"training": subject.training.llm.generation_config, "inference": subject.inference.llm.generation_config}
    found = {mode: set(eos_ids_of(config)) for mode, config in configs.items()}
    require(
        found["training"] == found["inference"] and eos <= found["training"],
        observed=f"eos ids are {sorted(found['training'])} in training mode and {sorted(found['inference'])} in inference mode",
        expected=f"the same in both, the published {sorted(eos)} among them",
        mend="load `GenerationConfig.from_pretrained(hub_id)` in inference mode: `_from_config` ignores the published file",
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
    """On the instance every member has the documented type: `llm` a registered submodule, `identifier` the id asked for,
    `embed_dim` the embedding width, `get_tokenizer()` the tokenizer."""
    from transformers import PreTrainedTokenizerBase

    backbone = subject.training
    width = backbone.llm.get_input_embeddings().weight.shape[1]
    checks = {
        "get_tokenizer": lambda v: isinstance(v(), PreTrainedTokenizerBase) and v() is v(),
        "embed_dim": lambda v: v == width,
        "pad_token_id": lambda v: isinstance(v, int),
        "half_precision_dtype": lambda v: isinstance(v, torch.dtype),
        "transformer_layer_cls": inspect.isclass,
        "prompt_builder_fn": callable,
        "get_fsdp_wrapping_policy": lambda v: callable(v()),
        "enable_gradient_checkpointing": callable,
        "embed_input_ids": callable,
    }
    wrong = [name for name, valid in checks.items() if not subject.lacks(name) and not valid(getattr(backbone, name))]
    wrong += [name for name in INSTANCE_MEMBERS if subject.lacks(name)]
    if "identifier" not in wrong and backbone.identifier != subject.backbone_id:
        wrong.append("identifier")
    if not any(module is backbone.llm for module in backbone.modules()):
        wrong.append("llm")
    if not subject.lacks(OPTIONAL_MEMBERS[0]):
        modules = backbone.last_layer_finetune_modules
        wrong += [] if all(isinstance(module, torch.nn.Module) for module in modules) else [OPTIONAL_MEMBERS[0]]
    require(
        not wrong,
        observed="not as documented: " + ", ".join(f"{name} is {quoted(getattr(backbone, name, 'missing'), 60)}" for name in wrong),
        expected="the documented types (identifier the id asked for, embed_dim the embedding width, llm a submodule)",
        mend=f"mend {', '.join(wrong)}",
        members=wrong,
    )


@requirement("CON-14", MUST, needs=["CON-01", "CON-02"])
def test_token_reaches_every_hub_call(subject: Subject) -> None:
    """`hf_token` reaches every hub call (config, weights, tokenizer, generation config): gated models load."""
    asked_before = len(subject.tap.calls)
    subject.build()
    subject.build(inference_mode=True)
    calls = subject.tap.calls[asked_before:]
    bare = sorted({call.filename for call in calls if call.token != CANARY_TOKEN and call.found})
    require(
        bool(calls) and not bare,
        observed=f"asked the hub without hf_token for {', '.join(bare) or 'everything'}",
        expected="hf_token passed with every hub call",
        mend="pass `token=hf_token` to each `from_pretrained`, the tokenizer's and the generation config's too",
        files=bare,
    )


def _constructed(subject: Subject) -> Any:
    try:
        return subject.training
    except ClauseFailure:
        raise
    except (Exception, SystemExit) as error:
        told = f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"raised {type(error).__name__}: {error}"
        raise ClauseFailure(
            observed=f"construction {quoted(told, 400)}",
            expected="a backbone from attr(id, llm_max_length=…, hf_token=…, inference_mode=False, use_flash_attention_2=False)",
            mend="take the documented arguments; run with --verbose for the traceback",
        ) from error


def _abstract_members(subject: Subject) -> list[str]:
    return sorted(getattr(subject.factory, "__abstractmethods__", ())) if inspect.isclass(subject.factory) else []


def _spoil_weights(snapshot: Path) -> None:
    for path in snapshot.glob("*.safetensors"):
        path.write_bytes(GARBAGE)


def _signature_of(llm: Any) -> dict[str, str]:
    return {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in llm.state_dict().items()}


def _error_for_unknown_id(subject: Subject) -> BaseException | None:
    with refusal(Exception) as refused:
        subject.build(UNKNOWN_ID)
    return refused[0] if refused else None


def _told(error: BaseException | None) -> str:
    """An exception's text with that of everything it was raised from."""
    texts = []
    while error is not None:
        texts.append(f"{error!r} {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def _attention_of(llm: Any) -> str | None:
    return getattr(llm.config, "_attn_implementation", None)


def _arguments(subject: Subject, keywords: list[str]) -> dict[str, Any]:
    """Keyword arguments of a forward over ``(2, 6)`` ids, each so chosen that dropping it shows in the result."""
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
        made["position_ids"] = torch.arange(6).mul(3).expand(2, 6).contiguous()
    if "labels" in keywords:
        made["labels"] = ids
    flags = {"use_cache": True, "output_hidden_states": True, "output_attentions": True, "return_dict": False}
    return {**made, **{name: value for name, value in flags.items() if name in keywords}}


def _difference(observed: Any, expected: Any) -> str | None:
    if type(observed) is not type(expected):
        return f"a {type(observed).__name__} came back instead of a {type(expected).__name__}"
    if isinstance(expected, torch.Tensor):
        return None if same_tensor(observed, expected) else "the returned tensors differ"
    if hasattr(expected, "keys"):
        if list(observed.keys()) != list(expected.keys()):
            return f"the fields {list(observed.keys())} came back instead of {list(expected.keys())}"
        pairs = [(name, observed[name], expected[name]) for name in expected.keys()]
    elif isinstance(expected, (tuple, list)):
        if len(observed) != len(expected):
            return f"{len(observed)} items came back instead of {len(expected)}"
        pairs = [(str(index), a, b) for index, (a, b) in enumerate(zip(observed, expected, strict=True))]
    else:
        return None
    return next((f"`{name}`: {found}" for name, a, b in pairs if (found := _difference(a, b))), None)


@contextmanager
def _recorded_log() -> Iterator[list[str]]:
    """Every log record of every library, at any level, and every warning, as text."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    collector = Collector(logging.DEBUG)
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in ("transformers", "huggingface_hub"))]
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
    """Warnings and log records from WARNING up that speak of flash attention."""
    said: list[str] = []
    with _recorded_log() as lines:
        yield said
    said.extend(line for line in lines if "flash" in line.lower())


@contextmanager
def _rng_restored() -> Iterator[None]:
    state = random.getstate()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(state)


def _process_state() -> dict[str, Any]:
    handlers = {name.name: signal.getsignal(name) for name in signal.valid_signals() if isinstance(name, signal.Signals)}
    return {
        "the default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "the default device": str(torch.get_default_device()) if hasattr(torch, "get_default_device") else "cpu",
        "the environment": dict(os.environ),
        "the working directory": os.getcwd(),
        "signal handlers": handlers,
    }


def _restore_process(state: dict[str, Any]) -> None:
    torch.set_default_dtype(state["the default dtype"])
    torch.set_grad_enabled(state["grad mode"])
    if hasattr(torch, "get_default_device"):
        torch.set_default_device(None if state["the default device"] == "cpu" else state["the default device"])
    os.chdir(state["the working directory"])
    os.environ.clear()
    os.environ.update(state["the environment"])
    for name, handler in state["signal handlers"].items():
        if handler is not None and signal.getsignal(getattr(signal, name)) is not handler and name not in {"SIGKILL", "SIGSTOP"}:
            signal.signal(getattr(signal, name), handler)
