"""Weights at the published size, made or read one layer at a time, and models whose parameters take
no memory.

The model is built on the meta device; `accelerate`'s hooks give each of its modules weights as it
computes, and take them back after.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import torch

from conformance.hub.weights import (
    NORM_SPREAD,
    SHARED_ROW_SHARE,
    distribution,
    has_tied_head,
    norm_centre,
    seed_of,
)
from conformance.oracle import architecture_of
from conformance.parity.library import library_config
from conformance.parity.reference import names_in, prefix_of

Config = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
Write = Callable[[str, torch.Tensor], None]
"""Writes the values of the tensor with this name into a tensor of its shape."""

_BLOCK = 3_999_971
"""The number of normal values that are drawn once. A prime, so that rows begin at other values
wherever a matrix runs over the end."""


class SeededWeights:
    """Probe weights at any size, by name, as fast as memory can be written.

    They are distributed like those of `conformance.hub.weights`. Drawing seven billion values takes
    minutes, so one block is drawn, and copied, scaled, from a start that the seed and the tensor's
    name decide. The block is drawn on the CPU and copied on the device `on`, which then writes
    tensors of its own at the speed of its memory; the values are the same on every device.
    """

    def __init__(
        self,
        shapes: Shapes,
        *,
        seed: int,
        vocabulary: int,
        tied: bool,
        centre: float = 1.0,
        on: torch.device | str = "cpu",
    ) -> None:
        self._shapes = shapes
        self._seed = str(seed)
        self._vocabulary = vocabulary
        self._tied = tied
        self._centre = centre
        self._on = on
        self._scaled: dict[tuple[float, torch.dtype], torch.Tensor] = {}

    def write(self, name: str, out: torch.Tensor) -> None:
        """Fill `out`, of any dtype, with the tensor `name`, rounded to that dtype. It lies on the
        device of these weights."""
        shape = self._shapes[name]
        drawn = distribution(name, shape, vocabulary=self._vocabulary, tied=self._tied)
        generator = torch.Generator().manual_seed(seed_of(self._seed, name))
        if drawn.kind == "norm":
            share = torch.rand(shape, generator=generator)
            out.copy_(share.mul_(2 * NORM_SPREAD).add_(self._centre - NORM_SPREAD))
            return
        start = int(torch.randint(_BLOCK, (), generator=generator))
        own = (1 - SHARED_ROW_SHARE) ** 0.5 if drawn.kind == "rows" else 1.0
        _tile(out.view(-1), self._block(drawn.scale * own, out.dtype), start)
        if drawn.kind == "rows":
            shared = torch.randn(shape[-1], generator=generator) * (
                drawn.scale * SHARED_ROW_SHARE**0.5
            )
            out.add_(shared.to(out))

    @cached_property
    def _normal(self) -> torch.Tensor:
        return torch.randn(_BLOCK, generator=torch.Generator().manual_seed(seed_of(self._seed, "")))

    def _block(self, scale: float, dtype: torch.dtype) -> torch.Tensor:
        if (scale, dtype) not in self._scaled:
            self._scaled[scale, dtype] = (self._normal * scale).to(self._on, dtype)
        return self._scaled[scale, dtype]


def read_from(checkpoint: Mapping[str, torch.Tensor]) -> Write:
    """The tensors of a checkpoint, each rounded to the requested dtype."""

    def write(name: str, out: torch.Tensor) -> None:
        out.copy_(checkpoint[name])

    return write


class OneLayer(Mapping[str, torch.Tensor]):
    """Checkpoint name → tensor in `dtype`, made on request.

    Only the tensors of the layer requested last are kept: the next layer's are written over them,
    so a tensor is valid until another layer's is requested.

    Tensors outside the layers count as one layer.
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
            place = next(
                (place for place, spare in enumerate(self._spare) if spare.shape == shape), None
            )
            # Getting new memory takes longer than writing into it.
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
        """The first tensor in memory, of the module at `path`, that holds NaN or infinity."""
        own = (name for name in self._held if name.startswith(f"{path}."))
        return next(
            (name for name in own if not bool(torch.isfinite(self._held[name]).all())), None
        )


def on_meta(model_class: Any, config: Config, attention: str) -> Any:
    """A model of a parsed `config.json` whose parameters are on the meta device; its buffers are
    real, and float32."""
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
    # Each parameter was replaced by one on the meta device, a tied head by a separate one.
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
    """A whole model of `shapes`, seeded in `dtype` on the device `on`, in `eval()`. The weights are
    made there, one tensor at a time: the device needs no more than the model."""
    llm = on_meta(model_class, config, attention)
    names = architecture_of(config).names
    prefix = prefix_of(llm, architecture_of(config))
    own = {f"{names.head}.weight": f"{names_in(llm, prefix, names).head}.weight"}
    weights = _seeded(config, shapes, seed, on)
    for name, shape in shapes.items():
        tensor = torch.empty(shape, dtype=dtype, device=on)
        weights.write(name, tensor)
        path, _, parameter = (prefix + own.get(name, name)).rpartition(".")
        llm.get_submodule(path).register_parameter(
            parameter, torch.nn.Parameter(tensor, requires_grad=False)
        )
    llm.tie_weights()
    return llm.to(on).eval()


@torch.no_grad()
def write_seeded(llm: Any, prefix: str, config: Config, *, seed: int) -> None:
    """Fill the parameters of `llm`, in their dtype and where they are, with seeded weights.
    `prefix` precedes the checkpoint's names in its own."""
    parameters = {name.removeprefix(prefix): one for name, one in llm.named_parameters()}
    shapes = {name: tuple(one.shape) for name, one in parameters.items()}
    weights = _seeded(config, shapes, seed, next(llm.parameters()).device)
    for name, parameter in parameters.items():
        weights.write(name, parameter)


def _seeded(config: Config, shapes: Shapes, seed: int, on: torch.device) -> SeededWeights:
    vocabulary = int(config["vocab_size"])
    return SeededWeights(
        shapes,
        seed=seed,
        vocabulary=vocabulary,
        tied=has_tied_head(shapes, vocabulary),
        centre=norm_centre(config),
        on=on,
    )


@contextmanager
def _equal_buffers_shared() -> Iterator[None]:
    """Share equal buffers that are registered in the body: older releases give every layer its own
    rotary tables, a gigabyte in all at Mistral's 32,768 positions."""
    register = torch.nn.Module.register_buffer
    seen: list[torch.Tensor] = []

    def register_shared(
        module: torch.nn.Module, name: str, tensor: torch.Tensor | None, *args: Any, **kwargs: Any
    ) -> None:
        if tensor is not None:
            equal = (
                other
                for other in seen
                if other.dtype == tensor.dtype and torch.equal(other, tensor)
            )
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
    """Have the C library return freed memory to the system: tables that were made and dropped leave
    1.7 GiB behind."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # not every C library has it
            ctypes.CDLL(None).malloc_trim(0)


def _tile(out: torch.Tensor, block: torch.Tensor, start: int) -> None:
    """Fill `out`, one-dimensional, with `block` from `start` on, repeatedly."""
    written = 0
    while written < len(out):
        count = min(len(out) - written, len(block) - start)
        out[written : written + count] = block[start : start + count]
        written, start = written + count, 0


def _home_of(name: str) -> str:
    """The layer that a tensor belongs to, such as `model.layers.3`; empty if there is none."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[: number + 1])
