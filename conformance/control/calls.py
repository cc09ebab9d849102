"""Makes one call, after one history, on a backbone or its control, and keeps what came out."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import isfinite
from typing import Any
from unittest import mock

import torch

from conformance.assertions import getting_on, is_slip_of_ours
from conformance.control.covering import Row
from conformance.control.states import CHANGING, DEFAULTS, SECOND_RANK
from conformance.parity.equality import parameters_by_name
from conformance.parity.library import attention_of, text_config

IGNORED_LABEL = -100
_COLLECTIVES = (
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all",
    "all_to_all_single", "barrier", "broadcast", "broadcast_object_list", "gather",
    "gather_object", "monitored_barrier", "recv", "reduce", "reduce_scatter",
    "reduce_scatter_tensor", "scatter", "scatter_object_list", "send",
)  # fmt: skip
"""The functions of torch.distributed by which ranks tell each other something."""
_GROWN = 1.05
"""What the weights of a copy, or those after a step, are of what they were."""
_PATCHES = 3
"""Image patches of a call that has some."""
_PIECE = 64
"""Positions whose cross-entropy is computed at once."""
LEAST_LOSS = 2e-2
"""Added to losses before they are compared, in nats: of logits that are sure of a text the loss is
what rounding leaves, down to nothing. In float32 it is the logarithm of a sum that is one and a
little, so it is off by a digit of that sum, 1.2e-7, however small it is itself: the hundred
thousandth part of this is a little more."""
_LOSS_PARTS = 500
LOSS_IN_HALF = f"{_LOSS_PARTS}ths of the cross-entropy of its own logits that the loss is"
"""Logits in half precision move a mean over them by some 1e-4, and a loss that is itself computed
in half precision is off by up to 4e-3: one part in 500 lies between."""
Observation = dict[str, Any]
"""What a call returned: tensors over real positions and known ids, and plain facts."""


def embeddings_of(backbone: Any, ids: torch.Tensor) -> torch.Tensor:
    """The embeddings of ids, as a host looks them up: by the backbone's own method, or by the
    module where it has none."""
    own = getattr(backbone, "embed_input_ids", None)
    rows: torch.Tensor = (own or backbone.llm.get_input_embeddings())(ids)
    return rows


class CallRefused(Exception):
    """A backbone raised, or what the control returns says nothing; the cause is what it raised."""


class NoSuchState(CallRefused):
    """The backbone cannot be brought into the row's state: it has no attention of that name, cannot
    be copied, or was built frozen."""


@dataclass(frozen=True)
class Inputs:
    """What calls are made of: the ids that a text may hold, `known` ids in all, the window (or 16
    where there is none), the width of an embedding, the `first_length` in tokens behind which
    a model computes with other rotary factors (0 where there is none), a seed, and the ids that
    begin and end a text, if there are any."""

    ordinary: torch.Tensor
    known: int
    window: int
    width: int
    first_length: int
    seed: int
    bos: int | None = None
    eos: int | None = None
    rows: int | None = None
    """How many rows of the vocabulary a backbone is cut down to; None for none cut off."""

    def within(self, rows: int) -> Inputs:
        """The same of a model that is cut down to the first `rows` of its vocabulary."""

        def there(token: int | None) -> int | None:
            return token if token is not None and token < rows else None

        return replace(
            self,
            ordinary=self.ordinary[self.ordinary < rows],
            known=min(self.known, rows),
            bos=there(self.bos),
            eos=there(self.eos),
            rows=rows,
        )

    def length(self, value: int | str) -> int:
        """A length of the factors in tokens."""
        if isinstance(value, int):
            return value
        return {"window": self.window, "window+1": self.window + 1}[value]

    def positions(self, row: Row) -> int:
        """The positions of each row of a call's batch: tokens, and patches where it has some."""
        return self.length(row["length"]) + (_PATCHES if row["form"] == "patches" else 0)

    def ids(self, batch: int, length: int, offset: int = 0) -> torch.Tensor:
        """Ids of shape (batch, length), other ones for each offset: texts that begin with bos, and
        in which eos ends a turn in the middle and the last one."""
        generator = torch.Generator().manual_seed(self.seed + 7919 * offset)
        places = torch.randint(len(self.ordinary), (batch, length), generator=generator)
        ids = self.ordinary[places]
        if length > 4:
            for place, token in ((0, self.bos), (length // 2, self.eos), (length - 1, self.eos)):
                if token is not None:
                    ids[:, place] = token
        return ids

    def patches(self, batch: int, count: int) -> torch.Tensor:
        """Embeddings of image patches, (batch, count, width)."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(batch, count, self.width, generator=generator)

    @cached_property
    def columns(self) -> torch.Tensor:
        """The ids whose logits are compared: spread over the vocabulary, and all of its tail."""
        spread = torch.arange(0, self.known, max(1, self.known // 2048))
        tail = torch.arange(max(0, self.known - 64), self.known)
        columns: torch.Tensor = torch.unique(torch.cat([spread, tail]))  # type: ignore[no-untyped-call]
        return columns


def observe(backbone: Any, row: Row, inputs: Inputs, dtype: torch.dtype) -> Observation:
    """What `row`'s call returns after its history, `dtype` being half precision.

    The backbone's parameters, precision, mode and attention are as before afterwards.

    Raises:
        CallRefused: for what the backbone raises.
    """
    getting_on()
    row = {**DEFAULTS, **row}
    with ExitStack() as state:
        if inputs.rows is not None:
            state.enter_context(first_rows_alone(backbone, inputs.rows))
        if row["history"] in ("after copying", "after assigning"):
            backbone = _grown_copy(backbone, assigned=row["history"] == "after assigning")
        state.enter_context(_unchanged(backbone, values=row["history"] in CHANGING))
        state.enter_context(torch.random.fork_rng(devices=[]))
        state.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if row["attention"] != "as built" and hasattr(backbone.llm, "set_attn_implementation"):
            try:
                state.enter_context(attention_of(backbone.llm, row["attention"]))
            except ValueError as error:  # of a family that has no such attention
                raise NoSuchState from error
        if row["precision"] == "half":
            state.enter_context(parameters_in(backbone, dtype))
        if row["ranks"] == 2:
            state.enter_context(second_of_two_ranks())
        attention = _attention_named(backbone)
        # Left in between, as training loops step outside: until then autocast keeps the weights
        # that it has rounded, whatever becomes of them.
        autocast = torch.autocast("cpu", dtype=dtype, enabled=row["precision"] == "autocast")
        try:
            with autocast:
                _live_through(backbone, row, inputs)
            _freeze(backbone, row["trained"])
            trained = {name: p.requires_grad for name, p in backbone.llm.named_parameters()}
            if row["history"] != "after reloading":
                _change_mode(backbone, row)
            # `torch.manual_seed` keeps a stack trace for a GPU that is not there, each time.
            torch.default_generator.manual_seed(inputs.seed)
            with autocast:
                seen = _call(backbone, row, inputs)
            seen["modules in another mode than was asked for"] = sum(
                module.training != (row["mode"] == "train") for module in backbone.llm.modules()
            )
            seen["parameters whose requires_grad train() or the call changed"] = sum(
                p.requires_grad != trained.get(name) for name, p in backbone.llm.named_parameters()
            )
            seen["another attention in the config than before the call"] = (
                attention != _attention_named(backbone)
            )
            return seen
        except CallRefused:
            raise
        except Exception as error:
            if is_slip_of_ours(error):
                raise
            raise CallRefused from error


@contextmanager
def second_of_two_ranks() -> Iterator[None]:
    """A process group of two while the body runs, of which this process is the second; nobody else
    is there, so torch's fake backend carries it.

    Raises:
        NoSuchState: the installed torch has no such backend, a group is there already, or the body
            asks other ranks for something.
    """
    import torch.distributed as dist

    def asks(*_: Any, **__: Any) -> Any:
        raise NoSuchState("it asks other ranks, and there are none")

    try:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    except Exception as error:
        raise NoSuchState from error
    collectives = {name: asks for name in _COLLECTIVES if hasattr(dist, name)}
    try:
        with mock.patch.dict(vars(dist), collectives), mock.patch.dict(os.environ, SECOND_RANK):
            yield
    finally:
        dist.destroy_process_group()


def _change_mode(backbone: Any, row: Row) -> None:
    """Go to the row's mode from the other one."""
    backbone.train(row["mode"] != "train")
    backbone.train(row["mode"] == "train")


def _attention_named(backbone: Any) -> str | None:
    return getattr(text_config(backbone.llm), "_attn_implementation", None)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The shifted cross-entropy of logits (batch, sequence, vocabulary), over labels that are not
    -100: each position's in float32, their mean in float64."""
    # In pieces that the processor's cache holds: logits over a long text are half a gigabyte.
    pieces = zip(
        torch.split(logits[:, :-1], _PIECE, dim=1),
        torch.split(labels[:, 1:], _PIECE, dim=1),
        strict=True,
    )
    losses = [
        torch.nn.functional.cross_entropy(piece[counted].float(), wanted[counted], reduction="none")
        for piece, wanted in pieces
        for counted in (wanted != IGNORED_LABEL,)
    ]
    return torch.cat(losses).double().mean()


def _call(backbone: Any, row: Row, inputs: Inputs) -> Observation:
    made = _Call.of(row, inputs)
    gradients = row["gradients"]
    if gradients and made.patches is not None:
        made.patches.requires_grad_()
    if row["cache"] == "handed in":
        made.options["past_key_values"] = _empty_cache()
    with torch.set_grad_enabled(gradients):
        chunks = made.chunks(row["cache"])
        cache, parts, seen = None, list[Observation](), dict[str, Any]()
        for begin, end in chunks:
            facts, cache = _facts_of(made.run(backbone, begin, end, cache), row)
            loss = facts.pop("loss", None)
            if made.labels is not None:
                facts["a loss"] = loss is not None
            if made.labels is not None and loss is not None:
                # A subject may leave rows out that no token has: its loss is that of its own
                # logits.
                own = cross_entropy(facts["logits"], made.labels)
                share = (loss.detach().double() + LEAST_LOSS) / (own + LEAST_LOSS)
                if row["precision"] == "float32":
                    facts["loss over the cross-entropy of its own logits"] = share
                else:
                    parts_of_it = _LOSS_PARTS * float(share)
                    facts[LOSS_IN_HALF] = round(parts_of_it) if isfinite(parts_of_it) else None
            facts["logits"] = facts["logits"][..., inputs.columns]
            parts.append(facts)
            seen.update(facts)
        if row["cache"] == "handed in":
            cache = made.options["past_key_values"]
        if row["cache"] in ("returned", "handed in") and cache is not None:
            extra = made.continued(backbone, cache, inputs)
            seen["logits after the cache"] = extra[..., inputs.columns].flatten(0, 1)
        seen["arguments that the call changed in place"] = sorted(made.changed)
        whole = torch.cat([part["logits"] for part in parts], 1)
        seen["logits"] = whole[made.real]
        if len(chunks) > 1:
            # A few among many: what goes wrong in half precision along the cache alone would drown.
            seen["logits behind the cache"] = whole[:, chunks[1][0] :].flatten(0, 1)
        if "hidden states" in seen:
            by_layer = zip(*(part["hidden states"] for part in parts), strict=True)
            seen["hidden states"] = [
                torch.cat(states, 1)[made.real].detach() for states in by_layer
            ]
        if gradients:
            precise = row["precision"] == "float32"
            seen["gradients" if precise else "gradients in half precision"] = _gradients(
                backbone, seen, made
            )
    return {
        name: value.detach() if isinstance(value, torch.Tensor) else value
        for name, value in seen.items()
    }


@dataclass(frozen=True)
class _Call:
    """The tensors of one call. `real` says which positions hold tokens rather than padding."""

    ids: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor | None
    labels: torch.Tensor | None
    patches: torch.Tensor | None
    form: str
    options: dict[str, Any]
    real: torch.Tensor
    changed: set[str] = field(default_factory=set)
    """Names of arguments whose tensors a call has changed: they are the caller's."""

    @classmethod
    def of(cls, row: Row, inputs: Inputs, offset: int = 0) -> _Call:
        batch, length, total = row["batch"], inputs.length(row["length"]), inputs.positions(row)
        ids = inputs.ids(batch, length, offset)
        # Patches stand behind the first token, as hosts splice them.
        patches = inputs.patches(batch, total - length) if total > length else None
        real = _real(row["mask"], batch, total)
        counted = (real.cumsum(1) - 1).clamp(min=0)
        # Two texts, one behind the other.
        packed = torch.arange(total).repeat(batch, 1)
        packed[:, total // 2 :] -= total // 2
        labels = None
        if row["labels"] != "none":
            labels = torch.zeros(batch, total, dtype=torch.long)
            labels[:, total - length :] = ids
            labels[:, : total - length + 1] = IGNORED_LABEL
            if row["labels"] == "some ignored":
                labels[:, 1 : total // 2 : 2] = IGNORED_LABEL
            elif row["labels"] == "a row ignored":
                labels[-1] = IGNORED_LABEL
            labels = labels.masked_fill(~real, IGNORED_LABEL)
        return cls(
            ids=ids,
            mask=_as_given(row["mask"], real),
            positions={
                "none": None, "counted": counted, "shifted": counted + 3, "packed": packed,
            }[row["positions"]],
            labels=labels,
            patches=patches,
            form=row["form"],
            options={
                "plain": {}, "hidden states": {"output_hidden_states": True},
                "attentions": {"output_attentions": True},
                "tuple": {"return_dict": False},
            }[row["output"]]
            | ({} if row["cache"] == "none" else {"use_cache": True}),
            real=real,
        )  # fmt: skip

    def chunks(self, cache: str) -> list[tuple[int, int]]:
        total = self.real.shape[1]
        cuts = {
            "none": [], "returned": [], "handed in": [], "in chunks": [total // 2, total - 1],
            "token by token": list(range(max(1, total - 4), total)),
        }[cache]  # fmt: skip
        edges = [0, *dict.fromkeys(cuts), total]
        return [(begin, end) for begin, end in pairwise(edges) if begin < end]

    def run(self, backbone: Any, begin: int, end: int, cache: Any) -> Any:
        """The call, or the part of it from `begin` to `end`, behind what `cache` holds."""
        arguments: dict[str, Any] = dict(self.options)
        if cache is not None:
            arguments["past_key_values"] = cache
        if self.form == "ids":
            arguments["input_ids"] = self.ids[:, begin:end]
        else:
            arguments["inputs_embeds"] = self._embedded(backbone)[:, begin:end]
        if self.mask is not None:
            pairs = self.mask.dim() > 2
            arguments["attention_mask"] = (
                self.mask[:, :, begin:end, :end] if pairs else self.mask[:, :end]
            )
        if self.positions is not None:
            arguments["position_ids"] = self.positions[:, begin:end]
        if self.labels is not None:
            arguments["labels"] = self.labels
        return self._hand_over(backbone, arguments)

    def _hand_over(self, backbone: Any, arguments: dict[str, Any]) -> Any:
        """Call the backbone, and note which of the caller's tensors it changes."""
        tensors = {name: one for name, one in arguments.items() if isinstance(one, torch.Tensor)}
        before = {name: one.detach().clone() for name, one in tensors.items()}
        output = backbone(**arguments)
        self.changed.update(n for n, one in tensors.items() if not torch.equal(one, before[n]))
        return output

    def continued(self, backbone: Any, cache: Any, inputs: Inputs) -> torch.Tensor:
        """Logits of two more tokens, (batch, 2, vocabulary)."""
        more = inputs.ids(len(self.ids), 2, offset=1)
        arguments: dict[str, Any] = {"input_ids": more, "past_key_values": cache, "use_cache": True}
        if self.mask is not None and self.mask.dim() == 2:
            real = torch.cat([self.real, torch.ones_like(more, dtype=torch.bool)], 1)
            arguments["attention_mask"] = real.to(self.mask.dtype)
        if self.positions is not None:
            last = self.positions[torch.arange(len(more)), self._last_real()]
            arguments["position_ids"] = last[:, None] + torch.tensor([[1, 2]])
        logits: torch.Tensor = self._hand_over(backbone, arguments).logits
        return logits

    def _last_real(self) -> torch.Tensor:
        places = torch.arange(self.real.shape[1]) * self.real
        return places.max(1).values

    def _embedded(self, backbone: Any) -> torch.Tensor:
        # Hosts embed the rows of a batch one by one, too: ids of one axis.
        rows = [embeddings_of(backbone, row) for row in self.ids]
        embedded = torch.stack(rows)
        if self.patches is None:
            return embedded
        scale = embedded.detach().float().std()
        patches = (self.patches * scale).to(embedded.dtype)
        return torch.cat([embedded[:, :1], patches, embedded[:, 1:]], 1)


def _real(kind: str, batch: int, total: int) -> torch.Tensor:
    real = torch.ones(batch, total, dtype=torch.bool)
    third = max(1, total // 3)
    if kind == "right":
        real[:, -third:] = False
    elif kind in ("ragged left", "boolean", "float", "additive", "pairs"):
        for index in range(batch):
            # The rows differ, and are not sorted by length; of one row a third is padding.
            place = index ^ 1 if index ^ 1 < batch else index
            real[index, : third if batch == 1 else third * place // batch] = False
    elif kind == "gap":
        real[:, 2:4] = False  # a camera that is not there, say
    elif kind == "holes":
        real[:, :1] = real[:, -1:] = False
        for index in range(batch):
            real[index, 2 + index % 2 : 4] = False
    return real


def _as_given(kind: str, real: torch.Tensor) -> torch.Tensor | None:
    """A mask in the dtype and shape that a host hands over."""
    if kind == "none":
        return None
    if kind == "boolean":
        return real
    if kind == "float":
        return real.float()
    if kind in ("additive", "pairs"):
        total = real.shape[1]
        seen = torch.ones(total, total, dtype=torch.bool).tril() & real[:, None, None, :]
        # Padding sees itself: a row that sees nothing has no softmax.
        seen = seen | torch.eye(total, dtype=torch.bool)
        if kind == "pairs":
            return seen
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return real.long()


def _empty_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


def _facts_of(output: Any, row: Row) -> tuple[Observation, Any]:
    """What one output holds, and its cache."""
    if isinstance(output, tuple):
        tensors = [item for item in output if isinstance(item, torch.Tensor)]
        facts: Observation = {"logits": tensors[-1], "items of the tuple": len(output)}
        if row["labels"] != "none":
            facts["loss"] = tensors[0]
        return facts, None if len(output) == len(tensors) else output[len(tensors)]
    facts = {"logits": output.logits}
    cache = getattr(output, "past_key_values", None)
    facts["a cache"] = cache is not None
    asked = {"hidden states": "hidden_states", "attentions": "attentions"}
    facts["what is returned unasked"] = ", ".join(
        name
        for told, name in asked.items()
        if row["output"] != told and getattr(output, name, None) is not None
    )
    if getattr(output, "loss", None) is not None:
        facts["loss"] = output.loss
    if row["output"] == "hidden states":
        facts["hidden states"] = list(output.hidden_states)
    return facts, cache


def _gradients(backbone: Any, seen: Observation, made: _Call) -> dict[str, torch.Tensor | None]:
    """The gradient of every parameter of `llm` and of the patches, None for one that is not
    reached, of a fixed functional over the logits of real positions and known ids."""
    compared = seen["logits"]
    weights = torch.cos(torch.arange(compared.shape[-1], dtype=torch.float32)).to(compared.dtype)
    value = (compared * weights).float().mean()
    # Two that every model has, whatever it calls its parameters.
    named = {
        **parameters_by_name(backbone.llm),
        "the input embedding": backbone.llm.get_input_embeddings().weight,
        "the head": backbone.llm.get_output_embeddings().weight,
    }
    if made.patches is not None:
        named["the patches"] = made.patches
    trained = {name: tensor for name, tensor in named.items() if tensor.requires_grad}
    if not value.requires_grad:  # nothing is reached
        return dict.fromkeys(named)
    for tensor in trained.values():
        tensor.grad = None
    value.backward()  # which checkpointing with `use_reentrant=True` allows, unlike `autograd.grad`
    return {name: trained[name].grad if name in trained else None for name in named}


def _freeze(backbone: Any, trained: str) -> None:
    if trained == "everything":
        return
    head = backbone.llm.get_output_embeddings()
    kept = {id(p) for p in head.parameters()} if trained == "the head" else set()
    for parameter in backbone.llm.parameters():
        parameter.requires_grad_(id(parameter) in kept)


def copied_with_its_tokenizer(backbone: Any) -> Any:
    """A deep copy that has the same tokenizer: that takes longest to copy, and computes nothing."""
    kept = [backbone.get_tokenizer()] if hasattr(backbone, "get_tokenizer") else []
    return copy.deepcopy(backbone, {id(one): one for one in kept})


def _grown_copy(backbone: Any, *, assigned: bool) -> Any:
    """A deep copy with other weights than the original's, written in place or `assigned` as new
    tensors: what still reads the original's, or the copy's old ones, computes otherwise.

    Raises:
        NoSuchState: if it cannot, which nobody overlooks.
    """
    try:
        copied = copied_with_its_tokenizer(backbone)
    except Exception as error:
        raise NoSuchState from error
    if assigned:
        grown = {parameter: parameter.detach() * _GROWN for parameter in copied.parameters()}
        state = copied.state_dict()
        for name, parameter in copied.named_parameters(remove_duplicate=False):
            if name in state:
                state[name] = grown[parameter]
        copied.load_state_dict(state, assign=True)
        return copied
    with torch.no_grad():
        for parameter in copied.llm.parameters():
            parameter.mul_(_GROWN)
    return copied


def _live_through(backbone: Any, row: Row, inputs: Inputs) -> None:
    """What happened to the instance before the call."""
    history = row["history"]
    plain = {**DEFAULTS, "length": row["length"], "batch": row["batch"]}
    if history == "fresh":
        return
    backbone.eval()
    if history == "same shape before":
        other = {**row, "labels": "none", "mask": "ones", "positions": "none", "cache": "none"}
        with torch.no_grad():
            _run(backbone, _Call.of(other, inputs, offset=2))
            _run(backbone, _Call.of({**other, "mask": "ragged left"}, inputs, offset=3))
    elif history == "after inference mode":
        # Tensors made here must not be kept: a training step refuses them.
        with torch.inference_mode():
            _run(backbone, _Call.of({**plain, "form": row["form"]}, inputs, offset=8))
    elif history == "long call before":
        with torch.no_grad():
            _run(backbone, _Call.of({**DEFAULTS, "length": 70}, inputs, offset=4))
    elif history == "after generation":
        ids = inputs.ids(2, 5, offset=5)
        try:
            backbone.llm.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
        except Exception as error:
            if row["precision"] != "autocast" or is_slip_of_ours(error):
                raise
            # Under autocast the library's own StaticCache takes no keys; whoever asks hears of it.
            raise NoSuchState from error
    elif history in ("after backward", "after a step"):
        backbone.train()
        loss = _run(backbone, _Call.of({**plain, "labels": "all"}, inputs, offset=6)).loss
        if not any(parameter.requires_grad for parameter in backbone.llm.parameters()):
            raise NoSuchState("no parameter is trained: a loss has no gradient")
        loss.backward()
        if history == "after a step":
            with torch.no_grad():
                # Alike for all: code of its own may hold them otherwise, or more of them.
                for parameter in backbone.llm.parameters():
                    parameter.mul_(_GROWN)
    elif history == "after reloading":
        state = {
            name: tensor * _GROWN if tensor.is_floating_point() else tensor.clone()
            for name, tensor in backbone.state_dict().items()
        }
        _change_mode(backbone, row)  # before: what is loaded must reach what eval() has prepared
        backbone.load_state_dict(state)
        # The caller goes on using its tensors.
        for tensor in state.values():
            tensor.zero_()


def _run(backbone: Any, made: _Call) -> Any:
    return made.run(backbone, 0, made.real.shape[1], None)


@contextmanager
def _unchanged(backbone: Any, *, values: bool) -> Iterator[None]:
    """Put back mode and gradients, and the parameters' `values`, which only a step changes."""
    training = backbone.training
    trained = [(one, one.requires_grad) for one in backbone.llm.parameters()]
    kept = [(one, one.detach().clone()) for one in backbone.llm.parameters()] if values else []
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)
        backbone.llm.zero_grad(set_to_none=True)
        backbone.train(training)
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)


@contextmanager
def first_rows_alone(backbone: Any, rows: int) -> Iterator[None]:
    """The input embedding and the head of `llm` with their first `rows` alone while the body runs:
    of a long text nearly all time and memory go into logits over a whole vocabulary.

    Raises:
        CallRefused: there are not as many rows, or there is no such module.
    """
    llm = backbone.llm
    embedding, head = llm.get_input_embeddings(), llm.get_output_embeddings()
    weights = [getattr(module, "weight", None) for module in (embedding, head)]
    count = {len(one) if isinstance(one, torch.Tensor) else 0 for one in weights}
    if len(count) != 1 or max(count) <= rows:
        raise CallRefused(f"it has no embedding and head of more than {rows} rows")
    whole = count.pop()
    # Losses are views of logits by these sizes, and no row pads that is not there.
    sized = {id(one): one for one in (llm.config, text_config(llm), *llm.modules())}.values()
    set_to: list[tuple[Any, str, int | None]] = [
        (one, "vocab_size", rows) for one in sized if vars(one).get("vocab_size") == whole
    ]
    set_to += [(one, "padding_idx", None) for one in sized if _pads_behind(one, rows)]
    parameters = [*embedding.parameters(), *head.parameters()]
    with _data_changed(parameters, lambda data: data[:rows]), ExitStack() as state:
        for one, name, value in set_to:
            state.enter_context(mock.patch.object(one, name, value))
        yield


def _pads_behind(module: Any, rows: int) -> bool:
    """Whether it pads with a row that is not among the first ones."""
    row = vars(module).get("padding_idx")
    return isinstance(row, int) and row >= rows


@contextmanager
def parameters_in(backbone: Any, dtype: torch.dtype) -> Iterator[None]:
    """Parameters in half precision while the body runs, buffers as they are: as FSDP's mixed
    precision with float32 buffers casts them."""
    with _data_changed(backbone.llm.parameters(), lambda data: data.to(dtype)):
        yield


@contextmanager
def _data_changed(
    parameters: Iterable[torch.nn.Parameter], change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Other data in the same parameters while the body runs."""
    kept = {parameter: parameter.data for parameter in parameters}
    try:
        for parameter, data in kept.items():
            parameter.data = change(data)
        yield
    finally:
        for parameter, data in kept.items():
            parameter.data = data


@contextmanager
def without_dropout(backbone: Any) -> Iterator[None]:
    """Dropout rates at zero, wherever a module keeps one, while the body runs."""
    kept = list(_rates(backbone))
    for _, module, attribute, _ in kept:
        setattr(module, attribute, 0.0)
    try:
        yield
    finally:
        for _, module, attribute, rate in kept:
            setattr(module, attribute, rate)


def declared_dropout(model: torch.nn.Module) -> dict[str, float]:
    """The dropout rates above zero, by module and attribute."""
    return {f"`{name}.{attribute}`": rate for name, _, attribute, rate in _rates(model)}


def _rates(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str, float]]:
    for name, module in model.named_modules():
        for attribute in ("p", "dropout", "attention_dropout"):
            rate = vars(module).get(attribute)
            if isinstance(rate, float) and rate > 0:
                yield name, module, attribute, rate
