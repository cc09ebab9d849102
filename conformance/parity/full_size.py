"""Parity at the published size in the memory of one layer.

The subject's own model class computes; the library decides how it calls its layers, with which
masks and angles. Each layer's weights are made once, and serve the subject in float32 and in half
precision, the float64 reference and the half-precision one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from conformance.oracle import (
    FLOAT64,
    Architecture,
    Decoder,
    Place,
    Precision,
    architecture_of,
)
from conformance.oracle.architecture import Names
from conformance.oracle.decoder import Rows
from conformance.parity.equality import relative_rms
from conformance.parity.gates import rounding_ratio
from conformance.parity.library import cast_parameters
from conformance.parity.modules import forced, hidden_in
from conformance.parity.reference import names_in, prefix_of
from conformance.parity.streaming import Config, OneLayer, on_meta

_WIDENED_AT_ONCE = 1 << 23
"""Elements that are cast to float64 together, 64 MiB."""


@dataclass(frozen=True)
class Measured:
    """One measured number. `gate` is `semantics` (relative RMS, float32) or `ratio` (rounding
    ratio, half precision); `path` is the module's in the checkpoint, and `what` says whether its
    output or its input was measured."""

    gate: str
    path: str
    value: float
    what: str = "output"


@torch.no_grad()
def full_size_parity(
    model_class: Any,
    config: Config,
    weights: OneLayer,
    ids: torch.Tensor,
    *,
    attention: str,
    announce: Callable[[str], None] = lambda step: None,
) -> Iterator[Measured]:
    """Run `model_class` on `ids`, (1, sequence), one layer at a time, and measure each module
    against the reference's.

    Every module is given the float64 reference's input, rounded to the half-precision dtype of
    `weights`: the same numbers in every dtype. Results come in the order of computation, the parts
    of a layer before the layer. In float32, the input that the model itself would have given to
    each module is measured too.

    Raises:
        NoReference, InvalidConfig: as `conformance.oracle.architecture_of`.
    """
    architecture = architecture_of(config)
    names = architecture.names
    half = weights.dtype
    place = Place.of(torch.ones_like(ids))
    model = _Streamed(model_class, config, weights, architecture, attention)
    subjects = [_StreamedIn(model, names, dtype) for dtype in (torch.float32, half)]
    given: dict[str, torch.Tensor] = {}

    def give_rounded(path: str, hidden: torch.Tensor) -> torch.Tensor:
        given[path] = hidden.to(half)
        return given[path].to(hidden.dtype)

    def give_the_same(path: str, hidden: torch.Tensor) -> torch.Tensor:
        return given[path]

    teacher = _ForcedDecoder(architecture, weights, FLOAT64, give_rounded)
    pupil = _ForcedDecoder(architecture, weights, Precision(half, torch.float32), give_the_same)

    announce("embedding, final norm and head")
    truth, own = _Passed(), _Passed()
    truth.made[names.embedding] = teacher.embed(ids)
    own.made[names.embedding] = pupil.embed(ids)
    hidden = truth.made[names.embedding].to(half)
    given[names.final_norm] = hidden
    normed = truth.made[names.final_norm] = teacher.norm(names.final_norm, hidden.double())
    own.made[names.final_norm] = pupil.norm(names.final_norm, hidden)
    given[names.head] = normed.to(half)
    truth.made[names.head] = teacher.head(given[names.head].double())
    own.made[names.head] = pupil.head(given[names.head])
    yield from _held_to_both_gates(
        truth, own, *(subject.outside(ids, given) for subject in subjects)
    )

    for index in range(architecture.layers):
        announce(f"layer {index} of {architecture.layers}")
        truth, own = _Passed(), _Passed()
        given.clear()
        given[f"{names.layers}.{index}"] = hidden
        made = teacher.layer(index, hidden.double(), place, truth)
        pupil.layer(index, hidden, place, own)
        yield from _held_to_both_gates(
            truth, own, *(subject.layer(index, given) for subject in subjects)
        )
        hidden = made.to(half)


@contextmanager
def all_cores() -> Iterator[None]:
    """Let torch use every core of the process while the body runs: full-size matrices repay
    threads."""
    before = torch.get_num_threads()
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    torch.set_num_threads(max(before, cores))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _ForcedDecoder(Decoder):
    """A reference decoder in which `force` replaces the input of each module, by its path."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, torch.Tensor],
        precision: Precision,
        force: Callable[[str, torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__(architecture, weights, precision)
        self._force = force
        self._wide = _Scratch(precision.working)

    def attention(self, index: int, hidden: torch.Tensor, place: Place) -> torch.Tensor:
        names = self.architecture.names
        return super().attention(
            index, self._force(f"{names.layers}.{index}.{names.attention}", hidden), place
        )

    def mlp(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        names = self.architecture.names
        return super().mlp(index, self._force(f"{names.layers}.{index}.{names.mlp}", hidden))

    def norm(self, path: str, hidden: torch.Tensor) -> torch.Tensor:
        # Norms of queries and keys are a part of attention.
        of_layer = path.count(".") == self.architecture.names.layers.count(".") + 2
        return super().norm(path, self._force(path, hidden) if of_layer else hidden)

    def linear(self, path: str, hidden: torch.Tensor, rows: Rows | None = None) -> torch.Tensor:
        weight = self._weights[f"{path}.weight"]
        if weight.dtype == self.precision.working:
            return super().linear(path, hidden, rows)
        weight = weight if rows is None else weight[rows]
        at_once = max(1, _WIDENED_AT_ONCE // weight.shape[1])
        parts = [
            functional.linear(hidden, self._wide.copy(block))
            for block in torch.split(weight, at_once)
        ]
        product = torch.cat(parts, dim=-1)
        if f"{path}.bias" not in self._weights:
            return product
        bias = self._weights[f"{path}.bias"]
        return product + (bias if rows is None else bias[rows]).to(product.dtype)


class _Streamed:
    """The model class at full size, its parameters on the meta device except those of the module
    that computes."""

    def __init__(
        self,
        model_class: Any,
        config: Config,
        weights: OneLayer,
        architecture: Architecture,
        attention: str,
    ) -> None:
        from accelerate.hooks import attach_align_device_hook

        self.llm = on_meta(model_class, config, attention)
        self.prefix = prefix_of(self.llm, architecture)
        self.names = names_in(self.llm, self.prefix, architecture.names)
        self.layers = list(self.llm.get_submodule(self.prefix + architecture.names.layers))
        self._weights = _ForModel(weights, self.prefix, architecture, self.names.head)
        attach_align_device_hook(
            self.llm, execution_device=torch.device("cpu"), offload=True, weights_map=self._weights
        )

    def cast(self, dtype: torch.dtype) -> None:
        """From now on compute in `dtype`; buffers stay float32, as under FSDP's mixed precision."""
        self._weights.dtype = dtype
        cast_parameters(self.llm, dtype)


class _StreamedIn:
    """A streamed model in one dtype."""

    def __init__(self, model: _Streamed, names: Names, dtype: torch.dtype) -> None:
        self._model = model
        self._names = names
        self._dtype = dtype
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def outside(self, ids: torch.Tensor, given: Mapping[str, torch.Tensor]) -> _Passed:
        """The outputs of the embedding, and of the final norm and the head on `given`. The layers
        are skipped; the library's calls to them are kept for `layer`."""
        trace, llm = _Passed(), self._model.llm
        self._model.cast(self._dtype)

        def pass_over(*args: Any, **kwargs: Any) -> Any:
            self._calls.append((args, kwargs))
            # Older releases unpack a layer's output, newer ones pass it on; `given` replaces it
            # either way.
            return (hidden_in(*self._calls[0]),)

        with ExitStack() as stack:
            for layer in self._model.layers:
                stack.callback(_put_back, layer, layer.__dict__.get("forward"))
                layer.forward = pass_over
            stack.enter_context(forced(llm, self._model.prefix, self._own(given), trace.made))
            logits = llm(input_ids=ids, use_cache=False).logits
        trace.made |= {self._names.embedding: hidden_in(*self._calls[0]), self._names.head: logits}
        return trace

    def layer(self, index: int, given: Mapping[str, torch.Tensor]) -> _Passed:
        """Call one layer as the library called it, with the inputs of `given` forced on the modules
        at its paths. Returns the inputs that would have arrived inside the layer, and the
        outputs."""
        trace, own = _Passed(), self._own(given)
        self._model.cast(self._dtype)
        args, kwargs = self._calls[index]

        def keep(path: str) -> Callable[..., None]:
            return lambda module, args, kwargs: trace.arrived.update(
                {path: hidden_in(args, kwargs)}
            )

        with ExitStack() as hooks:
            for path in own.keys() - {f"{self._names.layers}.{index}"}:
                module = self._model.llm.get_submodule(self._model.prefix + path)
                hooks.callback(
                    module.register_forward_pre_hook(keep(path), with_kwargs=True).remove
                )
            hooks.enter_context(forced(self._model.llm, self._model.prefix, own, trace.made))
            self._model.layers[index](*args, **kwargs)
        return trace

    def _own(self, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The part of `given` for modules that this model has, by its own names, in its dtype."""
        own = {self._names.head: self._model.names.head}
        renamed = {own.get(path, path): tensor for path, tensor in given.items()}
        return {path: tensor.to(self._dtype) for path, tensor in renamed.items() if self._has(path)}

    def _has(self, path: str) -> bool:
        try:
            self._model.llm.get_submodule(self._model.prefix + path)
        except AttributeError:
            return False
        return True


class _ForModel(Mapping[str, torch.Tensor]):
    """Weights under the names of a model, which calls its head `head`, in `dtype`. Matrices share
    scratch memory: a module has each kind once."""

    def __init__(
        self, weights: OneLayer, prefix: str, architecture: Architecture, head: str
    ) -> None:
        self.dtype = torch.float32
        self._weights = weights
        self._prefix = prefix
        names = architecture.names
        self._head = {
            f"{head}.weight": f"{names.embedding if architecture.tied else names.head}.weight"
        }
        self._scratch: dict[tuple[str, torch.dtype], _Scratch] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        name = name.removeprefix(self._prefix)
        tensor = self._weights[self._head.get(name, name)]
        if tensor.dtype == self.dtype or tensor.dim() < 2:
            return tensor.to(self.dtype)
        kind = (name.rpartition(".")[2], self.dtype)
        return self._scratch.setdefault(kind, _Scratch(self.dtype)).copy(tensor)

    def __iter__(self) -> Iterator[str]:
        return (self._prefix + name for name in self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class _Scratch:
    """Memory that is reused; a copy is valid until the next."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._memory = torch.empty(0, dtype=dtype)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._memory.numel() < tensor.numel():
            dtype = self._memory.dtype
            self._memory = torch.empty(0, dtype=dtype)
            self._memory = torch.empty(tensor.numel(), dtype=dtype)
        return self._memory[: tensor.numel()].view(tensor.shape).copy_(tensor)


class _Passed:
    """The inputs and outputs of modules, by path, in the order in which they finish."""

    def __init__(self) -> None:
        self.arrived: dict[str, torch.Tensor] = {}
        self.made: dict[str, torch.Tensor] = {}

    def __call__(self, path: str, arrived: torch.Tensor, made: torch.Tensor) -> None:
        self.arrived[path], self.made[path] = arrived, made


def _held_to_both_gates(
    truth: _Passed, own: _Passed, exact: _Passed, rounded: _Passed
) -> Iterator[Measured]:
    for path, made in truth.made.items():
        if path in exact.arrived:
            yield Measured(
                "semantics", path, relative_rms(exact.arrived[path], truth.arrived[path]), "input"
            )
        if path in exact.made:
            yield Measured("semantics", path, relative_rms(exact.made[path], made))
            yield Measured("ratio", path, rounding_ratio(rounded.made[path], made, own.made[path]))


def _put_back(module: Any, forward: Any) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward
