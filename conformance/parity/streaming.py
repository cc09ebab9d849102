"""The published size in the memory of one layer.

The model is built on the meta device, and accelerate's hooks give each of its modules weights as it computes and take
them back after. What computes is the subject's own model class; how it calls its layers, with which masks and angles, is
the library's business. Each layer's weights are made once, and serve the subject in float32 and in half precision, the
float64 reference and the half-precision one.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional

from conformance.hub.weights import NORM_SPREAD, SHARED_ROW_SHARE, distribution, seed_of
from conformance.oracle import (
    FLOAT64,
    Architecture,
    Decoder,
    Place,
    Precision,
    architecture_of,
)
from conformance.oracle.architecture import Names
from conformance.parity.equality import relative_rms
from conformance.parity.gates import rounding_ratio
from conformance.parity.modules import forced, hidden_in
from conformance.parity.probes import cast_parameters, library_config
from conformance.parity.reference import prefix_of

Config = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
#: Writes the values of the tensor with this name into a tensor of its shape.
Write = Callable[[str, torch.Tensor], None]

#: Normal values that are drawn once. A prime: wherever a matrix runs over the end, its rows begin at another value.
_BLOCK = 3_999_971
#: Elements that are cast to float64 together, 64 MiB.
_WIDENED_AT_ONCE = 1 << 23


class SeededWeights:
    """Probe weights at any size, by name, as fast as memory can be written.

    They spread as those of :mod:`conformance.hub.weights` do. Drawing seven billion values takes minutes, so that one
    block of them is drawn and copied, scaled, from a place that the seed and the tensor's name decide.
    """

    def __init__(self, shapes: Shapes, *, seed: int, vocabulary: int, tied: bool) -> None:
        self._shapes = shapes
        self._seed = str(seed)
        self._vocabulary = vocabulary
        self._tied = tied
        self._scaled: dict[tuple[float, torch.dtype], torch.Tensor] = {}

    def write(self, name: str, out: torch.Tensor) -> None:
        """Fill ``out``, of any dtype, with the tensor ``name``, rounded to that dtype."""
        shape = self._shapes[name]
        drawn = distribution(name, shape, vocabulary=self._vocabulary, tied=self._tied)
        generator = torch.Generator().manual_seed(seed_of(self._seed, name))
        if drawn.kind == "norm":
            out.copy_(torch.rand(shape, generator=generator).mul_(2 * NORM_SPREAD).add_(1 - NORM_SPREAD))
            return
        start = int(torch.randint(_BLOCK, (), generator=generator))
        own = (1 - SHARED_ROW_SHARE) ** 0.5 if drawn.kind == "rows" else 1.0
        _tile(out.view(-1), self._block(drawn.scale * own, out.dtype), start)
        if drawn.kind == "rows":
            shared = torch.randn(shape[-1], generator=generator) * (drawn.scale * SHARED_ROW_SHARE**0.5)
            out.add_(shared.to(out.dtype))

    @cached_property
    def _normal(self) -> torch.Tensor:
        return torch.randn(_BLOCK, generator=torch.Generator().manual_seed(seed_of(self._seed, "")))

    def _block(self, scale: float, dtype: torch.dtype) -> torch.Tensor:
        if (scale, dtype) not in self._scaled:
            self._scaled[scale, dtype] = (self._normal * scale).to(dtype)
        return self._scaled[scale, dtype]


def read_from(checkpoint: Mapping[str, torch.Tensor]) -> Write:
    """The tensors of a checkpoint, each rounded to the dtype that it is asked for in."""

    def write(name: str, out: torch.Tensor) -> None:
        out.copy_(checkpoint[name])

    return write


class OneLayer(Mapping[str, torch.Tensor]):
    """Checkpoint name → tensor in ``dtype``, made when asked for. Only those of the layer that was asked for last are kept:
    the next layer's are written over them, so that a tensor is good until another layer's is asked for.

    What is outside the layers counts as one of them.
    """

    def __init__(self, shapes: Shapes, write: Write, dtype: torch.dtype) -> None:
        self.shapes = shapes
        self.dtype = dtype
        self._write = write
        self._home = ""
        self._held: dict[str, torch.Tensor] = {}
        self._spare: list[torch.Tensor] = []

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self.shapes[name]
        home = _home_of(name)
        if home != self._home:
            self._spare = list(self._held.values()) if home and self._home else []
            self._held.clear()
            self._home = home
        if name not in self._held:
            place = next((place for place, spare in enumerate(self._spare) if spare.shape == shape), None)
            # Memory that is new to the process costs more time than what is written into it.
            out = torch.empty(shape, dtype=self.dtype) if place is None else self._spare.pop(place)
            self._write(name, out)
            self._held[name] = out
        return self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def held(self) -> tuple[str, ...]:
        """The names of the tensors in memory."""
        return tuple(self._held)

    def not_finite(self, path: str) -> str | None:
        """The first tensor in memory, of the module at ``path``, that holds NaN or infinity."""
        own = (name for name in self._held if name.startswith(f"{path}."))
        return next((name for name in own if not bool(torch.isfinite(self._held[name]).all())), None)


def on_meta(model_class: Any, config: Config, attention: str) -> Any:
    """A model of a parsed ``config.json`` whose parameters are on the meta device; its buffers are real, and float32."""
    from accelerate import init_empty_weights

    # Older releases compute rotary tables in the dtype that the config names.
    dtypes = {"torch_dtype": "float32", "dtype": "float32"}
    fields = {key: value for key, value in config.items() if key not in dtypes}
    with (
        torch.random.fork_rng(devices=[]),
        _equal_buffers_shared(),
        init_empty_weights(include_buffers=False),
    ):
        model_config = library_config(fields, torch_dtype="float32")
        llm = model_class._from_config(model_config, attn_implementation=attention).eval()
    # Each parameter was replaced by one on the meta device, a tied head by one of its own.
    llm.tie_weights()
    _give_back_freed_memory()
    return llm


def seeded_model(
    model_class: Any,
    config: Config,
    shapes: Shapes,
    dtype: torch.dtype,
    on: torch.device,
    *,
    seed: int,
    attention: str = "sdpa",
) -> Any:
    """A whole model of ``shapes``, seeded in ``dtype`` on the device ``on``, in ``eval()``; one tensor at a time is made
    elsewhere, so that the device needs no more than the model."""
    llm = on_meta(model_class, config, attention)
    prefix = prefix_of(llm, architecture_of(config))
    tied = bool(config.get("tie_word_embeddings"))
    weights = SeededWeights(shapes, seed=seed, vocabulary=int(config["vocab_size"]), tied=tied)
    for name, shape in shapes.items():
        tensor = torch.empty(shape, dtype=dtype)
        weights.write(name, tensor)
        path, _, parameter = (prefix + name).rpartition(".")
        llm.get_submodule(path).register_parameter(
            parameter, torch.nn.Parameter(tensor.to(on), requires_grad=False)
        )
    llm.tie_weights()
    return llm.to(on).eval()


@dataclass(frozen=True)
class Measured:
    """One number. ``gate`` is ``semantics`` (relative RMS, float32) or ``ratio`` (rounding ratio, half precision); ``path`` is
    the module's in the checkpoint, and ``what`` says whether its output or what it is given was measured."""

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
    """Run ``model_class`` on ``ids``, (1, sequence), one layer at a time, and measure each module against the reference's.

    Every module is given what the float64 reference hands to it, rounded to the half-precision dtype of ``weights``: the
    same numbers in every dtype. Measured in the order of computation, what a layer holds before the layer itself, and, in
    float32, what the model would have handed to each module on its own.

    Raises:
        NoReference, InvalidConfig: as :func:`conformance.oracle.architecture_of`.
    """
    architecture = architecture_of(config)
    names = architecture.names
    half = weights.dtype
    place = Place.of(torch.ones_like(ids))
    model = _Streamed(model_class, config, weights, architecture, attention)
    subjects = [_Subject(model, names, dtype) for dtype in (torch.float32, half)]
    given: dict[str, torch.Tensor] = {}

    def give_rounded(path: str, hidden: torch.Tensor) -> torch.Tensor:
        given[path] = hidden.to(half)
        return given[path].to(hidden.dtype)

    def give_the_same(path: str, hidden: torch.Tensor) -> torch.Tensor:
        return given[path]

    teacher = _Reference(architecture, weights, FLOAT64, give_rounded)
    pupil = _Reference(architecture, weights, Precision(half, torch.float32), give_the_same)

    announce("embedding, final norm and head")
    truth, own = _Trace(), _Trace()
    truth.made[names.embedding] = teacher.embed(ids)
    own.made[names.embedding] = pupil.embed(ids)
    hidden = truth.made[names.embedding].to(half)
    given[names.final_norm] = hidden
    normed = truth.made[names.final_norm] = teacher.norm(names.final_norm, hidden.double())
    own.made[names.final_norm] = pupil.norm(names.final_norm, hidden)
    given[names.head] = normed.to(half)
    truth.made[names.head] = teacher.head(given[names.head].double())
    own.made[names.head] = pupil.head(given[names.head])
    yield from _held_to_both_gates(truth, own, *(subject.outside(ids, given) for subject in subjects))

    for index in range(architecture.layers):
        announce(f"layer {index} of {architecture.layers}")
        truth, own = _Trace(), _Trace()
        given.clear()
        given[f"{names.layers}.{index}"] = hidden
        made = teacher.layer(index, hidden.double(), place, truth)
        pupil.layer(index, hidden, place, own)
        yield from _held_to_both_gates(truth, own, *(subject.layer(index, given) for subject in subjects))
        hidden = made.to(half)


