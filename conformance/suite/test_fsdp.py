"""FSDP: the wrap policy, on a real process group of one rank over gloo."""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from conformance.assertions import ClauseFailure, NotApplicable, quoted, refusal, require, tell
from conformance.catalogue import MUST, SHOULD, requirement
from conformance.parity.equality import gradients_agree, parameters_by_name, relative_rms
from conformance.parity.gates import SEMANTICS
from conformance.subject.secrets import held_by
from conformance.subject.subject import Subject
from conformance.suite.models import (
    IGNORED_LABEL,
    beside_text,
    decoder_layers,
    in_place_of_llm,
    layer_count,
    logits_of,
    probe_ids,
    reference_of,
)
from conformance.suite.process_group import one_rank
from conformance.suite.rounding import far_batch, far_sighted, rounds_alike

WRAPPING = ["get_fsdp_wrapping_policy", "transformer_layer_cls"]
FULLY_SHARD_SINCE = (2, 6)
_PUBLISHED_NUMEL = 1 << 33
"""Parameters: more than any one module of a published model that is wrapped by layers has."""
_SHOWN_UNITS = 64
"""The most units that the evidence lists: a policy may make one of every module."""
_BESIDE = 0.1
"""Share of the parameters that a backbone may hold in other tensors, such as rotary tables."""
PADDING = 3


@requirement("FSDP-01", MUST, needs=["CON-01"], uses=["transformer_layer_cls"])
def test_the_layer_class_counts_the_layers(subject: Subject) -> None:
    """`transformer_layer_cls` is an `nn.Module` class with exactly `num_hidden_layers` instances in
    `llm`, or as many as are declared kept."""
    layer_cls = subject.training.transformer_layer_cls
    expected = layer_count(subject, subject.training)
    is_class = inspect.isclass(layer_cls) and issubclass(layer_cls, nn.Module)
    found = len(decoder_layers(subject.training)) if is_class else 0
    require(
        is_class and found == expected,
        observed=f"{getattr(layer_cls, '__name__', layer_cls)!r} has {found} instances in llm",
        expected=f"an nn.Module class with {expected} instances, one per layer",
        mend=f"return the decoder layer's class, here {_likely_layer(subject)}",
    )


@requirement("FSDP-02", MUST, needs=["FSDP-01"], uses=["transformer_layer_cls"])
def test_only_the_rest_lies_outside_the_layers(subject: Subject) -> None:
    """Outside those instances lie only embeddings, final norm, rotary buffers and head;
    modules that are declared outside, or that a forward over text never enters, such as a vision
    tower, are not asked."""
    llm, layer_cls = subject.training.llm, subject.training.transformer_layer_cls
    inside = {id(p) for layer in decoder_layers(subject.training) for p in layer.parameters()}
    head = llm.get_output_embeddings()
    outside = [
        module
        for module in llm.modules()
        if module is head or isinstance(module, nn.Embedding) or _is_norm(module)
    ]
    allowed = {
        id(p) for module in (llm.get_input_embeddings(), *outside) for p in module.parameters()
    }
    allowed |= subject.lie_outside(subject.training)
    stray = [name for name, p in llm.named_parameters() if id(p) not in inside | allowed]
    if stray:
        beside = beside_text(subject.training, probe_ids(subject))
        stray = [name for name in stray if name not in beside]
    require(
        not stray,
        observed=f"{len(stray)} parameters lie outside every {layer_cls.__name__}, the first is "
        f"{stray[:1]}",
        expected="only embeddings, final norm and head outside",
        mend="return the class of the whole decoder layer, not of a part of it",
        parameters=stray[:20],
    )


@requirement("FSDP-03", MUST, needs=["FSDP-01"], uses=[*WRAPPING, "forward"])
def test_the_policy_makes_one_unit_a_layer(subject: Subject) -> None:
    """`FullyShardedDataParallel` around the whole backbone, as hosts wrap it, with
    `get_fsdp_wrapping_policy()` makes exactly layers + 1 units, however large modules are, whatever
    is frozen, built for inference, cast and of a copy too, and its forward gives the logits of the
    backbone unwrapped; every parameter that the forward uses is registered, under one name unless
    weights are tied, and no copy of the weights is kept beside them. Of a host's other modules the
    policy makes no units."""
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    backbone = subject.build().eval()
    layers = layer_count(subject, backbone)
    layer_cls = backbone.transformer_layer_cls  # which may be read off the layers: FSDP wraps them
    # What lies outside may be wrapped too: an action expert of the same layers, say.
    beside = {
        id(module) for root in subject.outside(backbone).values() for module in root.modules()
    }
    with refusal() as not_copied:  # not every class can be
        copied = copy.deepcopy(backbone)
    batch = _padded_batch(subject)
    logits = _real_logits(subject, backbone.forward(**batch), batch)
    _require_registered_once(backbone, logits)
    _require_nothing_beside(backbone)
    with one_rank(), refusal() as refused:
        # With its own flat parameters FSDP refuses a unit that is partly frozen, which is not the
        # policy's fault.
        policy = backbone.get_fsdp_wrapping_policy()
        wrapped = _fsdp(backbone, auto_wrap_policy=policy, use_orig_params=True)
        units = sum(id(unit.module) not in beside for unit in FSDP.fsdp_modules(wrapped))
        tell("wrap units", _unit_by_unit(wrapped, FSDP))
        require(
            units == layers + 1,
            observed=f"{units} FSDP unit{'' if units == 1 else 's'}",
            expected=f"{layers + 1}: one for each of {layers} layers, and the root",
            mend="build the policy with `transformer_auto_wrap_policy` and "
            "`{self.transformer_layer_cls}`",
            units=units,
            policy=_named_policy(policy),
        )
        _require_no_unit_by_size(wrapped, policy, layer_cls)
        _require_hosts_modules_left(policy)
        with torch.no_grad():
            sharded = _real_logits(subject, wrapped(**batch), batch)
    if refused:
        if isinstance(refused[0], ClauseFailure):
            raise refused[0]
        require(
            False,
            observed=f"wrapped, the backbone's forward raised {refused[0]!r}",
            expected="logits",
            mend="let the forward find its parameters where they are registered",
        )
    frozen = subject.build()
    frozen.requires_grad_(False)  # whoever trains the projector alone shards the layers too
    _require_units_by_class(
        frozen,
        "with every parameter frozen",
        expected="units by class alone, whatever is trained: what is frozen takes as much memory",
    )
    if not not_copied:
        _require_the_same_units_of(copied)
        with in_place_of_llm(frozen, copied.llm) as taken:
            if taken:
                _require_units_by_class(
                    frozen,
                    "with another model in the place of `llm`",
                    expected="units by class alone: a host may load a later stage's model",
                )
    error = relative_rms(sharded, logits.detach())
    require(
        error <= SEMANTICS,
        observed=f"wrapped, the backbone gives other logits, by a relative RMS of {error:.2g}",
        expected="the logits of the backbone unwrapped",
        mend="look parameters up in forward: sharding replaces them, and one kept from "
        "construction goes stale",
    )
    _require_units_by_class(
        subject.build_for_inference(),
        "built for inference",
        expected="units by class alone, however it is built: a large model is served in shards too",
    )


@requirement("FSDP-03", MUST, needs=["FSDP-01"], uses=WRAPPING)
def test_a_cast_backbone_is_sharded_too(subject: Subject) -> None:
    """Cast to half precision, `llm` is sharded by the policy too: FSDP flattens the parameters of a
    unit into one tensor, which has one dtype."""
    backbone = subject.build()
    half = backbone.half_precision_dtype
    backbone.to(half)
    kept = [name for name, p in backbone.llm.named_parameters() if p.dtype is not half]
    with one_rank(), refusal() as refused:
        policy = backbone.get_fsdp_wrapping_policy()
        _fsdp(backbone.llm, auto_wrap_policy=policy, use_orig_params=True)
    require(
        not refused,
        observed=f"after `.to({half})` FSDP refuses `llm`: {quoted(''.join(map(str, refused)))}",
        expected="a backbone that is sharded in half precision too",
        mend="let `.to` cast every parameter; buffers may stay in float32",
        kept=kept[:20],
    )


def _unit_by_unit(wrapped: Any, unit: type[nn.Module]) -> list[dict[str, Any]]:
    """Each unit by its path in the backbone, its class, and the parameters that it shards: those of
    no unit inside it."""
    paths = {
        name.replace("_fsdp_wrapped_module", "").replace("..", ".").strip("."): module
        for name, module in wrapped.named_modules()
        if isinstance(module, unit)
    }
    held = {path: sum(p.numel() for p in module.parameters()) for path, module in paths.items()}
    return [
        {
            "unit": path,
            "class": type(module.module).__name__,
            "parameters": held[path]
            - sum(
                held[other]
                for other in paths
                if _encloses(path, other)
                and not any(_encloses(path, mid) and _encloses(mid, other) for mid in paths)
            ),
        }
        for path, module in list(paths.items())[:_SHOWN_UNITS]
    ]


def _encloses(path: str, other: str) -> bool:
    return path != other and (not path or other.startswith(f"{path}."))


def _require_no_unit_by_size(wrapped: Any, policy: Any, layer_cls: type[nn.Module]) -> None:
    """A policy that also goes by size makes other units of the published model than of a probe."""
    if not callable(policy):  # a `CustomPolicy`, which looks at modules alone
        return
    by_size = [
        name
        for name, module in wrapped.module.named_modules()
        if not isinstance(module, layer_cls)
        and type(module) is not type(wrapped)
        and policy(module=module, recurse=False, nonwrapped_numel=_PUBLISHED_NUMEL)
    ]
    require(
        not by_size,
        observed=f"with {_PUBLISHED_NUMEL:,} parameters in it "
        f"`{next(filter(None, by_size), 'the backbone itself')}` "
        f"becomes a unit of its own, as do {len(by_size)} modules in all",
        expected="units by class alone: the layers, and the root",
        mend="build the policy with `transformer_auto_wrap_policy` and "
        "`{self.transformer_layer_cls}`",
        modules=by_size[:20],
    )


def _require_hosts_modules_left(policy: Any) -> None:
    """Hosts join the policies of their parts by `or`, and ask each about all of their modules."""
    if not callable(policy):
        return
    theirs = (nn.LayerNorm(8), nn.Linear(8, 8), nn.Embedding(8, 8), nn.Sequential(nn.Linear(8, 8)))
    taken = [
        type(module).__name__
        for module in theirs
        if policy(module=module, recurse=False, nonwrapped_numel=64)
    ]
    require(
        not taken,
        observed=f"of a host's modules the policy makes units of {taken}",
        expected="the decoder layers alone: the rest of a vision-language model has a policy of "
        "its own",
        mend="build the policy with `transformer_auto_wrap_policy` and "
        "`{self.transformer_layer_cls}`",
    )


def _require_the_same_units_of(copied: Any) -> None:
    """An average of the weights, or a model to compare with, is a copy that is sharded too."""
    _require_units_by_class(
        copied,
        "of a copy, by its own policy",
        expected="units by class alone, of copy.deepcopy(backbone) too",
    )


def _require_units_by_class(backbone: Any, told: str, *, expected: str) -> None:
    policy, layers = backbone.get_fsdp_wrapping_policy(), decoder_layers(backbone)
    if not callable(policy):  # a `CustomPolicy`, which looks at modules alone
        return
    left = [
        layer
        for layer in layers
        if not all(
            policy(module=layer, recurse=False, nonwrapped_numel=size)
            for size in (1, _PUBLISHED_NUMEL)
        )
    ]
    require(
        not left,
        observed=f"{told}, {len(left)} of {len(layers)} layers are no units",
        expected=expected,
        mend="build the policy with `transformer_auto_wrap_policy` and "
        "`{self.transformer_layer_cls}`",
    )


def _require_nothing_beside(backbone: Any) -> None:
    """Weights that are no parameters are not sharded: each GPU holds them whole."""
    own = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*backbone.parameters(), *backbone.buffers())
    }
    beside = {
        item.untyped_storage().data_ptr(): (path, item)
        for path, item in held_by(backbone)
        if isinstance(item, torch.Tensor)
        and item.layout is torch.strided
        and item.untyped_storage().data_ptr() not in own
    }
    total = sum(parameter.numel() for parameter in backbone.parameters())
    held = sum(item.numel() for _, item in beside.values())
    places = [path for path, _ in sorted(beside.values(), key=lambda one: -one[1].numel())]
    require(
        held <= _BESIDE * total,
        observed=f"tensors that are no parameters or buffers have {held:,} numbers beside the "
        f"{total:,} of the parameters: {', '.join(places[:3])}"
        + (f" and {len(places) - 3} more" if len(places) > 3 else ""),
        expected=f"at most {_BESIDE:.0%} of them",
        mend="keep no copy of the weights on the backbone: read the checkpoint again when asked",
        places=places[:20],
    )


@requirement("FSDP-04", MUST, needs=["FSDP-01"], uses=["transformer_layer_cls", "forward"])
def test_fully_shard_changes_nothing(subject: Subject) -> None:
    """`fully_shard` on each instance, then the backbone as the root, works, and forward and
    gradients stay equal (calibrated; not-applicable below torch 2.6)."""
    if (
        tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
        < FULLY_SHARD_SINCE
    ):
        raise NotApplicable(f"torch {torch.__version__} is older than fully_shard (2.6)")
    from torch.distributed.fsdp import fully_shard

    # One instance, before and after: two builds may differ in new rows, which CON-10 judges.
    backbone = subject.build()
    plain_loss, plain = _loss_and_gradients(subject, backbone)
    with one_rank(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        for layer in decoder_layers(backbone):
            fully_shard(layer, mesh=mesh)
        # The root is what a host calls: a backbone may read the parameters of `llm` in a forward of
        # its own, where sharding `llm` alone has not gathered them. What stands beside it may have
        # another dtype, which one group cannot.
        ours = set(backbone.llm.parameters())
        beside = {parameter for parameter in backbone.parameters() if parameter not in ours}
        options: dict[str, Any] = {"ignored_params": beside} if beside else {}
        fully_shard(backbone, mesh=mesh, **options)
        loss, sharded = _loss_and_gradients(subject, backbone)
    mend = (
        "look parameters up in forward: sharding replaces them, and one kept from construction (a "
        "cached weight, a tied "
        "copy) goes stale"
    )
    _require_equal(plain_loss, loss, plain, sharded, "under fully_shard", mend)


@requirement("FSDP-05", MUST, needs=["FSDP-01"], uses=["transformer_layer_cls", "forward"])
def test_checkpointing_wraps_every_layer(subject: Subject) -> None:
    """Activation checkpointing keyed on the class wraps every layer, and loss and gradients stay
    equal."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        CheckpointImpl,
        CheckpointWrapper,
        apply_activation_checkpointing,
        checkpoint_wrapper,
    )

    # One instance, before and after: two builds may differ in new rows, which CON-10 judges.
    backbone = subject.build()
    plain_loss, plain = _loss_and_gradients(subject, backbone)
    layer_cls, layers = backbone.transformer_layer_cls, layer_count(subject, backbone)
    apply_activation_checkpointing(
        backbone,
        checkpoint_wrapper_fn=functools.partial(
            checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT
        ),
        check_fn=lambda module: isinstance(module, layer_cls),
    )
    wrapped = sum(isinstance(module, CheckpointWrapper) for module in backbone.llm.modules())
    require(
        wrapped == layers,
        observed=f"{wrapped} layers were wrapped",
        expected=f"{layers}",
        mend="return the class of the decoder layers that are really used",
    )
    mend = "turn the cache off in training mode: a recomputed layer must not append to it again"
    with refusal() as refused:
        loss, checkpointed = _loss_and_gradients(subject, backbone)
    require(
        not refused,
        observed=f"forward and backward under checkpointing raised {refused[0]!r}"
        if refused
        else "",
        expected="loss and gradients",
        mend=mend,
    )
    _require_equal(plain_loss, loss, plain, checkpointed, "under activation checkpointing", mend)


@requirement("FSDP-06", SHOULD, needs=["FSDP-02"], uses=["transformer_layer_cls"])
def test_the_model_names_the_class_itself(subject: Subject) -> None:
    """The class is the one the model itself names in `_no_split_modules`."""
    named = {
        name
        for module in subject.training.llm.modules()
        for name in (getattr(module, "_no_split_modules", None) or ())
    }
    if not named:
        raise NotApplicable("the model names none")
    name = subject.training.transformer_layer_cls.__name__
    require(
        name in named,
        observed=f"transformer_layer_cls is {name}",
        expected=f"one of {sorted(named)}, which the model must not have split",
        mend="return the model's own decoder layer class",
    )


@requirement(
    "FSDP-07", MUST, needs=["FSDP-02", "FSDP-03"], uses=["last_layer_finetune_modules", *WRAPPING]
)
def test_last_layer_finetuning_works(subject: Subject) -> None:
    """Where there is `last_layer_finetune_modules`: modules of `llm`, namely input embedding, last
    decoder layer, head; training only those works under FSDP with `use_orig_params=True`."""
    backbone = subject.build()
    llm, modules = backbone.llm, _last_layer_modules(backbone)
    backbone.requires_grad_(False)
    for module in modules:
        module.requires_grad_(True)
    trainable = [name for name, p in llm.named_parameters() if p.requires_grad]
    with one_rank(), refusal() as refused:
        wrapped = _fsdp(
            backbone, auto_wrap_policy=backbone.get_fsdp_wrapping_policy(), use_orig_params=True
        )
        wrapped(**_padded_batch(subject)).loss.backward()
    without = [name for name, p in llm.named_parameters() if p.requires_grad and p.grad is None]
    require(
        not refused and bool(trainable) and not without,
        observed=f"training only those raised {refused[0]!r}"
        if refused
        else f"no gradient reached {without[:1] or 'anything'}",
        expected=f"gradients for all {len(trainable)} of their parameters",
        mend="return modules of `llm`, whole ones, so that FSDP can shard them with their "
        "neighbours frozen",
    )


@requirement("FSDP-07", MUST)
def test_the_last_layer_is_read_when_asked(subject: Subject) -> None:
    """`last_layer_finetune_modules` names modules of `llm` after a host has added rows too, which
    replaces some of them."""
    backbone = subject.build()
    _last_layer_modules(backbone)
    rows = int(backbone.llm.get_input_embeddings().weight.shape[0])
    with refusal() as refused:  # EMB-09 judges that
        backbone.llm.resize_token_embeddings(rows + 64)
    if not refused:
        _last_layer_modules(backbone, f"after llm.resize_token_embeddings({rows + 64}) ")


def _named_policy(policy: Any) -> str:
    """A policy by its name, with what it was given."""
    if not isinstance(policy, functools.partial):
        return str(getattr(policy, "__name__", None) or type(policy).__name__)
    given = ", ".join(f"{name}={_named_value(value)}" for name, value in policy.keywords.items())
    return f"{_named_policy(policy.func)}({given})"


def _named_value(value: Any) -> str:
    if isinstance(value, (set, frozenset, list, tuple)):
        return "{" + ", ".join(sorted(map(_named_value, value))) + "}"
    return str(getattr(value, "__name__", None) or repr(value))


def _last_layer_modules(backbone: Any, when: str = "") -> list[nn.Module]:
    """Require the modules to be those of the last layer, and return them."""
    modules = list(backbone.last_layer_finetune_modules)
    llm, head = backbone.llm, backbone.llm.get_output_embeddings()
    expected = [
        llm.get_input_embeddings(),
        decoder_layers(backbone)[-1],
        *([head] if head is not None else []),
    ]
    stale = "" if {*map(id, modules)} <= {*map(id, llm.modules())} else ", not all of them in llm"
    require(
        {id(module) for module in modules} == {id(module) for module in expected},
        observed=f"{when}last_layer_finetune_modules are "
        f"{[type(module).__name__ for module in modules]}{stale}",
        expected="the input embedding, the last decoder layer and the head, as they stand in llm",
        mend="read them from `self.llm` when asked, so that a resize cannot leave an old one "
        "behind",
    )
    return modules


@requirement(
    "FSDP-08", SHOULD, profile="numerics", needs=["FSDP-03", "FSDP-04", "HALF-04"], uses=WRAPPING
)
def test_far_positions_survive_mixed_precision(subject: Subject) -> None:
    """Far-position logits survive FSDP mixed precision with bf16 buffers, Prismatic's default:
    judged by effect (the rounding gate at positions ≥ 1024), not by a buffer's dtype; with float32
    buffers it is a MUST through HALF-08."""
    from torch.distributed.fsdp import MixedPrecision

    dtype = torch.bfloat16
    with far_sighted(subject) as config:
        backbone = subject.build().eval()
        reference = reference_of(subject, backbone.llm, config)
    # Wrapping moves the parameters into flat ones; the reference keeps what they were.
    reference = replace(
        reference, weights={name: tensor.clone() for name, tensor in reference.weights.items()}
    )
    ids, far = far_batch(reference, subject.seed)
    half = MixedPrecision(param_dtype=dtype, reduce_dtype=torch.float32, buffer_dtype=dtype)
    with one_rank():
        wrapped = _fsdp(
            backbone,
            auto_wrap_policy=backbone.get_fsdp_wrapping_policy(),
            use_orig_params=True,
            mixed_precision=half,
        )
        rounds_alike(
            reference,
            dtype,
            lambda: wrapped(input_ids=ids).logits,
            ids,
            far,
            mend="keep `inv_freq` in float32 whatever FSDP's `buffer_dtype` does to it, or train "
            "with float32 buffers",
        )


def _fsdp(module: nn.Module, **options: Any) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    with warnings.catch_warnings():
        # With one rank FSDP warns that it shards nothing, as intended.
        warnings.simplefilter("ignore")
        return FSDP(module, device_id=torch.device("cpu"), **options)


def _require_registered_once(backbone: Any, logits: torch.Tensor) -> None:
    """Hold the parameters behind `logits` to what `named_parameters` tells hosts of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in backbone.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    head, embedding = (
        getattr(find(), "weight", None)
        for find in (backbone.llm.get_output_embeddings, backbone.llm.get_input_embeddings)
    )
    tied = {id(head)} if head is embedding else set()
    twice = next((n for key, n in names.items() if len(n) > 1 and key not in tied), [])
    require(
        not twice,
        observed=f"one parameter is registered as {' and as '.join(f'`{name}`' for name in twice)}",
        expected="each parameter under one name, unless it is tied",
        mend="keep a second reference to a module out of `nn.Module`'s sight: a property will do",
    )
    hidden = [leaf for leaf in _leaves(logits) if id(leaf) not in names]
    require(
        not hidden,
        observed=f"the logits depend on {len(hidden)} tensors that require a gradient and are no "
        f"registered parameter, the first of shape {tuple(hidden[0].shape) if hidden else ()}",
        expected="registered parameters alone: others are neither moved, sharded, saved nor "
        "trained",
        mend="hold modules in `nn.ModuleList` or `nn.ModuleDict`, and parameters in "
        "`nn.ParameterList` or an attribute",
    )


def _leaves(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The parameters that `tensor` was computed from, as its graph knows them."""
    found: dict[int, torch.Tensor] = {}
    seen: set[Any] = set()
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter):
            found[id(leaf)] = leaf
        waiting += [following for following, _ in node.next_functions]
    return list(found.values())


def _real_logits(subject: Subject, output: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits at real positions, over the ids that the tokenizer has."""
    logits = logits_of(output)[..., : len(subject.tokenizer)]
    return logits[batch["attention_mask"].bool()]


def _padded_batch(subject: Subject) -> dict[str, torch.Tensor]:
    """Two sequences, the second padded: without padding, models skip the mask, and faults in it
    stay hidden."""
    ids = probe_ids(subject)
    mask = torch.ones_like(ids)
    mask[1, -PADDING:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, IGNORED_LABEL),
    }


def _loss_and_gradients(subject: Subject, backbone: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients by parameter name, dropout off, wrappers' prefixes removed."""
    backbone.eval()
    loss = backbone(**_padded_batch(subject)).loss
    loss.backward()
    gradients = {
        name: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        for name, p in parameters_by_name(backbone.llm).items()
        if p.grad is not None
    }
    backbone.zero_grad(set_to_none=True)
    return float(loss), gradients


def _require_equal(
    plain_loss: float,
    loss: float,
    plain: dict[str, torch.Tensor],
    wrapped: dict[str, torch.Tensor],
    where: str,
    mend: str,
) -> None:
    differing = sorted(plain.keys() ^ wrapped.keys())
    require(
        not differing,
        observed=f"{where}, {len(wrapped)} parameters have gradients; `{''.join(differing[:1])}` "
        f"has one "
        f"{'only there' if differing and differing[0] in wrapped else 'only without'}",
        expected=f"the same {len(plain)} as without",
        mend=mend,
    )
    apart = {
        name: relative_rms(wrapped[name], plain[name])
        for name in plain
        if not gradients_agree(wrapped[name], plain[name])
    }
    worst = max(apart, key=lambda name: apart[name], default="")
    require(
        not apart and abs(loss - plain_loss) <= abs(plain_loss) * 1e-6,
        observed=f"{where} the loss is {loss:.7f} and {len(apart)} gradients differ, `{worst}` by "
        f"{apart.get(worst, 0.0):.1e}",
        expected=f"{plain_loss:.7f} and equal gradients",
        mend=mend,
    )


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not list(module.children())


def _likely_layer(subject: Subject) -> str:
    """The class with as many instances as layers that holds the most parameters."""
    layers = layer_count(subject, subject.training)
    modules: dict[type, list[nn.Module]] = {}
    for module in subject.training.llm.modules():
        modules.setdefault(type(module), []).append(module)
    fitting = [cls for cls, instances in modules.items() if len(instances) == layers]
    sizes = {cls: sum(p.numel() for p in modules[cls][0].parameters()) for cls in fitting}
    return max(sizes, key=lambda cls: sizes[cls]).__name__ if sizes else "unknown"