@contextmanager
def all_cores() -> Iterator[None]:
    """While the body runs torch uses every core that the process may: full-size matrices pay for threads."""
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(before, cores))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Reference(Decoder):
    """A reference decoder each of whose modules is given what ``force`` makes of what arrives at its path."""

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

    def linear(self, path: str, hidden: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        weight = self._weights[f"{path}.weight"]
        if rows is not None or weight.dtype == self.precision.working:
            return super().linear(path, hidden, rows)
        at_once = max(1, _WIDENED_AT_ONCE // weight.shape[1])
        parts = [functional.linear(hidden, self._wide.copy(block)) for block in torch.split(weight, at_once)]
        product = torch.cat(parts, dim=-1)
        bias = f"{path}.bias"
        return product + self._weights[bias].to(product.dtype) if bias in self._weights else product


class _Streamed:
    """The model class at full size, its parameters on the meta device but for those of the module that computes."""

    def __init__(
        self, model_class: Any, config: Config, weights: OneLayer, architecture: Architecture, attention: str
    ) -> None:
        from accelerate.hooks import attach_align_device_hook

        self.llm = on_meta(model_class, config, attention)
        self.prefix = prefix_of(self.llm, architecture)
        self.layers = list(self.llm.get_submodule(self.prefix + architecture.names.layers))
        self._weights = _ForModel(weights, self.prefix, architecture)
        attach_align_device_hook(
            self.llm, execution_device=torch.device("cpu"), offload=True, weights_map=self._weights
        )

    def cast(self, dtype: torch.dtype) -> None:
        """From now on compute in ``dtype``; buffers stay float32, as under FSDP's mixed precision."""
        self._weights.dtype = dtype
        cast_parameters(self.llm, dtype)


class _Subject:
    """A streamed model in one dtype."""

    def __init__(self, model: _Streamed, names: Names, dtype: torch.dtype) -> None:
        self._model = model
        self._names = names
        self._dtype = dtype
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def outside(self, ids: torch.Tensor, given: Mapping[str, torch.Tensor]) -> _Trace:
        """What the embedding makes, and the final norm and the head of ``given``. The layers are passed over: how the
        library calls them is kept for :meth:`layer`."""
        trace, llm = _Trace(), self._model.llm
        self._model.cast(self._dtype)

        def pass_over(*args: Any, **kwargs: Any) -> Any:
            self._calls.append((args, kwargs))
            # Older releases unpack a layer's output, newer ones hand it on, to where its place is taken by what is given.
            return (hidden_in(*self._calls[0]),)

        with ExitStack() as stack:
            for layer in self._model.layers:
                stack.callback(_put_back, layer, layer.__dict__.get("forward"))
                layer.forward = pass_over
            stack.enter_context(forced(llm, self._model.prefix, self._own(given), trace.made))
            logits = llm(input_ids=ids, use_cache=False).logits
        trace.made |= {self._names.embedding: hidden_in(*self._calls[0]), self._names.head: logits}
        return trace

    def layer(self, index: int, given: Mapping[str, torch.Tensor]) -> _Trace:
        """One layer, called as the library called it, with the modules at the paths of ``given`` given those tensors: what
        would have arrived at those within it, and what they make."""
        trace, own = _Trace(), self._own(given)
        self._model.cast(self._dtype)
        args, kwargs = self._calls[index]

        def keep(path: str) -> Callable[..., None]:
            return lambda module, args, kwargs: trace.arrived.update({path: hidden_in(args, kwargs)})

        with ExitStack() as hooks:
            for path in own.keys() - {f"{self._names.layers}.{index}"}:
                module = self._model.llm.get_submodule(self._model.prefix + path)
                hooks.callback(module.register_forward_pre_hook(keep(path), with_kwargs=True).remove)
            hooks.enter_context(forced(self._model.llm, self._model.prefix, own, trace.made))
            self._model.layers[index](*args, **kwargs)
        return trace

    def _own(self, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is given to modules that this model has, in its dtype."""
        return {path: tensor.to(self._dtype) for path, tensor in given.items() if self._has(path)}

    def _has(self, path: str) -> bool:
        try:
            self._model.llm.get_submodule(self._model.prefix + path)
        except AttributeError:
            return False
        return True


class _ForModel(Mapping[str, torch.Tensor]):
    """Weights under the names of a model, in ``dtype``. Matrices share scratch memory: a module has each kind once."""

    def __init__(self, weights: OneLayer, prefix: str, architecture: Architecture) -> None:
        self.dtype = torch.float32
        self._weights = weights
        self._prefix = prefix
        names = architecture.names
        self._tied = {f"{names.head}.weight": f"{names.embedding}.weight"} if architecture.tied else {}
        self._scratch: dict[tuple[str, torch.dtype], _Scratch] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        name = name.removeprefix(self._prefix)
        tensor = self._weights[self._tied.get(name, name)]
        if tensor.dtype == self.dtype or tensor.dim() < 2:
            return tensor.to(self.dtype)
        kind = (name.rpartition(".")[2], self.dtype)
        return self._scratch.setdefault(kind, _Scratch(self.dtype)).copy(tensor)

    def __iter__(self) -> Iterator[str]:
        return (self._prefix + name for name in self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class _Scratch:
    """Memory that is written again and again; a copy is good until the next."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._memory = torch.empty(0, dtype=dtype)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._memory.numel() < tensor.numel():
            dtype = self._memory.dtype
            self._memory = torch.empty(0, dtype=dtype)
            self._memory = torch.empty(tensor.numel(), dtype=dtype)
        return self._memory[: tensor.numel()].view(tensor.shape).copy_(tensor)


class _Trace:
    """What arrives at modules and what they make, by path, in the order in which they are done."""

    def __init__(self) -> None:
        self.arrived: dict[str, torch.Tensor] = {}
        self.made: dict[str, torch.Tensor] = {}

    def __call__(self, path: str, arrived: torch.Tensor, made: torch.Tensor) -> None:
        self.arrived[path], self.made[path] = arrived, made


def _held_to_both_gates(truth: _Trace, own: _Trace, exact: _Trace, rounded: _Trace) -> Iterator[Measured]:
    for path, made in truth.made.items():
        if path in exact.arrived:
            yield Measured("semantics", path, relative_rms(exact.arrived[path], truth.arrived[path]), "input")
        if path in exact.made:
            yield Measured("semantics", path, relative_rms(exact.made[path], made))
            yield Measured("ratio", path, rounding_ratio(rounded.made[path], made, own.made[path]))


@contextmanager
def _equal_buffers_shared() -> Iterator[None]:
    """Buffers registered in the body that are equal are one: older releases give every layer its own rotary tables, a
    gigabyte in all at Mistral's 32,768 positions."""
    register = torch.nn.Module.register_buffer
    seen: list[torch.Tensor] = []

    def register_shared(
        module: torch.nn.Module, name: str, tensor: torch.Tensor | None, *args: Any, **kwargs: Any
    ) -> None:
        if tensor is not None:
            equal = (other for other in seen if other.dtype == tensor.dtype and torch.equal(other, tensor))
            same = next(equal, None)
            if same is None:
                seen.append(tensor)
            tensor = tensor if same is None else same
        register(module, name, tensor, *args, **kwargs)

    torch.nn.Module.register_buffer = register_shared  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_buffer = register  # type: ignore[method-assign]


def _give_back_freed_memory() -> None:
    """Have the C library return freed memory to the system: tables that were made and dropped leave 1.7 GiB behind."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # not every C library has it
            ctypes.CDLL(None).malloc_trim(0)


def _tile(out: torch.Tensor, block: torch.Tensor, start: int) -> None:
    """Fill ``out``, one-dimensional, with ``block`` from ``start`` on, again and again."""
    written = 0
    while written < len(out):
        count = min(len(out) - written, len(block) - start)
        out[written : written + count] = block[start : start + count]
        written, start = written + count, 0


def _home_of(name: str) -> str:
    """The layer that a tensor belongs to, such as ``model.layers.3``; empty where that is none."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[: number + 1])


def _put_back(module: Any, forward: Any) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward
